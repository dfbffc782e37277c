//! Reactors in Rust: what they emit, when, where, and never twice.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use espd::Program;
use espd::internals::declaration::BatchLimits;
use espd::internals::processor::Events;
use espd::internals::retry::{OnFailure, RetryPolicy};
use espd::internals::runner::RunnerContext;
use espd::native::Start;
use espd::native::{Delivery, EventType, HandlerError, Reactor, ReactorContext, Registration};
use espd::store::Layout;
use espd::store::PostgresEventStore;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use super::{A, dead_letters, make};
use crate::processing::runner::{Life, settings};
use crate::support::facts::{append, eventually, reaches};
use crate::support::projectors::{LEASE, numbers};
use crate::support::{self, SCHEMA};

#[derive(Debug, Serialize, Deserialize)]
struct Answered {
    to: i64,
}

impl EventType for Answered {
    const NAME: &'static str = "Answered";
}

/// An event type that no reactor declares.
#[derive(Debug, Serialize, Deserialize)]
struct Shouted;

impl EventType for Shouted {
    const NAME: &'static str = "Shouted";
}

/// Answers every A, and notes in a table that it has.
struct Answering;

#[async_trait]
impl Reactor for Answering {
    async fn react(
        &mut self,
        event: &Delivery,
        context: &mut ReactorContext<'_>,
    ) -> Result<(), HandlerError> {
        let a: A = event.read()?.ok_or("it handles nothing else")?;
        let note = sqlx::query("insert into answers (event_id, replaying) values ($1, $2)");
        let note = note.bind(event.id).bind(context.is_replaying());
        note.execute(context.connection().await?).await?;
        match a.n {
            0 => context.emit(&event.aggregate_id, &Shouted)?,
            -1 => context.emit_expecting(&event.aggregate_id, 7.into(), &Answered { to: -1 })?,
            100 => {
                let tenant = serde_json::json!({ "tenant": 7 });
                context.emit_with_metadata(&event.aggregate_id, &Answered { to: 100 }, &tenant)?;
            }
            n => context.emit(&event.aggregate_id, &Answered { to: n })?,
        }
        Ok(())
    }
}

fn answering() -> Registration {
    Registration::reactor("answering")
        .handles::<A>()
        .emits::<Answered>()
        .start(Start::Beginning)
        .table("answers", "place bigint generated always as identity, event_id bigint, replaying boolean")
}

fn program() -> Program {
    Program::new().reactor(answering(), || Answering)
}

#[tokio::test]
async fn an_emitted_event_has_the_metadata_that_the_handler_gives_it() {
    let db = support::database().await;
    append(&db.pool, 100).await;
    let life = Life::begin_with(&db, make(&program(), "answering"), settings(&db));
    reaches(&db.pool, "answering", 100).await;
    let metadata = emitted(&db.pool).await.into_iter().map(|event| event.4);
    let with_tenant: Vec<Value> = metadata.filter(|metadata| metadata.get("tenant").is_some()).collect();
    let espd = serde_json::json!({ "reactor": "answering", "depth": 1 });
    assert_eq!(with_tenant, [serde_json::json!({ "tenant": 7, "espd": espd })]);
    life.end().await;
}

type Emitted = (i64, Uuid, Uuid, Value, Value, Option<Uuid>, Option<Uuid>);

async fn emitted(pool: &PgPool) -> Vec<Emitted> {
    let query = "select id, uuid, aggregate_id, body, metadata, correlation_id, causation_id
                 from espd.events where type = 'Answered' order by id";
    sqlx::query_as(query).fetch_all(pool).await.unwrap()
}

#[tokio::test]
async fn what_is_emitted_is_what_sql_would_emit() {
    let (rust, sql) = (support::database().await, support::database().await);
    append(&rust.pool, 5).await;
    // The same events in another database, answered by the same reactor in SQL.
    let copy: Vec<(Uuid, Uuid, Value)> =
        sqlx::query_as("select uuid, aggregate_id, body from espd.events order by id")
            .fetch_all(&rust.pool)
            .await
            .unwrap();
    for (uuid, aggregate_id, body) in copy {
        let insert =
            "insert into espd.events (uuid, aggregate_id, type, version, body) values ($1, $2, 'A', 1, $3)";
        sqlx::query(insert).bind(uuid).bind(aggregate_id).bind(body).execute(&sql.pool).await.unwrap();
    }
    let emit = "perform espd.emit('Answered', event.aggregate_id, jsonb_build_object('to', event.body->'n'))";
    let declared = crate::support::projectors::declare("answering", &[], &[(&["A"], emit)]);
    let reactor = espd::internals::declaration::ReactorDeclaration {
        emits: vec!["Answered".into()],
        ..Default::default()
    };
    let declared = espd::internals::declaration::ProcessorDeclaration {
        reactor: Some(reactor),
        start: Some(Start::Beginning),
        ..declared
    };
    let lives = [
        Life::begin_with(&rust, make(&program(), "answering"), settings(&rust)),
        Life::begin(&sql, declared, settings(&sql)),
    ];
    for pool in [&rust.pool, &sql.pool] {
        eventually("five answers", async || (emitted(pool).await.len() == 5).then_some(())).await;
    }
    assert_eq!(emitted(&rust.pool).await, emitted(&sql.pool).await);
    for life in lives {
        life.end().await;
    }
}

#[tokio::test]
async fn an_event_that_fails_takes_back_its_rows_and_what_it_emits() {
    for (n, said) in [(0, "emits Shouted, which it does not declare"), (-1, "not at the expected version 7")]
    {
        let db = support::database().await;
        append(&db.pool, 20).await;
        let poison =
            sqlx::query("update espd.events set body = jsonb_build_object('n', $1::int) where id = 8");
        poison.bind(n).execute(&db.pool).await.unwrap();
        let retry = RetryPolicy { max_attempts: Some(2), on_failure: OnFailure::Skip, ..settings(&db).retry };
        let life =
            Life::begin_with(&db, make(&program(), "answering"), RunnerContext { retry, ..settings(&db) });
        reaches(&db.pool, "answering", 20).await;
        let answered = numbers(&db.pool, "select event_id from answers order by place").await;
        assert_eq!(answered, (1..=20).filter(|id| *id != 8).collect::<Vec<i64>>());
        assert_eq!(emitted(&db.pool).await.len(), 19);
        let dead_letters = dead_letters(&db.pool).await;
        assert_eq!(
            (dead_letters.len(), dead_letters[0].event_id, dead_letters[0].attempts),
            (1, 8.into(), 2)
        );
        let message = &dead_letters[0].failure.as_ref().unwrap().0.message;
        assert!(message.contains(said), "{message}");
        life.end().await;
    }
}

#[tokio::test]
async fn a_reset_is_silent_event_by_event_and_repeats_nothing_that_is_there() {
    let db = support::database().await;
    append(&db.pool, 10).await;
    let life = Life::begin_with(&db, make(&program(), "answering"), settings(&db));
    eventually("answers", async || (emitted(&db.pool).await.len() == 10).then_some(())).await;
    let trackers = espd::internals::tracker::Trackers::new(SCHEMA);
    let head = numbers(&db.pool, "select max(id) from espd.events").await[0];
    reaches(&db.pool, "answering", head).await;
    let mut connection = db.pool.acquire().await.unwrap();
    for (effects, replayed) in [
        (espd::internals::tracker::ReplayEffects::Suppress, true),
        (espd::internals::tracker::ReplayEffects::Repeat, false),
    ] {
        sqlx::query("truncate answers").execute(&db.pool).await.unwrap();
        let key = espd::internals::tracker::ProcessorKey::new("answering", 1);
        let reset =
            espd::internals::tracker::Reset { effects, ..espd::internals::tracker::Reset::to(0.into()) };
        trackers.reset(&mut connection, &key, "alice@here", reset).await.unwrap();
        eventually("all again", async || {
            (numbers(&db.pool, "select count(*) from answers").await == [10]).then_some(())
        })
        .await;
        let flags: Vec<bool> =
            sqlx::query_scalar("select replaying from answers").fetch_all(&db.pool).await.unwrap();
        assert!(flags.iter().all(|flag| *flag == replayed), "{flags:?}");
        assert_eq!(emitted(&db.pool).await.len(), 10);
    }
    append(&db.pool, 1).await;
    eventually("one more", async || (emitted(&db.pool).await.len() == 11).then_some(())).await;
    life.end().await;
}

/// Postpones its emission, for as long as `n` says.
struct Remind;

#[async_trait]
impl Reactor for Remind {
    async fn react(
        &mut self,
        event: &Delivery,
        context: &mut ReactorContext<'_>,
    ) -> Result<(), HandlerError> {
        let a: A = event.read()?.ok_or("it handles nothing else")?;
        let key = format!("key {}", a.n % 10);
        let hour = Duration::from_secs(3_600);
        let body = Answered { to: a.n };
        match a.n / 10 {
            // At once, and in an hour.
            0 => context.emit_after(Duration::ZERO, None, &event.aggregate_id, &body),
            1 => context.emit_after(hour, Some(&key), &event.aggregate_id, &body),
            // Earlier than said before.
            2 => context.emit_after(Duration::from_millis(300), Some(&key), &event.aggregate_id, &body),
            _ => {
                context.cancel(&key);
                Ok(())
            }
        }
    }
}

fn later(start: Start) -> Program {
    let declaration = Registration::reactor("later").handles::<A>().emits::<Answered>().start(start);
    Program::new().reactor(declaration, || Remind)
}

async fn append_numbers(pool: &PgPool, numbers: &[i64]) -> i64 {
    let mut last = 0;
    for n in numbers {
        let insert = "insert into espd.events (aggregate_id, type, version, body)
                      values (gen_random_uuid(), 'A', 1, jsonb_build_object('n', $1::bigint)) returning id";
        last = sqlx::query_scalar(insert).bind(n).fetch_one(pool).await.unwrap();
    }
    last
}

#[tokio::test]
async fn what_is_postponed_is_kept_with_the_position_replaced_by_key_and_cancelled() {
    let db = support::database().await;
    let last = append_numbers(&db.pool, &[10, 11, 12, 21, 32]).await;
    let life = Life::begin_with(&db, make(&later(Start::Beginning), "later"), settings(&db));
    reaches(&db.pool, "later", last).await;
    let kept: Vec<(String, i64, bool)> = sqlx::query_as(
        "select key, (body->>'to')::bigint, due_at > now() + interval '1 minute' from espd.emissions order by key",
    )
    .fetch_all(&db.pool)
    .await
    .unwrap();
    assert_eq!(kept, [("key 0".to_owned(), 10, true), ("key 1".to_owned(), 21, false)]);
    life.end().await;
}

#[tokio::test]
async fn what_is_emitted_for_a_store_elsewhere_is_kept_with_the_rows() {
    let (store, projections) = (support::database().await, support::database().await);
    append(&store.pool, 200).await;
    let layout = Layout::espd(SCHEMA).unwrap();
    let events = || {
        let store = PostgresEventStore::new(store.pool.clone(), layout.clone());
        Events::Elsewhere(store)
    };
    let mut processor = program().processor("answering", SCHEMA, "public", events()).unwrap();
    let mut connection = projections.pool.acquire().await.unwrap();
    let claim = crate::support::projectors::claim_processor(&mut connection, processor.as_ref()).await;
    processor.prepare(&mut connection, &claim).await.unwrap();
    let limits = BatchLimits { time: LEASE, ..BatchLimits::default() };
    let request = espd::internals::processor::BatchRequest {
        claim: &claim,
        work: espd::internals::processor::Work::Batch { upto: 200.into(), rate: 0.0 },
        limits: &limits,
        lease: LEASE,
        leased_at: Instant::now(),
        mark: None,
        keeps_session: true,
    };
    processor.process(&mut connection, request).await.unwrap();
    assert_eq!(numbers(&projections.pool, "select count(*) from espd.emissions").await, [200]);
    assert_eq!(numbers(&projections.pool, "select count(*) from answers").await, [200]);
    assert_eq!(emitted(&store.pool).await.len(), 0);
}
