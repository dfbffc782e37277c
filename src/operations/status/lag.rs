//! How far a processor is behind: in events, and in seconds.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::event::Position;
use crate::postgres::sqlstate::is_missing_right;
use crate::store::layout::Layout;

/// Up to so many ids count as events, holes included, and up to so many events are counted one by one.
const COUNTED_MAX: i64 = 10_000;

/// The age is that of the oldest of so many next events: whoever appends may say when, and one whose clock is ahead must not hide the others.
const AGED: i64 = 100;

/// How far a processor is behind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lag {
    /// Events between position and head, of whatever types; an estimate beyond ten thousand.
    pub(super) events: i64,
    /// Age of the oldest of the next [`AGED`] of them, in seconds; 0 when there is none.
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
                (counted, _) if counted <= COUNTED_MAX => counted,
                (counted, last) => {
                    let estimated = estimate_events(connection, layout, position).await?;
                    // Without statistics, and with those of before, the rest counts as dense as what was counted.
                    let by_density = || extrapolate(counted, position.distance_to(last), ids);
                    estimated
                        .filter(|estimated| *estimated > counted)
                        .unwrap_or_else(by_density)
                        .clamp(counted, ids)
                }
            }
        };
        Ok(Self { events, seconds })
    }
}

/// Age of the oldest of the next [`AGED`] events beyond `position` that are visible now, in seconds by the server's clock.
async fn read_seconds(
    connection: &mut PgConnection,
    layout: &Layout,
    position: Position,
) -> Result<f64, sqlx::Error> {
    let statement = format!(
        "-- age_oldest_unhandled_event
         select max(case when isfinite(created_at)
                then greatest(0, extract(epoch from clock_timestamp() - created_at)) else 0 end)::float8
         from (select created_at from {} as e where id > $1 order by id limit {AGED}) as e",
        layout.source()
    );
    let age: Option<f64> =
        sqlx::query_scalar(AssertSqlSafe(statement)).bind(position).fetch_one(connection).await?;
    Ok(age.unwrap_or(0.0))
}

/// How many events there are beyond `position`, one more than [`COUNTED_MAX`] if there are more, and the last of those counted.
async fn count_events(
    connection: &mut PgConnection,
    layout: &Layout,
    position: Position,
) -> Result<(i64, Position), sqlx::Error> {
    let statement = format!(
        "-- count_unhandled_events
         select count(*), coalesce(max(id), 0)::bigint from (select id from {} where id > $1 order by id limit {}) as e",
        layout.events_table(),
        COUNTED_MAX + 1
    );
    sqlx::query_as(AssertSqlSafe(statement)).bind(position).fetch_one(connection).await
}

/// How many events there are among `ids`, if all are as dense as the `counted` ones, which are among `looked_at`.
fn extrapolate(counted: i64, looked_at: i64, ids: i64) -> i64 {
    let estimated = i128::from(counted) * i128::from(ids) / i128::from(looked_at.max(1));
    i64::try_from(estimated).unwrap_or(i64::MAX)
}

/// Whether the planner knows how ids are spread, as it does once the table was analyzed and until a fifth of it is new.
async fn has_statistics(connection: &mut PgConnection, layout: &Layout) -> Result<bool, sqlx::Error> {
    let statement = "-- has_statistics_of_ids
        select exists (
          select from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
            join pg_catalog.pg_stats as s on s.schemaname = n.nspname and s.tablename = c.relname
            left join pg_catalog.pg_stat_all_tables as t on t.relid = c.oid
          where c.oid = to_regclass($1) and s.attname = 'id' and coalesce(t.n_mod_since_analyze, 0) <= c.reltuples / 5)";
    sqlx::query_scalar(statement).persistent(false).bind(layout.events_table()).fetch_one(connection).await
}

/// How many events there are beyond `position`, as the planner guesses by its statistics; `None`: it has none, and would guess a third of the
/// table, whatever the position is, or too old ones.
async fn estimate_events(
    connection: &mut PgConnection,
    layout: &Layout,
    position: Position,
) -> Result<Option<i64>, sqlx::Error> {
    if !has_statistics(&mut *connection, layout).await? {
        return Ok(None);
    }
    let statement = format!(
        "-- estimate_unhandled_events
         explain (format json) select from {} where id > {position}",
        layout.events_table()
    );
    let plan: serde_json::Value =
        sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).fetch_one(connection).await?;
    Ok(plan.pointer("/0/Plan/Plan Rows").and_then(serde_json::Value::as_f64).map(|rows| rows as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_are_not_counted_are_as_dense_as_those_that_are() {
        assert_eq!(extrapolate(10_001, 10_001, 20_000), 20_000);
        assert_eq!(extrapolate(10_001, 20_002, 1_000_000), 500_000);
        assert_eq!(extrapolate(10_001, 0, i64::MAX), i64::MAX);
    }
}
