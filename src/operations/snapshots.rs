//! Snapshots of aggregates: which there are, and removing them.

use serde::Serialize;
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::event::StoredTime;
use crate::postgres::row::from_row;
use crate::store::layout::Layout;

/// The snapshots of one fold.
#[derive(Debug, Serialize)]
pub(crate) struct SnapshotGroup {
    /// What the state is called.
    pub name: String,
    /// The number of the format.
    pub format: i64,
    /// A hash of the types of events that it is folded from.
    pub event_types: i64,
    /// How many aggregates have one.
    pub snapshots: i64,
    /// How many of them can be used no more, because the event that they were folded up to is gone.
    pub outdated: i64,
    /// What the states take, in bytes, as they are stored.
    pub bytes: i64,
    /// When the oldest was taken.
    pub oldest: StoredTime,
    /// When the newest was taken.
    pub newest: StoredTime,
}

from_row!(SnapshotGroup { name, format, event_types, snapshots, outdated, bytes, oldest, newest });

/// Which snapshots are meant.
#[derive(Debug, Default)]
pub(crate) struct SnapshotSelection {
    pub name: Option<String>,
    pub format: Option<i64>,
    pub aggregate_id: Option<Uuid>,
}

/// The table, if the layout has one.
///
/// # Errors
/// espd only reads the store, and has no table there.
fn table(layout: &Layout) -> anyhow::Result<&str> {
    match &layout.append {
        Some(append) => Ok(&append.snapshots),
        None => anyhow::bail!("espd only reads a store of this layout, and keeps no snapshots there"),
    }
}

/// Lists the snapshots, grouped by fold.
pub(crate) async fn list(events: &PgPool, layout: &Layout) -> anyhow::Result<Vec<SnapshotGroup>> {
    let (snapshots, table_of_events) = (table(layout)?, layout.events_table());
    let statement = format!(
        "-- list_snapshots
        select s.name, s.format, s.event_types, count(*) as snapshots, count(*) filter (where e.id is null) as outdated,
          sum(pg_column_size(s.state))::bigint as bytes, min(s.taken_at) as oldest, max(s.taken_at) as newest
        from {snapshots} as s
          left join {table_of_events} as e
            on e.aggregate_id = s.aggregate_id and e.version = s.version and e.id = s.event_id
        group by s.name, s.format, s.event_types
        order by s.name, s.format, s.event_types"
    );
    Ok(sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_all(events).await?)
}

/// Removes snapshots and returns how many there were.
pub(crate) async fn remove(
    events: &PgPool,
    layout: &Layout,
    selection: &SnapshotSelection,
) -> anyhow::Result<u64> {
    let statement = format!(
        "-- remove_snapshots
        delete from {}
        where ($1::text is null or name = $1) and ($2::bigint is null or format = $2)
          and ($3::uuid is null or aggregate_id = $3)",
        table(layout)?
    );
    let SnapshotSelection { name, format, aggregate_id } = selection;
    let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
    Ok(query.bind(name).bind(format).bind(aggregate_id).execute(events).await?.rows_affected())
}
