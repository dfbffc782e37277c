//! Appending through the library, against plain multi-row INSERTs into the same table in the same run.
//!
//! `cargo bench --bench append [-- --rounds 6]`. Needs the PostgreSQL binaries, as the tests do. Each
//! append creates an aggregate and says so (expected version 0); the plain INSERT binds the same columns and checks
//! nothing. Rounds of both alternate, and the figures are medians of rounds, because the speed of a disk drifts.

mod support;

use std::time::{Duration, Instant};

use anyhow::Result;
use espd::event::{ExpectedVersion, NewEvent};
use espd::store::Layout;
use espd::store::{EventStore, PostgresEventStore};
use futures_util::future::try_join_all;
use serde_json::value::RawValue;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgBindIterExt, PgHasArrayType, PgPoolOptions, PgTypeInfo};
use sqlx::types::Json;
use sqlx::{Encode, PgPool, Postgres, Type};
use support::{Arguments, Report, SCHEMA, Server, Spread};
use uuid::Uuid;

const BODY: &str =
    r#"{"title": "Buy milk", "description": "two litres, the blue one", "due_date": "2024-05-01"}"#;

const CONNECTIONS: [u32; 3] = [1, 4, 16];

const EVENTS_PER_APPEND: [usize; 2] = [1, 10];

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::read()?;
    let rounds = arguments.rounds(6);
    let time = arguments.size(Duration::from_secs(2), Duration::from_millis(300));
    let server = Server::start(&[]).await?;
    let flush = server.flush_time();
    let title = format!("appends by the library, {rounds} rounds of {time:?}, flush {flush:.1?}");
    let report = Report::begin(&title, "events/s");
    for count in EVENTS_PER_APPEND {
        for connections in CONNECTIONS {
            let pool = connect(&server, connections).await?;
            let (mut plain, mut append) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                plain.push(run(&pool, Way::Plain, connections, count, time).await?);
                append.push(run(&pool, Way::Append, connections, count, time).await?);
            }
            let what = format!("{connections} connections, {count} an append; a plain INSERT");
            let target = if count == 1 && connections > 1 { ">= 0.95" } else { ">= 0.85" };
            report.row(&what, Spread::of(&append), Spread::of(&plain), target);
            pool.close().await;
        }
    }
    server.stop().await;
    Ok(())
}

/// An empty store, and as many connections to it as there are writers.
async fn connect(server: &Server, connections: u32) -> Result<PgPool> {
    server.execute("truncate espd.events").await?;
    server.settle().await?;
    let options = PgPoolOptions::new().max_connections(connections).test_before_acquire(false);
    Ok(options.connect(&server.url).await?)
}

#[derive(Clone, Copy)]
enum Way {
    Plain,
    Append,
}

/// Events stored per second by `writers` tasks.
async fn run(pool: &PgPool, way: Way, writers: u32, count: usize, time: Duration) -> Result<f64> {
    let store = PostgresEventStore::new(pool.clone(), Layout::espd(SCHEMA)?);
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
