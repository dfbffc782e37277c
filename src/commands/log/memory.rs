//! Records in memory, for tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{CommandLog, CommandRecord, Complete};
use crate::event::{Appended, NewEvent};
use crate::store::{AppendError, EventStore, ReadError};

/// Records in memory, beside the events of any store. Clones share them.
#[derive(Debug, Clone)]
pub struct MemoryCommandLog<S> {
    store: S,
    records: Arc<Mutex<BTreeMap<Uuid, CommandRecord>>>,
}

impl<S: EventStore> MemoryCommandLog<S> {
    /// Nothing is recorded yet. The store is that of the commands; what [`Commands::recorded_by`](crate::commands::Commands::recorded_by)
    /// records is appended to that of the repository.
    pub fn of(store: S) -> Self {
        Self { store, records: Arc::default() }
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<Uuid, CommandRecord>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, record: &CommandRecord) -> bool {
        let mut records = self.records();
        let is_new = !records.contains_key(&record.command_id);
        if is_new {
            records.insert(record.command_id, record.clone());
        }
        is_new
    }
}

#[async_trait]
impl<S: EventStore + 'static> CommandLog for MemoryCommandLog<S> {
    async fn find(&self, command_id: Uuid) -> Result<Option<CommandRecord>, ReadError> {
        Ok(self.records().get(&command_id).cloned())
    }

    async fn record(&self, record: &CommandRecord) -> Result<bool, AppendError> {
        Ok(self.insert(record))
    }

    async fn append(
        &self,
        events: &[NewEvent],
        complete: &Complete<'_>,
    ) -> Result<Vec<Appended>, AppendError> {
        self.append_to(&self.store, events, complete).await
    }

    async fn append_to(
        &self,
        store: &dyn EventStore,
        events: &[NewEvent],
        complete: &Complete<'_>,
    ) -> Result<Vec<Appended>, AppendError> {
        let appended = store.append(events).await?;
        let record = complete(&appended);
        if self.insert(&record) {
            Ok(appended)
        } else {
            Err(AppendError::UuidReused { uuid: record.command_id })
        }
    }

    async fn newest(
        &self,
        limit: u32,
        before: Option<DateTime<Utc>>,
    ) -> Result<Vec<CommandRecord>, ReadError> {
        let is_meant = |record: &&CommandRecord| before.is_none_or(|before| record.at < before);
        let mut found: Vec<_> = self.records().values().filter(is_meant).cloned().collect();
        found.sort_by_key(|record| std::cmp::Reverse(record.at));
        found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(found)
    }

    async fn prune(&self, before: DateTime<Utc>) -> Result<u64, ReadError> {
        let mut records = self.records();
        let count = records.len();
        records.retain(|_, record| record.at >= before);
        Ok((count - records.len()) as u64)
    }
}
