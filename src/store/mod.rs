//! The event store: append with an expected version, read on after a position.
//!
//! [`PostgresEventStore`] is the real one; [`MemoryEventStore`] is its twin for tests and examples.
//! Both pass [`conformance`], which is public so that any other implementation can be held to it.

pub mod conformance;
pub mod horizon;
mod jsonb;
pub mod layout;
mod memory;
pub(crate) mod notifier;
mod postgres;
pub mod preconditions;
pub mod subscription;
pub mod upcast;
mod validity;
pub mod watcher;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use thiserror::Error;
use uuid::Uuid;

use crate::event::{Appended, Event, NewEvent, Position, Version};

pub use memory::MemoryEventStore;
pub use postgres::PostgresEventStore;
pub(crate) use postgres::{TransactionAppender, read_after_on, read_aggregate_on};

/// An append-only store of events.
#[async_trait]
pub trait EventStore: Send + Sync {
    /// Appends all events, or none, and returns where they are stored, in the order given.
    ///
    /// The events may belong to several aggregates. Ids ascend in the order given. Appending the same
    /// uuids again with the same content stores nothing and returns what is stored, whatever version
    /// is expected. An event that expects nothing never fails because of another writer. An empty
    /// slice is a no-op.
    ///
    /// After an error that leaves open whether the events are stored (the connection broke), append
    /// the same events again.
    async fn append(&self, events: &[NewEvent]) -> Result<Vec<Appended>, AppendError>;

    /// Up to `limit` events after `position`, by ascending id, of the given types only (`None`: all).
    ///
    /// This reads what is visible now. A processor must not read beyond the settled horizon; it passes
    /// the horizon as `upto`, inclusive.
    async fn read_after(
        &self,
        position: Position,
        upto: Option<Position>,
        event_types: Option<&[String]>,
        limit: i64,
    ) -> Result<Vec<Event>, ReadError>;

    /// The events of an aggregate, by version, from and to the given versions, both inclusive.
    fn read_aggregate(
        &self,
        aggregate_id: Uuid,
        from: Version,
        to: Option<Version>,
    ) -> BoxStream<'_, Result<Event, ReadError>>;

    /// The events of an aggregate, by version, to the last one that was created at or before `time`.
    ///
    /// The result has no holes: where `created_at` goes back and forth, an event that was created
    /// later than `time` comes too if a higher version was not.
    fn read_aggregate_until(
        &self,
        aggregate_id: Uuid,
        time: DateTime<Utc>,
    ) -> BoxStream<'_, Result<Event, ReadError>>;

    /// The events with `from <= id <= to`, by ascending id, of the given types only (`None`: all).
    ///
    /// Exact also where no event has the id `to`.
    fn read_range(
        &self,
        from: Position,
        to: Position,
        event_types: Option<Vec<String>>,
    ) -> BoxStream<'_, Result<Event, ReadError>>;

    /// The highest id of the events created at or before `time`; 0 if there is none.
    ///
    /// There is no index for it: takes the longer, the more events came after `time`.
    async fn position_at(&self, time: DateTime<Utc>) -> Result<Position, ReadError>;

    /// The highest id, of the given types only (`None`: all); 0 if there is no such event.
    ///
    /// There is no index on types: takes the longer, the more events came after the last such one.
    async fn latest_id(&self, event_types: Option<&[String]>) -> Result<Position, ReadError>;
}

/// Why nothing was appended, by what the appender can do about it.
#[derive(Debug, Error)]
pub enum AppendError {
    /// Another writer was faster, or the appender was wrong: load the aggregate again and decide anew.
    #[error("aggregate {aggregate_id} is at version {actual}, not at the expected version {expected}")]
    Conflict {
        /// The first aggregate that is not as expected.
        aggregate_id: Uuid,
        /// What the event expected.
        expected: Version,
        /// What it would have found: for a later event of the append, with the earlier ones counted.
        actual: Version,
    },
    /// The uuid belongs to another fact, or to an append that had not the same events: the appender
    /// reuses uuids, which repeating cannot mend.
    #[error("uuid {uuid} is stored already, with other content or without the rest of the append")]
    UuidReused {
        /// The first such uuid.
        uuid: Uuid,
    },
    /// The store cannot keep such an event: repeating is useless.
    #[error("{}{reason}", place(*.index))]
    Invalid {
        /// Which event, counted from 0; `None` if it is not about one event, or not known.
        index: Option<usize>,
        /// What is wrong with it.
        reason: String,
    },
    /// The database said no for another reason, or could not be reached. The same append may be
    /// repeated: it stores nothing twice.
    #[error("failed to append events")]
    Database(#[from] sqlx::Error),
}

impl AppendError {
    /// The same error of a longer append, in which `count` events come before those that it is about.
    fn counting_from(self, count: usize) -> Self {
        match self {
            Self::Invalid { index: Some(index), reason } => {
                Self::Invalid { index: Some(index + count), reason }
            }
            other => other,
        }
    }
}

/// Why events could not be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The database said no, or could not be reached.
    #[error("failed to read events")]
    Database(#[from] sqlx::Error),
}

/// How a message begins that is about the event at `index`: people count from 1.
fn place(index: Option<usize>) -> String {
    index.map_or_else(String::new, |index| format!("event {}: ", index + 1))
}
