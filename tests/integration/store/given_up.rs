//! What is given up in the middle, as behind a `timeout` or when a web server's client goes away, leaves nothing behind that later
//! appends get into.

use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use espd::commands::{CommandLog, CommandRecord, PostgresCommandLog};
use espd::event::{Appended, ExpectedVersion, NewEvent, Position};
use espd::store::{EventStore, PostgresEventStore};
use serde_json::json;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use uuid::Uuid;

use super::{json as raw, store};

/// More than one statement takes.
const SEVERAL_BATCHES: usize = 2_500;

/// Polls a future so often, with time for the server to answer in between, and drops it.
async fn give_up<T>(work: impl Future<Output = T>, polls: usize) -> bool {
    let mut work = pin!(work);
    for _ in 0..polls {
        if work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    false
}

/// A store whose pool has one connection, so that whoever comes next gets it, and a pool that sees what is committed.
async fn narrow() -> (PostgresEventStore, PgPool, PgPool) {
    let (others, store) = store().await;
    let options = others.connect_options().as_ref().clone();
    let pool = PgPoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
    (PostgresEventStore::new(pool.clone(), store.layout().clone()), pool, others)
}

/// Appends, and requires that others see it.
async fn is_stored(store: &PostgresEventStore, others: &PgPool, polls: usize) {
    let later = store.append(&[event("Later")]).await;
    let appended = later.unwrap_or_else(|error| panic!("after {polls} polls: {error:?}"));
    is_there(others, appended[0].id).await;
}

async fn is_there(others: &PgPool, id: Position) {
    let query = sqlx::query_scalar("select exists (select from espd.events where id = $1)");
    let seen: bool = query.bind(id).fetch_one(others).await.unwrap();
    assert!(seen, "what was appended is not stored");
}

#[tokio::test]
async fn an_append_of_several_statements() {
    let (store, _, others) = narrow().await;
    let events: Vec<_> = (0..SEVERAL_BATCHES).map(|_| event("Many")).collect();
    for polls in 1.. {
        let is_done = give_up(store.append(&events), polls).await;
        is_stored(&store, &others, polls).await;
        if is_done {
            break;
        }
    }
}

#[tokio::test]
async fn a_recorded_command() {
    let (store, _, others) = narrow().await;
    let log = PostgresCommandLog::of(&store).unwrap();
    for polls in 1.. {
        let is_done = give_up(log.append(&[event("Commanded")], &record), polls).await;
        is_stored(&store, &others, polls).await;
        if is_done {
            break;
        }
    }
}

#[tokio::test]
async fn a_transaction_of_ones_own() {
    let (store, _, others) = narrow().await;
    for polls in 1.. {
        let is_done = give_up(store.begin(), polls).await;
        is_stored(&store, &others, polls).await;
        if is_done {
            break;
        }
    }
}

/// As an application does it that begins its own transactions by the driver.
#[tokio::test]
async fn a_transaction_of_the_driver() {
    let (store, pool, others) = narrow().await;
    let refused = event("Refused").expecting(ExpectedVersion::Exact(7.into()));
    for polls in 1.. {
        give_up(pool.begin(), polls).await;
        is_stored(&store, &others, polls).await;
        give_up(pool.begin(), polls).await;
        store.append(std::slice::from_ref(&refused)).await.unwrap_err();
        is_stored(&store, &others, polls).await;
        give_up(pool.begin(), polls).await;
        let tagged = store.append(&[event("Tagged").tagged("a")]).await.unwrap()[0].id;
        is_there(&others, tagged).await;
        let is_done = give_up(pool.begin(), polls).await;
        if is_done {
            break;
        }
    }
}

fn record(_: &[Appended]) -> CommandRecord {
    serde_json::from_value(json!({
        "command_id": Uuid::new_v4(), "name": "Do", "aggregate_id": Uuid::new_v4(), "body": {}, "metadata": {},
        "outcome": {"outcome": "invalid", "errors": []}, "at": "2026-01-31T18:00:00Z"
    }))
    .unwrap()
}

fn event(event_type: &str) -> NewEvent {
    NewEvent::new(Uuid::new_v4(), event_type, raw("{}"))
}
