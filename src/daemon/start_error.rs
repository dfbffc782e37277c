//! Why what a program has registered cannot be used.

use thiserror::Error;

use crate::postgres::error::chain;

/// Why processors could not be started, or did not end in time. It may have several lines.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct StartError(String);

impl StartError {
    pub(super) fn of(error: &anyhow::Error) -> Self {
        Self(chain(&**error))
    }

    pub(super) fn of_faults(faults: &[String]) -> Self {
        Self(faults.join("\n"))
    }
}
