//! Codecs: what is stored, what is read, and who sees which.

use std::error::Error;
use std::time::Duration;

use espd::Program;
use espd::event::{Event, NewEvent, Position, Version};
use espd::internals::retry::{OnFailure, RetryPolicy};
use espd::internals::runner::RunnerContext;
use espd::native::{
    Delivery, HandlerError, Projector, ProjectorContext, Reactor, ReactorContext, Registration, Start,
};
use espd::store::{BodyCodec, EventStore, Layout, MemoryEventStore, PostgresEventStore, ReadError};
use futures_util::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use sqlx::PgPool;
use uuid::Uuid;

use super::{dead_letters, make};
use crate::processing::runner::{Life, settings};
use crate::support::facts::{eventually, reaches};
use crate::support::{self, Database, SCHEMA};

/// Hides the bodies of secrets: turns them around, in one string, with a key of the event's own. All else stays as it is.
#[derive(Debug)]
struct Reversing;

impl BodyCodec for Reversing {
    fn encode(&self, event: &NewEvent) -> Result<Box<RawValue>, Box<dyn Error + Send + Sync>> {
        if event.event_type != "Secret" {
            return Ok(event.body.clone());
        }
        let text: String = event.body.get().chars().rev().collect();
        Ok(to_raw_value(&format!("{}:{text}", event.uuid))?)
    }

    fn decode(&self, event: &Event) -> Result<Box<RawValue>, Box<dyn Error + Send + Sync>> {
        if event.event_type != "Secret" {
            return Ok(event.body.clone());
        }
        let text: String = serde_json::from_str(event.body.get())?;
        let text = text.strip_prefix(&format!("{}:", event.uuid)).ok_or("it is of another event")?;
        Ok(RawValue::from_string(text.chars().rev().collect())?)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Secret {
    n: i64,
}

espd::event_type!(Secret);

fn secret(n: i64) -> NewEvent {
    NewEvent::of(Uuid::new_v4(), &Secret { n }).unwrap()
}

fn plain_store(db: &Database) -> PostgresEventStore {
    PostgresEventStore::new(db.pool.clone(), Layout::espd(SCHEMA).unwrap())
}

fn bodies(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.body.get()).collect()
}

async fn stored(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar("select body::text from espd.events order by id").fetch_all(pool).await.unwrap()
}

async fn everything_is_read_as_it_was_appended(store: &impl EventStore) {
    let event = secret(1);
    let plain = NewEvent { event_type: "Plain".into(), ..secret(2) };
    let appended = store.append(&[event.clone(), plain]).await.unwrap();
    assert_eq!(store.append(std::slice::from_ref(&event)).await.unwrap()[0], appended[0]);
    let bodies_of_all = [r#"{"n":1}"#, r#"{"n": 2}"#];
    assert_eq!(bodies(&store.read_after(Position::START, None, None, 9).await.unwrap()), bodies_of_all);
    let id = event.aggregate_id.clone();
    let read: Vec<Event> = store.read_aggregate(id, Version::FIRST, None).try_collect().await.unwrap();
    assert_eq!(bodies(&read), [r#"{"n":1}"#]);
    let read: Vec<Event> = store.read_range(Position::START, 9.into(), None).try_collect().await.unwrap();
    assert_eq!(bodies(&read), bodies_of_all);
}

#[tokio::test]
async fn a_store_encodes_what_it_appends_and_decodes_what_it_reads() {
    let db = support::database().await;
    let (pool, raw) = (db.pool.clone(), plain_store(&db));
    let coded = raw.clone().with_codec(Reversing);
    everything_is_read_as_it_was_appended(&coded).await;
    everything_is_read_as_it_was_appended(&MemoryEventStore::new().with_codec(Reversing)).await;
    let kept = stored(&pool).await;
    assert!(kept[0].ends_with(r#":}1:\"n\"{""#) && kept[1] == r#"{"n": 2}"#, "{kept:?}");
    let mut events = coded.subscribe(None, Some(Position::START));
    assert_eq!(events.try_next().await.unwrap().unwrap().body.get(), r#"{"n":1}"#);
    let mut transaction = pool.begin().await.unwrap();
    coded.append_in(&mut transaction, &[secret(3)]).await.unwrap();
    transaction.commit().await.unwrap();
    coded.append_at(Duration::ZERO, None, &[secret(4)]).await.unwrap();
    assert_eq!(coded.append_due().await.unwrap(), 1);
    let read = coded.read_after(2.into(), None, None, 9).await.unwrap();
    assert_eq!(bodies(&read), [r#"{"n":3}"#, r#"{"n":4}"#]);
    let plain = raw.append(&[secret(5)]).await.unwrap()[0].id;
    let error = coded.read_after(plain.previous(), None, None, 9).await.unwrap_err();
    assert!(matches!(error, ReadError::Undecodable { position, .. } if position == plain), "{error}");
}

/// Writes each number into the table, and answers it with the next one.
struct Next;

#[async_trait::async_trait]
impl Projector for Next {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for event in events {
            let secret: Secret = event.read()?.ok_or("it handles nothing else")?;
            let mut history = context.stream_aggregate(&event.aggregate_id, event.version);
            let first: Secret =
                history.try_next().await?.ok_or("no history")?.read()?.ok_or("another type")?;
            drop(history);
            let insert = sqlx::query("insert into secrets values ($1, $2)").bind(secret.n).bind(first.n);
            insert.execute(context.connection()).await?;
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl Reactor for Next {
    async fn react(
        &mut self,
        event: &Delivery,
        context: &mut ReactorContext<'_>,
    ) -> Result<(), HandlerError> {
        let secret: Secret = event.read()?.ok_or("it handles nothing else")?;
        if secret.n > 1 { Ok(()) } else { context.emit(&event.aggregate_id, &Secret { n: secret.n + 1 }) }
    }
}

#[tokio::test]
async fn handlers_in_rust_see_and_emit_what_the_codec_makes() {
    let db = support::database().await;
    let raw = plain_store(&db);
    let coded = raw.clone().with_codec(Reversing);
    coded.append(&[secret(1)]).await.unwrap();
    raw.append(&[secret(7)]).await.unwrap();
    let reactor = Registration::reactor("next").handles::<Secret>().emits::<Secret>().codec(Reversing);
    let projector =
        Registration::projector("secrets").handles::<Secret>().table("secrets", "n bigint, first bigint");
    let program = Program::new()
        .reactor(reactor.start(Start::Beginning), || Next)
        .projector(projector.codec(Reversing), || Next);
    let settings = settings(&db);
    let retry = RetryPolicy { max_attempts: Some(1), on_failure: OnFailure::Skip, ..settings.retry };
    let skipping = RunnerContext { retry, ..settings };
    let lives = [
        Life::begin_with(&db, make(&program, "next"), skipping.clone()),
        Life::begin_with(&db, make(&program, "secrets"), skipping),
    ];
    reaches(&db.pool, "secrets", 3).await;
    reaches(&db.pool, "next", 3).await;
    let numbers: Vec<(i64, i64)> =
        sqlx::query_as("select n, first from secrets order by n").fetch_all(&db.pool).await.unwrap();
    assert_eq!(numbers, [(1, 1), (2, 1)]);
    let emitted = stored(&db.pool).await.swap_remove(2);
    assert!(emitted.ends_with(r#":}2:\"n\"{""#), "{emitted}");
    let letters = eventually("both dead letters", async || {
        let letters = dead_letters(&db.pool).await;
        (letters.len() == 2).then_some(letters)
    })
    .await;
    assert!(letters.iter().all(|letter| letter.event_id == 2), "{letters:?}");
    for life in lives {
        life.end().await;
    }
}
