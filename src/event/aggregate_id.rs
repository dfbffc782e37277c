//! The name of an aggregate.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo, PgValueRef, Postgres};
use sqlx::{Decode, Encode, Type, ValueRef};
use thiserror::Error;
use uuid::Uuid;

/// Names an aggregate: the stream that an event belongs to.
///
/// Most applications use a [`Uuid`], and espd's own event store takes nothing else. Event stores of other frameworks use text,
/// so an id is text that may be a uuid: [`Self::as_uuid`] says whether it is. A text that spells a uuid in its canonical form
/// (`149d5c70-a373-4857-91e2-1d5ea90c27e4`, in lower case) is that uuid, wherever it came from. An application need not make
/// an `AggregateId` to emit or append an event: a `Uuid` or an `&AggregateId` will do.
///
/// An id is never empty, has at most [`Self::LENGTH_MAX`] bytes and no NUL character. Clones are cheap.
///
/// As a bind parameter of a query it is a `uuid` if it is one, and a `text` otherwise: `.bind(&event.aggregate_id)` fits a
/// `uuid` column where aggregates have uuids. For a `text` column, bind `to_string()`, so that all ids have the same type.
/// Code that needs the plain uuid, as a key of a map or for an array, writes `Uuid::try_from(&event.aggregate_id)?`.
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
    fn json_has_a_string_for_an_id() {
        for text in [CANONICAL, "order-7"] {
            let json = format!("\"{text}\"");
            assert_eq!(serde_json::to_string(&id(text)).unwrap(), json);
            assert_eq!(serde_json::from_str::<AggregateId>(&json).unwrap(), id(text));
        }
        assert!(serde_json::from_str::<AggregateId>("\"\"").is_err());
    }
}
