//! Runners on a real database: what they do with failures, outages, operators, other owners and the end.

use std::sync::Arc;
use std::time::Duration;

use espd::internals::declaration::{BatchLimits, FoldedLimits, ProcessorDeclaration};
use espd::internals::failure::Failure;
use espd::internals::processor::Events;
use espd::internals::processor::Processor;
use espd::internals::retry::RetryPolicy;
use espd::internals::runner::{ReleaseChannel, Runner, RunnerContext};
use espd::internals::shutdown::{self, ShutdownHandle};
use espd::internals::sql::SqlProcessor;
use espd::internals::subscription::Subscription;
use espd::internals::tracker::{Owner, ProcessorKey, Reset, TrackerRow, Trackers};
use espd::internals::watcher::{Watcher, WatcherSettings};
use espd::store::Layout;
use sqlx::PgPool;
use tokio::task::JoinHandle;

use crate::support::facts::{Gate, append, append_typed, assert_exactly_once, eventually, position, reaches};
use crate::support::projectors::declare;
use crate::support::{self, Database, SCHEMA};

/// Notes each event of type A in order; nothing keeps it from noting one twice.
pub fn notes(first: &str) -> ProcessorDeclaration {
    let handler = format!("{first}\ninsert into notes (event_id) values (event.id)");
    let tables = [("notes", "place bigint generated always as identity, event_id bigint")];
    declare("notes", &tables, &[(&["A"], &handler)])
}

/// Fails with every event whose `n` is 0.
pub const DIVIDE: &str = "perform 1 / (event.body->>'n')::bigint;";

pub fn settings(db: &Database) -> RunnerContext {
    RunnerContext {
        database: db.url.parse().unwrap(),
        direct: None,
        release_channel: ReleaseChannel { channel: "espd_events".to_owned(), elsewhere: None },
        schema: SCHEMA.to_owned(),
        owner: Owner::generate(),
        limits: BatchLimits {
            size: 100,
            size_max: 100,
            folded: FoldedLimits { size: 100, ..FoldedLimits::default() },
            ..BatchLimits::default()
        },
        retry: RetryPolicy {
            initial: Duration::from_millis(50),
            max: Duration::from_millis(100),
            ..RetryPolicy::default()
        },
        lease: Duration::from_millis(600),
        wake_relay: Arc::default(),
    }
}

/// A runner and its watcher, as a worker has them, in tasks.
pub struct Life {
    stop: ShutdownHandle,
    runner: JoinHandle<()>,
    watcher: JoinHandle<()>,
}

impl Life {
    pub fn begin(db: &Database, declaration: ProcessorDeclaration, settings: RunnerContext) -> Self {
        let events = Events::SameDatabase(Layout::espd(SCHEMA).unwrap());
        let projector = SqlProcessor::new(declaration, SCHEMA, "public", events).unwrap();
        Self::begin_with(db, Box::new(projector), settings)
    }

    pub fn begin_with(db: &Database, processor: Box<dyn Processor>, settings: RunnerContext) -> Self {
        let layout = Layout::espd(SCHEMA).unwrap();
        let watcher_settings =
            WatcherSettings { idle_interval: Duration::from_millis(50), ..WatcherSettings::default() };
        let watcher = Watcher::new(
            db.url.parse::<sqlx::postgres::PgConnectOptions>().unwrap(),
            layout,
            watcher_settings,
        );
        let subscription = Subscription::new(watcher.horizon(), watcher.control());
        let (stop, stopped) = shutdown::channel();
        let key = ProcessorKey::new(processor.name(), processor.version());
        let runner = Runner::new(settings, key, processor, subscription);
        let (runner, watcher) =
            (tokio::spawn(runner.run(stopped.clone())), tokio::spawn(watcher.run(stopped)));
        Self { stop, runner, watcher }
    }

    pub async fn end(self) {
        self.stop.request();
        self.runner.await.unwrap();
        self.watcher.await.unwrap();
    }

    /// Ends it like a crash, between two awaits.
    pub async fn crash(self) {
        self.runner.abort();
        self.watcher.abort();
        assert!(self.runner.await.unwrap_err().is_cancelled());
    }
}

/// What identifies the tracker of `notes`.
pub fn notes_key() -> ProcessorKey {
    ProcessorKey::new("notes", 1)
}

pub async fn row(pool: &PgPool) -> Option<TrackerRow> {
    Trackers::new(SCHEMA).list(pool, Some("notes")).await.unwrap().pop()
}

/// Waits until the tracker row is as wanted, and returns it.
pub async fn row_with(pool: &PgPool, what: &str, wanted: impl Fn(&TrackerRow) -> bool) -> TrackerRow {
    eventually(what, async || row(pool).await.filter(&wanted)).await
}

/// Waits until the owner has renewed its lease twice.
pub async fn lease_renewed_twice(pool: &PgPool) {
    for _ in 0..2 {
        let lease = async || {
            let query = sqlx::query_scalar::<_, Option<i64>>(
                "select (extract(epoch from lease_until) * 1000000)::bigint from espd.trackers",
            );
            query.fetch_one(pool).await.unwrap()
        };
        let before = lease().await;
        eventually("a renewed lease", async || (lease().await > before).then_some(())).await;
    }
}

pub async fn set_n(pool: &PgPool, id: i64, n: i64) {
    sqlx::query("update espd.events set body = jsonb_build_object('n', $2::bigint) where id = $1")
        .bind(id)
        .bind(n)
        .execute(pool)
        .await
        .unwrap();
}

/// How many transactions have handled 5,000 events that were there before the processor, in batches of 100 to `size_max`.
async fn batches_of_a_backlog(size_max: i64) -> i64 {
    let db = support::database().await;
    append(&db.pool, 5_000).await;
    let mut settings = settings(&db);
    (settings.limits.size_max, settings.limits.folded.size) = (size_max, size_max);
    let life = Life::begin(&db, notes(""), settings);
    reaches(&db.pool, "notes", 5_000).await;
    life.end().await;
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    sqlx::query_scalar("select count(distinct xmin::text) from notes").fetch_one(&db.pool).await.unwrap()
}

#[tokio::test]
async fn batches_are_larger_while_a_processor_is_far_behind() {
    assert_eq!(batches_of_a_backlog(100).await, 50);
    let batches = batches_of_a_backlog(1_600).await;
    assert!(batches < 40, "{batches} batches");
}

#[tokio::test]
async fn the_position_passes_events_of_other_types() {
    let db = support::database().await;
    let mut settings = settings(&db);
    settings.limits.span = 7;
    let last = append_typed(&db.pool, "B", 100).await;
    let life = Life::begin(&db, notes(""), settings);
    reaches(&db.pool, "notes", last).await;
    let row = row(&db.pool).await.unwrap();
    assert_eq!((row.position, row.handled), (last.into(), 0));

    append(&db.pool, 3).await;
    let last = append_typed(&db.pool, "B", 5).await;
    reaches(&db.pool, "notes", last).await;
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    life.end().await;
}

#[tokio::test]
async fn a_failing_event_is_retried_until_it_can_be_handled_and_processing_continues() {
    let db = support::database().await;
    let last = append(&db.pool, 20).await;
    set_n(&db.pool, 8, 0).await;
    let life = Life::begin(&db, notes(DIVIDE), settings(&db));
    let failing = row_with(&db.pool, "three attempts", |row| row.attempts >= 3).await;
    let failure = failing.last_error.unwrap().0;
    assert_eq!((failing.position, failing.handled), (7.into(), 7));
    assert_eq!((failure.event_id(), failure.sqlstate.as_deref()), (Some(8.into()), Some("22012")));
    assert!(failure.event.is_some() && failure.at.is_some(), "{failure:?}");
    assert_eq!(failure.place.as_deref(), Some("0.toml:10"));

    set_n(&db.pool, 8, 1).await;
    reaches(&db.pool, "notes", last).await;
    let fixed = row(&db.pool).await.unwrap();
    assert_eq!((fixed.attempts, fixed.last_error.is_none(), fixed.next_retry_at), (0, true, None));
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    life.end().await;
}

#[tokio::test]
async fn another_failing_event_starts_its_own_count() {
    let db = support::database().await;
    append(&db.pool, 5).await;
    set_n(&db.pool, 3, 0).await;
    set_n(&db.pool, 5, 0).await;
    let life = Life::begin(&db, notes(DIVIDE), settings(&db));
    row_with(&db.pool, "attempts of the first one", |row| row.attempts >= 3).await;
    life.end().await;

    set_n(&db.pool, 3, 1).await;
    let hour = RetryPolicy { initial: Duration::from_secs(3_600), ..RetryPolicy::default() };
    let life = Life::begin(&db, notes(DIVIDE), RunnerContext { retry: hour, ..settings(&db) });
    let about = |row: &TrackerRow| row.last_error.as_ref().and_then(|error| error.event_id());
    let row = row_with(&db.pool, "the second one failing", |row| about(row) == Some(5.into())).await;
    assert_eq!((row.position, row.attempts), (4.into(), 1));
    life.end().await;
}

#[tokio::test]
async fn the_backoff_survives_a_crash_until_an_operator_ends_it() {
    let db = support::database().await;
    append(&db.pool, 3).await;
    set_n(&db.pool, 3, 0).await;
    let hour = RetryPolicy { initial: Duration::from_secs(3_600), jitter: 0.0, ..RetryPolicy::default() };
    let settings = RunnerContext { retry: hour, ..settings(&db) };
    let life = Life::begin(&db, notes(DIVIDE), settings.clone());
    let before = row_with(&db.pool, "a first attempt", |row| row.attempts == 1).await;
    life.crash().await;

    let life = Life::begin(&db, notes(DIVIDE), settings);
    row_with(&db.pool, "the next claim", |row| row.epoch > before.epoch).await;
    lease_renewed_twice(&db.pool).await;
    let after = row(&db.pool).await.unwrap();
    assert_eq!((after.attempts, after.next_retry_at), (1, before.next_retry_at));

    let (trackers, mut connection) = (Trackers::new(SCHEMA), db.pool.acquire().await.unwrap());
    trackers.pause(&mut connection, &notes_key(), "alice@here").await.unwrap();
    trackers.resume(&mut connection, &notes_key(), "alice@here").await.unwrap();
    row_with(&db.pool, "a second attempt", |row| row.attempts == 2).await;
    life.end().await;
}

#[tokio::test]
async fn neither_a_lost_connection_nor_a_cancelled_statement_is_an_attempt() {
    let db = support::database().await;
    let last = append(&db.pool, 250).await;
    let mut gate = Gate::close(&db.pool, 150).await;
    let life = Life::begin(&db, notes(&Gate::at(150)), settings(&db));
    for end in ["select pg_terminate_backend($1)", "select pg_cancel_backend($1)"] {
        let visitor = gate.visitor().await;
        sqlx::query(end).bind(visitor).execute(&db.pool).await.unwrap();
        eventually("the next visitor", async || (gate.visitor().await != visitor).then_some(())).await;
        let row = row(&db.pool).await.unwrap();
        assert_eq!((row.attempts, row.last_error.is_none(), row.position), (0, true, 100.into()));
    }
    gate.open().await;
    reaches(&db.pool, "notes", last).await;
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    life.end().await;
}

#[tokio::test]
async fn an_idle_runner_whose_connections_end_continues() {
    let db = support::database().await;
    let last = append(&db.pool, 1).await;
    let life = Life::begin(&db, notes(""), settings(&db));
    reaches(&db.pool, "notes", last).await;
    let ended: Vec<bool> = sqlx::query_scalar(
        "select pg_terminate_backend(pid) from pg_stat_activity
         where datname = current_database() and pid <> pg_backend_pid() and application_name <> ''",
    )
    .fetch_all(&db.pool)
    .await
    .unwrap();
    assert!(!ended.is_empty() && ended.iter().all(|ended| *ended));
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "notes", last).await;
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    life.end().await;
}

#[tokio::test]
async fn what_only_an_operator_can_fix_stops_the_processor_until_it_is_resumed() {
    let db = support::database().await;
    let last = append(&db.pool, 5).await;
    sqlx::query("create table public.notes (precious int)").execute(&db.pool).await.unwrap();
    let life = Life::begin(&db, notes(""), settings(&db));
    let failed = row_with(&db.pool, "the failure", |row| row.failed_at.is_some()).await;
    let Failure { message, event, .. } = failed.last_error.unwrap().0;
    assert!(message.contains("public.notes") && event.is_none(), "{message}");
    lease_renewed_twice(&db.pool).await;

    sqlx::query("drop table public.notes").execute(&db.pool).await.unwrap();
    let mut connection = db.pool.acquire().await.unwrap();
    assert!(Trackers::new(SCHEMA).resume(&mut connection, &notes_key(), "alice@here").await.unwrap());
    reaches(&db.pool, "notes", last).await;
    let fixed = row(&db.pool).await.unwrap();
    assert_eq!((fixed.failed_at, fixed.last_error.is_none()), (None, true));
    life.end().await;
}

#[tokio::test]
async fn a_fixed_processor_is_no_longer_failed_after_a_restart() {
    let db = support::database().await;
    let last = append(&db.pool, 5).await;
    sqlx::query("create table public.notes (precious int)").execute(&db.pool).await.unwrap();
    let life = Life::begin(&db, notes(""), settings(&db));
    row_with(&db.pool, "the failure", |row| row.failed_at.is_some()).await;
    life.end().await;

    sqlx::query("drop table public.notes").execute(&db.pool).await.unwrap();
    let life = Life::begin(&db, notes(""), settings(&db));
    reaches(&db.pool, "notes", last).await;
    let fixed = row(&db.pool).await.unwrap();
    assert_eq!((fixed.failed_at, fixed.last_error.is_none()), (None, true));
    life.end().await;
}

#[tokio::test]
async fn a_paused_processor_stays_where_it_is_until_it_is_resumed() {
    let db = support::database().await;
    let (trackers, mut connection) = (Trackers::new(SCHEMA), db.pool.acquire().await.unwrap());
    let paused_at = append(&db.pool, 5).await;
    let life = Life::begin(&db, notes(""), settings(&db));
    reaches(&db.pool, "notes", paused_at).await;
    trackers.pause(&mut connection, &notes_key(), "alice@here").await.unwrap();
    let last = append(&db.pool, 5).await;
    lease_renewed_twice(&db.pool).await;
    assert_eq!(position(&db.pool, "notes").await, paused_at);

    // Also under a runner that begins with it.
    life.end().await;
    let life = Life::begin(&db, notes(""), settings(&db));
    row_with(&db.pool, "the next owner", |row| row.owned).await;
    lease_renewed_twice(&db.pool).await;
    assert_eq!(position(&db.pool, "notes").await, paused_at);

    trackers.resume(&mut connection, &notes_key(), "alice@here").await.unwrap();
    reaches(&db.pool, "notes", last).await;
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    life.end().await;
}

#[tokio::test]
async fn a_notification_of_an_operator_is_received_at_once() {
    let db = support::database().await;
    let (trackers, mut connection) = (Trackers::new(SCHEMA), db.pool.acquire().await.unwrap());
    let notify = async || sqlx::query("notify espd_events, 'control'").execute(&db.pool).await.unwrap();
    let last = append(&db.pool, 5).await;
    // By itself it would look at its tracker in twenty minutes.
    let hour = RunnerContext { lease: Duration::from_secs(3_600), ..settings(&db) };
    let life = Life::begin(&db, notes(""), hour);
    reaches(&db.pool, "notes", last).await;
    // While it is idle,
    trackers.reset(&mut connection, &notes_key(), "alice@here", Reset::to(0.into())).await.unwrap();
    notify().await;
    row_with(&db.pool, "the events again", |row| row.handled == 10).await;
    // and while it is paused. Its batch tells it so, and it claims anew to wait for the operator.
    trackers.pause(&mut connection, &notes_key(), "alice@here").await.unwrap();
    let last = append(&db.pool, 5).await;
    row_with(&db.pool, "the next claim", |row| row.epoch == 4).await;
    trackers.resume(&mut connection, &notes_key(), "alice@here").await.unwrap();
    notify().await;
    reaches(&db.pool, "notes", last).await;
    life.end().await;
}

#[tokio::test]
async fn a_stop_lets_the_current_batch_end_and_releases_the_tracker() {
    let db = support::database().await;
    append(&db.pool, 250).await;
    let mut gate = Gate::close(&db.pool, 150).await;
    let life = Life::begin(&db, notes(&Gate::at(150)), settings(&db));
    gate.visitor().await;
    life.stop.request();
    gate.open().await;
    life.end().await;
    let row = row(&db.pool).await.unwrap();
    assert_eq!((row.position, row.handled), (200.into(), 200));
    assert_eq!((row.owned, row.owner_label), (false, None));
}

#[tokio::test]
async fn another_owner_stands_by_until_the_tracker_is_released() {
    let db = support::database().await;
    let long = RunnerContext { lease: Duration::from_secs(3_600), ..settings(&db) };
    let one = Life::begin(&db, notes(""), long.clone());
    let last = append(&db.pool, 5).await;
    reaches(&db.pool, "notes", last).await;
    let impatient = RunnerContext { owner: Owner::generate(), ..settings(&db) };
    let other = Life::begin(&db, notes(""), impatient);
    let last = append(&db.pool, 5).await;
    reaches(&db.pool, "notes", last).await;
    assert_eq!(row(&db.pool).await.unwrap().epoch, 1);

    one.end().await;
    row_with(&db.pool, "the other owner", |row| row.owned && row.epoch == 2).await;
    let last = append(&db.pool, 5).await;
    reaches(&db.pool, "notes", last).await;
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    other.end().await;
}

#[tokio::test]
async fn a_tracker_that_was_removed_is_created_again() {
    let db = support::database().await;
    let last = append(&db.pool, 5).await;
    let life = Life::begin(&db, notes(""), settings(&db));
    reaches(&db.pool, "notes", last).await;
    sqlx::raw_sql("begin; delete from espd.trackers; drop table notes; commit")
        .execute(&db.pool)
        .await
        .unwrap();
    reaches(&db.pool, "notes", last).await;
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    life.end().await;
}

#[tokio::test]
async fn a_batch_that_outlasts_the_lease_keeps_its_claim() {
    let db = support::database().await;
    let last = append(&db.pool, 50).await;
    let mut gate = Gate::close(&db.pool, 25).await;
    let short = RunnerContext { lease: Duration::from_millis(100), ..settings(&db) };
    let life = Life::begin(&db, notes(&Gate::at(25)), short);
    gate.visitor().await;
    eventually("the end of the lease", async || {
        let query =
            sqlx::query_scalar::<_, i32>("select 1 from espd.trackers where lease_until < clock_timestamp()");
        query.fetch_optional(&db.pool).await.unwrap()
    })
    .await;
    // Its backend is at work, so it counts as owned, and a rival is told so instead of having to wait.
    row_with(&db.pool, "an owner at work", |row| row.owned).await;
    let rival =
        Trackers::new(SCHEMA).claim(&db.pool, &notes_key(), &Owner::generate(), Duration::from_secs(5)).await;
    assert_eq!(rival.unwrap(), None);
    gate.open().await;
    reaches(&db.pool, "notes", last).await;
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    life.end().await;
}
