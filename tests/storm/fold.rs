//! What the projections have to be: the same events, folded in Rust.

use std::collections::BTreeMap;

use espd::event::{Position, Version};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::ledger::{CLOSED, DEPOSITED, OPENED, WITHDRAWN};
use crate::projectors::{Account, Count, Entry, Projections};

/// An event as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    pub id: Position,
    pub uuid: Uuid,
    pub aggregate_id: Uuid,
    pub event_type: String,
    pub version: Version,
    pub amount: i64,
}

/// Reads the whole store, by id.
pub async fn read_events(connection: &mut PgConnection) -> Result<Vec<StoredEvent>, sqlx::Error> {
    let statement = "-- read_all_events
         select id, uuid, aggregate_id, type, version, (body->>'amount')::bigint from espd.events order by id";
    let rows: Vec<(Position, Uuid, Uuid, String, Version, i64)> =
        sqlx::query_as(statement).fetch_all(connection).await?;
    let event = |(id, uuid, aggregate_id, event_type, version, amount)| StoredEvent {
        id,
        uuid,
        aggregate_id,
        event_type,
        version,
        amount,
    };
    Ok(rows.into_iter().map(event).collect())
}

/// Folds events into what all projectors together make of them.
pub fn fold(events: &[StoredEvent]) -> Projections {
    let mut projections = Projections {
        journal: Vec::new(),
        accounts: BTreeMap::new(),
        folded_accounts: BTreeMap::new(),
        counts: [const { BTreeMap::new() }; 4],
    };
    for event in events {
        projections.journal.push(entry(event));
        for counts in &mut projections.counts {
            count(counts, event);
        }
        change_account(&mut projections.accounts, event);
    }
    let of_fold = |(id, account): (&Uuid, &Account)| (*id, (account.version, account.balance));
    projections.folded_accounts = projections.accounts.iter().map(of_fold).collect();
    projections
}

fn entry(event: &StoredEvent) -> Entry {
    Entry {
        event_id: event.id,
        event_uuid: event.uuid,
        aggregate_id: event.aggregate_id,
        version: event.version,
    }
}

fn count(counts: &mut BTreeMap<String, Count>, event: &StoredEvent) {
    let none = Count { events: 0, amount: 0, last_event: Position::START };
    let count = counts.entry(event.event_type.clone()).or_insert(none);
    count.events += 1;
    count.amount += event.amount;
    count.last_event = event.id;
}

fn change_account(accounts: &mut BTreeMap<Uuid, Account>, event: &StoredEvent) {
    let sign = match event.event_type.as_str() {
        OPENED => {
            let account = Account { version: event.version, balance: 0, trail: event.version.get() };
            accounts.insert(event.aggregate_id, account);
            return;
        }
        CLOSED => {
            accounts.remove(&event.aggregate_id);
            return;
        }
        DEPOSITED => 1,
        WITHDRAWN => -1,
        _ => return,
    };
    if let Some(account) = accounts.get_mut(&event.aggregate_id) {
        account.version = event.version;
        account.balance += sign * event.amount;
        account.trail = (account.trail * 31 + event.amount) % 1_000_003;
    }
}
