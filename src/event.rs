//! Events: the immutable facts that everything else is made of.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef, Postgres};
use sqlx::{Decode, Encode, Type, ValueRef};
use thiserror::Error;
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

        impl Type<Postgres> for $name {
            fn type_info() -> PgTypeInfo {
                <i64 as Type<Postgres>>::type_info()
            }

            fn compatible(other: &PgTypeInfo) -> bool {
                <i64 as Type<Postgres>>::compatible(other)
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
    /// The position before the first event: 0. A reader at this position has read nothing.
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

/// Names an aggregate: the stream that an event belongs to.
///
/// Most applications use a [`Uuid`], and espd's own event store takes nothing else. Event stores of other frameworks use
/// text, so an id is text that may be a uuid: [`Self::as_uuid`] says whether it is. A text that spells a uuid in its
/// canonical form (`149d5c70-a373-4857-91e2-1d5ea90c27e4`, in lower case) is that uuid, wherever it came from.
///
/// An id is never empty, has at most [`Self::LENGTH_MAX`] bytes and no NUL character. Clones are cheap.
///
/// As a bind parameter it is a `uuid` where it is one, and `text` otherwise, so it goes into the column that fits the event
/// store. A column of text that shall take both kinds is written with `to_string()`.
///
/// ```
/// # use espd::event::AggregateId;
/// # use uuid::Uuid;
/// let account = AggregateId::from(Uuid::from_u128(7));
/// let order: AggregateId = "order-7".parse()?;
/// assert_eq!(account.as_uuid(), Some(Uuid::from_u128(7)));
/// assert_eq!((order.as_uuid(), order.to_string()), (None, "order-7".to_owned()));
/// # Ok::<(), espd::event::InvalidAggregateId>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AggregateId(Spelling);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Spelling {
    Uuid(Uuid),
    /// Anything that is not a uuid in its canonical form.
    Text(Arc<str>),
}

/// Why a text cannot name an aggregate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidAggregateId {
    /// It has no characters.
    #[error("an aggregate id is empty")]
    Empty,
    /// It has a character that PostgreSQL cannot store.
    #[error("an aggregate id contains a NUL character")]
    Nul,
    /// It has more bytes than [`AggregateId::LENGTH_MAX`].
    #[error("an aggregate id is longer than {} bytes", AggregateId::LENGTH_MAX)]
    TooLong,
}

impl AggregateId {
    /// The most bytes that an id may have. PostgreSQL can index them all, together with a version.
    pub const LENGTH_MAX: usize = 1024;

    /// The uuid, if the id is one.
    pub fn as_uuid(&self) -> Option<Uuid> {
        match &self.0 {
            Spelling::Uuid(uuid) => Some(*uuid),
            Spelling::Text(_) => None,
        }
    }
}

impl From<Uuid> for AggregateId {
    fn from(uuid: Uuid) -> Self {
        Self(Spelling::Uuid(uuid))
    }
}

impl From<&AggregateId> for AggregateId {
    fn from(id: &AggregateId) -> Self {
        id.clone()
    }
}

/// Says that an aggregate id is not a uuid, where only a uuid is of use.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the aggregate id {0:?} is not a uuid")]
pub struct NotAUuid(pub AggregateId);

/// For handlers of events whose aggregates all have uuids: `Uuid::try_from(&event.aggregate_id)?`.
impl TryFrom<&AggregateId> for Uuid {
    type Error = NotAUuid;

    fn try_from(id: &AggregateId) -> Result<Self, Self::Error> {
        id.as_uuid().ok_or_else(|| NotAUuid(id.clone()))
    }
}

impl FromStr for AggregateId {
    type Err = InvalidAggregateId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(InvalidAggregateId::Empty);
        } else if text.contains('\0') {
            return Err(InvalidAggregateId::Nul);
        } else if text.len() > Self::LENGTH_MAX {
            return Err(InvalidAggregateId::TooLong);
        }
        let uuid = text.parse().ok().filter(|uuid: &Uuid| uuid.to_string() == text);
        Ok(Self(uuid.map_or_else(|| Spelling::Text(text.into()), Spelling::Uuid)))
    }
}

impl TryFrom<&str> for AggregateId {
    type Error = InvalidAggregateId;

    fn try_from(text: &str) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl TryFrom<String> for AggregateId {
    type Error = InvalidAggregateId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<AggregateId> for String {
    fn from(id: AggregateId) -> Self {
        id.to_string()
    }
}

impl PartialEq<Uuid> for AggregateId {
    fn eq(&self, uuid: &Uuid) -> bool {
        self.as_uuid() == Some(*uuid)
    }
}

impl fmt::Display for AggregateId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Spelling::Uuid(uuid) => uuid.fmt(formatter),
            Spelling::Text(text) => text.fmt(formatter),
        }
    }
}

impl fmt::Debug for AggregateId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Spelling::Uuid(uuid) => fmt::Debug::fmt(uuid, formatter),
            Spelling::Text(text) => fmt::Debug::fmt(text, formatter),
        }
    }
}

impl Type<Postgres> for AggregateId {
    fn type_info() -> PgTypeInfo {
        <String as Type<Postgres>>::type_info()
    }

    fn compatible(other: &PgTypeInfo) -> bool {
        <Uuid as Type<Postgres>>::compatible(other) || <String as Type<Postgres>>::compatible(other)
    }
}

impl Encode<'_, Postgres> for AggregateId {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        match &self.0 {
            Spelling::Uuid(uuid) => <Uuid as Encode<'_, Postgres>>::encode_by_ref(uuid, buffer),
            Spelling::Text(text) => <&str as Encode<'_, Postgres>>::encode_by_ref(&&**text, buffer),
        }
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(match &self.0 {
            Spelling::Uuid(_) => <Uuid as Type<Postgres>>::type_info(),
            Spelling::Text(_) => <String as Type<Postgres>>::type_info(),
        })
    }
}

impl Decode<'_, Postgres> for AggregateId {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        if <Uuid as Type<Postgres>>::compatible(&value.type_info()) {
            return Ok(<Uuid as Decode<'_, Postgres>>::decode(value)?.into());
        }
        Ok(<&str as Decode<'_, Postgres>>::decode(value)?.parse()?)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const CANONICAL: &str = "149d5c70-a373-4857-91e2-1d5ea90c27e4";

    fn id(text: &str) -> AggregateId {
        text.parse().unwrap()
    }

    #[test]
    fn a_text_that_spells_a_uuid_is_that_uuid() {
        let uuid: Uuid = CANONICAL.parse().unwrap();
        assert_eq!((id(CANONICAL), id(CANONICAL).as_uuid()), (uuid.into(), Some(uuid)));
        // Other spellings are other texts: what a store gives out must be found again.
        for other in [CANONICAL.to_uppercase(), CANONICAL.replace('-', ""), format!("{{{CANONICAL}}}")] {
            assert_eq!((id(&other).as_uuid(), id(&other).to_string()), (None, other.clone()));
            assert_ne!(id(&other), id(CANONICAL));
        }
    }

    #[test]
    fn an_aggregate_id_has_limits() {
        let longest = "x".repeat(AggregateId::LENGTH_MAX);
        assert_eq!(id(&longest).to_string(), longest);
        assert_eq!((longest + "x").parse::<AggregateId>(), Err(InvalidAggregateId::TooLong));
        assert_eq!("".parse::<AggregateId>(), Err(InvalidAggregateId::Empty));
        assert_eq!("a\0b".parse::<AggregateId>(), Err(InvalidAggregateId::Nul));
    }

    #[test]
    fn json_has_a_string_for_an_id_and_a_bare_number_for_a_position() {
        for text in [CANONICAL, "order-7"] {
            let json = format!("\"{text}\"");
            assert_eq!(serde_json::to_string(&id(text)).unwrap(), json);
            assert_eq!(serde_json::from_str::<AggregateId>(&json).unwrap(), id(text));
        }
        assert!(serde_json::from_str::<AggregateId>("\"\"").is_err());
        assert_eq!(serde_json::to_string(&Position::new(7)).unwrap(), "7");
        assert_eq!(serde_json::from_str::<Version>("7").unwrap(), 7);
    }

    #[test]
    fn positions_and_versions_stay_within_their_range() {
        assert_eq!((Position::MAX.next(), Position::START.next()), (Position::MAX, Position::new(1)));
        assert_eq!(Version::MAX.advanced_by(2), Version::MAX);
        assert_eq!(Position::new(3).distance_to(Position::new(10)), 7);
        assert_eq!(Position::new(3).previous(), 2);
        assert_eq!("12".parse(), Ok(Position::new(12)));
        assert_eq!(format!("{:>4}", Version::new(7)), "   7");
    }
}
