//! The record of commands: what came, what became of it, who sent it.

mod memory;
mod postgres;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::Outcome;
use crate::event::{AggregateId, Appended, NewEvent};
use crate::store::{AppendError, EventStore, ReadError};

pub use memory::MemoryCommandLog;
pub use postgres::PostgresCommandLog;

/// What is recorded of a command that was carried out or refused.
///
/// What was invalid, or met a conflict, is not recorded: it may be sent again with the same id.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CommandRecord {
    /// The id of the command; a random one if it was sent without.
    pub command_id: Uuid,
    /// What it is called.
    pub name: String,
    /// The aggregate that has decided.
    pub aggregate_id: AggregateId,
    /// Its fields, where secrets are `[secret]`.
    pub body: Value,
    /// The metadata that it was sent with: who it was, for example.
    pub metadata: Map<String, Value>,
    /// What has become of it.
    pub outcome: Outcome,
    /// When it was recorded.
    pub at: DateTime<Utc>,
}

/// Makes the record when it is known where the events are stored.
pub type Complete<'r> = dyn Fn(&[Appended]) -> CommandRecord + Send + Sync + 'r;

/// Where commands are recorded.
#[async_trait]
pub trait CommandLog: Send + Sync + 'static {
    /// Finds the record of a command.
    async fn find(&self, command_id: Uuid) -> Result<Option<CommandRecord>, ReadError>;

    /// Records a command that has led to nothing. Does nothing, and returns `false`, if the id is recorded already.
    async fn record(&self, record: &CommandRecord) -> Result<bool, AppendError>;

    /// Appends the events of a command, perhaps none, and records it, both or neither.
    ///
    /// # Errors
    /// As of the append; [`AppendError::UuidReused`] with the id of the command if it is recorded already.
    async fn append(
        &self,
        events: &[NewEvent],
        complete: &Complete<'_>,
    ) -> Result<Vec<Appended>, AppendError>;

    /// As [`Self::append`], for commands of a repository whose store is this one: it is where the events belong.
    ///
    /// By default the log appends where it was made to.
    ///
    /// # Errors
    /// As [`Self::append`].
    async fn append_to(
        &self,
        store: &dyn EventStore,
        events: &[NewEvent],
        complete: &Complete<'_>,
    ) -> Result<Vec<Appended>, AppendError> {
        let _ = store;
        self.append(events, complete).await
    }

    /// The same log, for commands of a repository whose store is this one: called by [`Commands::recorded_by`](super::Commands::recorded_by),
    /// so that events are appended with its codec and hooks, whatever store the log was made of. By default the log stays as it is.
    ///
    /// # Panics
    /// Nothing can be recorded there.
    #[must_use]
    fn beside(self, store: &dyn EventStore) -> Self
    where
        Self: Sized,
    {
        let _ = store;
        self
    }

    /// The newest records, those before `before` if it is given.
    async fn newest(
        &self,
        limit: u32,
        before: Option<DateTime<Utc>>,
    ) -> Result<Vec<CommandRecord>, ReadError>;

    /// Removes the records that are older, and returns how many there were. A command whose record is removed is repeated harmlessly only if it has led to events.
    async fn prune(&self, before: DateTime<Utc>) -> Result<u64, ReadError>;
}
