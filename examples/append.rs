//! Append with an expected version, meet a conflict, read back: `cargo run --example append`.
//!
//! Works on memory; with DATABASE_URL on PostgreSQL (after `espctl migrate`). The code is the same.

use espd::event::{ExpectedVersion, NewEvent, Version};
use espd::store::Layout;
use espd::store::{AppendError, EventStore, MemoryEventStore, PostgresEventStore};
use futures_util::TryStreamExt as _;
use serde_json::value::to_raw_value;
use uuid::Uuid;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    match std::env::var("DATABASE_URL") {
        Ok(url) => {
            open_an_account(PostgresEventStore::new(
                sqlx::PgPool::connect(&url).await?,
                Layout::espd("espd")?,
            ))
            .await
        }
        Err(_) => open_an_account(MemoryEventStore::new()).await,
    }
}

async fn open_an_account(store: impl EventStore) -> anyhow::Result<()> {
    let account = Uuid::new_v4();
    let event = |event_type: &str, cents: u64| -> anyhow::Result<NewEvent> {
        Ok(NewEvent::new(account, event_type, to_raw_value(&serde_json::json!({ "cents": cents }))?))
    };

    let opened = event("AccountOpened", 0)?.expecting(ExpectedVersion::Absent);
    let appended = store.append(&[opened.clone(), event("MoneyDeposited", 500)?]).await?;
    println!("stored at {:?}", appended.iter().map(|event| event.id).collect::<Vec<_>>());

    // Somebody else believes that the account is still at version 1.
    let late = event("MoneyWithdrawn", 400)?.expecting(ExpectedVersion::exactly(1));
    match store.append(&[late]).await {
        Err(AppendError::Conflict { expected, actual, .. }) => {
            println!("expected version {expected}, found {actual}")
        }
        other => println!("unexpected: {other:?}"),
    }

    let mut events = store.read_aggregate(account.into(), Version::FIRST, None);
    while let Some(event) = events.try_next().await? {
        println!("{} {} {}", event.version, event.event_type, event.body);
    }
    Ok(())
}
