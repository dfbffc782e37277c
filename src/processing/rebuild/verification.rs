//! What was found while the tables of projectors are verified slice by slice.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgExecutor};
use uuid::Uuid;

use crate::postgres::row::from_row;

const DAY: Duration = Duration::from_secs(86_400);

/// The fewest aggregates of a slice: to begin one costs more than to handle their events.
const SLICE_MIN: f64 = 100.0;

/// The most aggregates of a slice.
const SLICE_MAX: f64 = 1_000.0;

/// How many keys are kept.
pub(crate) const KEYS_MAX: usize = 100;

/// The row of a projector.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verification {
    pub(crate) processor: String,
    pub(crate) version: i32,
    pub(crate) after_aggregate: Option<Uuid>,
    pub(crate) verified_at: DateTime<Utc>,
    pub(crate) aggregates: i64,
    pub(crate) compared_rows: i64,
    pub(crate) all_aggregates: Option<i64>,
    pub(crate) found_at: Option<DateTime<Utc>>,
    pub(crate) differing_rows: i64,
    pub(crate) found: Option<Json<Value>>,
}

from_row!(Verification {
    processor,
    version,
    after_aggregate,
    verified_at,
    aggregates,
    compared_rows,
    all_aggregates,
    found_at,
    differing_rows,
    found
});

/// What came of a slice.
#[derive(Debug)]
pub(crate) struct Slice<'s> {
    pub(crate) processor: &'s str,
    pub(crate) version: i32,
    /// The last aggregate of it; `None`: it was the last slice of the round.
    pub(crate) upto: Option<Uuid>,
    pub(crate) aggregates: i64,
    pub(crate) compared_rows: i64,
    pub(crate) differing_rows: i64,
    /// Some keys of rows that differ.
    pub(crate) found: Option<Value>,
}

/// How many aggregates a slice has, and how long it is from one to the next, so that `share` of all aggregates is verified in a
/// day. `all`: how many there are about.
pub(crate) fn pace(all: i64, share: f64) -> (i64, Duration) {
    let all = (all.max(1)) as f64;
    let daily = (all * share).max(1.0);
    let size = (daily / 24.0).clamp(SLICE_MIN, SLICE_MAX);
    let pause = DAY.mul_f64((size.min(all) / daily).min(1.0));
    (size.ceil() as i64, pause.max(Duration::from_secs(60)))
}

/// All rows.
pub(crate) async fn list_verifications(
    connection: impl PgExecutor<'_>,
    schema: &str,
) -> Result<Vec<Verification>, sqlx::Error> {
    let statement = format!(
        "-- list_verifications
         select processor, version, after_aggregate, verified_at, aggregates, compared_rows, all_aggregates, found_at,
                differing_rows, found
         from {schema}.verifications order by processor"
    );
    sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
}

/// Records a slice, unless another one was recorded since it was looked which one is due: the last one was at `recorded_at` then,
/// and `None` means that there was none. A slice that counts twice would end a round too early, and with it what the round has found.
/// Returns whether it was recorded.
pub(crate) async fn note_slice(
    connection: impl PgExecutor<'_>,
    schema: &str,
    slice: &Slice<'_>,
    recorded_at: Option<DateTime<Utc>>,
) -> Result<bool, sqlx::Error> {
    // Until a whole round has found none.
    let is_kept = "v.version = $2 and not ($3::uuid is null and v.found_at <= v.round_began_at)";
    let statement = format!(
        "-- note_slice
         insert into {schema}.verifications as v (processor, version, after_aggregate, aggregates, compared_rows,
           round_aggregates, all_aggregates, round_began_at, found_at, differing_rows, found)
         -- Whatever is found in a round is found after its beginning.
         select $1, $2, $3, $4, $5, case when is_last then 0 else $4 end, case when is_last then $4 end,
           case when is_last then at else at - interval '1 second' end, case when $6 > 0 then at end, $6, $7
         from (values ($3::uuid is null, statement_timestamp())) as slice (is_last, at)
         on conflict (processor) do update set
           version = $2, after_aggregate = $3, verified_at = clock_timestamp(), aggregates = $4, compared_rows = $5,
           -- Of another version, nothing is known yet.
           round_aggregates = case when $3::uuid is null then 0 when v.version = $2 then v.round_aggregates + $4 else $4 end,
           all_aggregates = case when $3::uuid is null and v.version = $2 then v.round_aggregates + $4 else v.all_aggregates end,
           round_began_at = case when $3::uuid is null or v.version <> $2 then excluded.round_began_at else v.round_began_at end,
           found_at = case when $6 > 0 then excluded.found_at when {is_kept} then v.found_at end,
           differing_rows = case when $6 > 0 then $6 when {is_kept} then v.differing_rows else 0 end,
           found = case when $6 > 0 then $7 when {is_kept} then v.found end
         where v.verified_at = $8"
    );
    let Slice { processor, version, upto, aggregates, compared_rows, differing_rows, found } = slice;
    let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
    let query = query.bind(processor).bind(version).bind(upto).bind(aggregates).bind(compared_rows);
    let query = query.bind(differing_rows).bind(found.as_ref().map(Json)).bind(recorded_at);
    Ok(query.execute(connection).await?.rows_affected() > 0)
}

/// Forgets which rows differ: all of them have been verified since. Who has verified them has the lock of the versions still, so no
/// slice was recorded meanwhile.
pub(crate) async fn clear_found(
    connection: impl PgExecutor<'_>,
    schema: &str,
    processor: &str,
) -> Result<(), sqlx::Error> {
    let statement = format!(
        "-- clear_found
         update {schema}.verifications set found_at = null, differing_rows = 0, found = null where processor = $1"
    );
    sqlx::query(AssertSqlSafe(statement))
        .persistent(false)
        .bind(processor)
        .execute(connection)
        .await
        .map(drop)
}

/// Why a projector is not verified, though that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unverified {
    pub(crate) processor: String,
    pub(crate) because: String,
    /// Whether it stays so until its declaration changes.
    pub(crate) lasting: bool,
    pub(crate) since: DateTime<Utc>,
}

from_row!(Unverified { processor, because, lasting, since });

/// For how long a row counts that says why a projector is not verified: whoever tries does so more often.
const COUNTS: &str = "3 hours";

/// The projectors that are not verified.
pub(crate) async fn list_unverified(
    connection: impl PgExecutor<'_>,
    schema: &str,
) -> Result<Vec<Unverified>, sqlx::Error> {
    let statement = format!(
        "-- list_unverified
         select processor, because, lasting, since from {schema}.unverified
         where updated_at > clock_timestamp() - interval '{COUNTS}' order by processor"
    );
    sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
}

/// Records why a projector is not verified.
pub(crate) async fn note_unverified(
    connection: impl PgExecutor<'_>,
    schema: &str,
    processor: &str,
    (because, lasting): (&str, bool),
) -> Result<(), sqlx::Error> {
    let statement = format!(
        "-- note_unverified
         insert into {schema}.unverified as u (processor, because, lasting) values ($1, $2, $3)
         on conflict (processor) do update set because = $2, lasting = $3, updated_at = clock_timestamp(),
           since = case when u.updated_at > clock_timestamp() - interval '{COUNTS}' then u.since else clock_timestamp() end"
    );
    let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
    query.bind(processor).bind(because).bind(lasting).execute(connection).await.map(drop)
}

/// Records that a projector is verified.
pub(crate) async fn forget_unverified(
    connection: impl PgExecutor<'_>,
    schema: &str,
    processor: &str,
) -> Result<(), sqlx::Error> {
    let statement = format!("-- forget_unverified\ndelete from {schema}.unverified where processor = $1");
    let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(processor);
    query.execute(connection).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declared_share_is_verified_in_a_day() {
        for (all, share) in [(1_000_000, 0.01), (50_000, 1.0), (300_000, 0.05), (10_000_000, 0.001)] {
            let (size, pause) = pace(all, share);
            let daily = size as f64 * DAY.as_secs_f64() / pause.as_secs_f64();
            let wanted = all as f64 * share;
            assert!((daily / wanted - 1.0).abs() < 0.02, "{all} {share}: {size} each {pause:?}");
        }
        assert_eq!(pace(5, 0.01), (100, DAY), "all of them, once a day");
        assert_eq!(pace(0, 1.0).0, 100);
    }
}
