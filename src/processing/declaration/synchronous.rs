//! Whether a projector handles events when they are inserted.

use std::fmt;

use serde::{Deserialize, Serialize};

/// In which order the handlers of a synchronous projector run, which is in the transactions that insert the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Synchronous {
    /// Appends do not wait for one another. The events of an aggregate are handled in their order.
    AggregateOrder,
    /// Appends take turns, so that events are handled in the order of their ids.
    TotalOrder,
}

impl Synchronous {
    /// The word that the configuration and the tracker have for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AggregateOrder => "aggregate_order",
            Self::TotalOrder => "total_order",
        }
    }
}

impl fmt::Display for Synchronous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
