//! A processor is either a projector or a reactor.

use serde::{Deserialize, Serialize};

/// What a processor does with the events that it handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessorKind {
    /// A projector writes tables.
    Projector,
    /// A reactor acts, and may emit events.
    Reactor,
}

impl ProcessorKind {
    /// Returns `projector` or `reactor`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Projector => "projector",
            Self::Reactor => "reactor",
        }
    }
}
