//! How far a version is that is built beside the serving one: measured between batches, and written down for everybody to see.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgExecutor};

use super::Beside;
use crate::event::Position;
use crate::postgres::quote::quote_literal;
use crate::postgres::row::from_row;

/// How often progress is measured, told and written down.
const INTERVAL: Duration = Duration::from_secs(1);

/// How much the last second counts in a speed: the speed of some seconds is shown.
const WEIGHT: f64 = 0.3;

/// What whoever builds is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Events are handled.
    Replaying,
    /// Indexes are made of the rows.
    Indexing,
    /// The planner is given statistics of the new tables.
    Analyzing,
    /// The versions are compared.
    Comparing,
    /// The checks of the author run.
    Checking,
    /// Tables change places, or rows are merged.
    GoingLive,
    /// Somebody has to decide, or to correct something.
    Waiting,
}

impl Phase {
    /// As the table `build_progress` has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Replaying => "replaying",
            Self::Indexing => "indexing",
            Self::Analyzing => "analyzing",
            Self::Comparing => "comparing",
            Self::Checking => "checking",
            Self::GoingLive => "going_live",
            Self::Waiting => "waiting",
        }
    }
}

/// How far the building of a version is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    /// Every event at or below it is handled.
    pub(crate) position: Position,
    /// Where the serving version is.
    pub(crate) target: Position,
    /// How many events this run has handled.
    pub(crate) handled: i64,
    /// Events that were handled in a second, in the last seconds.
    pub(crate) per_second: f64,
    /// Whether the speed is known: not of a first look, nor before an event was handled.
    pub(crate) is_measured: bool,
    /// How long the rest takes at this speed, of this build and of what comes meanwhile; `None`: nobody knows yet, or more comes than is
    /// handled.
    pub(crate) seconds_left: Option<f64>,
}

/// What was seen at a moment.
#[derive(Debug, Clone, Copy)]
struct Measured {
    at: Instant,
    position: Position,
    target: Position,
    handled: i64,
}

/// What happens in a second.
#[derive(Debug, Clone, Copy, Default)]
struct Speed {
    events: f64,
    ids: f64,
    /// By how many ids the target moves on.
    target: f64,
}

impl Speed {
    fn between(before: Measured, now: Measured) -> Self {
        let seconds = now.at.duration_since(before.at).as_secs_f64().max(0.001);
        let moved = |from: Position, to: Position| from.distance_to(to).max(0) as f64 / seconds;
        Self {
            events: (now.handled - before.handled).max(0) as f64 / seconds,
            ids: moved(before.position, now.position),
            target: moved(before.target, now.target),
        }
    }

    fn mixed_with(self, last: Self) -> Self {
        let mixed = |former: f64, last: f64| former + WEIGHT * (last - former);
        Self {
            events: mixed(self.events, last.events),
            ids: mixed(self.ids, last.ids),
            target: mixed(self.target, last.target),
        }
    }
}

/// Measures how fast a version is built.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    last: Option<Measured>,
    speed: Option<Speed>,
}

impl Pace {
    /// Nothing is known yet.
    pub(crate) fn new() -> Self {
        Self { last: None, speed: None }
    }

    /// Whether it is time to measure: at once at first.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now.duration_since(last.at) >= INTERVAL)
    }

    /// Measures as of `now`. `handled`: how many events this run has handled.
    pub(crate) fn measure(
        &mut self,
        now: Instant,
        position: Position,
        target: Position,
        handled: i64,
    ) -> Progress {
        let measured = Measured { at: now, position, target, handled };
        if let Some(before) = self.last {
            let last = Speed::between(before, measured);
            self.speed = Some(self.speed.map_or(last, |former| former.mixed_with(last)));
        }
        self.last = Some(measured);
        let Speed { events: per_second, ids, target: growth } = self.speed.unwrap_or_default();
        let left = position.distance_to(target).max(0) as f64;
        let seconds_left = (ids > growth).then(|| left / (ids - growth));
        let is_measured = ids > 0.0;
        Progress { position, target, handled, per_second, is_measured, seconds_left }
    }
}

/// What is written down.
#[derive(Debug)]
pub(crate) struct Written<'w> {
    pub(crate) beside: Beside,
    pub(crate) processor: &'w str,
    pub(crate) version: i32,
    pub(crate) phase: Phase,
    pub(crate) progress: Progress,
    /// The schema of the tables that are built.
    pub(crate) building_in: &'w str,
    pub(crate) builder: &'w str,
    /// Why it rests for now.
    pub(crate) rests_because: Option<&'w str>,
}

/// Writes down how far a version is. `schema`: the quoted schema of the trackers, whose table is `trackers`. Nothing depends on it,
/// so no disk is waited for. Whose version was given up meanwhile has no tracker any more, and writes nothing.
pub(crate) async fn write_progress(
    connection: impl PgExecutor<'_>,
    (schema, trackers): (&str, &str),
    written: &Written<'_>,
) -> Result<(), sqlx::Error> {
    let Written { beside, processor, version, phase, progress, building_in, builder, rests_because } =
        written;
    let statement = format!(
        "-- write_build_progress
         insert into {schema}.build_progress (tracker, processor, version, phase, position, target, handled, per_second,
           seconds_left, bytes, builder, rests_because)
         select $1, $2, $3, $4, $5, $6,
           coalesce((select sum(t.handled)::bigint from {trackers} as t where t.name = $1 and t.version = $3), 0), $7, $8,
           coalesce((select sum(pg_total_relation_size(c.oid)) from pg_class as c
                     where c.relnamespace = to_regnamespace({building_in}) and c.relkind in ('r', 'm')), 0)::bigint, $9, $10
         from (select set_config('synchronous_commit', 'off', true)) as settings,
           (select from {trackers} as t where t.name = $1 and t.version = $3 and t.partition = 0 for key share of t) as own
         on conflict (tracker) do update set version = excluded.version, phase = excluded.phase, position = excluded.position,
           target = excluded.target, handled = excluded.handled, per_second = excluded.per_second,
           seconds_left = excluded.seconds_left, bytes = excluded.bytes, builder = excluded.builder,
           rests_because = excluded.rests_because, blocked_because = null, remedy = null, updated_at = clock_timestamp()",
        building_in = quote_literal(&crate::postgres::quote::quote_identifier(building_in))
    );
    sqlx::query(AssertSqlSafe(statement))
        .persistent(false)
        .bind(beside.name(processor))
        .bind(processor)
        .bind(version)
        .bind(phase.as_str())
        .bind(progress.position)
        .bind(progress.target)
        .bind(progress.per_second)
        .bind(progress.seconds_left)
        .bind(builder)
        .bind(rests_because)
        .execute(connection)
        .await
        .map(drop)
}

/// Writes down why nothing is done for a while. `tracker`: that of the version that is built.
pub(crate) async fn write_rest(
    connection: impl PgExecutor<'_>,
    schema: &str,
    tracker: &str,
    because: &str,
) -> Result<(), sqlx::Error> {
    let statement = format!(
        "-- write_rest
         update {schema}.build_progress set rests_because = $2, per_second = 0, seconds_left = null, updated_at = clock_timestamp()
         where tracker = $1"
    );
    let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(tracker).bind(because);
    query.execute(connection).await.map(drop)
}

/// Writes down why whoever has built a version does not go on, unless somebody waits for an operator. Who comes next goes on.
/// `tracker`: that of the version that is built.
pub(crate) async fn write_failure(
    connection: impl PgExecutor<'_>,
    schema: &str,
    tracker: &str,
    because: &str,
) -> Result<(), sqlx::Error> {
    let statement = format!(
        "-- write_failure
         update {schema}.build_progress
         set phase = '{waiting}', rests_because = $2, per_second = 0, seconds_left = null, updated_at = clock_timestamp()
         where tracker = $1 and blocked_because is null",
        waiting = Phase::Waiting.as_str()
    );
    let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(tracker).bind(because);
    query.execute(connection).await.map(drop)
}

/// Why a version that is to go live does not go on by itself.
#[derive(Debug)]
pub(crate) struct Blocked<'b> {
    pub(crate) processor: &'b str,
    pub(crate) version: i32,
    pub(crate) builder: &'b str,
    pub(crate) because: &'b str,
    pub(crate) remedy: &'b str,
}

/// Writes down why a version does not go on by itself, also where it could not be begun. `schema` and `trackers` are as for
/// [`write_progress`].
pub(crate) async fn write_blocked(
    connection: impl PgExecutor<'_>,
    (schema, trackers): (&str, &str),
    blocked: &Blocked<'_>,
) -> Result<(), sqlx::Error> {
    let Blocked { processor, version, builder, because, remedy } = blocked;
    let statement = format!(
        "-- write_blocked
         insert into {schema}.build_progress (tracker, processor, version, phase, position, target, handled, per_second, bytes,
           builder, blocked_because, remedy)
         select $1, $2, $3, '{waiting}', 0, coalesce((select t.position from {trackers} as t where t.name = $2), 0), 0, 0, 0, $4,
           $5, $6
         on conflict (tracker) do update set phase = excluded.phase, rests_because = null,
           blocked_because = excluded.blocked_because, remedy = excluded.remedy, per_second = 0, seconds_left = null,
           updated_at = clock_timestamp()",
        waiting = Phase::Waiting.as_str()
    );
    sqlx::query(AssertSqlSafe(statement))
        .persistent(false)
        .bind(Beside::Next.name(processor))
        .bind(processor)
        .bind(version)
        .bind(builder)
        .bind(because)
        .bind(remedy)
        .execute(connection)
        .await
        .map(drop)
}

/// Forgets how far a version was.
pub(crate) async fn forget_progress(
    connection: impl PgExecutor<'_>,
    schema: &str,
    beside: Beside,
    processor: &str,
) -> Result<(), sqlx::Error> {
    let statement = format!("-- forget_progress\ndelete from {schema}.build_progress where tracker = $1");
    let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(beside.name(processor));
    query.execute(connection).await.map(drop)
}

/// What is known of a version that is built, or that waits to go live.
#[derive(Debug, Clone)]
pub(crate) struct Build {
    /// The projector, as it is declared.
    pub(crate) processor: String,
    /// The name of the tracker of the version that is built.
    pub(crate) tracker: String,
    pub(crate) version: i32,
    pub(crate) phase: String,
    pub(crate) position: Position,
    pub(crate) target: Position,
    pub(crate) handled: i64,
    pub(crate) per_second: f64,
    pub(crate) seconds_left: Option<f64>,
    pub(crate) bytes: i64,
    pub(crate) builder: String,
    pub(crate) rests_because: Option<String>,
    pub(crate) blocked_because: Option<String>,
    pub(crate) remedy: Option<String>,
    pub(crate) started_at: DateTime<Utc>,
    pub(crate) updated_at: DateTime<Utc>,
    /// Whether somebody works on it now.
    pub(crate) is_running: bool,
    /// The fingerprint of what it is built from, and whether a daemon has begun it, or gone on with it, by itself; `None`: it could not
    /// be begun.
    pub(crate) fingerprint: Option<String>,
    pub(crate) automatic: Option<bool>,
}

from_row!(Build {
    processor,
    tracker,
    version,
    phase,
    position,
    target,
    handled,
    per_second,
    seconds_left,
    bytes,
    builder,
    rests_because,
    blocked_because,
    remedy,
    started_at,
    updated_at,
    is_running,
    fingerprint,
    automatic
});

/// The versions that are built, and those that wait to go live.
pub(crate) async fn list_builds(
    connection: impl PgExecutor<'_>,
    schema: &str,
) -> Result<Vec<Build>, sqlx::Error> {
    let statement = format!(
        "-- list_builds
         select b.processor, b.tracker, b.version, b.phase, b.position, b.target, b.handled, b.per_second, b.seconds_left, b.bytes,
           b.builder, b.rests_because, b.blocked_because, b.remedy, b.started_at, b.updated_at,
           exists (select from pg_locks as l
             where l.locktype = 'advisory' and l.objsubid = 1 and l.granted
               and l.database = (select oid from pg_database where datname = current_database())
               and (l.classid::bigint << 32) | l.objid::bigint = {}) as is_running, r.fingerprint, r.automatic
         from {schema}.build_progress as b
           left join {schema}.rebuilds as r on b.tracker = r.processor || '$next' and r.version = b.version
             and r.state not in ('live', 'merged', 'aborted')
         order by b.tracker",
        key_of_lock("b.processor")
    );
    sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
}

/// The condition that `daemon`, an SQL expression for host and process id, is alive: it renews its rows every ten seconds, and removes
/// them when it ends.
pub(crate) fn is_alive(schema: &str, daemon: &str) -> String {
    format!(
        "exists (select from {schema}.workers as w where w.owner_label = {daemon}
           and w.updated_at > clock_timestamp() - interval '30 seconds')"
    )
}

/// The key of the lock that whoever builds versions of a processor holds. `processor`: an SQL expression.
pub(crate) fn key_of_lock(processor: &str) -> String {
    format!("hashtextextended('espd: versions of ' || {processor}, 0)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_meanwhile_has_to_be_handled_too() {
        let (mut pace, begun) = (Pace::new(), Instant::now());
        let measure = |pace: &mut Pace, second: u64, position: i64, target: i64| {
            let now = begun + Duration::from_secs(second);
            pace.measure(now, position.into(), target.into(), position)
        };
        measure(&mut pace, 0, 1_000, 10_000);
        let steady = measure(&mut pace, 1, 2_000, 10_500);
        assert_eq!((steady.per_second, steady.seconds_left), (1_000.0, Some(8_500.0 / 500.0)));
        let mut pace = Pace::new();
        measure(&mut pace, 0, 1_000, 10_000);
        let behind = measure(&mut pace, 1, 1_033, 10_100);
        assert_eq!((behind.per_second, behind.seconds_left), (33.0, None), "it never gets there");
    }

    #[test]
    fn the_speed_is_that_of_the_last_seconds_and_ids_say_what_is_left() {
        let (mut pace, begun) = (Pace::new(), Instant::now());
        assert!(pace.is_due(begun));
        let measure = |pace: &mut Pace, second: u64, position: i64, handled: i64| {
            let now = begun + Duration::from_secs(second);
            pace.measure(now, position.into(), 10_000.into(), handled)
        };
        let first = measure(&mut pace, 0, 4_000, 0);
        assert_eq!((first.per_second, first.seconds_left), (0.0, None));
        assert!(!pace.is_due(begun + Duration::from_millis(999)));
        let second = measure(&mut pace, 1, 6_000, 1_000);
        assert_eq!((second.per_second, second.seconds_left), (1_000.0, Some(2.0)));
        let slower = measure(&mut pace, 2, 7_000, 1_000);
        assert!((slower.per_second - 700.0).abs() < 0.001, "{slower:?}");
        assert!(
            slower.seconds_left.is_some_and(|left| (left - 3_000.0 / 1_700.0).abs() < 0.001),
            "{slower:?}"
        );
    }
}
