//! How fast events are appended while a synchronous projector writes a row for each, beside appends alone, and beside an
//! application that inserts the same row itself, in the transaction of its append.
//!
//! `cargo bench --bench synchronous_append`; docs/benchmarks.md says what the figures mean.

mod support;

use std::time::{Duration, Instant};

use anyhow::ensure;
use espd::event::{ExpectedVersion, NewEvent};
use espd::store::{EventStore as _, Layout, PostgresEventStore};
use serde_json::value::RawValue;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use support::{Arguments, Installation, Report, SCHEMA, Server, Spread};
use tokio::task::JoinSet;
use uuid::Uuid;

const BODY: &str =
    r#"{"title": "Buy milk", "description": "two litres, the blue one", "due_date": "2027-05-01"}"#;

const CONNECTIONS: [u32; 3] = [1, 4, 16];

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// Appends, and nothing else.
    Alone,
    /// The application inserts the row, in the transaction of the append.
    OwnInsert,
    /// A synchronous projector in this order writes the row.
    Synchronous(&'static str),
    /// There is one, for another type.
    OtherType(&'static str),
}

const WAYS: [Way; 6] = [
    Way::Alone,
    Way::OwnInsert,
    Way::Synchronous("aggregate_order"),
    Way::Synchronous("total_order"),
    Way::OtherType("aggregate_order"),
    Way::OtherType("total_order"),
];

impl Way {
    fn order(self) -> Option<&'static str> {
        match self {
            Self::Synchronous(order) | Self::OtherType(order) => Some(order),
            Self::Alone | Self::OwnInsert => None,
        }
    }

    fn event_type(self) -> &'static str {
        if matches!(self, Self::OtherType(_)) { "SomethingElse" } else { "TodoAdded" }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let time = arguments.size(Duration::from_secs(3), Duration::from_millis(500));
    let rounds = arguments.rounds(7);
    let server = Server::start(&[]).await?;
    let flush = server.flush_time();
    let title = format!("appends of one event, {rounds} rounds of {time:?}, flush {flush:.1?}");
    let report = Report::begin(&title, "events/s");
    for connections in CONNECTIONS {
        let mut results: [Vec<f64>; WAYS.len()] = Default::default();
        for number in 0..rounds {
            for turn in 0..WAYS.len() {
                let index = (number + turn) % WAYS.len();
                results[index].push(run(&server, WAYS[index], connections, time).await?);
            }
        }
        let spreads = results.map(|rates| Spread::of(&rates));
        for (way, spread) in WAYS.iter().zip(&spreads).skip(1) {
            report.row(&format!("{connections} connections, {way:?}; alone"), *spread, spreads[0], "");
        }
    }
    server.stop().await;
    Ok(())
}

/// Events appended per second by this many writers, each on a connection of its own.
async fn run(server: &Server, way: Way, connections: u32, time: Duration) -> anyhow::Result<f64> {
    let forget = "delete from espd.trackers; delete from espd.projection_tables; drop table if exists titles;
                  truncate espd.events";
    server.execute(forget).await?;
    match way.order() {
        Some(order) => become_synchronous(server, order).await?,
        None => server.execute("create table titles (todo_id uuid primary key, title text not null)").await?,
    }
    server.settle().await?;
    // One more than writers, for the notifier.
    let options = PgPoolOptions::new().min_connections(connections + 1).max_connections(connections + 1);
    let pool = options.test_before_acquire(false).connect(&server.url).await?;
    let begun = Instant::now();
    let mut writers = JoinSet::new();
    for _ in 0..connections {
        writers.spawn(append_until(pool.clone(), way, begun + time));
    }
    let appended = writers.join_all().await.into_iter().sum::<anyhow::Result<u64>>()?;
    let rate = appended as f64 / begun.elapsed().as_secs_f64();
    pool.close().await;
    if matches!(way, Way::OwnInsert | Way::Synchronous(_)) {
        let rows: i64 = sqlx::query_scalar("select count(*) from titles").fetch_one(&server.pool).await?;
        ensure!(rows == appended as i64, "{rows} rows of {appended} events");
    }
    Ok(rate)
}

/// Has a daemon make a projector synchronous, which goes on without it.
async fn become_synchronous(server: &Server, order: &str) -> anyhow::Result<()> {
    let projector = format!(
        "[[projector]]\nname = \"titles\"\nsynchronous = \"{order}\"\n\
         tables = {{ titles = \"todo_id uuid primary key, title text not null\" }}\n\n\
         [[projector.on]]\nevents = [\"TodoAdded\"]\n\
         sql = \"insert into titles values (event.aggregate_id, event.body->>'title')\"\n"
    );
    let installation = Installation::new(&server.url, "warn", &projector)?;
    let daemon = installation.start()?;
    let deadline = Instant::now() + Duration::from_secs(60);
    let is = "select count(*) from espd.trackers where synchronous is not null";
    while sqlx::query_scalar::<_, i64>(is).fetch_one(&server.pool).await? == 0 {
        ensure!(Instant::now() < deadline, "it does not become synchronous");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    daemon.stop()
}

async fn append_until(pool: PgPool, way: Way, deadline: Instant) -> anyhow::Result<u64> {
    let store = PostgresEventStore::new(pool.clone(), Layout::espd(SCHEMA)?);
    let mut appended = 0;
    while Instant::now() < deadline {
        let body = RawValue::from_string(BODY.to_owned())?;
        let event = NewEvent::new(Uuid::new_v4(), way.event_type(), body).expecting(ExpectedVersion::Absent);
        if way == Way::OwnInsert {
            insert_too(&pool, &store, &event).await?;
        } else {
            store.append(&[event]).await?;
        }
        appended += 1;
    }
    Ok(appended)
}

/// What an application without a synchronous projector would do.
async fn insert_too(pool: &PgPool, store: &PostgresEventStore, event: &NewEvent) -> anyhow::Result<()> {
    let mut transaction = pool.begin().await?;
    let uncommitted = store.append_in(&mut transaction, std::slice::from_ref(event)).await?;
    let insert = sqlx::query("insert into titles values ($1, $2)").bind(&event.aggregate_id).bind("Buy milk");
    insert.execute(&mut *transaction).await?;
    uncommitted.commit(transaction).await?;
    Ok(())
}
