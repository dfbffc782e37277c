//! Events: the immutable facts that everything else is made of.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef, Postgres};
use sqlx::{Decode, Encode};
use uuid::Uuid;

/// Declares a number of the event store: a newtype of `i64` that neither mixes with another such number nor with a plain
/// integer, and that PostgreSQL, JSON and command lines see as the bare number.
macro_rules! number {
    ($(#[$documentation:meta])* $name:ident) => {
        $(#[$documentation])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(i64);

        impl $name {
            /// The largest value: as an upper bound, it means no bound.
            pub const MAX: Self = Self(i64::MAX);

            /// Makes one of a plain number, as it was read from elsewhere.
            pub const fn new(number: i64) -> Self {
                Self(number)
            }

            /// The plain number, as the event store keeps it.
            pub const fn get(self) -> i64 {
                self.0
            }

            /// The one that follows. After [`Self::MAX`] comes nothing: it is its own successor.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }

            /// The one `count` places further on, at most [`Self::MAX`].
            #[must_use]
            pub const fn advanced_by(self, count: i64) -> Self {
                Self(self.0.saturating_add(count))
            }
        }

        impl From<i64> for $name {
            fn from(number: i64) -> Self {
                Self(number)
            }
        }

        impl From<$name> for i64 {
            fn from(number: $name) -> Self {
                number.0
            }
        }

        /// A test compares with what it expects, which is written as a number.
        impl PartialEq<i64> for $name {
            fn eq(&self, number: &i64) -> bool {
                self.0 == *number
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }

        impl FromStr for $name {
            type Err = ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }

        impl sqlx::Type<Postgres> for $name {
            fn type_info() -> PgTypeInfo {
                <i64 as sqlx::Type<Postgres>>::type_info()
            }

            fn compatible(other: &PgTypeInfo) -> bool {
                <i64 as sqlx::Type<Postgres>>::compatible(other)
            }
        }

        impl PgHasArrayType for $name {
            fn array_type_info() -> PgTypeInfo {
                <i64 as PgHasArrayType>::array_type_info()
            }
        }

        impl Encode<'_, Postgres> for $name {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                <i64 as Encode<'_, Postgres>>::encode_by_ref(&self.0, buffer)
            }
        }

        impl Decode<'_, Postgres> for $name {
            fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
                <i64 as Decode<'_, Postgres>>::decode(value).map(Self)
            }
        }
    };
}

number! {
    /// Place of an event in the store: its `id`.
    ///
    /// Positions ascend in the order in which events become readable; they may have gaps. Where a position says how far
    /// something has got, every event up to it, itself included, is done with.
    Position
}

impl Position {
    /// The position before the first event: 0. Whoever is there has read nothing.
    pub const START: Self = Self(0);

    /// The position just before this one: who has read up to there reads this one next.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// How many places lie after this position up to and including `later`; negative if that comes before this one.
    pub const fn distance_to(self, later: Self) -> i64 {
        later.0.saturating_sub(self.0)
    }
}

number! {
    /// Place of an event in its aggregate: 1, 2, 3 … without gaps. The version of an aggregate is that of its last event.
    Version
}

impl Version {
    /// The version of an aggregate without events: 0.
    pub const NONE: Self = Self(0);

    /// The version of the first event of an aggregate: 1.
    pub const FIRST: Self = Self(1);
}

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
    pub aggregate_id: Uuid,
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
    /// When it happened; never used for order.
    pub created_at: DateTime<Utc>,
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
    pub aggregate_id: Uuid,
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
}

impl NewEvent {
    /// An event with a random uuid, no metadata and no expectation.
    pub fn new(aggregate_id: Uuid, event_type: impl Into<String>, body: Box<RawValue>) -> Self {
        Self {
            uuid: Uuid::new_v4(),
            aggregate_id,
            event_type: event_type.into(),
            body,
            metadata: empty_object(),
            expected_version: ExpectedVersion::Any,
            correlation_id: None,
            causation_id: None,
            created_at: None,
        }
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
