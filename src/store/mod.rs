//! The event store: append with an expected version, read on after a position, follow to the settled horizon.
//!
//! Applications use [`EventStore`], the trait, with one of its implementations: [`PostgresEventStore`],
//! [`MemoryEventStore`], its twin for tests and examples, and, with the feature `sqlite`, `SqliteEventStore`, which is one
//! file. All pass [`conformance`], which is public so that any other
//! implementation can be held to it.
//!
//! The parts, in the order in which an event passes them:
//!
//! - `layout` describes a store in PostgreSQL: where its events are, what orders them, who may append. Upcasts are
//!   laid over its source, so that old events are read as new ones.
//! - An append checks what is cheap to check (`validity`), is stored in one transaction (`postgres/append`), and then
//!   notifies those who follow the store (`notifier`).
//! - What a store has `kept` from a call, such as a connection, serves the next call of the same command.
//! - A `declared_event` has a schema, which the store holds appended bodies to if that is asked for.
//! - What is `scheduled` for later is appended by the scheduler, when it is due.
//! - `history` tells one life of a store from another, after a failover or a restore; by a `witness`, readers recognise that
//!   the store lacks what they have read.
//! - `preconditions` are what a store must meet before it may be followed.
//! - A `trace` leads from an event to its first cause and to all effects.
//! - An `event_stream` follows the store on behalf of an application.
//! - `horizon` says up to which id no event can appear any more. `watcher` observes it, once per process, and
//!   `subscription` hands it to a runner, which reads up to it with [`EventStore::read_after`].

mod appended_hook;
mod codec;
mod condition;
pub mod conformance;
pub(crate) mod declared_event;
mod event_stream;
pub(crate) mod history;
pub(crate) mod horizon;
mod jsonb;
mod kept;
pub(crate) mod layout;
mod memory;
mod normalized;
pub(crate) mod notifier;
mod pointer;
mod postgres;
pub(crate) mod preconditions;
pub(crate) mod scheduled;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;
pub(crate) mod subscription;
mod trace;
pub(crate) mod upcast;
mod validity;
pub(crate) mod watcher;
pub(crate) mod witness;

use std::collections::HashSet;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use thiserror::Error;
use uuid::Uuid;

use crate::event::{AggregateId, Appended, Event, NewEvent, Position, Tag, UniqueKey, Version};
use crate::postgres::error::chain;
use crate::postgres::sqlstate::{describe, is_infrastructure_error, may_succeed_later};
use crate::store::upcast::UpcastFailure;

pub(crate) use appended_hook::AppendedClosure;
pub use codec::BodyCodec;
pub(crate) use codec::Codec;
pub use condition::{AppendCondition, ConsistencyToken, ExcludingEvent, TagQuery, TaggedEvents};
pub use event_stream::EventStream;
pub use kept::Kept;
pub use layout::{EspdNames, EventSourceryNames, InvalidName, Layout};
pub use memory::MemoryEventStore;
pub use postgres::{AppendTime, DeletedAggregate, DeletionError, PostgresEventStore, Uncommitted};
pub(crate) use postgres::{
    Direction, Selection, TransactionAppender, delete_aggregate_on, read_after_on, read_uuids_on,
    stream_aggregate_on,
};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteEventStore, SqliteOpenError};
pub use trace::{Trace, TraceLimits, TracedEvent, trace};
pub use upcast::{BodyCode, Upcast};
pub(crate) use validity::{check_json, find_bad_text, find_reason};

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

    /// Reads up to `limit` events after `position`, by ascending id, of the given types only (`None`: all).
    ///
    /// It reads what is visible now. A processor must not read beyond the settled horizon; it passes
    /// the horizon as `upto`, inclusive.
    async fn read_after(
        &self,
        position: Position,
        upto: Option<Position>,
        event_types: Option<&[String]>,
        limit: i64,
    ) -> Result<Vec<Event>, ReadError>;

    /// Streams the events of an aggregate, by version, from and to the given versions, both inclusive.
    fn read_aggregate(
        &self,
        aggregate_id: AggregateId,
        from: Version,
        to: Option<Version>,
    ) -> BoxStream<'_, Result<Event, ReadError>>;

    /// As [`Self::read_aggregate`], with what the store has kept from a call before, and may keep for the next one.
    fn read_aggregate_keeping<'s>(
        &'s self,
        kept: &'s mut Kept,
        aggregate_id: AggregateId,
        from: Version,
        to: Option<Version>,
    ) -> BoxStream<'s, Result<Event, ReadError>> {
        let _ = kept;
        self.read_aggregate(aggregate_id, from, to)
    }

    /// As [`Self::append`], with what the store has kept from a call before.
    ///
    /// # Errors
    /// As of [`Self::append`].
    async fn append_keeping(
        &self,
        kept: &mut Kept,
        events: &[NewEvent],
    ) -> Result<Vec<Appended>, AppendError> {
        kept.release();
        self.append(events).await
    }

    /// Streams the events of an aggregate, by version, to the last one that was created at or before `time`.
    ///
    /// The result has no holes: where `created_at` goes back and forth, an event that was created
    /// later than `time` comes too if a higher version was not.
    fn read_aggregate_until(
        &self,
        aggregate_id: AggregateId,
        time: DateTime<Utc>,
    ) -> BoxStream<'_, Result<Event, ReadError>>;

    /// Streams the events of a correlation, by ascending id: those with this `correlation_id`, and the event that the
    /// correlation began with, whose own uuid it is.
    ///
    /// An index serves this in espd's own table. By default the whole store is read.
    fn read_correlation(&self, correlation_id: Uuid) -> BoxStream<'_, Result<Event, ReadError>> {
        let all = self.read_range(Position::START, Position::MAX, None);
        Box::pin(all.try_filter(move |event| {
            std::future::ready(event.correlation_id == Some(correlation_id) || event.uuid == correlation_id)
        }))
    }

    /// Streams the events of several aggregates, of each by version, and once however often it is named. How the aggregates follow one another is left open.
    ///
    /// PostgreSQL reads them by one statement. By default they are read one after the other.
    fn read_aggregates(
        &self,
        mut aggregate_ids: Vec<AggregateId>,
    ) -> BoxStream<'_, Result<Event, ReadError>> {
        let mut named = HashSet::new();
        aggregate_ids.retain(|id| named.insert(id.clone()));
        let ids = futures_util::stream::iter(aggregate_ids);
        Box::pin(ids.flat_map(|id| self.read_aggregate(id, Version::FIRST, None)))
    }

    /// Reads the events with these uuids, by ascending id. Those that are not stored are left out.
    ///
    /// An index serves this in PostgreSQL. By default the whole store is read.
    async fn read_uuids(&self, uuids: &[Uuid]) -> Result<Vec<Event>, ReadError> {
        let all = self.read_range(Position::START, Position::MAX, None);
        all.try_filter(|event| std::future::ready(uuids.contains(&event.uuid))).try_collect().await
    }

    /// Streams the events with `from <= id <= to`, by ascending id, of the given types only (`None`: all).
    ///
    /// No event needs to have the id `to`.
    fn read_range(
        &self,
        from: Position,
        to: Position,
        event_types: Option<Vec<String>>,
    ) -> BoxStream<'_, Result<Event, ReadError>>;

    /// The highest id of the events created at or before `time`; 0 if there is none.
    ///
    /// No index serves this: it takes the longer, the more events came after `time`.
    async fn position_at(&self, time: DateTime<Utc>) -> Result<Position, ReadError>;

    /// The highest id, of the given types only (`None`: all); 0 if there is no such event.
    ///
    /// No index serves the types: it takes the longer, the more events came after the last such event.
    async fn latest_id(&self, event_types: Option<&[String]>) -> Result<Position, ReadError>;

    /// Appends as [`Self::append`] does, unless an event came that the condition excludes.
    ///
    /// What is stored already is recognised before the condition is looked at. Without events, the condition is only checked.
    ///
    /// # Errors
    /// As of [`Self::append`]; [`AppendError::ConditionFailed`] if such an event came, or if the token knows a state that the store
    /// is not in. By default a store keeps no tags and refuses.
    async fn append_if(
        &self,
        events: &[NewEvent],
        condition: &AppendCondition,
    ) -> Result<Vec<Appended>, AppendError> {
        let _ = (events, condition);
        Err(AppendError::Invalid { index: None, reason: NO_TAGS.to_owned() })
    }

    /// Reads the events that match a query, and the token that says in which state: for [`Self::append_if`]. `since`: a token of an
    /// earlier read; only what came after that is read, and the new token stands for both, unless it [is behind](ConsistencyToken::is_behind) `since`.
    /// All of the events are held in memory.
    ///
    /// # Errors
    /// The query names no tag, or the store cannot be read. By default a store keeps no tags and refuses.
    async fn read_tagged(
        &self,
        query: &TagQuery,
        since: Option<&ConsistencyToken>,
    ) -> Result<TaggedEvents, ReadError> {
        let _ = (query, since);
        Err(ReadError::Refused { reason: NO_TAGS.to_owned() })
    }

    /// The store in PostgreSQL that this one is, or leads to: what is kept beside its events, such as records of commands and snapshots,
    /// is kept there, with its codec. By default there is none; a store of one's own around such a store returns that.
    fn as_postgres(&self) -> Option<&PostgresEventStore> {
        None
    }
}

/// What a store without tags says.
const NO_TAGS: &str = "this event store keeps no tags";

/// Why nothing was appended, by what the appender can do about it.
#[derive(Debug, Error)]
pub enum AppendError {
    /// The aggregate is at another version: another writer was faster, or the appender was wrong. Load the aggregate
    /// again and decide anew.
    #[error("aggregate {aggregate_id} is at version {actual}, not at the expected version {expected}")]
    Conflict {
        /// The first aggregate that is at another version.
        aggregate_id: AggregateId,
        /// The version that the event expected.
        expected: Version,
        /// The version that the event would have found, with the earlier events of the append counted.
        actual: Version,
    },
    /// The uuid belongs to another event, or to an append with other events. The appender reuses uuids, which no
    /// repetition fixes.
    #[error("uuid {uuid} is stored already, with other content or without the rest of the append")]
    UuidReused {
        /// The first such uuid.
        uuid: Uuid,
    },
    /// The store cannot keep such an event. The same append will fail again.
    #[error("{}{reason}", place(*.index))]
    Invalid {
        /// Which event, counted from 0; `None` if it is not about one event, or not known.
        index: Option<usize>,
        /// What is wrong with the event.
        reason: String,
    },
    /// An event came that the condition of the append excludes: another writer was faster, or the appender was wrong. Read again and
    /// decide anew.
    #[error("{}", condition::explain_unmet(*.item, .tag, .came.as_ref()))]
    ConditionFailed {
        /// Which item of the condition, counted from 0.
        item: usize,
        /// The tag of it on which the event was found.
        tag: Tag,
        /// The first such event; `None`: the token is of a later state than the store is in, after a restore for example.
        came: Option<ExcludingEvent>,
    },
    /// A key that the append claims belongs to another aggregate.
    #[error("{}{key} belongs to aggregate {owner}", place(Some(*.index)))]
    KeyTaken {
        /// Which event claims it, counted from 0.
        index: usize,
        /// The key, with its scope.
        key: UniqueKey,
        /// The aggregate that has it.
        owner: AggregateId,
    },
    /// The database refused for another reason, or could not be reached. The same append may be
    /// repeated: it stores nothing twice. [`Self::is_transient`] says whether that may help.
    #[error("failed to append events{}", explain_pool(.0))]
    Database(#[from] sqlx::Error),
}

impl AppendError {
    /// Whether the same append may well succeed when it is repeated later: the database, or what the codec needs, could not be reached, or could
    /// not do it at the moment. What is refused for another reason, such as a table that is missing, is refused again.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Database(error) if is_passing(error))
    }

    /// The same error with the index that the event has in a longer append, in which `count` events come before.
    fn counting_from(self, count: usize) -> Self {
        match self {
            Self::Invalid { index: Some(index), reason } => {
                Self::Invalid { index: Some(index + count), reason }
            }
            Self::KeyTaken { index, key, owner } => Self::KeyTaken { index: index + count, key, owner },
            other => other,
        }
    }
}

/// Why events could not be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The database refused, or could not be reached. [`Self::is_transient`] says whether trying again may help.
    #[error("failed to read events{}", explain_pool(.0))]
    Database(#[from] sqlx::Error),
    /// What is kept beside the events, such as records of commands and snapshots, could not be read or changed.
    #[error("failed to {action}{}", explain_pool(.source))]
    Beside {
        /// What was tried: `remove records of commands`.
        action: &'static str,
        /// What the database says.
        source: sqlx::Error,
    },
    /// The codec of the store cannot decode the body of an event.
    #[error("the body of event {position} cannot be decoded: {reason}")]
    Undecodable {
        /// Which event.
        position: Position,
        /// What the codec says.
        reason: String,
    },
    /// An event cannot be read as readers see it: `jsonb` cannot hold its body, or an upcast fails. It stays so until the event or
    /// the upcast is another one; who can do without the event subscribes after it.
    #[error("event {position} cannot be read: {}", describe(.source))]
    Unreadable {
        /// Which event.
        position: Position,
        /// What the database or the upcast says.
        source: sqlx::Error,
    },
    /// The store cannot answer such a question.
    #[error("{reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The store lacks what must be true of it before it may be followed. The stream goes on when that is repaired.
    #[error("{reason}")]
    Unfollowable {
        /// What is missing, and how to repair it.
        reason: String,
    },
    /// The store is not the one that was followed: an event that was read is gone or is another one, after a failover or a
    /// restore for example. Decide what that means before subscribing again.
    #[error("the event store has gone back: the event at position {position} is gone or is another one")]
    GoneBack {
        /// The last position that was read.
        position: Position,
    },
}

impl ReadError {
    /// Makes an error of the driver one of what was tried.
    pub(crate) fn beside(action: &'static str) -> impl Fn(sqlx::Error) -> Self {
        move |source| Self::Beside { action, source }
    }

    /// The error with its causes, on one line.
    pub(crate) fn with_causes(&self) -> String {
        chain(self)
    }

    /// Whether the same read may well succeed when it is repeated later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Database(error) | Self::Beside { source: error, .. } if is_passing(error))
    }

    /// Whether one of the events is why they could not be read.
    pub(crate) fn is_of_an_event(&self) -> bool {
        match self {
            Self::Unreadable { .. } => true,
            Self::Database(error) => !is_infrastructure_error(error) || UpcastFailure::is_cause_of(error),
            _ => false,
        }
    }

    /// Whether no connection became free in time.
    pub(crate) fn is_of_full_pool(&self) -> bool {
        matches!(
            self,
            Self::Database(sqlx::Error::PoolTimedOut)
                | Self::Beside { source: sqlx::Error::PoolTimedOut, .. }
        )
    }

    /// The same error as one of the driver, for those who read in a transaction and follow nothing.
    pub(crate) fn into_database_error(self) -> sqlx::Error {
        match self {
            Self::Database(error)
            | Self::Beside { source: error, .. }
            | Self::Unreadable { source: error, .. } => error,
            other => sqlx::Error::Decode(other.into()),
        }
    }
}

/// Whether what a database has said, or that it has said nothing, may well be otherwise later.
fn is_passing(error: &sqlx::Error) -> bool {
    #[cfg(feature = "sqlite")]
    if sqlite::is_final(error) {
        return false;
    }
    may_succeed_later(error)
}

/// The end of a message, where the reason is one that the caller may be himself.
fn explain_pool(error: &sqlx::Error) -> &'static str {
    match error {
        sqlx::Error::PoolTimedOut => {
            ": no connection of the pool became free in time. Whoever holds one, by a transaction or an open stream, and waits for \
             another needs a pool that has more"
        }
        _ => "",
    }
}

/// The beginning of a message about the event at `index`. People count from 1.
fn place(index: Option<usize>) -> String {
    index.map_or_else(String::new, |index| format!("event {}: ", index + 1))
}
