//! Appending through the library, against plain multi-row INSERTs into the same table in the same run.
//!
//! `cargo bench --bench append [-- --rounds 6 --seconds 2]`. Needs the PostgreSQL binaries, as the tests do. Each
//! append creates an aggregate and says so (expected version 0); the plain INSERT binds the same columns and checks
//! nothing. Rounds of both alternate, and the figures are medians of rounds, because the speed of a disk drifts.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use espd::embedded::{EmbeddedPostgres, Options};
use espd::event::{ExpectedVersion, NewEvent};
use espd::schema::migrate_event_store;
use espd::store::Layout;
use espd::store::{EventStore, PostgresEventStore};
use futures_util::future::try_join_all;
use serde_json::value::RawValue;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgBindIterExt, PgHasArrayType, PgPoolOptions, PgTypeInfo};
use sqlx::types::Json;
use sqlx::{Encode, PgPool, Postgres, Type};
use uuid::Uuid;

const BODY: &str =
    r#"{"title": "Buy milk", "description": "two litres, the blue one", "due_date": "2024-05-01"}"#;

const CONNECTIONS: [u32; 3] = [1, 4, 16];

const EVENTS_PER_APPEND: [usize; 2] = [1, 10];

/// What the library has to reach of the plain INSERT.
const TARGET: f64 = 0.85;

#[tokio::main]
async fn main() -> Result<()> {
    let rounds = argument("--rounds")?.unwrap_or(6);
    let time = Duration::from_secs(argument("--seconds")?.unwrap_or(2));
    let server = EmbeddedPostgres::start_temporary(Options::default()).await?;
    server.create_database("bench", None).await?;

    println!("events/s, median of {rounds} rounds of {time:?} each, alternating (slowest to fastest round)");
    println!(
        "{:>11} {:>6}  {:>22}  {:>22}  {:>5}",
        "connections", "events", "plain INSERT", "append", "ratio"
    );
    for count in EVENTS_PER_APPEND {
        for connections in CONNECTIONS {
            let pool = connect(&server.url("bench"), connections).await?;
            let (mut plain, mut append) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                plain.push(run(&pool, Way::Plain, connections, count, time).await?);
                append.push(run(&pool, Way::Append, connections, count, time).await?);
            }
            let ratio = median(&mut append) / median(&mut plain);
            let verdict = if ratio < TARGET { "below the target" } else { "" };
            println!(
                "{connections:>11} {count:>6}  {:>22}  {:>22}  {ratio:>5.2}  {verdict}",
                describe(&mut plain),
                describe(&mut append),
            );
            pool.close().await;
        }
    }
    server.stop().await;
    Ok(())
}

/// The number after `name` on the command line.
fn argument(name: &str) -> Result<Option<u64>> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name).skip(1);
    arguments.next().map(|number| number.parse().context(format!("{name} takes a number"))).transpose()
}

/// An empty store, and as many connections to it as there are writers.
async fn connect(url: &str, connections: u32) -> Result<PgPool> {
    let options = PgPoolOptions::new().max_connections(connections).test_before_acquire(false);
    let pool = options.connect(url).await?;
    migrate_event_store(&pool, "espd").await?;
    sqlx::raw_sql("truncate espd.events").execute(&pool).await?;
    Ok(pool)
}

#[derive(Clone, Copy)]
enum Way {
    Plain,
    Append,
}

/// Events stored per second by `writers` tasks.
async fn run(pool: &PgPool, way: Way, writers: u32, count: usize, time: Duration) -> Result<f64> {
    let store = PostgresEventStore::new(pool.clone(), Layout::espd("espd")?);
    let begin = Instant::now();
    let tasks = (0..writers).map(|_| {
        let (pool, store) = (pool.clone(), store.clone());
        tokio::spawn(async move {
            let mut stored = 0;
            while begin.elapsed() < time {
                let events = new_aggregate(count)?;
                match way {
                    Way::Plain => insert_plainly(&pool, &events).await?,
                    Way::Append => drop(store.append(&events).await?),
                }
                stored += count;
            }
            anyhow::Ok(stored)
        })
    });
    let mut stored = 0;
    for outcome in try_join_all(tasks).await? {
        stored += outcome?;
    }
    Ok(stored as f64 / begin.elapsed().as_secs_f64())
}

fn new_aggregate(count: usize) -> Result<Vec<NewEvent>> {
    let aggregate_id = Uuid::new_v4();
    let event = || Ok(NewEvent::new(aggregate_id, "TodoAdded", RawValue::from_string(BODY.to_owned())?));
    let mut events: Vec<NewEvent> = (0..count).map(|_| event()).collect::<Result<_>>()?;
    events[0].expected_version = ExpectedVersion::Absent;
    Ok(events)
}

async fn insert_plainly(pool: &PgPool, events: &[NewEvent]) -> Result<()> {
    let query = match events {
        [event] => sqlx::query(
            "insert into espd.events
               (uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, coalesce($9, clock_timestamp()))",
        )
        .bind(event.uuid)
        .bind(event.aggregate_id.as_uuid())
        .bind(&event.event_type)
        .bind(1_i64)
        .bind(Jsonb(&event.body))
        .bind(Jsonb(&event.metadata))
        .bind(event.correlation_id)
        .bind(event.causation_id)
        .bind(event.created_at),
        events => sqlx::query(
            "insert into espd.events
               (uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at)
             select uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id,
               coalesce(created_at, clock_timestamp())
             from unnest($1::uuid[], $2::uuid[], $3::text[], $4::bigint[], $5::jsonb[], $6::jsonb[], $7::uuid[],
                 $8::uuid[], $9::timestamptz[])
               as new (uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at)",
        )
        .bind(events.iter().map(|event| event.uuid).bind_iter())
        .bind(events.iter().map(|event| event.aggregate_id.as_uuid()).bind_iter())
        .bind(events.iter().map(|event| &event.event_type).bind_iter())
        .bind((1_i64..).take(events.len()).bind_iter())
        .bind(events.iter().map(|event| Jsonb(&event.body)).bind_iter())
        .bind(events.iter().map(|event| Jsonb(&event.metadata)).bind_iter())
        .bind(events.iter().map(|event| event.correlation_id).bind_iter())
        .bind(events.iter().map(|event| event.causation_id).bind_iter())
        .bind(events.iter().map(|event| event.created_at).bind_iter()),
    };
    query.execute(pool).await?;
    Ok(())
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    (figures[(figures.len() - 1) / 2] + figures[figures.len() / 2]) / 2.0
}

fn describe(figures: &mut [f64]) -> String {
    let mut text = format!("{:.0}", median(figures));
    let _ = write!(text, " ({:.0}–{:.0})", figures[0], figures[figures.len() - 1]);
    text
}

/// JSON text copied into a parameter as it is, which is how the library sends it.
struct Jsonb<'a>(&'a RawValue);

impl Type<Postgres> for Jsonb<'_> {
    fn type_info() -> PgTypeInfo {
        <Json<()> as Type<Postgres>>::type_info()
    }
}

impl PgHasArrayType for Jsonb<'_> {
    fn array_type_info() -> PgTypeInfo {
        <Json<()> as PgHasArrayType>::array_type_info()
    }
}

impl Encode<'_, Postgres> for Jsonb<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.push(1);
        buffer.extend_from_slice(self.0.get().as_bytes());
        Ok(IsNull::No)
    }
}
