//! Events as they are in a row.

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use crate::event::{AggregateId, Event};

/// The columns that [`event`] reads.
macro_rules! columns {
    () => {
        "id, uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at"
    };
}
pub(super) use columns;

pub(super) fn event(row: &SqliteRow) -> Result<Event, sqlx::Error> {
    let aggregate_id: String = row.try_get("aggregate_id")?;
    let aggregate_id: AggregateId = aggregate_id.parse().map_err(|error| of_column("aggregate_id", error))?;
    Ok(Event {
        id: row.try_get::<i64, _>("id")?.into(),
        uuid: uuid(row, "uuid")?.ok_or(sqlx::Error::RowNotFound)?,
        aggregate_id,
        event_type: row.try_get("type")?,
        version: row.try_get::<i64, _>("version")?.into(),
        body: json(row, "body")?,
        metadata: json(row, "metadata")?,
        correlation_id: uuid(row, "correlation_id")?,
        causation_id: uuid(row, "causation_id")?,
        created_at: time(row, "created_at")?.into(),
    })
}

pub(crate) fn uuid(row: &SqliteRow, column: &'static str) -> Result<Option<Uuid>, sqlx::Error> {
    let text: Option<String> = row.try_get(column)?;
    text.map(|text| text.parse().map_err(|error| of_column(column, error))).transpose()
}

pub(crate) fn json(row: &SqliteRow, column: &'static str) -> Result<Box<RawValue>, sqlx::Error> {
    RawValue::from_string(row.try_get(column)?).map_err(|error| of_column(column, error))
}

pub(crate) fn time(row: &SqliteRow, column: &'static str) -> Result<DateTime<Utc>, sqlx::Error> {
    let micros: i64 = row.try_get(column)?;
    let out_of_range = || of_column(column, "the time is out of range");
    DateTime::from_timestamp_micros(micros).ok_or_else(out_of_range)
}

fn of_column(
    column: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: source.into() }
}
