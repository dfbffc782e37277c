//! The bell: functions that append notify while somebody sleeps, and only then.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use espd::embedded::EmbeddedPostgres;
use espd::event::Position;
use espd::internals::horizon::wait_beyond;
use espd::internals::shutdown;
use espd::internals::subscription::ReadHead;
use espd::internals::watcher::{Watcher, WatcherSettings};
use espd::schema::migrate_event_store;
use espd::store::Layout;
use sqlx::postgres::{PgConnection, PgListener};
use sqlx::{AssertSqlSafe, Connection, PgPool};
use tokio::sync::OnceCell;
use tokio::time::timeout;
use uuid::Uuid;

use crate::support::{self, SCHEMA};

/// Ends only in a test that fails: nothing here takes that long.
const PATIENCE: Duration = Duration::from_secs(30);

/// No watcher of these tests looks twice by itself.
const NEVER: Duration = Duration::from_secs(3600);

const APPEND: &str = r#"select max(id) from espd.append(
    jsonb_build_object('aggregate_id', gen_random_uuid(), 'type', 'Happened', 'body', '{}'::jsonb))"#;

/// Every way of appending through the functions.
const WAYS: [&str; 4] = [
    APPEND,
    "select max(id) from espd.append_events(array[gen_random_uuid()], array['Happened'], array['{}'::jsonb], array[0])",
    "select max(id) from espd.append_events(array[gen_random_uuid(), gen_random_uuid()], array['A', 'B'],
       array['{}', '{}']::jsonb[])",
    r#"select max(id) from espd.append(
         jsonb_build_object('aggregate_id', gen_random_uuid(), 'type', 'Happened', 'body', 1, 'tags', '["a"]'::jsonb))"#,
];

/// A database on the one server of these tests, which cannot prepare transactions: where it can, nobody rings.
async fn database() -> support::Database {
    static SERVER: OnceCell<EmbeddedPostgres> = OnceCell::const_new();
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let start = || support::server_with(&[("max_prepared_transactions", "0")]);
    let server = SERVER.get_or_init(start).await;
    let name = format!("bell_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    server.create_database(&name, None).await.unwrap();
    let url = server.url(&name);
    let pool = PgPool::connect(&url).await.unwrap();
    migrate_event_store(&pool, SCHEMA).await.unwrap();
    support::Database { pool, url, name }
}

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.unwrap();
}

async fn append(connection: &mut PgConnection, way: &'static str) -> Position {
    sqlx::query_scalar(way).fetch_one(connection).await.unwrap()
}

/// Somebody who hears what the store notifies.
struct Ear {
    listener: PgListener,
    pool: PgPool,
}

impl Ear {
    async fn on(pool: &PgPool) -> Self {
        let mut listener = PgListener::connect_with(pool).await.unwrap();
        listener.listen("espd_events").await.unwrap();
        Self { listener, pool: pool.clone() }
    }

    /// How many notifications were committed since the last time.
    async fn count(&mut self) -> usize {
        let end = Uuid::new_v4().to_string();
        sqlx::query("select pg_notify('espd_events', $1)").bind(&end).execute(&self.pool).await.unwrap();
        let mut heard = 0;
        while timeout(PATIENCE, self.listener.recv()).await.unwrap().unwrap().payload() != end {
            heard += 1;
        }
        heard
    }
}

/// Waits until this is so.
async fn wait_until(pool: &PgPool, condition: &'static str) {
    let is_so = async {
        while !sqlx::query_scalar::<_, bool>(condition).fetch_one(pool).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, is_so).await.unwrap_or_else(|_| panic!("never: {condition}"));
}

const IS_SET: &str = "select coalesce(espd.must_ring('espd.bell'), false)";

/// The bell is set, and the look after it is done.
const SLEEPS: &str = "select coalesce(espd.must_ring('espd.bell'), false) and exists (
    select from pg_stat_activity where application_name = 'sleeper' and datname = current_database()
      and state = 'idle' and query not like '%set_bell%')";

fn sleeper(url: &str, settings: WatcherSettings) -> Watcher {
    let options: sqlx::postgres::PgConnectOptions = url.parse().unwrap();
    Watcher::new(options.application_name("sleeper"), Layout::espd(SCHEMA).unwrap(), settings)
}

fn sleepy() -> WatcherSettings {
    WatcherSettings { shortest_interval: NEVER, idle_interval: NEVER, ..WatcherSettings::default() }
}

#[tokio::test]
async fn an_append_wakes_a_watcher_that_would_sleep_for_an_hour() {
    let db = database().await;
    let mut writer = PgConnection::connect(&db.url).await.unwrap();
    for way in WAYS {
        let watcher = sleeper(&db.url, sleepy());
        let (stop, heard) = shutdown::channel();
        let mut horizon = watcher.horizon();
        let task = tokio::spawn(watcher.run(heard));
        wait_until(&db.pool, SLEEPS).await;
        let event = append(&mut writer, way).await;
        let seen = timeout(PATIENCE, wait_beyond(&mut horizon, event.previous())).await;
        assert!(seen.unwrap_or_else(|_| panic!("nobody is woken by {way}")) >= Some(event));
        stop.request();
        task.await.unwrap();
        run(&mut writer, "select espd.set_bell(-1)").await;
    }
}

/// Two of them sleep, and one notification wakes both.
#[tokio::test]
async fn several_sleepers_are_woken_by_one_append() {
    let db = database().await;
    let mut writer = PgConnection::connect(&db.url).await.unwrap();
    let (stop, heard) = shutdown::channel();
    let watchers = [sleeper(&db.url, sleepy()), sleeper(&db.url, sleepy())];
    let mut horizons = watchers.each_ref().map(Watcher::horizon);
    let tasks = watchers.map(|watcher| tokio::spawn(watcher.run(heard.clone())));
    wait_until(
        &db.pool,
        "select count(*) = 2 from pg_stat_activity where application_name = 'sleeper' and datname = current_database()
           and state = 'idle' and query ~ 'read_last_value|read_structure'
           and coalesce(espd.must_ring('espd.bell'), false)",
    )
    .await;
    let event = append(&mut writer, APPEND).await;
    for horizon in &mut horizons {
        let seen = timeout(PATIENCE, wait_beyond(horizon, event.previous())).await.expect("one sleeps on");
        assert!(seen >= Some(event));
    }
    stop.request();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn appends_notify_only_while_somebody_sleeps_and_only_the_first_ones() {
    let db = database().await;
    let mut writer = PgConnection::connect(&db.url).await.unwrap();
    let mut ear = Ear::on(&db.pool).await;
    for way in WAYS {
        append(&mut writer, way).await;
        assert_eq!(ear.count().await, 0, "nobody has ever slept: {way}");
    }
    // One who never wakes up.
    run(&mut writer, "select espd.set_bell(3600)").await;
    for _ in 0..20 {
        append(&mut writer, APPEND).await;
    }
    assert_eq!(ear.count().await, 8);
    run(&mut writer, "select espd.set_bell(3600)").await;
    append(&mut writer, APPEND).await;
    assert_eq!(ear.count().await, 1, "there is another who sleeps");
    run(&mut writer, "select espd.set_bell(-0.001)").await;
    append(&mut writer, APPEND).await;
    assert_eq!(ear.count().await, 0, "it is over");
}

#[tokio::test]
async fn a_writer_that_rolls_back_takes_the_bell_from_nobody() {
    let db = database().await;
    let mut ringer = PgConnection::connect(&db.url).await.unwrap();
    let mut other = PgConnection::connect(&db.url).await.unwrap();
    let mut ear = Ear::on(&db.pool).await;
    run(&mut ringer, "select espd.set_bell(3600); begin").await;
    // However often one transaction appends, it has rung once.
    for _ in 0..20 {
        append(&mut ringer, APPEND).await;
    }
    append(&mut other, APPEND).await;
    run(&mut ringer, "rollback").await;
    assert_eq!(ear.count().await, 1, "the other one has rung");

    run(&mut ringer, "begin; savepoint before").await;
    append(&mut ringer, APPEND).await;
    run(&mut ringer, "rollback to before").await;
    append(&mut ringer, APPEND).await;
    run(&mut ringer, "commit").await;
    assert_eq!(ear.count().await, 1, "what was rung before the savepoint's end is gone");
}

#[tokio::test]
async fn a_watcher_that_has_died_is_forgotten() {
    let db = database().await;
    let mut writer = PgConnection::connect(&db.url).await.unwrap();
    let settings = WatcherSettings { idle_interval: Duration::from_millis(50), ..WatcherSettings::default() };
    let watcher = sleeper(&db.url, settings);
    let (_stop, heard) = shutdown::channel();
    let task = tokio::spawn(watcher.run(heard));
    wait_until(&db.pool, IS_SET).await;
    task.abort();
    let left =
        "select last_value / 64 - 1000 * extract(epoch from clock_timestamp()) <= 599050 from espd.bell";
    assert!(sqlx::query_scalar::<_, bool>(left).fetch_one(&db.pool).await.unwrap());
    // It is forgotten when its time is over; or earlier, as here, when eight transactions have rung.
    for _ in 0..8 {
        append(&mut writer, APPEND).await;
    }
    assert!(
        !sqlx::query_scalar::<_, bool>("select espd.must_ring('espd.bell')")
            .fetch_one(&db.pool)
            .await
            .unwrap()
    );
    let mut ear = Ear::on(&db.pool).await;
    append(&mut writer, APPEND).await;
    assert_eq!(ear.count().await, 0);
}

/// A right is not what keeps a writer from ringing, and where it is missing, the event is appended all the same.
#[tokio::test]
async fn a_writer_needs_no_right_to_the_bell() {
    let db = database().await;
    let mut writer = PgConnection::connect(&db.url).await.unwrap();
    let mut ear = Ear::on(&db.pool).await;
    let role = format!("ringer_{}", Uuid::new_v4().simple());
    let grants = format!(
        "create role {role}; grant usage on schema espd to {role}; grant select, insert on espd.events to {role};
         grant select on espd.event_schemas to {role}; select espd.set_bell(3600); set role {role}"
    );
    run(&mut writer, &grants).await;
    append(&mut writer, APPEND).await;
    assert_eq!(ear.count().await, 1);
    run(&mut writer, &format!("reset role; revoke select on espd.bell from public; set role {role}")).await;
    append(&mut writer, APPEND).await;
    assert_eq!(ear.count().await, 0);
    run(&mut writer, &format!("reset role; drop owned by {role}; drop role {role}")).await;
}

/// PostgreSQL refuses to prepare a transaction that has notified.
#[tokio::test]
async fn a_transaction_that_appends_can_be_prepared() {
    let server = support::server_with(&[("max_prepared_transactions", "2")]).await;
    let db = support::database_on(&server).await;
    let mut writer = PgConnection::connect(&db.url).await.unwrap();
    let is_set: bool = sqlx::query_scalar("select espd.set_bell(3600)").fetch_one(&mut writer).await.unwrap();
    assert!(!is_set);
    run(&mut writer, "begin").await;
    append(&mut writer, APPEND).await;
    run(&mut writer, "prepare transaction 'append'").await;
    run(&mut writer, "commit prepared 'append'").await;
    server.stop().await;
}

/// How long the sleeper has asked nothing, in seconds.
const SILENCE: &str =
    "select extract(epoch from clock_timestamp() - query_start)::float8 from pg_stat_activity
    where application_name = 'sleeper' and datname = current_database()";

#[tokio::test]
async fn a_watcher_at_rest_looks_for_itself_only_where_nobody_else_reads_the_head() {
    let db = database().await;
    let mut writer = PgConnection::connect(&db.url).await.unwrap();
    let event = append(&mut writer, APPEND).await;
    let idle = Duration::from_millis(100);
    let settings = WatcherSettings {
        shortest_interval: idle,
        idle_interval: idle,
        quiet_after: Duration::from_millis(1),
        ..WatcherSettings::default()
    };
    let watcher = sleeper(&db.url, settings);
    let (stop, heard) = shutdown::channel();
    let heads = watcher.heads();
    let task = tokio::spawn(watcher.run(heard));
    wait_until(&db.pool, SLEEPS).await;
    // Looks of its own are five times as far apart at most.
    let silent = async {
        while sqlx::query_scalar::<_, f64>(SILENCE).fetch_one(&db.pool).await.unwrap() < 2.0 {
            heads.send_replace(Some(ReadHead { head: event, asked: Instant::now() }));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, silent).await.expect("it looks for itself though others have read the head");
    wait_until(
        &db.pool,
        "select clock_timestamp() - query_start < interval '0.5 s' from pg_stat_activity
        where application_name = 'sleeper' and datname = current_database()",
    )
    .await;
    stop.request();
    task.await.unwrap();
}

/// Where no notification comes, as of a plain insert, or on a connection that is dead without a word.
#[tokio::test]
async fn a_head_that_somebody_else_has_read_ends_the_sleep_if_it_is_another_one() {
    let db = database().await;
    let mut writer = PgConnection::connect(&db.url).await.unwrap();
    let watcher = sleeper(&db.url, sleepy());
    let (stop, heard) = shutdown::channel();
    let (heads, mut horizon) = (watcher.heads(), watcher.horizon());
    let task = tokio::spawn(watcher.run(heard));
    wait_until(&db.pool, SLEEPS).await;
    let insert = "insert into espd.events (aggregate_id, version, type, body)
        values (gen_random_uuid(), 1, 'Happened', '{}') returning id";
    let event: Position = sqlx::query_scalar(insert).fetch_one(&mut writer).await.unwrap();
    heads.send_replace(Some(ReadHead { head: event, asked: Instant::now() }));
    let seen = timeout(PATIENCE, wait_beyond(&mut horizon, event.previous())).await.expect("it sleeps on");
    assert!(seen >= Some(event));
    stop.request();
    task.await.unwrap();
}
