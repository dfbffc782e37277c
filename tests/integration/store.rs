//! The event store: both twins keep the promises of the conformance suite, and so do the ways into it that
//! do not lead through `append`.

pub(crate) mod append_examples;
mod audit;
mod bell;
mod event_schemas;
pub(crate) mod event_sourcery;
mod functions;
mod given_up;
mod horizon;
mod names;
mod notifier;
mod on_appended;
mod other_ways;
mod personal_data;
mod preconditions;
mod scheduled;
mod schema;
mod strangers;
mod subscribe;
mod tags;
mod twins;
mod upcast;
mod wake_up;
mod writers;

use std::sync::Arc;
use std::time::Duration;

use espd::event::NewEvent;
use espd::store::Layout;
use espd::store::{EventStore, MemoryEventStore, PostgresEventStore, conformance};
use serde_json::value::RawValue;
use sqlx::PgPool;

use crate::support;

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_store_keeps_all_promises() {
    conformance::run_with_tags(async || Arc::new(MemoryEventStore::new()) as Arc<dyn EventStore>).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_postgres_store_keeps_all_promises() {
    let (pool, store) = store().await;
    conformance::run_with_tags(async || {
        empty(&pool).await;
        Arc::new(store.clone()) as Arc<dyn EventStore>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_promise_is_named() {
    let run = conformance::run(async || Arc::new(other_ways::Forgetful::default()) as Arc<dyn EventStore>);
    let panic = tokio::spawn(run).await.unwrap_err().into_panic();
    let message = panic.downcast_ref::<String>().unwrap();
    assert!(message.contains("the_same_append_again_returns_what_is_stored"), "{message}");
    assert!(!message.contains("an_event_is_read_back_whole"), "{message}");
}

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(30);

/// A database of its own and the store in it.
pub async fn store() -> (PgPool, PostgresEventStore) {
    let pool = support::database().await.pool;
    let store = PostgresEventStore::new(pool.clone(), layout());
    (pool, store)
}

/// Takes all events away, which is faster than another database.
async fn empty(pool: &PgPool) {
    sqlx::raw_sql("truncate espd.events, espd.tag_heads, espd.tag_events, espd.unique_keys restart identity")
        .execute(pool)
        .await
        .unwrap();
}

fn layout() -> Layout {
    Layout::espd(support::SCHEMA).unwrap()
}

fn json(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap()
}

fn happened(aggregate_id: impl Into<espd::event::AggregateId>) -> NewEvent {
    NewEvent::new(aggregate_id, "Happened", json("{}"))
}

/// SQLSTATE, constraint and DETAIL of an error.
fn refusal(error: &sqlx::Error) -> (String, String, serde_json::Value) {
    let error = error.as_database_error().unwrap();
    let error = error.downcast_ref::<sqlx::postgres::PgDatabaseError>();
    let detail = error.detail().and_then(|detail| serde_json::from_str(detail).ok());
    (error.code().to_owned(), error.constraint().unwrap_or("").to_owned(), detail.unwrap_or_default())
}
