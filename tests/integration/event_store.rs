//! The event store: both twins keep the promises of the conformance suite, and the SQL functions too.

use std::sync::Arc;

use espd::event_store::{EventStore, MemoryEventStore, PostgresEventStore, conformance};
use espd::layout::Layout;

use crate::support;

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_store_keeps_all_promises() {
    conformance::run(async || Arc::new(MemoryEventStore::new()) as Arc<dyn EventStore>).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_postgres_store_keeps_all_promises() {
    conformance::run(async || {
        let pool = support::database().await.pool;
        Arc::new(PostgresEventStore::new(pool, Layout::espd(support::SCHEMA).unwrap())) as Arc<dyn EventStore>
    })
    .await;
}
