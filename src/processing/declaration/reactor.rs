//! A reactor declares what it may emit.

use serde::{Deserialize, Serialize};

/// What a reactor declares in addition to what every processor declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReactorDeclaration {
    /// The event types that the reactor may emit, in the order of the configuration file, none twice.
    pub emits: Vec<String>,
    /// How many emitted events may lead to one another, at least 1. The limit stops reactors that answer each other without
    /// end.
    pub chain_max: u32,
}

impl Default for ReactorDeclaration {
    /// The reactor emits nothing, and allows chains of 100 events.
    fn default() -> Self {
        Self { emits: Vec::new(), chain_max: 100 }
    }
}
