//! There are two kinds of processors.

use serde::{Deserialize, Serialize};

/// What a processor does with the events that it handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessorKind {
    /// Writes tables.
    Projector,
    /// Acts, and may emit events.
    Reactor,
}

impl ProcessorKind {
    /// The word for it: `projector` or `reactor`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Projector => "projector",
            Self::Reactor => "reactor",
        }
    }
}
