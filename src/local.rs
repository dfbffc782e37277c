//! Processors in Rust, run without PostgreSQL: on the memory store and on SQLite, several together, until nothing is left to
//! do.
//!
//! Handlers, batches, emissions and what follows from a failure are those of the daemon (`handlers::native`,
//! `processing::runner`). What is different is where positions are: in a `Ledger`, which each store brings along; and that nobody
//! runs in the background: a drain works in the task that calls it, by a clock that tests can set forward.

mod clock;
mod error;
mod ledger;
mod memory;
mod processor;
mod processors;
mod program;
mod reaction;
#[cfg(feature = "sqlite")]
mod sqlite;
mod transaction;

use std::sync::Arc;

use crate::store::{EventStore, MemoryEventStore};

pub use error::LocalError;
pub use processors::{Drained, LocalProcessors, SetAside};
pub use program::LocalProgram;
pub use reaction::{Reaction, ReactorUnderTest, reactor, workflow};

use ledger::Ledger;
use memory::MemoryLedger;

/// A store on which processors in Rust run without PostgreSQL.
#[derive(Debug, Clone)]
pub struct LocalStore {
    /// The events as they are stored: the codec of a processor decodes them.
    events: Arc<dyn LocalEvents>,
    /// Positions, what is emitted for later, what is to be done after commits, dead letters.
    ledger: Arc<dyn Ledger>,
}

/// An event store that can be shown when something is wrong.
trait LocalEvents: EventStore + std::fmt::Debug {}

impl<S: EventStore + std::fmt::Debug> LocalEvents for S {}

/// Positions last as long as the [`LocalProcessors`]: others that are started on the same store begin anew.
impl From<&MemoryEventStore> for LocalStore {
    fn from(store: &MemoryEventStore) -> Self {
        let store = store.as_stored();
        Self { ledger: Arc::new(MemoryLedger::new(store.clone())), events: Arc::new(store) }
    }
}

/// Positions are in the file: processors that are started again go on where they were.
#[cfg(feature = "sqlite")]
impl From<&crate::store::SqliteEventStore> for LocalStore {
    fn from(store: &crate::store::SqliteEventStore) -> Self {
        let store = store.as_stored();
        Self { ledger: Arc::new(sqlite::SqliteLedger::new(store.clone())), events: Arc::new(store) }
    }
}
