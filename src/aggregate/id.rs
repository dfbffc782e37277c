//! Ids of aggregates that know what they name.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::event::AggregateId;

/// The id of an aggregate of the type `A`: an id of a book is no id of an account.
///
/// In JSON it is the id itself.
pub struct Id<A> {
    id: AggregateId,
    aggregate: PhantomData<fn() -> A>,
}

impl<A> Id<A> {
    /// The aggregate that is named so.
    pub fn new(id: impl Into<AggregateId>) -> Self {
        Self { id: id.into(), aggregate: PhantomData }
    }

    /// An id that nothing has yet: a random uuid.
    pub fn generate() -> Self {
        Self::new(Uuid::new_v4())
    }

    /// The id by itself.
    pub fn get(&self) -> &AggregateId {
        &self.id
    }
}

impl<A> Clone for Id<A> {
    fn clone(&self) -> Self {
        Self::new(&self.id)
    }
}

impl<A> PartialEq for Id<A> {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl<A> Eq for Id<A> {}

impl<A> Hash for Id<A> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

impl<A> fmt::Debug for Id<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.id, f)
    }
}

impl<A> fmt::Display for Id<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.id, f)
    }
}

impl<A> From<Uuid> for Id<A> {
    fn from(id: Uuid) -> Self {
        Self::new(id)
    }
}

impl<A> From<AggregateId> for Id<A> {
    fn from(id: AggregateId) -> Self {
        Self::new(id)
    }
}

impl<A> Serialize for Id<A> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.id.serialize(serializer)
    }
}

impl<'de, A> Deserialize<'de> for Id<A> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        AggregateId::deserialize(deserializer).map(Self::new)
    }
}
