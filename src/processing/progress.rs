//! How far a processor has come with a batch, as its tracker and its runner are told.

use std::time::Instant;

use crate::event::Position;
use crate::processing::failure::Failure;

/// An event that waits for another attempt while others go on.
#[derive(Debug, Clone, PartialEq)]
pub struct PendingRetry {
    /// Why the event could not be handled.
    pub failure: Failure,
    /// How often the event has been tried.
    pub attempts: u32,
    /// When the event is tried again; `None`: not before an operator acts.
    pub until: Option<Instant>,
}

/// What one batch has changed about the progress of its processor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress<'p> {
    /// Every event at or below this position has been handled.
    pub(crate) position: Position,
    /// How many events the batch has handled.
    pub(crate) handled: i32,
    /// Whether the first event after the position has failed.
    pub(crate) failing: bool,
    /// The first event that waits for another attempt while others go on, if one does.
    pub(crate) pending_retry: Option<&'p PendingRetry>,
}

impl Progress<'_> {
    /// Whether the batch has met no event, so that nothing depends on it.
    pub(crate) fn is_idle(&self) -> bool {
        self.handled == 0 && !self.failing && self.pending_retry.is_none()
    }
}
