//! Appending under a condition on tags, beside appends without one, and beside the same decision in SERIALIZABLE transactions.
//!
//! `cargo bench --bench conditional_append [-- --rounds 4]`. Needs the PostgreSQL binaries, as the tests do. Each event
//! has two tags of 1,000, or of 20, and the condition is that no event of another type has come on either of them, so no append is
//! refused for a reason. Eight clients know the numbers of the tags as of some hundred appends ago, as positions in the
//! serializable transactions. Rounds alternate, and the figures are medians of rounds, because the speed of a disk drifts.
//!
//! At the end, what must hold is tried with more clients than in the tests: 200 rounds of 16 writers on one boundary, of whom one
//! wins, and 16 clients that claim the same 3,000 keys.

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use espd::embedded::{EmbeddedPostgres, Options};
use espd::event::{ExpectedVersion, NewEvent};
use espd::schema::migrate_event_store;
use espd::store::{AppendError, EventStore, Layout, PostgresEventStore, TagQuery};
use futures_util::future::{join_all, try_join_all};
use serde_json::value::RawValue;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use support::{Arguments, Report, Spread, machine};
use uuid::Uuid;

const BODY: &str =
    r#"{"title": "Buy milk", "description": "two litres, the blue one", "due_date": "2024-05-01"}"#;

const CLIENTS: u32 = 8;

const TAGS: [usize; 2] = [1_000, 20];

/// After so many appends a client looks how far the tags are.
const APPENDS_PER_LOOK: usize = 500;

/// The same tags in a table without counters. One statement decides and stores, in a transaction of its own.
const SERIALIZABLE_TABLE: &str = "create table if not exists serial_tags (
  tag text collate \"C\" not null, event_id bigint not null, type text not null, primary key (tag, event_id))";
const SERIALIZABLE_APPEND: &str = "with stored as (
    insert into espd.events (uuid, aggregate_id, type, version, body)
    select gen_random_uuid(), gen_random_uuid(), 'SeatTaken', 1, $1::jsonb
    where not exists (select from serial_tags where tag = any ($2) and type = 'Never' and event_id > $3)
    returning id)
  insert into serial_tags (tag, event_id, type) select distinct tag, id, 'SeatTaken' from stored, unnest($2) as tag";

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Plain,
    Tagged,
    Conditional,
    Serializable,
}

const WAYS: [Way; 4] = [Way::Plain, Way::Tagged, Way::Conditional, Way::Serializable];

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::read()?;
    let rounds = arguments.rounds(4);
    let time = arguments.size(Duration::from_secs(2), Duration::from_millis(300));
    let server = EmbeddedPostgres::start_temporary(Options::default()).await?;
    server.create_database("bench", None).await?;
    let flush = machine::look_at(&PgPool::connect(&server.url("bench")).await?).await?;
    let title = format!(
        "appends under a condition, {rounds} rounds of {time:?}, {CLIENTS} clients, flush {flush:.1?}"
    );
    let report = Report::begin(&title, "appends/s");
    for (number, tags) in TAGS.into_iter().enumerate() {
        let name = format!("bench_{number}");
        server.create_database(&name, None).await?;
        let pool = connect(&server.url(&name), "read committed").await?;
        let serializable = connect(&server.url(&name), "serializable").await?;
        sqlx::raw_sql(SERIALIZABLE_TABLE).execute(&pool).await?;
        let mut figures = [(); WAYS.len()].map(|()| Vec::new());
        let mut retried = Vec::new();
        for _ in 0..rounds {
            for (way, figures) in WAYS.into_iter().zip(&mut figures) {
                let pool = if way == Way::Serializable { &serializable } else { &pool };
                let (rate, share) = run(pool, way, tags, time).await?;
                figures.push(rate);
                if way == Way::Serializable {
                    retried.push(share);
                }
            }
        }
        let [plain, tagged, conditional, serial] = figures.map(|figures| Spread::of(&figures));
        let row = |what: &str, figure, target| {
            report.row(&format!("{tags} tags, {what}; plain appends"), figure, plain, target);
        };
        row("tagged", tagged, "");
        row("conditional", conditional, ">= 0.5");
        row("by SERIALIZABLE transactions", serial, "");
        let retried = 100.0 * Spread::of(&retried).median;
        println!("{retried:.1} % of the serializable transactions were for nothing");
    }
    drop(report);
    try_the_rules(&server).await?;
    server.stop().await;
    Ok(())
}

async fn connect(url: &str, isolation: &str) -> Result<PgPool> {
    let set = format!("set default_transaction_isolation = '{isolation}'; set enable_seqscan = off");
    let options = PgPoolOptions::new().max_connections(16).test_before_acquire(false);
    let options = options.after_connect(move |connection, _| {
        let set = set.clone();
        Box::pin(async move {
            sqlx::raw_sql(sqlx::AssertSqlSafe(set)).execute(connection).await?;
            Ok(())
        })
    });
    let pool = options.connect(url).await?;
    migrate_event_store(&pool, "espd").await?;
    Ok(pool)
}

/// Appends per second of all clients, and which share of the tries was for nothing.
async fn run(pool: &PgPool, way: Way, tags: usize, time: Duration) -> Result<(f64, f64)> {
    let started = Instant::now();
    let clients = (0..CLIENTS).map(|_| {
        let pool = pool.clone();
        async move { tokio::spawn(work(pool, way, tags, started + time)).await? }
    });
    let counts = try_join_all(clients).await?;
    let (appended, retried) = counts.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let share = retried as f64 / (appended + retried).max(1) as f64;
    Ok((appended as f64 / started.elapsed().as_secs_f64(), share))
}

/// How far everything was when a client looked last.
#[derive(Default)]
struct Known {
    numbers: BTreeMap<String, i64>,
    position: i64,
}

async fn look(pool: &PgPool) -> Result<Known> {
    let numbers: Vec<(String, i64)> =
        sqlx::query_as("select tag, n from espd.tag_heads").fetch_all(pool).await?;
    let last = "select coalesce(max(id), 0) from espd.events";
    let position = sqlx::query_scalar(last).fetch_one(pool).await?;
    Ok(Known { numbers: numbers.into_iter().collect(), position })
}

async fn work(pool: PgPool, way: Way, tags: usize, end: Instant) -> Result<(u64, u64)> {
    let store = PostgresEventStore::new(pool.clone(), Layout::espd("espd")?).without_notifications();
    let (mut appended, mut retried, mut known) = (0, 0, Known::default());
    while Instant::now() < end {
        if appended % APPENDS_PER_LOOK as u64 == 0 {
            // A serializable transaction may fail even where it only reads.
            known = look(&pool).await.unwrap_or(known);
        }
        let picked = Uuid::new_v4().as_u128();
        let pick = |shift: u32| format!("tag:{}", (picked >> shift) as u32 as usize % tags);
        let pair = [pick(0), pick(32)];
        match way {
            Way::Plain => drop(store.append(&[event(&[])]).await?),
            Way::Tagged => drop(store.append(&[event(&pair)]).await?),
            Way::Conditional => {
                let token: BTreeMap<&str, i64> = pair
                    .iter()
                    .map(|tag| (tag.as_str(), known.numbers.get(tag).copied().unwrap_or(0)))
                    .collect();
                let token = serde_json::from_value(serde_json::to_value(token)?)?;
                let query = TagQuery::tag(&*pair[0]).or(TagQuery::tag(&*pair[1])).of_types(["Never"]);
                drop(store.append_if(&[event(&pair)], &query.unchanged_since(token)).await?);
            }
            Way::Serializable => {
                let append = sqlx::query(SERIALIZABLE_APPEND).bind(BODY).bind(&pair[..]).bind(known.position);
                if let Err(error) = append.execute(&pool).await {
                    let code = error
                        .as_database_error()
                        .and_then(|error| error.code())
                        .map(|code| code.into_owned());
                    ensure!(code.as_deref() == Some("40001"), "{error}");
                    retried += 1;
                    continue;
                }
            }
        }
        appended += 1;
    }
    Ok((appended, retried))
}

fn event(tags: &[String]) -> NewEvent {
    let body = RawValue::from_string(BODY.to_owned()).expect("the body is JSON");
    let event = NewEvent::new(Uuid::new_v4(), "SeatTaken", body).expecting(ExpectedVersion::Absent);
    tags.iter().fold(event, |event, tag| event.tagged(&**tag))
}

async fn try_the_rules(server: &EmbeddedPostgres) -> Result<()> {
    server.create_database("rules", None).await?;
    let pool = connect(&server.url("rules"), "read committed").await?;
    let store = PostgresEventStore::new(pool.clone(), Layout::espd("espd")?).without_notifications();
    for _ in 0..200 {
        let query = TagQuery::tag("x");
        let condition = query.clone().unchanged_since(store.read_tagged(&query, None).await?.token);
        let appends = (0..16).map(|_| {
            let (store, condition) = (store.clone(), condition.clone());
            tokio::spawn(async move { store.append_if(&[event(&["x".to_owned()])], &condition).await })
        });
        let mut winners = 0;
        for outcome in join_all(appends).await {
            match outcome? {
                Ok(_) => winners += 1,
                Err(AppendError::ConditionFailed { .. }) => {}
                Err(other) => return Err(other.into()),
            }
        }
        ensure!(winners == 1, "{winners} winners");
    }
    println!("200 rounds of 16 writers on one boundary: one winner each");

    let clients = (0..16).map(|client: usize| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut claimed = 0;
            for n in 0..3_000 {
                // Each begins elsewhere, so that all of them win some.
                let key = format!("user {}", (n + client * 187) % 3_000);
                match store.append(&[event(&[]).claiming("name", key)]).await {
                    Ok(_) => claimed += 1,
                    Err(AppendError::KeyTaken { .. }) => {}
                    Err(other) => return Err(other),
                }
            }
            Ok(claimed)
        })
    });
    let mut claimed = 0;
    for client in join_all(clients).await {
        claimed += client??;
    }
    let (keys, owners): (i64, i64) =
        sqlx::query_as("select count(*), count(distinct aggregate_id) from espd.unique_keys")
            .fetch_one(&pool)
            .await?;
    ensure!(
        (claimed, keys, owners) == (3_000, 3_000, 3_000),
        "{claimed} claims, {keys} keys, {owners} owners"
    );
    println!("16 clients claimed the same 3,000 keys: 3,000 claims, 3,000 owners");
    Ok(())
}
