//! Snapshots: the state of an aggregate at a version, so that a long stream is not read from its beginning.
//!
//! A type of aggregate opts in with [`Aggregate::snapshots`], and a repository with
//! [`Repository::with_snapshots`](super::Repository::with_snapshots). A snapshot is only ever a copy: it can be deleted at any time, one
//! that cannot be read is passed over, and a failure to write one is logged and counted, never an error of a command.
//!
//! ```
//! # use espd::prelude::*;
//! # use espd::aggregate::{MemorySnapshots, SnapshotFormat};
//! # espd::event_set! { pub enum AccountEvent { MoneyAdded { amount: u32 } } }
//! #[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
//! struct Account { balance: i64 }
//!
//! impl Aggregate for Account {
//!     type Event = AccountEvent;
//!
//!     fn snapshots() -> Option<SnapshotFormat<Self>> {
//!         // Whoever changes what `evolve` does, the shape of the state, or an upcast, raises the number.
//!         Some(SnapshotFormat::json("account", 1).every(100))
//!     }
//!
//!     fn evolve(&mut self, event: &AccountEvent) {
//!         let AccountEvent::MoneyAdded(added) = event;
//!         self.balance += i64::from(added.amount);
//!     }
//! }
//!
//! # fn main() {
//! let repository = Repository::new(MemoryEventStore::new()).with_snapshots(MemorySnapshots::default());
//! // On PostgreSQL: `.with_snapshots(PostgresSnapshots::of(&store)?)`.
//! # }
//! ```

mod keeper;
mod memory;
mod postgres;

use std::fmt::Debug;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};

use super::{Aggregate, Loaded};
use crate::event::{AggregateId, EventSet as _, Position, Version, unreadable};
use crate::store::{EventStore, ReadError};

pub(super) use keeper::SnapshotKeeper;
pub use memory::MemorySnapshots;
pub use postgres::PostgresSnapshots;

/// After how many events that were read without a snapshot the next one is written, unless the format says otherwise.
const EVERY: u32 = 500;

/// How the state of an aggregate is written as a snapshot, and how often.
pub struct SnapshotFormat<A> {
    name: &'static str,
    number: u32,
    every: u32,
    write: fn(&A) -> Result<Box<RawValue>, serde_json::Error>,
    read: fn(&RawValue) -> Result<A, serde_json::Error>,
}

impl<A: Serialize + DeserializeOwned> SnapshotFormat<A> {
    /// The state as JSON. `name` is what the state is called among the snapshots; `number` is that of the format: raise it when the
    /// shape of the state changes, or what folding makes of the same stored events: also when an upcast or a codec changes. Snapshots of other numbers are left
    /// for the programs that still use them.
    pub fn json(name: &'static str, number: u32) -> Self {
        let read = |state: &RawValue| serde_json::from_str(state.get());
        Self { name, number, every: EVERY, write: |state| to_raw_value(state), read }
    }

    /// The same, where a snapshot is written after so many events that came after the last one: 500 unless set, at least 1.
    #[must_use]
    pub fn every(self, events: u32) -> Self {
        Self { every: events.max(1), ..self }
    }
}

impl<A: Aggregate> SnapshotFormat<A> {
    /// Where the snapshot of an aggregate is kept.
    fn key(&self, aggregate_id: &AggregateId) -> SnapshotKey {
        SnapshotKey {
            aggregate_id: aggregate_id.clone(),
            name: self.name,
            format: self.number,
            event_types: hash_of(A::Event::names()),
        }
    }

    /// The snapshot of what is loaded. Fails if it could not be read again.
    fn take(&self, loaded: &Loaded<A>) -> Result<Snapshot, serde_json::Error> {
        let state = (self.write)(&loaded.state)?;
        (self.read)(&state).map_err(|error| unreadable(&error))?;
        Ok(Snapshot { version: loaded.version, event_id: loaded.position, state })
    }
}

/// Where the snapshots of one fold of an aggregate are kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SnapshotKey {
    /// Which aggregate.
    pub aggregate_id: AggregateId,
    /// What the state is called.
    pub name: &'static str,
    /// The number of the format.
    pub format: u32,
    /// A hash of the types of events that the state is folded from.
    pub event_types: i64,
}

/// The state of an aggregate at a version.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The version that the state is folded up to.
    pub version: Version,
    /// The id of the event of that version.
    pub event_id: Position,
    /// The state as JSON.
    pub state: Box<RawValue>,
}

/// Where snapshots are kept.
#[async_trait]
pub trait SnapshotStore: Debug + Send + Sync + 'static {
    /// The snapshot of a key, of this version at most, if the event that it was folded up to is still there.
    ///
    /// # Errors
    /// It cannot be read; the events are read instead.
    async fn load(&self, key: &SnapshotKey, upto: Version) -> Result<Option<Snapshot>, ReadError>;

    /// Keeps a snapshot, unless a later one is kept already.
    ///
    /// # Errors
    /// It cannot be kept. The next load tries again.
    async fn save(&self, key: &SnapshotKey, snapshot: &Snapshot) -> Result<(), ReadError>;

    /// The same snapshots, for a repository whose store is this one: called by [`Repository::with_snapshots`](super::Repository::with_snapshots).
    /// By default they stay where they are.
    ///
    /// # Panics
    /// States of this store cannot be kept there.
    #[must_use]
    fn beside(self, store: &dyn EventStore) -> Self
    where
        Self: Sized,
    {
        let _ = store;
        self
    }
}

/// FNV-1a over the names in order of the alphabet: the same in every build, on every machine.
fn hash_of(mut names: Vec<&'static str>) -> i64 {
    names.sort_unstable();
    names.dedup();
    let bytes = names.iter().flat_map(|name| name.bytes().chain([0]));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    i64::from_ne_bytes(hash.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_set_of_names() {
        assert_eq!(hash_of(vec!["b", "a", "a"]), hash_of(vec!["a", "b"]));
        assert_ne!(hash_of(vec!["ab", "c"]), hash_of(vec!["a", "bc"]));
        assert_eq!(hash_of(vec!["MoneyAdded"]), -3_257_469_066_765_540_095);
    }
}
