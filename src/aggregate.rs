//! Aggregates: state that is folded from events, and decisions that make new ones.
//!
//! An [`Aggregate`] is the state of one thing, folded from the events of its stream. [`Decide`] is what it does about a command:
//! it answers with events, or refuses. Both are plain functions without I/O, so a test of them needs no database
//! ([`testing`]). A [`Repository`] does the rest: it loads the state, lets it decide, appends, and tries again with the newest
//! state when another writer was faster.
//!
//! ```
//! use espd::prelude::*;
//!
//! espd::event_set! {
//!     /// What happens to a book.
//!     pub enum BookEvent {
//!         /// Somebody has taken it home.
//!         BookLent { to: String },
//!         /// It is back.
//!         BookReturned {},
//!     }
//! }
//!
//! /// A book of the library.
//! #[derive(Debug, Clone, Default)]
//! struct Book { lent_to: Option<String> }
//!
//! impl Aggregate for Book {
//!     type Event = BookEvent;
//!
//!     fn evolve(&mut self, event: &BookEvent) {
//!         self.lent_to = match event {
//!             BookEvent::BookLent(lent) => Some(lent.to.clone()),
//!             BookEvent::BookReturned(_) => None,
//!         };
//!     }
//! }
//!
//! struct LendBook { to: String }
//!
//! #[derive(Debug, PartialEq)]
//! enum Refused { LentTo(String) }
//!
//! impl Decide<LendBook> for Book {
//!     type Refusal = Refused;
//!
//!     fn decide(&self, lend: &LendBook, _: &Context) -> Result<Vec<BookEvent>, Refused> {
//!         match &self.lent_to {
//!             Some(somebody) => Err(Refused::LentTo(somebody.clone())),
//!             None => Ok(espd::events![BookLent { to: lend.to.clone() }]),
//!         }
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let repository = Repository::new(MemoryEventStore::new());
//! let book = Id::<Book>::generate();
//!
//! let lent = repository.execute(&book, &LendBook { to: "Ada".into() }).await.unwrap();
//! assert_eq!((lent.version.get(), lent.state.lent_to.as_deref()), (1, Some("Ada")));
//!
//! let refused = repository.execute(&book, &LendBook { to: "Bob".into() }).await;
//! assert!(matches!(refused, Err(ExecuteError::Refused(Refused::LentTo(somebody))) if somebody == "Ada"));
//! # Ok(()) }
//! ```

mod boundary;
mod command_id;
mod context;
mod error;
mod execution;
mod id;
mod loader;
mod loading;
mod repository;
mod snapshot;
pub mod testing;
mod unit_of_work;

use crate::event::{AggregateId, EventSet, KeyChange, Tag};

pub use boundary::{BoundaryContext, DecidedWithin, DecisionWithin, Draft};
pub(crate) use command_id::CommandId;
pub use context::Context;
pub use error::{CommitError, ExecuteError, LoadError, SnapshotError};
#[cfg_attr(not(feature = "commands"), allow(unused_imports, reason = "for commands"))]
pub(crate) use execution::Appender;
pub use execution::{Executed, Execution, Planned};
pub use id::Id;
pub(crate) use loader::pause_before;
pub use loading::Loaded;
pub(crate) use loading::new_event;
pub use repository::Repository;
pub use snapshot::{
    MemorySnapshots, PostgresSnapshots, Snapshot, SnapshotFormat, SnapshotKey, SnapshotStore,
};
pub use unit_of_work::UnitOfWork;

/// The state of one thing, folded from the events of its stream. The default is what it is before the first event.
pub trait Aggregate: Default + Clone + Send + Sync + 'static {
    /// The events of the stream, as [`event_set!`](crate::event_set!) declares them.
    type Event: EventSet + Clone + Send + Sync;

    /// What to do about an event in the stream that is of no type of [`Self::Event`].
    const UNKNOWN_EVENTS: UnknownEvents = UnknownEvents::Refuse;

    /// How the state is kept in snapshots, for aggregates with long streams; not at all unless said.
    fn snapshots() -> Option<SnapshotFormat<Self>> {
        None
    }

    /// The tags of an event of the aggregate, with which decisions beyond one aggregate
    /// ([`Repository::decide_within`]) find it; none unless said.
    fn tags(_aggregate_id: &AggregateId, _event: &Self::Event) -> Vec<Tag> {
        Vec::new()
    }

    /// The unique keys that the aggregate claims with an event, or gives back; none unless said.
    fn keys(_aggregate_id: &AggregateId, _event: &Self::Event) -> Vec<KeyChange> {
        Vec::new()
    }

    /// Takes an event in. It cannot fail: what has happened has happened.
    fn evolve(&mut self, event: &Self::Event);

    /// The state after further events: what a decision of several steps goes on with.
    #[must_use]
    fn after(&self, events: &[Self::Event]) -> Self {
        let mut state = self.clone();
        events.iter().for_each(|event| state.evolve(event));
        state
    }

    /// The events, but only if they change the state; otherwise none.
    fn if_changed(&self, events: Vec<Self::Event>) -> Vec<Self::Event>
    where
        Self: PartialEq,
    {
        if self.after(&events) == *self { Vec::new() } else { events }
    }
}

/// What an aggregate does about commands of the type `C`.
///
/// An aggregate implements it once for each of its commands.
pub trait Decide<C> {
    /// Why the rules do not allow a command.
    type Refusal;

    /// The events that the command leads to, none if there is nothing to do.
    ///
    /// It is called again, with the newest state, when another writer was faster. So it depends on its arguments only: the time and
    /// new ids come from the context.
    ///
    /// # Errors
    /// The rules do not allow the command now.
    fn decide(&self, command: &C, context: &Context) -> Result<Vec<Self::Event>, Self::Refusal>
    where
        Self: Aggregate;
}

/// What to do about an event in the stream of an aggregate that is of no type that it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownEvents {
    /// The aggregate cannot be loaded. The event may matter, for example when a newer version of the application wrote it.
    Refuse,
    /// The event is passed over: the aggregate needs a part of its stream only.
    PassOver,
}
