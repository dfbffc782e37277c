//! Deleting an aggregate for good. `migrations/event_store/0011_audit.sql` has the rules.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgExecutor};
use std::collections::BTreeMap;
use thiserror::Error;
use uuid::Uuid;

use super::PostgresEventStore;
use crate::event::{Position, Version};
use crate::postgres::row::from_row;
use crate::store::layout::Layout;

/// The record of a deletion, as the table `deleted_aggregates` keeps it. Nothing of the contents is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeletedAggregate {
    /// Number of the record.
    pub id: i64,
    /// The aggregate.
    pub aggregate_id: Uuid,
    /// When it was deleted.
    pub deleted_at: DateTime<Utc>,
    /// Who has deleted it, by the name that was given.
    pub deleted_by: String,
    /// The login that was connected.
    pub login: String,
    /// Why.
    pub why: String,
    /// How many events it had.
    pub event_count: i64,
    /// How many there were of each type.
    pub types: Json<BTreeMap<String, i64>>,
    /// The position of the first event.
    pub first_id: Position,
    /// The position of the last event.
    pub last_id: Position,
    /// The version that the aggregate had.
    pub last_version: Version,
    /// What went with the events: rows of other tables of espd, by table.
    pub removed: Json<BTreeMap<String, i64>>,
}

from_row!(DeletedAggregate {
    id,
    aggregate_id,
    deleted_at,
    deleted_by,
    login,
    why,
    event_count,
    types,
    first_id,
    last_id,
    last_version,
    removed,
});

/// Why nothing was deleted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DeletionError {
    /// espd only reads a store of this layout.
    #[error("the store belongs to another framework: delete in its own way")]
    ReadOnly,
    /// There is no reason, or nobody who deletes.
    #[error("a deletion has somebody who does it, and a reason")]
    Unfounded,
    /// The database refused, or could not be reached.
    #[error("failed to delete the aggregate")]
    Database(#[from] sqlx::Error),
}

impl PostgresEventStore {
    /// Deletes all events of an aggregate for good, and records who has done it and why. `None`: there was no event.
    ///
    /// What espd keeps of the events goes as well, in the same transaction; what projections and receivers have does not:
    /// `docs/audit.md`. The role needs the right to execute `delete_aggregate`, as `espd_operator` has. An event that is appended
    /// to the aggregate afterwards has version 1; one that is appended meanwhile stays, so look again.
    ///
    /// # Errors
    /// [`DeletionError`]. Where the database has refused, nothing was deleted.
    pub async fn delete_aggregate(
        &self,
        aggregate_id: Uuid,
        deleted_by: &str,
        why: &str,
    ) -> Result<Option<DeletedAggregate>, DeletionError> {
        delete_aggregate_on(&self.pool, &self.layout, aggregate_id, deleted_by, why).await
    }
}

/// As [`PostgresEventStore::delete_aggregate`], on a connection of the caller.
pub(crate) async fn delete_aggregate_on(
    connection: impl PgExecutor<'_>,
    layout: &Layout,
    aggregate_id: Uuid,
    deleted_by: &str,
    why: &str,
) -> Result<Option<DeletedAggregate>, DeletionError> {
    if layout.append.is_none() {
        return Err(DeletionError::ReadOnly);
    }
    if deleted_by.is_empty() || why.is_empty() {
        return Err(DeletionError::Unfounded);
    }
    let statement = format!(
        "-- delete_aggregate
         select d.* from {}.delete_aggregate($1, $2, $3) as d where d.id is not null",
        layout.quoted_schema()
    );
    let query = sqlx::query_as(AssertSqlSafe(statement)).bind(aggregate_id).bind(deleted_by).bind(why);
    Ok(query.persistent(false).fetch_optional(connection).await?)
}
