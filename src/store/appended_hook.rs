//! The closure of an application that is called with what a store has appended.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::event::Event;

/// What is called after an append, if anything is.
#[derive(Clone, Default)]
pub(super) struct AppendedHook(Option<AppendedClosure>);

/// A closure that is called with what was appended.
pub(crate) type AppendedClosure = Arc<dyn Fn(&[Event]) + Send + Sync>;

impl AppendedHook {
    pub(super) fn new(hook: impl Fn(&[Event]) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// Calls the closure. The events are stored, so its panic is no failure of the append.
    pub(super) fn call(&self, events: &[Event]) {
        let Some(hook) = &self.0 else { return };
        if catch_unwind(AssertUnwindSafe(|| hook(events))).is_err() {
            tracing::error!(events = events.len(), "on_appended has panicked; the events are stored");
        }
    }
}

impl fmt::Debug for AppendedHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AppendedHook").field(&self.is_set()).finish()
    }
}
