//! What keeps processors from being run, or from going on.

use std::error::Error;

use thiserror::Error;

use crate::processing::failure::{FailedEvent, Failure};

/// Why processors could not be started or drained.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LocalError {
    /// Some cannot be run here as they are declared. Each has a line, with what to do.
    #[error("{}", faults.join("\n"))]
    Unfit {
        /// What is wrong with each of them.
        faults: Vec<String>,
    },
    /// A processor could not handle an event. Its position is before that event, which the next drain tries again; the other
    /// processors have gone on.
    #[error("{processor}: {}{reason}", place(event.as_ref()))]
    Failed {
        /// The processor.
        processor: String,
        /// The event; `None`: no single one can be named.
        event: Option<FailedEvent>,
        /// What the handler, or the store, says.
        reason: String,
    },
    /// The store could not be read or written.
    #[error("the event store does not work")]
    Store(#[source] Box<dyn Error + Send + Sync>),
}

impl LocalError {
    pub(super) fn failed(processor: &str, failure: Failure) -> Self {
        Self::Failed { processor: processor.to_owned(), event: failure.event, reason: failure.message }
    }
}

impl From<sqlx::Error> for LocalError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl From<crate::store::ReadError> for LocalError {
    fn from(error: crate::store::ReadError) -> Self {
        Self::Store(error.into())
    }
}

fn place(event: Option<&FailedEvent>) -> String {
    event.map_or_else(String::new, |event| format!("event {} ({}): ", event.id, event.event_type))
}
