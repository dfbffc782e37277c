//! What a build at its default share costs those who append meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use espd::event::{ExpectedVersion, NewEvent};
use espd::store::{EventStore as _, Layout, PostgresEventStore};
use serde_json::value::RawValue;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::support::{Arguments, Installation, Report, SCHEMA, Server, Spread};
use super::{SETTINGS, projector, wait_until, wait_until_position};

const BODY: &str =
    r#"{"title": "Buy milk", "description": "two litres, the blue one", "due_date": "2027-05-01"}"#;

const CONNECTIONS: u32 = 4;

pub(crate) async fn measure(arguments: Arguments) -> anyhow::Result<()> {
    let (events, rounds) = (arguments.size(2_000_000, 60_000), arguments.rounds(3));
    let server = Server::start(SETTINGS).await?;
    server.load_todo_history(events).await?;
    let installation = Installation::new(&server.url, "warn", &projector(1))?;
    let daemon = installation.start()?;
    wait_until_position(&server, events as i64).await?;

    let bench = Bench { server: &server, installation };
    let (mut alone, mut beside, mut lasted) = (Vec::new(), Vec::new(), Vec::new());
    // Nobody appends alone for a shorter time than beside a build: the table grows, and the server writes a checkpoint.
    let mut time = Duration::ZERO;
    for (number, version) in (0..rounds).zip(2..) {
        for turn in 0..2 {
            bench.rest().await?;
            if (number + turn) % 2 == 1 {
                alone.push(bench.run_alone(time).await?);
            } else {
                let (rate, took) = bench.run_beside_build(version).await?;
                beside.push(rate);
                lasted.push(took.as_secs_f64());
                time = took;
            }
        }
    }
    daemon.stop()?;
    let flush = server.flush_time();
    let title = format!(
        "appends of one event by {CONNECTIONS} connections while a daemon builds a version of {events} events, builds of {:.0} s, \
         rounds: {rounds}, flush {flush:.1?}",
        Spread::of(&lasted).median
    );
    let report = Report::begin(&title, "appends/s");
    report.row("while a version is built; without", Spread::of(&beside), Spread::of(&alone), ">= 0.8");
    server.stop().await;
    Ok(())
}

struct Bench<'a> {
    server: &'a Server,
    installation: Installation,
}

impl Bench<'_> {
    /// Waits until nothing is left to do.
    async fn rest(&self) -> anyhow::Result<()> {
        let head: i64 =
            sqlx::query_scalar("select max(id) from espd.events").fetch_one(&self.server.pool).await?;
        wait_until_position(self.server, head).await?;
        self.server.settle().await
    }

    /// Appends per second for this time, while the daemon handles what comes.
    async fn run_alone(&self, time: Duration) -> anyhow::Result<f64> {
        let writers = Writers::start(self.server).await?;
        let (begun, before) = (Instant::now(), writers.appended());
        tokio::time::sleep(time).await;
        let rate = (writers.appended() - before) as f64 / begun.elapsed().as_secs_f64();
        writers.stop().await?;
        Ok(rate)
    }

    /// The same from the time on when the daemon has begun to build a version until that waits for an operator, and how long
    /// that was.
    async fn run_beside_build(&self, version: i32) -> anyhow::Result<(f64, Duration)> {
        let declared = format!("version = {version}\napprove = \"manual\"");
        self.installation.declare(&projector(version).replace(&format!("version = {version}"), &declared))?;
        let writers = Writers::start(self.server).await?;
        self.installation.espctl(&["reload"])?;
        let progress = format!("select from espd.build_progress where version = {version}");
        wait_until(self.server, &format!("{progress} and position > 0"), "a build").await?;
        let (begun, before) = (Instant::now(), writers.appended());
        wait_until(self.server, &format!("{progress} and blocked_because is not null"), "its end").await?;
        let took = begun.elapsed();
        let rate = (writers.appended() - before) as f64 / took.as_secs_f64();
        writers.stop().await?;
        Ok((rate, took))
    }
}

/// Connections that append as fast as they can.
struct Writers {
    appended: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<anyhow::Result<()>>,
    pool: PgPool,
}

impl Writers {
    async fn start(server: &Server) -> anyhow::Result<Self> {
        // One more than writers, for the notifier.
        let options = PgPoolOptions::new().min_connections(CONNECTIONS + 1).max_connections(CONNECTIONS + 1);
        let pool = options.test_before_acquire(false).connect(&server.url).await?;
        let store = PostgresEventStore::new(pool.clone(), Layout::espd(SCHEMA)?);
        let (appended, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut tasks = JoinSet::new();
        for _ in 0..CONNECTIONS {
            tasks.spawn(append_until(store.clone(), Arc::clone(&appended), Arc::clone(&stop)));
        }
        Ok(Self { appended, stop, tasks, pool })
    }

    fn appended(&self) -> u64 {
        self.appended.load(Ordering::Relaxed)
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await.into_iter().collect::<anyhow::Result<()>>()?;
        self.pool.close().await;
        Ok(())
    }
}

async fn append_until(
    store: PostgresEventStore,
    appended: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let body = RawValue::from_string(BODY.to_owned())?;
        let event = NewEvent::new(Uuid::new_v4(), "TodoAdded", body).expecting(ExpectedVersion::Absent);
        store.append(&[event]).await?;
        appended.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
