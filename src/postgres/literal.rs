//! This module writes values into statements of the simple protocol, which have no parameters, and reads the one row that
//! such a statement returns.

use std::time::Duration;

use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgExecutor};

use crate::postgres::quote::quote_literal;

/// Writes a value as a quoted literal of JSON text, to be cast to `json` or `jsonb`.
pub(crate) fn json_literal(value: &impl Serialize) -> Result<String, sqlx::Error> {
    let text = serde_json::to_string(value).map_err(|error| sqlx::Error::Encode(error.into()))?;
    Ok(quote_literal(&text))
}

/// Writes a duration as a literal of type `interval`. A duration over a thousand years is cut.
pub(crate) fn interval(duration: Duration) -> String {
    const LONGEST: u128 = 1_000 * 365 * 86_400 * 1_000_000;
    format!("'{} microseconds'::interval", duration.as_micros().min(LONGEST))
}

/// Runs a statement in the simple protocol, and returns its first row, if there is one.
pub(crate) async fn fetch_optional<T>(
    connection: impl PgExecutor<'_>,
    statement: String,
) -> Result<Option<T>, sqlx::Error>
where
    T: for<'r> FromRow<'r, PgRow>,
{
    let row = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_optional(connection).await?;
    row.map(|row| T::from_row(&row)).transpose()
}
