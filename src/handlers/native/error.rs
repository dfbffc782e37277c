//! What goes wrong in a handler, and whose fault it is.

use std::error::Error;

use thiserror::Error;

use crate::event::Position;
use crate::postgres::error::chain;
use crate::postgres::sqlstate::is_infrastructure_error;
use crate::processing::failure::Failure;

/// Whatever a handler cannot go on after. `anyhow::Error` becomes one by `?`, as every error does.
pub type HandlerError = Box<dyn Error + Send + Sync>;

/// An error over a known event: [`crate::handlers::native::Delivery::failed`] makes it.
#[derive(Debug, Error)]
#[error("{source}")]
pub struct EventError {
    /// The event.
    pub event_id: Position,
    /// What went wrong.
    pub source: HandlerError,
}

/// What an error means for the batch.
#[derive(Debug)]
pub(super) enum Classified {
    /// The handler could not handle an event: this one, if it is known.
    Failed { event_id: Option<Position>, failure: Failure },
    /// The database could not do it now; the handler is innocent.
    Infrastructure(sqlx::Error),
}

pub(super) fn classify(error: HandlerError) -> Classified {
    let (event_id, error) = match error.downcast::<EventError>() {
        Ok(known) => (Some(known.event_id), known.source),
        Err(error) => (None, error),
    };
    match error.downcast::<sqlx::Error>() {
        Ok(error) if is_outage(&error) => Classified::Infrastructure(*error),
        Ok(error) => Classified::Failed { event_id, failure: Failure::of_database(&error) },
        Err(error) => match find_database_error(error.as_ref()) {
            Some(inner) if is_outage(inner) => {
                Classified::Infrastructure(sqlx::Error::Io(std::io::Error::other(chain(error.as_ref()))))
            }
            _ => Classified::Failed { event_id, failure: Failure::of_processor(chain(error.as_ref())) },
        },
    }
}

/// Whether the error says something about the database or the connection, and nothing about what was asked for.
fn is_outage(error: &sqlx::Error) -> bool {
    use sqlx::Error as E;
    match error {
        E::Database(_) => is_infrastructure_error(error),
        E::Io(_) | E::Tls(_) | E::Protocol(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed => true,
        _ => false,
    }
}

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
    fn an_error_is_a_handlers_unless_the_database_was_not_there() {
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
