//! What waits for a later time, as applications are told.

use crate::event::StoredTime;

/// An event that a reactor has emitted for a later time.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaterEmission {
    /// The reactor that has emitted it.
    pub reactor: String,
    /// The type of the event.
    pub event_type: String,
    /// The aggregate that the event will belong to.
    pub aggregate_id: String,
    /// Names it among those of its reactor.
    pub key: Option<String>,
    /// When it is due.
    pub due_at: StoredTime,
}
