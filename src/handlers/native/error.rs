//! Errors of handlers, and whether an event is to blame for one.

use std::error::Error;

use thiserror::Error;

use crate::event::Position;
use crate::handlers::batch::failed_before;
use crate::postgres::error::chain;
use crate::postgres::sqlstate::is_infrastructure_error;
use crate::processing::failure::Failure;

/// Any error that keeps a handler from handling an event. The operator `?` converts every error, `anyhow::Error` included.
pub type HandlerError = Box<dyn Error + Send + Sync>;

/// An error that names the event that could not be handled. Made by [`Delivery::failed`](super::Delivery::failed).
#[derive(Debug, Error)]
#[error("{source}")]
pub struct EventError {
    /// The position of the event.
    pub event_id: Position,
    /// Why it could not be handled.
    pub source: HandlerError,
}

/// Whether an error counts against an event.
#[expect(clippy::large_enum_variant, reason = "it is made and looked at once")]
#[derive(Debug)]
pub(super) enum Classified {
    /// The handler could not handle an event. Which one is known if the error names it.
    Failed { event_id: Option<Position>, failure: Failure },
    /// The database could not do it at the moment. No event is to blame.
    Infrastructure(sqlx::Error),
}

/// Decides whether an error of a handler counts against an event.
pub(super) fn classify(error: HandlerError) -> Classified {
    let (event_id, error) = match error.downcast::<EventError>() {
        Ok(known) => (Some(known.event_id), known.source),
        Err(error) => (None, error),
    };
    match error.downcast::<sqlx::Error>() {
        Ok(error) if is_outage(&error) => Classified::Infrastructure(*error),
        Ok(error) => Classified::Failed { event_id, failure: explain(Failure::of_database(&error)) },
        Err(error) => match find_database_error(error.as_ref()) {
            Some(inner) if is_outage(inner) => {
                Classified::Infrastructure(sqlx::Error::Io(std::io::Error::other(chain(error.as_ref()))))
            }
            inner => {
                let sqlstate = inner.and_then(|inner| Failure::of_database(inner).sqlstate);
                let failure = Failure { sqlstate, ..Failure::of_processor(chain(error.as_ref())) };
                Classified::Failed { event_id, failure: explain(failure) }
            }
        },
    }
}

/// Says what PostgreSQL does not: that the handler has gone on after an earlier statement had failed.
fn explain(failure: Failure) -> Failure {
    if failure.sqlstate.as_deref() == Some("25P02") { failed_before() } else { failure }
}

/// Whether the error is about the state of the database or the connection, and not about the statement.
fn is_outage(error: &sqlx::Error) -> bool {
    use sqlx::Error as E;
    match error {
        E::Database(_) => is_infrastructure_error(error),
        E::Io(_) | E::Tls(_) | E::Protocol(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed => true,
        _ => false,
    }
}

/// The error of sqlx among the causes of an error, if there is one.
fn find_database_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e sqlx::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_counts_unless_the_database_was_unavailable() {
        let failed = |error: HandlerError| matches!(classify(error), Classified::Failed { .. });
        assert!(failed("no such customer".into()));
        assert!(failed(Box::new(sqlx::Error::RowNotFound)));
        assert!(!failed(Box::new(sqlx::Error::PoolTimedOut)));
        let wrapped = EventError { event_id: 7.into(), source: Box::new(sqlx::Error::PoolTimedOut) };
        assert!(!failed(Box::new(wrapped)));
        let known = EventError { event_id: 7.into(), source: "no".into() };
        assert!(
            matches!(classify(Box::new(known)), Classified::Failed { event_id: Some(id), .. } if id == 7)
        );
    }
}
