//! What a processor is doing, in one word.

use serde::{Deserialize, Serialize};

/// What a processor is doing, as far as its supervisor has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// It has not claimed its tracker yet.
    Starting,
    /// Another daemon owns its tracker.
    StandingBy,
    /// It handles events as they come.
    Following,
    /// An operator has paused it.
    Paused,
    /// An event fails and is tried again.
    Retrying,
    /// Something that its handlers need is not there.
    Waiting,
    /// It waits for an operator to fix what it cannot.
    Failed,
    /// It waits for an operator, because the event store is not the one that it has followed.
    Diverged,
}
