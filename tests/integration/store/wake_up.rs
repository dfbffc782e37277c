//! The watcher on a real server, over a network that fails: whatever happens, it sees what is appended.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use espd::embedded::{EmbeddedPostgres, StopMode};
use espd::event::Position;
use espd::internals::horizon::{Horizon, wait_beyond};
use espd::internals::shutdown::{self, ShutdownHandle};
use espd::internals::watcher::{Watcher, WatcherSettings};
use espd::schema::migrate_event_store;
use espd::store::Layout;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::support::proxy::Proxy;
use crate::support::{self, SCHEMA};

/// Ends only in a test that fails: nothing here takes that long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A watcher at work.
struct Watching {
    horizon: watch::Receiver<Horizon>,
    control: watch::Receiver<u64>,
    stop: ShutdownHandle,
    task: JoinHandle<()>,
}

impl Watching {
    fn start(options: PgConnectOptions) -> Self {
        Self::start_with(options, settings())
    }

    fn start_with(options: PgConnectOptions, settings: WatcherSettings) -> Self {
        Self::run(Watcher::new(options.application_name("watcher"), layout(), settings))
    }

    fn run(watcher: Watcher) -> Self {
        let (stop, heard) = shutdown::channel();
        let (horizon, control) = (watcher.horizon(), watcher.control());
        Self { horizon, control, stop, task: tokio::spawn(watcher.run(heard)) }
    }

    async fn sees(&mut self, position: Position) {
        let settled = timeout(PATIENCE, wait_beyond(&mut self.horizon, position.previous())).await;
        assert!(settled.unwrap_or_else(|_| panic!("event {position} is never seen")) >= Some(position));
    }

    /// Waits until there were `reasons` reasons to read trackers again.
    async fn hears(&mut self, reasons: u64) {
        let heard = timeout(PATIENCE, self.control.wait_for(|count| *count >= reasons)).await.is_ok();
        assert!(heard, "{} of {reasons} are heard", *self.control.borrow());
    }

    async fn waits_for(&mut self, condition: impl FnMut(&Horizon) -> bool) -> Horizon {
        let horizon = timeout(PATIENCE, self.horizon.wait_for(condition)).await;
        horizon.expect("the horizon never gets there").unwrap().clone()
    }

    async fn ends(self) {
        self.stop.request();
        timeout(PATIENCE, self.task).await.expect("the watcher does not stop").unwrap();
    }
}

/// Impatient, so that tests are quick.
fn settings() -> WatcherSettings {
    WatcherSettings { answer_timeout: Duration::from_millis(500), ..WatcherSettings::default() }
}

fn layout() -> Layout {
    Layout::espd(SCHEMA).unwrap()
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.unwrap();
}

const INSERT: &str = "insert into espd.events (aggregate_id, type, version, body)
                      values (gen_random_uuid(), 'Tested', 1, '{}') returning id";

async fn append(url: &str) -> Position {
    let mut connection = connect(url).await;
    sqlx::query_scalar(INSERT).fetch_one(&mut connection).await.unwrap()
}

/// A private server with an event store in database `store`.
async fn store_server(settings: &[(&str, &str)]) -> (EmbeddedPostgres, String) {
    let server = support::server_with(settings).await;
    server.create_database("store", None).await.unwrap();
    let url = server.url("store");
    let pool = PgPool::connect(&url).await.unwrap();
    migrate_event_store(&pool, SCHEMA).await.unwrap();
    pool.close().await;
    (server, url)
}

#[tokio::test]
async fn an_appended_event_is_seen_without_any_notification() {
    let database = support::database().await;
    let settings = WatcherSettings { listen: false, ..settings() };
    let mut watching = Watching::start_with(database.url.parse().unwrap(), settings);
    for _ in 0..3 {
        watching.sees(append(&database.url).await).await;
    }
    watching.ends().await;
}

/// The control counter moves for two reasons only, a new connection and a notification, so it tells that notifications
/// are received. A hundred in a row also arrive while the watcher is looking, and between look and wait.
#[tokio::test]
async fn every_control_notification_is_received() {
    let database = support::database().await;
    let mut watching = Watching::start(database.url.parse().unwrap());
    watching.hears(1).await;
    let mut ringer = connect(&database.url).await;
    for _ in 0..100 {
        run(&mut ringer, "notify espd_events, 'control'; notify espd_events").await;
    }
    watching.hears(101).await;
    watching.ends().await;
}

#[tokio::test]
async fn a_terminated_connection_is_replaced() {
    let database = support::database().await;
    let mut watching = Watching::start(database.url.parse().unwrap());
    let mut other = connect(&database.url).await;
    for round in 1..=5 {
        watching.sees(append(&database.url).await).await;
        run(
            &mut other,
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'watcher' and datname = current_database()",
        )
        .await;
        watching.sees(append(&database.url).await).await;
        // A notification of the meantime may be lost, so everybody is told to look for themselves.
        watching.hears(1 + round).await;
    }
    watching.ends().await;
}

#[tokio::test]
async fn a_reset_connection_is_replaced() {
    let url = support::database().await.url;
    let proxy = Proxy::start(&url).await;
    let mut watching = Watching::start(proxy.options());
    for _ in 0..5 {
        watching.sees(append(&url).await).await;
        proxy.reset();
        watching.sees(append(&url).await).await;
    }
    watching.ends().await;
}

#[tokio::test]
async fn a_connection_that_swallows_everything_is_replaced_and_closed() {
    let url = support::database().await.url;
    let proxy = Proxy::start(&url).await;
    let mut watching = Watching::start(proxy.options());
    for round in 1..=3 {
        watching.sees(append(&url).await).await;
        proxy.freeze();
        watching.sees(append(&url).await).await;
        // Not only replaced: nothing of it may be left in this process.
        let closed = proxy.wait_until(|tally| tally.abandoned >= round);
        timeout(PATIENCE, closed).await.expect("the frozen connection is still open");
    }
    watching.ends().await;
}

#[tokio::test]
async fn the_horizon_is_withdrawn_while_nothing_can_be_known() {
    let url = support::database().await.url;
    let proxy = Proxy::start(&url).await;
    let mut watching = Watching::start(proxy.options());
    let event = append(&url).await;
    watching.sees(event).await;
    proxy.refuse(true);
    proxy.reset();
    let withdrawn = watching.waits_for(|horizon| horizon.settled == 0).await;
    assert_eq!(withdrawn.head, event);
    timeout(PATIENCE, proxy.wait_until(|tally| tally.refused >= 3)).await.expect("the watcher has given up");
    proxy.refuse(false);
    watching.sees(event).await;
    watching.ends().await;
}

#[tokio::test]
async fn a_restart_of_the_server_is_survived() {
    let (mut server, url) = store_server(&[]).await;
    let mut watching = Watching::start(url.parse().unwrap());
    for mode in [StopMode::Fast, StopMode::Immediate] {
        watching.sees(append(&url).await).await;
        server = server.restart(mode).await.unwrap();
        watching.sees(append(&url).await).await;
    }
    watching.ends().await;
    server.stop().await;
}

/// A rolled-back id need not reach the log before a crash. The server then draws it again, and a reader that
/// still followed the horizon of before would move past the new event.
#[tokio::test]
async fn a_crash_that_forgets_ids_takes_the_horizon_back() {
    let lazy = [("wal_writer_delay", "10s"), ("wal_writer_flush_after", "1GB"), ("autovacuum", "off")];
    let (mut server, url) = store_server(&lazy).await;
    let proxy = Proxy::start(&url).await;
    let mut watching = Watching::start(proxy.options());
    let first = append(&url).await;
    let insert_many = INSERT.replace("values (gen_random_uuid(), 'Tested', 1, '{}') returning id", "")
        + "select gen_random_uuid(), 'Tested', 1, '{}' from generate_series(1, 100) returning id";
    let mut crashes = 0;
    let (mut writer, again) = loop {
        let mut writer = connect(&url).await;
        run(&mut writer, "begin").await;
        let drawn: Vec<Position> =
            sqlx::query_scalar(AssertSqlSafe(insert_many.as_str())).fetch_all(&mut writer).await.unwrap();
        run(&mut writer, "rollback").await;
        watching.sees(*drawn.last().unwrap()).await;

        proxy.refuse(true);
        server = server.restart(StopMode::Immediate).await.unwrap();
        let mut writer = connect(&url).await;
        run(&mut writer, "begin").await;
        let again: Position = sqlx::query_scalar(INSERT).fetch_one(&mut writer).await.unwrap();
        if drawn.contains(&again) {
            break (writer, again);
        }
        // Every ten seconds, the server writes its log just before we crash it.
        crashes += 1;
        assert!(crashes < 10, "the server forgets nothing, so this test shows nothing");
        proxy.refuse(false);
    };
    // The sequence is soon where it was before, so that does not tell.
    run(&mut writer, &insert_many).await;
    proxy.refuse(false);
    let horizon = watching.waits_for(|horizon| horizon.head == again.advanced_by(100)).await;
    assert_eq!(horizon.settled, first, "event {again} is still to come");
    run(&mut writer, "commit").await;
    watching.sees(again.advanced_by(100)).await;
    watching.ends().await;
    server.stop().await;
}

#[tokio::test]
async fn a_standby_is_not_used_until_it_is_promoted() {
    let (server, url) = store_server(&[]).await;
    let event = append(&url).await;
    std::fs::write(server.folder().join("data/standby.signal"), "").unwrap();
    let server = server.restart(StopMode::Fast).await.unwrap();
    let proxy = Proxy::start(&url).await;
    let mut watching = Watching::start(proxy.options());
    timeout(PATIENCE, proxy.wait_until(|tally| tally.accepted >= 6)).await.expect("the watcher has given up");
    assert_eq!(
        watching.horizon.borrow().settled,
        0,
        "the locks of the primary's writers cannot be seen here"
    );
    run(&mut connect(&url).await, "select pg_promote()").await;
    watching.sees(event).await;
    watching.ends().await;
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_refuses_notifications_is_polled() {
    let url = support::database().await.url;
    let proxy = Proxy::start(&url).await;
    proxy.replace("LISTEN \"", "LISTEM \"");
    let mut watching = Watching::start(proxy.options());
    for _ in 0..3 {
        watching.sees(append(&url).await).await;
    }
    assert_eq!(*watching.control.borrow(), 1, "refusing is no reason to connect again");
    watching.ends().await;
}

#[tokio::test]
async fn writers_that_hold_the_horizon_back_are_published_until_they_end() {
    let database = support::database().await;
    let settings = WatcherSettings { name_after: Duration::from_millis(50), ..settings() };
    let mut watching = Watching::start_with(database.url.parse().unwrap(), settings);
    let mut slow = connect(&database.url).await;
    run(&mut slow, "set application_name = 'importer'; begin").await;
    run(&mut slow, INSERT).await;
    let horizon = watching.waits_for(|horizon| !horizon.held_by.is_empty()).await;
    assert_eq!(horizon.held_by[0].application_name.as_deref(), Some("importer"));
    assert!(horizon.held_since.is_some_and(|since| since.elapsed() >= Duration::from_millis(50)));
    run(&mut slow, "commit").await;
    let free = |horizon: &Horizon| {
        horizon.settled == 1 && horizon.held_by.is_empty() && horizon.held_since.is_none()
    };
    watching.waits_for(free).await;
    watching.ends().await;
}

#[tokio::test]
async fn a_writer_that_was_there_before_is_waited_for_by_every_new_watcher() {
    let database = support::database().await;
    let (mut slow, mut quick) = (connect(&database.url).await, connect(&database.url).await);
    run(&mut quick, "begin").await;
    run(&mut quick, INSERT).await;
    run(&mut quick, "rollback").await; // a hole
    append(&database.url).await;
    run(&mut slow, "begin").await;
    run(&mut slow, INSERT).await;
    let settings = WatcherSettings { name_after: Duration::from_millis(50), ..settings() };
    let mut watching = Watching::start_with(database.url.parse().unwrap(), settings);
    let horizon = watching.waits_for(|horizon| !horizon.held_by.is_empty()).await;
    assert_eq!((horizon.head, horizon.settled), (3.into(), 0.into()), "the hole may be the slow writer's");
    run(&mut slow, "commit").await;
    watching.sees(3.into()).await;
    watching.ends().await;
}

#[tokio::test]
async fn the_watcher_stops_at_once_whatever_it_is_doing() {
    let url = support::database().await.url;
    let proxy = Proxy::start(&url).await;
    let patient = WatcherSettings { answer_timeout: Duration::from_secs(3600), ..settings() };

    let mut waiting = Watching::start_with(proxy.options(), patient.clone());
    waiting.sees(append(&url).await).await;
    waiting.ends().await;

    let mut unanswered = Watching::start_with(proxy.options(), patient.clone());
    unanswered.sees(append(&url).await).await;
    proxy.freeze();
    unanswered.ends().await;

    proxy.refuse(true);
    let refused = proxy.tally().refused;
    let disconnected = Watching::start_with(proxy.options(), patient);
    timeout(PATIENCE, proxy.wait_until(|tally| tally.refused > refused)).await.unwrap();
    let mut horizon = disconnected.horizon.clone();
    disconnected.ends().await;
    assert_eq!(wait_beyond(&mut horizon, 0.into()).await, None, "who waits is told that nothing will come");
}

/// What the log says, by the watcher's own lines.
#[tokio::test]
async fn the_log_has_a_loss_once_and_names_the_holders() {
    // With a single subscriber in the process, tracing asks the subscriber of the thread that comes by
    // a line first whether the line is of interest, and that thread may run another test.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt().with_writer(lines.clone()).with_ansi(false).finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let url = support::database().await.url;
    let proxy = Proxy::start(&url).await;
    let settings = WatcherSettings {
        name_after: Duration::from_millis(20),
        warn_after: Duration::from_millis(50),
        ..settings()
    };
    let mut watching = Watching::start_with(proxy.options(), settings);
    let mut slow = connect(&url).await;
    run(&mut slow, "set application_name = 'importer'; begin").await;
    run(&mut slow, INSERT).await;
    lines.wait_for("events wait for a writer that has not ended").await;
    assert!(lines.text().contains("importer"), "{}", lines.text());
    run(&mut slow, "commit").await;
    watching.sees(1.into()).await;

    proxy.refuse(true);
    proxy.reset();
    timeout(PATIENCE, proxy.wait_until(|tally| tally.refused >= 3)).await.unwrap();
    proxy.refuse(false);
    watching.sees(1.into()).await;
    lines.wait_for("watching the event store again").await;
    watching.ends().await;
    assert_eq!(lines.text().matches("lost the connection to the event store").count(), 1, "{}", lines.text());
}

/// A log to look into.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    async fn wait_for(&self, text: &str) {
        let appears = async {
            while !self.text().contains(text) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, appears).await.unwrap_or_else(|_| panic!("no {text:?} in {}", self.text()));
    }
}

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl tracing_subscriber::fmt::MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
