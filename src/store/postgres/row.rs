//! Reads a row of the event table as an [`Event`].

use serde_json::value::RawValue;
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::event::Event;

/// The columns that [`event`] reads, in its order. JSON is read as text and not parsed.
pub(super) const COLUMNS: &str = "id, uuid, aggregate_id, type, version, body::text, metadata::text, \
                                  correlation_id, causation_id, created_at";

/// The event in a row of [`COLUMNS`].
pub(super) fn event(row: &PgRow) -> Result<Event, sqlx::Error> {
    Ok(Event {
        id: row.try_get(0)?,
        uuid: row.try_get(1)?,
        aggregate_id: row.try_get(2)?,
        event_type: row.try_get(3)?,
        version: row.try_get(4)?,
        body: json(row, 5)?,
        metadata: json(row, 6)?,
        correlation_id: row.try_get(7)?,
        causation_id: row.try_get(8)?,
        created_at: row.try_get(9)?,
    })
}

fn json(row: &PgRow, column: usize) -> Result<Box<RawValue>, sqlx::Error> {
    let text: String = row.try_get(column)?;
    RawValue::from_string(text).map_err(|source| sqlx::Error::Decode(source.into()))
}
