//! How fast events are appended while a daemon follows the store, beside the same without one.
//!
//! `cargo bench --bench append_beside_daemon`; docs/benchmarks.md says what the figures mean.

mod support;

use std::time::{Duration, Instant};

use anyhow::ensure;
use espd::event::{ExpectedVersion, NewEvent};
use espd::store::Layout;
use espd::store::{EventStore as _, PostgresEventStore};
use serde_json::value::RawValue;
use sqlx::postgres::PgPoolOptions;
use support::{Arguments, Daemon, Installation, Report, SCHEMA, Server, Spread};
use tokio::task::JoinSet;
use uuid::Uuid;

const BODY: &str =
    r#"{"title": "Buy milk", "description": "two litres, the blue one", "due_date": "2027-05-01"}"#;

/// The type of all events that are appended.
const EVENT_TYPE: &str = "TodoAdded";

const CONNECTIONS: [u32; 2] = [4, 16];

/// A daemon whose only projector is for events that never come: it listens, and its position follows.
const LISTENING: &str = r#"
[[projector]]
name   = "listening"
tables = { listening = "id bigint primary key" }

[[projector.on]]
events = ["SomethingElse"]
sql    = "insert into listening values (event.id)"
"#;

/// A daemon with a row to write for every event.
const HANDLING: &str = r#"
[[projector]]
name   = "handling"
tables = { handling = "todo_id uuid primary key, title text not null" }

[[projector.on]]
events = ["TodoAdded"]
sql    = "insert into handling values (event.aggregate_id, event.body->>'title')"
"#;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let time = arguments.size(Duration::from_secs(3), Duration::from_millis(500));
    let rounds = arguments.rounds(7);
    let server = Server::start(&[]).await?;
    let flush = server.flush_time();
    let bench = Bench::new(&server, time)?;

    let title =
        format!("appends of one event beside a daemon, {rounds} rounds of {time:?}, flush {flush:.1?}");
    let report = Report::begin(&title, "events/s");
    for connections in CONNECTIONS {
        let mut results: [Vec<f64>; 3] = Default::default();
        for number in 0..rounds {
            for turn in 0..results.len() {
                let index = (number + turn) % results.len();
                let daemon = bench.daemons[index].as_ref();
                results[index].push(bench.run(connections, daemon).await?);
            }
        }
        let [alone, listening, handling] = results.map(|rates| Spread::of(&rates));
        let row = |what: &str, figure, target: &str| {
            report.row(&format!("{connections} connections, {what}; no daemon"), figure, alone, target);
        };
        row("it listens", listening, ">= 0.95");
        row("it handles them", handling, "");
    }
    server.stop().await;
    Ok(())
}

struct Bench<'a> {
    server: &'a Server,
    time: Duration,
    /// None, the listening and the handling one.
    daemons: [Option<Follower>; 3],
}

/// A daemon that may be started.
struct Follower {
    processor: &'static str,
    installation: Installation,
}

impl<'a> Bench<'a> {
    fn new(server: &'a Server, time: Duration) -> anyhow::Result<Self> {
        let follower = |processor, configuration| -> anyhow::Result<Option<Follower>> {
            let installation = Installation::new(&server.url, "warn", configuration)?;
            Ok(Some(Follower { processor, installation }))
        };
        let daemons = [None, follower("listening", LISTENING)?, follower("handling", HANDLING)?];
        Ok(Self { server, time, daemons })
    }

    /// Events appended per second by this many writers, each on a connection of its own.
    async fn run(&self, connections: u32, follower: Option<&Follower>) -> anyhow::Result<f64> {
        self.server.execute("truncate espd.events").await?;
        self.server.settle().await?;
        let daemon = match follower {
            Some(follower) => Some(self.start(follower).await?),
            None => None,
        };
        // One more than writers, for the notifier.
        let options = PgPoolOptions::new().min_connections(connections + 1).max_connections(connections + 1);
        let pool = options.test_before_acquire(false).connect(&self.server.url).await?;
        let store = PostgresEventStore::new(pool.clone(), Layout::espd(SCHEMA)?);
        let begun = Instant::now();
        let mut writers = JoinSet::new();
        for _ in 0..connections {
            writers.spawn(append_until(store.clone(), begun + self.time));
        }
        let appended = writers.join_all().await.into_iter().sum::<anyhow::Result<u64>>()?;
        let rate = appended as f64 / begun.elapsed().as_secs_f64();
        pool.close().await;
        daemon.map_or(Ok(()), Daemon::stop)?;
        Ok(rate)
    }

    /// Starts a daemon and waits until it follows.
    async fn start(&self, follower: &Follower) -> anyhow::Result<Daemon> {
        let daemon = follower.installation.start()?;
        let head = append_one(&self.store()?).await?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.position(follower).await? < head {
            ensure!(Instant::now() < deadline, "{} does not follow", follower.processor);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(daemon)
    }

    fn store(&self) -> anyhow::Result<PostgresEventStore> {
        Ok(PostgresEventStore::new(self.server.pool.clone(), Layout::espd(SCHEMA)?))
    }

    async fn position(&self, follower: &Follower) -> anyhow::Result<i64> {
        let statement = "select position from espd.trackers where name = $1 and owner is not null";
        let query = sqlx::query_scalar(statement).bind(follower.processor);
        Ok(query.fetch_optional(&self.server.pool).await?.unwrap_or(0))
    }
}

async fn append_until(store: PostgresEventStore, deadline: Instant) -> anyhow::Result<u64> {
    let mut appended = 0;
    while Instant::now() < deadline {
        append_one(&store).await?;
        appended += 1;
    }
    Ok(appended)
}

/// Appends the first event of an aggregate and returns its id.
async fn append_one(store: &PostgresEventStore) -> anyhow::Result<i64> {
    let body = RawValue::from_string(BODY.to_owned())?;
    let event = NewEvent::new(Uuid::new_v4(), EVENT_TYPE, body).expecting(ExpectedVersion::Absent);
    Ok(store.append(&[event]).await?[0].id.get())
}
