//! The closures that a program registers as hooks.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use super::facts::{ProcessorFailure, SetAsideEvents, StoreDivergence, WorkerEnd, WorkerFacts};

/// What a program has registered; each is called with the facts.
#[derive(Clone, Default)]
pub(crate) struct HookClosures {
    /// Called in each worker, before anything else.
    pub(crate) on_worker_start: Option<Fallible<WorkerFacts>>,
    /// Called in the daemon when a worker has ended.
    pub(crate) on_worker_end: Option<Infallible<WorkerEnd>>,
    /// Called in the daemon when a processor has failed.
    pub(crate) on_failure: Option<Infallible<ProcessorFailure>>,
    /// Called in the daemon when a processor has set events aside.
    pub(crate) on_dead_letter: Option<Infallible<SetAsideEvents>>,
    /// Called in the daemon when a processor has stopped because the store is not the one that it followed.
    pub(crate) on_diverged: Option<Infallible<StoreDivergence>>,
}

/// A closure whose failure has a consequence.
pub(crate) type Fallible<F> = Arc<dyn Fn(&F) -> Result<(), Box<dyn Error + Send + Sync>> + Send + Sync>;

/// A closure whose failure has none.
pub(crate) type Infallible<F> = Arc<dyn Fn(&F) + Send + Sync>;

impl fmt::Debug for HookClosures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HookClosures").finish_non_exhaustive()
    }
}
