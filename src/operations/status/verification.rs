//! What was found while a projector's tables are verified slice by slice.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;

use crate::postgres::sqlstate::is_missing_right;
use crate::processing::rebuild::list_verifications;
use crate::store::layout::Layout;

/// The last slices. The field names are an interface: `espctl status --json` prints them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct VerificationStatus {
    /// The version that was verified.
    pub version: i32,
    /// When the last slice was.
    pub verified_at: DateTime<Utc>,
    /// How many aggregates it had.
    pub aggregates: i64,
    /// How many rows of them were compared.
    pub rows: i64,
    /// How many rows differed in the last slice in which any did; 0 once a whole round has found none.
    pub differing_rows: i64,
    /// When that was.
    pub found_at: Option<DateTime<Utc>>,
    /// Some of their keys.
    pub found: Option<Value>,
}

/// Of each projector that was verified so.
pub(super) async fn list(
    connection: &mut PgConnection,
    layout: &Layout,
) -> Result<BTreeMap<String, VerificationStatus>, sqlx::Error> {
    let rows = match list_verifications(connection, &layout.quoted_schema()).await {
        // A role of before need not see these.
        Err(error) if is_missing_right(&error) => Vec::new(),
        rows => rows?,
    };
    let status = |row: crate::processing::rebuild::Verification| {
        let status = VerificationStatus {
            version: row.version,
            verified_at: row.verified_at,
            aggregates: row.aggregates,
            rows: row.compared_rows,
            differing_rows: row.differing_rows,
            found_at: row.found_at,
            found: row.found.map(|found| found.0),
        };
        (row.processor, status)
    };
    Ok(rows.into_iter().map(status).collect())
}
