//! Commands that applications have recorded: which there are, and removing old ones.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::postgres::row::from_row;
use crate::store::layout::Layout;

/// A command, and what has become of it.
#[derive(Debug, Serialize)]
pub(crate) struct RecordedCommand {
    /// When it was recorded.
    pub at: DateTime<Utc>,
    /// Its id.
    pub command_id: Uuid,
    /// What it is called.
    pub name: String,
    /// The aggregate that has decided.
    pub aggregate_id: String,
    /// `executed` or `refused`.
    pub outcome: String,
    /// What its sender was answered.
    pub answer: Json<Value>,
    /// Its fields, without secrets.
    pub body: Json<Value>,
    /// What it was sent with: who it was, for example.
    pub metadata: Json<Value>,
}

from_row!(RecordedCommand { at, command_id, name, aggregate_id, outcome, answer, body, metadata });

/// Which commands are meant.
#[derive(Debug, Default)]
pub(crate) struct CommandSelection {
    pub name: Option<String>,
    pub aggregate_id: Option<String>,
    pub outcome: Option<String>,
    pub since: Option<DateTime<Utc>>,
    /// What the metadata has.
    pub metadata: Map<String, Value>,
    pub limit: i64,
}

/// The table, if the layout has one.
///
/// # Errors
/// espd only reads the store, and has no table there.
fn table(layout: &Layout) -> anyhow::Result<&str> {
    match &layout.append {
        Some(append) => Ok(&append.commands),
        None => anyhow::bail!("espd only reads a store of this layout, and keeps no commands there"),
    }
}

/// Lists commands, the newest first.
pub(crate) async fn list(
    events: &PgPool,
    layout: &Layout,
    selection: &CommandSelection,
) -> anyhow::Result<Vec<RecordedCommand>> {
    let statement = format!(
        "-- list_commands
        select at, command_id, name, aggregate_id, outcome, answer, body, metadata
        from {}
        where ($1::text is null or name = $1) and ($2::text is null or aggregate_id = $2)
          and ($3::text is null or outcome = $3) and ($4::timestamptz is null or at >= $4)
          and metadata @> $5
        order by at desc, command_id
        limit $6",
        table(layout)?
    );
    let query = sqlx::query_as(AssertSqlSafe(statement))
        .persistent(false)
        .bind(&selection.name)
        .bind(&selection.aggregate_id)
        .bind(&selection.outcome)
        .bind(selection.since)
        .bind(Json(&selection.metadata))
        .bind(selection.limit);
    Ok(query.fetch_all(events).await?)
}

/// Removes the commands that were recorded before a time, and returns how many there were.
pub(crate) async fn prune(events: &PgPool, layout: &Layout, before: DateTime<Utc>) -> anyhow::Result<u64> {
    let statement = format!(
        "-- prune_commands
        delete from {} where at < $1",
        table(layout)?
    );
    let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
    Ok(query.bind(before).execute(events).await?.rows_affected())
}
