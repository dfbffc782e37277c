//! Events: what has happened, as it is appended to the event store and read from it.
//!
//! An application makes a [`NewEvent`] and appends it with [`EventStore::append`](crate::store::EventStore::append).
//! Handlers get it as an [`Event`], which has two numbers besides: its [`Position`] in the store, and its [`Version`], the
//! place in its aggregate. The aggregate is named by an [`AggregateId`].
//!
//! ```
//! # use espd::event::{ExpectedVersion, NewEvent};
//! # use serde_json::value::to_raw_value;
//! # use uuid::Uuid;
//! let body = to_raw_value(&serde_json::json!({ "title": "buy milk" }))?;
//! let added = NewEvent::new(Uuid::new_v4(), "TodoAdded", body).expecting(ExpectedVersion::Absent);
//! # Ok::<(), serde_json::Error>(())
//! ```

mod aggregate_id;
mod event_set;
mod event_type;
mod number;
mod readable;
mod stored_time;
mod tag;
mod unique_key;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

pub use aggregate_id::{AggregateId, InvalidAggregateId, NotAUuid};
pub use event_set::EventSet;
#[doc(hidden)]
pub use event_type::naming;
pub use event_type::{EventType, PersonalFields};
pub use number::{Position, Version};
pub(crate) use readable::{to_readable_json, unreadable};
#[doc(hidden)]
pub use serde_json::Error as JsonError;
pub use stored_time::{InvalidTime, StoredTime};
pub use tag::Tag;
pub use unique_key::{KeyChange, UniqueKey};

/// A stored event.
///
/// `body` and `metadata` are raw JSON text: no number in them ever passes through a floating-point
/// type, and a reader that only forwards them pays nothing for parsing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    /// Position in the store; ascends with `version` inside an aggregate.
    pub id: Position,
    /// Identity of the fact, chosen by the appender; appending it again is harmless.
    pub uuid: Uuid,
    /// The aggregate whose stream this event belongs to.
    pub aggregate_id: AggregateId,
    /// What happened, as named by the application: `TodoAdded`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Place in the aggregate, from 1.
    pub version: Version,
    /// The facts themselves, as JSON text.
    pub body: Box<RawValue>,
    /// Whatever travels with the fact without being part of it, as a JSON object.
    pub metadata: Box<RawValue>,
    /// The conversation this event belongs to.
    pub correlation_id: Option<Uuid>,
    /// The event or command that led to this one.
    pub causation_id: Option<Uuid>,
    /// When it happened; never used for order. It may be infinite, or in a year that the program's own type does not have.
    pub created_at: StoredTime,
}

/// What the appender believes the version of the aggregate to be just before an event.
///
/// In one append the rule holds event by event: after an event that expects 3, the next one of the
/// same aggregate may expect 4 (or nothing).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExpectedVersion {
    /// No check: the event goes after whatever is there.
    #[default]
    Any,
    /// The aggregate must not exist yet (version 0).
    Absent,
    /// The aggregate must be at exactly this version; 0 means the same as [`Self::Absent`].
    Exact(Version),
}

impl ExpectedVersion {
    /// The aggregate must be at exactly this version: `ExpectedVersion::exactly(3)`.
    pub fn exactly(version: impl Into<Version>) -> Self {
        Self::Exact(version.into())
    }

    /// The version that is expected; `None` if any will do.
    pub fn version(self) -> Option<Version> {
        match self {
            Self::Any => None,
            Self::Absent => Some(Version::NONE),
            Self::Exact(version) => Some(version),
        }
    }
}

/// An event to be appended.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// Identity of the fact. A writer that retries an append keeps it, and nothing is doubled.
    pub uuid: Uuid,
    /// The aggregate to append to.
    pub aggregate_id: AggregateId,
    /// What happened: not empty, no NUL.
    pub event_type: String,
    /// The facts, as JSON text.
    pub body: Box<RawValue>,
    /// A JSON object; `{}` by default.
    pub metadata: Box<RawValue>,
    /// What the aggregate's version must be just before this event.
    pub expected_version: ExpectedVersion,
    /// The conversation this event belongs to.
    pub correlation_id: Option<Uuid>,
    /// The event or command that led to this one.
    pub causation_id: Option<Uuid>,
    /// When it happened, kept to the microsecond; the server's clock if left out.
    pub created_at: Option<DateTime<Utc>>,
    /// The streams across aggregates that the event belongs to.
    pub tags: Vec<Tag>,
    /// Keys that the aggregate claims or releases with this event.
    pub keys: Vec<KeyChange>,
    /// The fields that are about a person and are not sealed yet: a store refuses the event unless its codec seals them. Nothing is known
    /// of an event without a Rust type.
    pub personal: &'static [PersonalFields],
}

impl NewEvent {
    /// An event with a random uuid, no metadata and no expectation.
    pub fn new(
        aggregate_id: impl Into<AggregateId>,
        event_type: impl Into<String>,
        body: Box<RawValue>,
    ) -> Self {
        Self {
            uuid: Uuid::new_v4(),
            aggregate_id: aggregate_id.into(),
            event_type: event_type.into(),
            body,
            metadata: empty_object(),
            expected_version: ExpectedVersion::Any,
            correlation_id: None,
            causation_id: None,
            created_at: None,
            tags: Vec::new(),
            keys: Vec::new(),
            personal: &[],
        }
    }

    /// The same event with a tag more: `.tagged("course:1")`, `.tagged(Tag::of("student", id))`.
    #[must_use]
    pub fn tagged(mut self, tag: impl Into<Tag>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// The same event, with which its aggregate claims a key: `.claiming("email", "ann@example.org")`. The append is refused while
    /// another aggregate has it. Claiming what the aggregate has already changes nothing.
    #[must_use]
    pub fn claiming(mut self, scope: impl Into<String>, key: impl Into<String>) -> Self {
        self.keys.push(KeyChange::Claim(UniqueKey::new(scope, key)));
        self
    }

    /// The same event, with which its aggregate gives a key back. If it does not have the key, nothing changes.
    #[must_use]
    pub fn releasing(mut self, scope: impl Into<String>, key: impl Into<String>) -> Self {
        self.keys.push(KeyChange::Release(UniqueKey::new(scope, key)));
        self
    }

    /// Whether the event has neither tags nor keys.
    pub(crate) fn is_plain(&self) -> bool {
        self.tags.is_empty() && self.keys.is_empty()
    }

    /// The same event, appended only if the aggregate is at `version` just before it.
    pub fn expecting(mut self, version: ExpectedVersion) -> Self {
        self.expected_version = version;
        self
    }

    /// `created_at` as a store keeps it: whole microseconds.
    pub(crate) fn kept_created_at(&self) -> Option<DateTime<Utc>> {
        self.created_at.map(|time| DateTime::from_timestamp_micros(time.timestamp_micros()).unwrap_or(time))
    }
}

/// Where an appended event was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Appended {
    /// Position in the store.
    pub id: Position,
    /// The event's identity, as given by the appender.
    pub uuid: Uuid,
    /// Version of the aggregate after this event.
    pub version: Version,
}

/// The JSON text `{}`.
fn empty_object() -> Box<RawValue> {
    RawValue::from_string("{}".to_owned()).expect("`{}` is JSON")
}
