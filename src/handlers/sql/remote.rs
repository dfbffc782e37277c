//! The batch as an argument, for projections that live in another database than the events.

use sqlx::postgres::{PgArguments, Postgres};
use sqlx::query::QueryAs;

use crate::event::Event;
use crate::processing::processor::Batch;

/// Arrays that a batch is passed as.
pub(super) const ARRAYS: usize = 10;

/// The places of those that travel as the text of their JSON.
const JSON_ARRAYS: [usize; 2] = [6, 7];

/// The function's parameter at this place, from 1, as the statement has to name it.
pub(super) fn parameter(place: usize) -> String {
    if JSON_ARRAYS.contains(&place) { format!("${place}::jsonb[]") } else { format!("${place}") }
}

/// Binds the arrays in the order of the function's parameters.
pub(super) fn bind<'q, O>(
    batch: &Batch,
    query: QueryAs<'q, Postgres, O, PgArguments>,
) -> QueryAs<'q, Postgres, O, PgArguments> {
    let column = |value: fn(&Event) -> String| batch.events.iter().map(value).collect::<Vec<_>>();
    query
        .bind(batch.events.iter().map(|event| event.id).collect::<Vec<_>>())
        .bind(batch.events.iter().map(|event| event.uuid).collect::<Vec<_>>())
        .bind(batch.events.iter().map(|event| event.aggregate_id.as_uuid()).collect::<Vec<_>>())
        .bind(column(|event| event.event_type.clone()))
        .bind(batch.events.iter().map(|event| event.version).collect::<Vec<_>>())
        .bind(column(|event| event.body.get().to_owned()))
        .bind(column(|event| event.metadata.get().to_owned()))
        .bind(batch.events.iter().map(|event| event.correlation_id).collect::<Vec<_>>())
        .bind(batch.events.iter().map(|event| event.causation_id).collect::<Vec<_>>())
        .bind(batch.events.iter().map(|event| event.created_at).collect::<Vec<_>>())
}
