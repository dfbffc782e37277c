//! From commit to the row in the reader's hands, at 200 events a second, beside a bare `LISTEN` loop.
//!
//! `cargo bench --bench wake_latency`. Every way of waiting gets the same load, one after the other,
//! on one private server with default durability. The clock starts when `commit` returns to the
//! writer and stops when the reader has the row, so it includes reading.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use espd::embedded::{EmbeddedPostgres, Options};
use espd::event::Position;
use espd::horizon::wait_beyond;
use espd::layout::Layout;
use espd::schema::migrate_event_store;
use espd::shutdown;
use espd::watcher::{Watcher, WatcherSettings};
use sqlx::postgres::PgListener;
use sqlx::{Connection, PgConnection, PgPool};

const EVENTS: u32 = 1000;
const INTERVAL: Duration = Duration::from_millis(5);

/// The append library rings at most this often.
const RING_INTERVAL: Duration = Duration::from_millis(10);

/// When which event was committed, or read.
type Times = HashMap<Position, Instant>;

/// When a writer rings.
#[derive(Clone, Copy, PartialEq)]
enum Ringing {
    Always,
    AtIntervals,
    Never,
}

#[tokio::main]
async fn main() -> Result<()> {
    let server = EmbeddedPostgres::start_temporary(Options::default()).await?;
    server.create_database("bench", None).await?;
    let url = server.url("bench");
    let pool = PgPool::connect(&url).await?;
    migrate_event_store(&pool, "espd").await?;
    pool.close().await;

    println!("commit to row, {EVENTS} events, one every {INTERVAL:?}      p50        p99        max");
    report("reference: bare LISTEN loop", &listen_barely(&url).await?);
    report("watcher, rung at most every 10 ms", &watch(&url, Ringing::AtIntervals).await?);
    report("watcher, nobody rings", &watch(&url, Ringing::Never).await?);
    server.stop().await;
    Ok(())
}

/// The reference: wait for a notification, read what is new. It loses events; that is not the point.
async fn listen_barely(url: &str) -> Result<Vec<Duration>> {
    let mut listener = PgListener::connect(url).await?;
    listener.listen("espd_events").await?;
    let mut reader = Reader::connect(url).await?;
    let writer = tokio::spawn(write(url.to_owned(), Ringing::Always));
    while reader.read.len() < EVENTS as usize {
        listener.recv().await?;
        reader.read_up_to(Position::MAX).await?;
    }
    Ok(latencies(&writer.await??, &reader.read))
}

/// What a runner does: wait for the horizon, read up to it.
async fn watch(url: &str, ringing: Ringing) -> Result<Vec<Duration>> {
    let watcher = Watcher::new(url.parse()?, Layout::espd("espd")?, WatcherSettings::default());
    let mut horizon = watcher.horizon();
    let (stop, heard) = shutdown::channel();
    let watching = tokio::spawn(watcher.run(heard));
    let mut reader = Reader::connect(url).await?;
    let writer = tokio::spawn(write(url.to_owned(), ringing));
    while reader.read.len() < EVENTS as usize {
        let Some(settled) = wait_beyond(&mut horizon, reader.position).await else { break };
        reader.read_up_to(settled).await?;
    }
    stop.request();
    watching.await?;
    Ok(latencies(&writer.await??, &reader.read))
}

async fn write(url: String, ringing: Ringing) -> Result<Times> {
    let mut connection = PgConnection::connect(&url).await?;
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut committed = Times::new();
    let mut rung = Instant::now();
    for _ in 0..EVENTS {
        ticks.tick().await;
        let insert = "insert into espd.events (aggregate_id, type, version, body)
                      values (gen_random_uuid(), 'Measured', 1, '{}') returning id";
        let id = sqlx::query_scalar(insert).fetch_one(&mut connection).await?;
        committed.insert(id, Instant::now());
        let due = rung.elapsed() >= RING_INTERVAL;
        if ringing == Ringing::Always || (ringing == Ringing::AtIntervals && due) {
            sqlx::raw_sql("notify espd_events").execute(&mut connection).await?;
            rung = Instant::now();
        }
    }
    Ok(committed)
}

/// Reads on from its position and notes when it has read what.
struct Reader {
    connection: PgConnection,
    position: Position,
    read: Times,
}

impl Reader {
    /// A reader at the end of what is there.
    async fn connect(url: &str) -> Result<Self> {
        let mut connection = PgConnection::connect(url).await?;
        let last = "select coalesce(max(id), 0) from espd.events";
        let position = sqlx::query_scalar(last).fetch_one(&mut connection).await?;
        Ok(Self { connection, position, read: Times::new() })
    }

    async fn read_up_to(&mut self, end: Position) -> Result<()> {
        let next = "select id from espd.events where id > $1 and id <= $2 order by id limit 1000";
        let query = sqlx::query_scalar(next).bind(self.position).bind(end);
        let ids: Vec<Position> = query.fetch_all(&mut self.connection).await?;
        let now = Instant::now();
        self.read.extend(ids.iter().map(|id| (*id, now)));
        self.position = ids.last().copied().unwrap_or(self.position);
        Ok(())
    }
}

/// Sorted. A reader may be quicker than the writer's own clock.
fn latencies(committed: &Times, read: &Times) -> Vec<Duration> {
    let took = |(id, at): (&Position, &Instant)| read.get(id).map(|seen| seen.saturating_duration_since(*at));
    let mut latencies: Vec<Duration> = committed.iter().filter_map(took).collect();
    latencies.sort();
    latencies
}

fn report(name: &str, sorted: &[Duration]) {
    let at = |share: usize| sorted.get((sorted.len() * share / 1000).min(sorted.len().saturating_sub(1)));
    let ms = |duration: Option<&Duration>| duration.map_or(f64::NAN, |d| d.as_secs_f64() * 1000.0);
    println!("{name:<46} {:7.2} ms {:7.2} ms {:7.2} ms", ms(at(500)), ms(at(990)), ms(at(1000)));
}
