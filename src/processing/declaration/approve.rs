//! When a version that was built beside the serving one goes live by itself.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Who has to agree before a version that a daemon has built goes live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Approve {
    /// Nobody, where all rows are what the serving version says, as far as they can be compared; an operator otherwise.
    #[default]
    WhenVerified,
    /// An operator, in any case.
    Manual,
    /// Nobody, whatever differs.
    Always,
}

/// As the configuration has it.
impl fmt::Display for Approve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WhenVerified => "when-verified",
            Self::Manual => "manual",
            Self::Always => "always",
        })
    }
}
