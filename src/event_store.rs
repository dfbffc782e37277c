//! The event store: append with an expected version, read on after a position.
//!
//! [`PostgresEventStore`] is the real one; [`MemoryEventStore`] is its twin for tests and examples.
//! Both pass [`conformance`], which is public so that any other implementation can be held to it.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use uuid::Uuid;

use crate::event::{Appended, Event, ExpectedVersion, NewEvent, Position, Version};

/// An append-only store of events.
#[async_trait]
pub trait EventStore: Send + Sync {
    /// Appends all events, or none, and returns where they are stored, in the order given.
    ///
    /// The events may belong to several aggregates. Ids ascend in the order given. Appending the same
    /// uuids again with the same content stores nothing and returns what is stored. An empty slice is
    /// a no-op.
    async fn append(&self, events: &[NewEvent]) -> Result<Vec<Appended>, AppendError>;

    /// Up to `limit` events after `position`, by ascending id, of the given types only (`None`: all).
    ///
    /// This reads what is visible now. A processor must not read beyond the settled horizon
    /// ([`crate::horizon`]); pass it as `upto`.
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

    /// The events with `from <= id <= to`, by ascending id. Exact also where `to` does not exist.
    fn read_range(
        &self,
        from: Position,
        to: Position,
        event_types: Option<Vec<String>>,
    ) -> BoxStream<'_, Result<Event, ReadError>>;

    /// The position of the last event created at or before `time`, by id; 0 if there is none.
    async fn position_at(&self, time: DateTime<Utc>) -> Result<Position, ReadError>;

    /// The highest id, of the given types only (`None`: all); 0 in an empty store.
    async fn latest_id(&self, event_types: Option<&[String]>) -> Result<Position, ReadError>;
}
