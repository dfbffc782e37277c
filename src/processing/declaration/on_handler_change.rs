//! What happens when a processor has other handlers than those that have made its rows.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a new owner does whose handlers are not those of the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnHandlerChange {
    /// Continue and say so. The rows of earlier events stay as the other handlers have made them.
    #[default]
    Warn,
    /// Drop the tables and handle all events again. For projectors only.
    Rebuild,
    /// Stop until an operator acts.
    Refuse,
}

/// As the configuration has it.
impl fmt::Display for OnHandlerChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warn => "warn",
            Self::Rebuild => "rebuild",
            Self::Refuse => "refuse",
        })
    }
}
