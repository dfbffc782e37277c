//! The batch as an argument, for projections that live in another database than the events.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use sqlx::postgres::{PgArguments, Postgres};
use sqlx::query::QueryAs;

use crate::declaration::BatchLimits;
use crate::event::{Event, Position};
use crate::event_store::{EventStore as _, PostgresEventStore, ReadError};
use crate::processor::ProcessorError;

/// Arrays that a batch is passed as.
pub(crate) const ARRAYS: usize = 10;

/// The places of those that travel as the text of their JSON.
const JSON_ARRAYS: [usize; 2] = [6, 7];

/// Events read at a time. Small, because a page is in memory whatever its events weigh.
const PAGE_EVENTS: i64 = 64;

/// How long the database of the events may take over a page, before it counts as gone.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// Events of one batch, in order.
#[derive(Debug)]
pub(crate) struct Batch {
    events: Vec<Event>,
    /// Where the position moves to when all of them are handled.
    pub(crate) upto: Position,
}

impl Batch {
    /// Reads the events after `position` until a limit is reached; at least one, if there is one.
    pub(crate) async fn read(
        store: &PostgresEventStore,
        types: Option<BTreeSet<&str>>,
        position: Position,
        upto: Position,
        limits: &BatchLimits,
    ) -> Result<Self, ProcessorError> {
        let types: Option<Vec<String>> = types.map(|types| types.into_iter().map(str::to_owned).collect());
        let mut batch = Self { events: Vec::new(), upto };
        let (mut after, mut bytes) = (position, 0);
        loop {
            let wanted = PAGE_EVENTS.min(limits.size - batch.length());
            let reading = store.read_after(after, Some(upto), types.as_deref(), wanted);
            let page = tokio::time::timeout(PAGE_TIMEOUT, reading).await.map_err(|_| timed_out())?;
            let page = page.map_err(database)?;
            let last_page = (page.len() as i64) < wanted;
            for event in page {
                after = event.id;
                bytes += (event.body.get().len() + event.metadata.get().len()) as i64;
                batch.events.push(event);
                if bytes >= limits.bytes || batch.length() >= limits.size {
                    batch.upto = after;
                    return Ok(batch);
                }
            }
            if last_page {
                return Ok(batch);
            }
        }
    }

    fn length(&self) -> i64 {
        self.events.len() as i64
    }

    /// The function's parameter at this place, from 1, as the statement has to name it.
    pub(crate) fn parameter(place: usize) -> String {
        if JSON_ARRAYS.contains(&place) { format!("${place}::jsonb[]") } else { format!("${place}") }
    }

    /// Binds the arrays in the order of the function's parameters.
    pub(crate) fn bind<'q, O>(
        self,
        query: QueryAs<'q, Postgres, O, PgArguments>,
    ) -> QueryAs<'q, Postgres, O, PgArguments> {
        let column = |value: fn(&Event) -> String| self.events.iter().map(value).collect::<Vec<_>>();
        query
            .bind(self.events.iter().map(|event| event.id).collect::<Vec<_>>())
            .bind(self.events.iter().map(|event| event.uuid).collect::<Vec<_>>())
            .bind(self.events.iter().map(|event| event.aggregate_id).collect::<Vec<_>>())
            .bind(column(|event| event.event_type.clone()))
            .bind(self.events.iter().map(|event| event.version).collect::<Vec<_>>())
            .bind(column(|event| event.body.get().to_owned()))
            .bind(column(|event| event.metadata.get().to_owned()))
            .bind(self.events.iter().map(|event| event.correlation_id).collect::<Vec<_>>())
            .bind(self.events.iter().map(|event| event.causation_id).collect::<Vec<_>>())
            .bind(self.events.iter().map(|event| event.created_at).collect::<Vec<_>>())
    }
}

fn database(error: ReadError) -> ProcessorError {
    match error {
        ReadError::Database(error) => ProcessorError::Database(error),
    }
}

fn timed_out() -> ProcessorError {
    let message = "the database of the events does not answer";
    ProcessorError::Database(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, message)))
}
