//! How far a processor is behind: in events, and in seconds.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::event::Position;
use crate::postgres::sqlstate::is_missing_right;
use crate::store::layout::Layout;

/// Up to so many ids count as events, holes included, and up to so many events are counted one by one.
const COUNTED_MAX: i64 = 10_000;

/// How far a processor is behind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lag {
    /// Events between position and head, of whatever types; an estimate beyond ten thousand.
    pub(super) events: i64,
    /// Age of the oldest of them, in seconds; 0 when there is none.
    pub(super) seconds: f64,
}

impl Lag {
    /// Measures the lag. Where rights or policies keep the events from being read, the ids have to do: the processor's own
    /// trouble says why.
    pub(super) async fn read(
        connection: &mut PgConnection,
        layout: &Layout,
        position: Position,
        head: Position,
    ) -> Result<Self, sqlx::Error> {
        match Self::measure(connection, layout, position, head).await {
            Err(error) if is_missing_right(&error) => {
                Ok(Self { events: position.distance_to(head).max(0), seconds: 0.0 })
            }
            measured => measured,
        }
    }

    async fn measure(
        connection: &mut PgConnection,
        layout: &Layout,
        position: Position,
        head: Position,
    ) -> Result<Self, sqlx::Error> {
        let seconds = read_seconds(&mut *connection, layout, position).await?;
        let ids = position.distance_to(head).max(0);
        let events = if ids <= COUNTED_MAX {
            ids
        } else {
            match count_events(&mut *connection, layout, position).await? {
                counted if counted <= COUNTED_MAX => counted,
                // Without statistics the planner guesses a third of the table, whatever the position is.
                _ if !has_statistics(&mut *connection, layout).await? => ids,
                _ => estimate_events(connection, layout, position).await?.clamp(COUNTED_MAX, ids),
            }
        };
        Ok(Self { events, seconds })
    }
}

/// Age of the oldest event beyond `position` that is visible now, in seconds by the server's clock.
async fn read_seconds(
    connection: &mut PgConnection,
    layout: &Layout,
    position: Position,
) -> Result<f64, sqlx::Error> {
    let statement = format!(
        "-- age_oldest_unhandled_event
         select case when isfinite(created_at)
                then greatest(0, extract(epoch from clock_timestamp() - created_at)) else 0 end::float8
         from {} as e where id > $1 order by id limit 1",
        layout.source()
    );
    let age: Option<f64> =
        sqlx::query_scalar(AssertSqlSafe(statement)).bind(position).fetch_optional(connection).await?;
    Ok(age.unwrap_or(0.0))
}

/// How many events there are beyond `position`; one more than [`COUNTED_MAX`] if there are more.
async fn count_events(
    connection: &mut PgConnection,
    layout: &Layout,
    position: Position,
) -> Result<i64, sqlx::Error> {
    let statement = format!(
        "-- count_unhandled_events
         select count(*) from (select from {} where id > $1 order by id limit {}) as e",
        layout.events_table(),
        COUNTED_MAX + 1
    );
    sqlx::query_scalar(AssertSqlSafe(statement)).bind(position).fetch_one(connection).await
}

/// Whether the planner knows how ids are spread, as it does once the table was analyzed.
async fn has_statistics(connection: &mut PgConnection, layout: &Layout) -> Result<bool, sqlx::Error> {
    let statement = "-- has_statistics_of_ids
        select exists (
          select from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
            join pg_catalog.pg_stats as s on s.schemaname = n.nspname and s.tablename = c.relname
          where c.oid = to_regclass($1) and s.attname = 'id')";
    sqlx::query_scalar(statement).persistent(false).bind(layout.events_table()).fetch_one(connection).await
}

/// How many events there are beyond `position`, as the planner guesses by its statistics.
async fn estimate_events(
    connection: &mut PgConnection,
    layout: &Layout,
    position: Position,
) -> Result<i64, sqlx::Error> {
    let statement = format!(
        "-- estimate_unhandled_events
         explain (format json) select from {} where id > {position}",
        layout.events_table()
    );
    let plan: serde_json::Value =
        sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).fetch_one(connection).await?;
    Ok(plan.pointer("/0/Plan/Plan Rows").and_then(serde_json::Value::as_f64).map_or(0, |rows| rows as i64))
}
