//! The settled horizon: the largest id at or below which no event can appear any more.
//!
//! Ids are drawn before commit and become visible out of order, so a reader that follows
//! `id > position` loses events. A reader may read up to the horizon, and no further. Writers need not do anything for
//! it: `nextval` locks the sequence before it draws an id, and an `INSERT` or `COPY` the table before that; the locks are held
//! until the transaction ends, and PostgreSQL makes a transaction visible before it releases its locks.
//!
//! One observation is two reads, **in this order**:
//!
//! 1. `last_value`, the last id drawn;
//! 2. the writers: who holds the lock that every insert takes on the table, or the one that `nextval` takes on the sequence.
//!
//! A writer that is missing from an observation had ended before it, or has not yet locked and will
//! draw ids above its `last_value` only. So a writer that appears for the first time has only ids
//! above the `last_value` of the observation before: that is its *floor*. Everything at or below the
//! lowest floor is settled; without writers, everything at or below the latest `last_value` is.
//! Events must then be read in a snapshot that is newer than the observation.
//!
//! [`Rule`] is this rule alone: it neither reads nor waits. [`Observer`] reads, and
//! [`crate::store::watcher`] repeats it. The argument in full, and the experiment, are in
//! `docs/ordering.md`; `horizon/explorer.rs` tries every interleaving of small cases.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use crate::event::Position;

mod durability;
#[cfg(test)]
mod explorer;
mod holder;
mod locks;
mod observe_error;
mod observer;
mod rule;
mod writer;

pub(crate) use holder::Holder;
pub(crate) use locks::StructureVersion;
pub(crate) use observe_error::ObserveError;
pub use observer::{Observer, observe_once};
pub use rule::Rule;
pub(crate) use writer::VirtualTransaction;
pub use writer::Writer;

/// What is known of the order of events at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Horizon {
    /// Last id drawn by the store; 0 in an empty one.
    pub head: Position,
    /// Largest id at or below which no event can appear any more. 0 while that is not known: before
    /// the first observation, and from the loss of the connection to the next observation. Only then
    /// does it go back.
    pub settled: Position,
    /// The writers that have held `settled` below `head` for long, longest first; empty if none has.
    pub held_by: Vec<Holder>,
    /// Since when the longest holder has been seen, on this process' clock.
    pub held_since: Option<Instant>,
    /// Why the store cannot be read safely, and how to repair that. `settled` is 0 then.
    pub unmet: Option<Arc<str>>,
}

/// Waits until events after `position` are settled and returns the horizon; at once if they are.
///
/// `None` when the watcher has ended: nothing will settle any more.
pub async fn wait_beyond(horizon: &mut watch::Receiver<Horizon>, position: Position) -> Option<Position> {
    let beyond = horizon.wait_for(|horizon| horizon.settled > position).await;
    beyond.ok().map(|horizon| horizon.settled)
}
