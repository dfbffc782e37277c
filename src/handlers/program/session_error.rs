//! Why a program did not handle a whole batch.

use super::lines::LineError;
use super::process::ProcessError;
use crate::processing::failure::Failure;

/// Why a batch ended before all of its events were handled, or did not end as it should.
#[derive(Debug)]
pub(super) enum SessionError {
    /// The program answered `failed` for the next event.
    GaveUp { error: String, detail: Option<String> },
    /// What the program wants for the next event cannot be done.
    Refused(Box<Failure>),
    /// The program violated the protocol at the next event.
    Violation(String),
    /// The process has ended or is silent. It may have kept back answers to events before the one that it was handling.
    Broken(String),
}

impl From<ProcessError> for SessionError {
    fn from(error: ProcessError) -> Self {
        match error {
            ProcessError::Line(LineError::TooLong | LineError::NotText(_)) => {
                Self::Violation(error.to_string())
            }
            _ => Self::Broken(error.to_string()),
        }
    }
}
