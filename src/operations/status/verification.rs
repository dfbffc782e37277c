//! What was found while a projector's tables are verified slice by slice.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;

use crate::postgres::sqlstate::is_missing_right;
use crate::processing::rebuild::{Unverified, list_unverified, list_verifications};
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

/// Why slices of a projector are not verified, though `[verify]` is declared. The field names are an interface.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct UnverifiedStatus {
    /// Why.
    pub because: String,
    /// Whether it stays so until the declaration of the projector changes.
    pub lasting: bool,
    /// Since when.
    pub since: DateTime<Utc>,
}

/// Of each projector that is not verified, as daemons have found out lately.
pub(super) async fn list_not_verified(
    connection: &mut PgConnection,
    layout: &Layout,
) -> Result<BTreeMap<String, UnverifiedStatus>, sqlx::Error> {
    let rows = match list_unverified(connection, &layout.quoted_schema()).await {
        Err(error) if is_missing_right(&error) => Vec::new(),
        rows => rows?,
    };
    let status = |Unverified { processor, because, lasting, since }| {
        (processor, UnverifiedStatus { because, lasting, since })
    };
    Ok(rows.into_iter().map(status).collect())
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
