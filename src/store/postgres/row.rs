//! Reads a row of the event table as an [`Event`].

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::event::Event;

/// The columns that [`event`] reads, in its order. JSON is read as text and not parsed.
pub(super) const COLUMNS: &str = "id, uuid, aggregate_id, type, version, body::text, metadata::text, \
                                  correlation_id, causation_id, created_at";

/// Where PostgreSQL's time begins: 1 January 2000, in microseconds since 1970.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

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
        created_at: time(row, 9)?,
    })
}

fn json(row: &PgRow, column: usize) -> Result<Box<RawValue>, sqlx::Error> {
    let text: String = row.try_get(column)?;
    RawValue::from_string(text).map_err(|source| sqlx::Error::Decode(source.into()))
}

/// A point in time, to the microsecond. Other writers may store `infinity` and years that chrono does not have;
/// they become the last or first moment of chrono. The driver's own decoding would panic.
fn time(row: &PgRow, column: usize) -> Result<DateTime<Utc>, sqlx::Error> {
    let value = row.try_get_raw(column)?;
    let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
    let micros = i64::from_be_bytes(bytes.try_into().map_err(|_| not_a_time(bytes))?);
    let bound = if micros < 0 { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC };
    Ok(micros.checked_add(EPOCH_MICROS).and_then(DateTime::from_timestamp_micros).unwrap_or(bound))
}

fn not_a_time(bytes: &[u8]) -> sqlx::Error {
    sqlx::Error::Decode(format!("a timestamp of {} bytes", bytes.len()).into())
}
