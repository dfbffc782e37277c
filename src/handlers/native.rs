//! Processors written in Rust, in a program of your own that espd is a part of.
//!
//! ```no_run
//! use espd::Program;
//! use espd::native::{Delivery, EventType, HandlerError, Projector, ProjectorContext, Registration};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct TodoAdded {
//!     title: String,
//! }
//!
//! impl EventType for TodoAdded {
//!     const NAME: &'static str = "TodoAdded";
//! }
//!
//! struct Titles;
//!
//! #[async_trait::async_trait]
//! impl Projector for Titles {
//!     async fn project(
//!         &mut self,
//!         events: &[Delivery],
//!         context: &mut ProjectorContext<'_>,
//!     ) -> Result<(), HandlerError> {
//!         for event in events {
//!             let Some(added) = event.read::<TodoAdded>()? else { continue };
//!             sqlx::query("insert into titles (todo_id, title) values ($1, $2)")
//!                 .bind(&event.aggregate_id)
//!                 .bind(added.title)
//!                 .execute(context.connection())
//!                 .await
//!                 .map_err(|error| event.failed(error))?;
//!         }
//!         Ok(())
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     let titles = Registration::projector("titles")
//!         .handles::<TodoAdded>()
//!         .table("titles", "todo_id uuid primary key, title text not null");
//!     Program::new().projector(titles, || Titles).main()
//! }
//! ```
//!
//! This program is espd, with the same command line: `run`, `check`, `demo`. Its workers are the same program again.
//!
//! # The parts
//!
//! An [`EventType`] ties a Rust type to the name of an event. A [`Projector`] handles batches of events and writes tables; a
//! [`Reactor`] handles one event at a time, acts and emits events. A [`Registration`] says what a processor is called, which
//! events it handles and which tables it owns. [`Program`](crate::Program) collects the registrations and runs.
//!
//! How a processor is run (batches, retries, isolation) is a matter of the configuration file: `[runner]` and `[retry]` for
//! all processors, and a section with `native = true` for one of them. The program may say it, too, with the same names; where
//! both do, that section is heard.
//!
//! # What commits together
//!
//! A handler gets the open transaction of its batch, through a [`ProjectorContext`] or a [`ReactorContext`]. The rows that it
//! writes there, the events that a reactor emits, and the position of the processor commit together or not at all. So every
//! event takes effect exactly once in the database. What a reactor does outside of it, such as sending an e-mail, may be
//! repeated after a crash.
//!
//! # Failures
//!
//! A handler that cannot handle an event returns an error, best made by [`Delivery::failed`], which names the event. The
//! events before it are committed, and the retry policy of the processor decides about the failed one. A panic is a failure,
//! too. Errors of the database that say nothing about the event, such as a lost connection or a deadlock, do not count: the
//! batch is repeated until it succeeds.
//!
//! Only the database remembers: after each failure the instance of the handler is dropped and another one made.
//!
//! # Projectors of a state
//!
//! Two kinds of projector need no loop over events. A [`StateStored`] loads the state of a key, lets the events of a batch
//! change it, and saves it. An [`EventSourced`] folds the whole history of an aggregate into a state and saves that.

mod commands;
mod context;
mod error;
mod event_type;
mod folding;
mod handler;
mod handling;
mod processor;
mod registration;
mod registry;
mod settings;
mod transaction;
mod workflow;

pub use context::{ProjectorContext, ReactorContext};
pub use error::{EventError, HandlerError};
pub use folding::{EventSourced, EventSourcedProjector, StateStored, StateStoredProjector};
pub use handler::{Projector, Reactor};
pub(crate) use handling::{CarriedOut, NativeHandler, Unreadable, describe_panic};
pub use registration::Registration;
pub(crate) use registry::Registry;
pub(crate) use transaction::{NoPostgres, Transaction};
pub(crate) use workflow::WorkflowReactor;
pub use workflow::{Workflow, WorkflowContext, by_aggregate, by_correlation};

pub use crate::event::EventType;
pub use crate::processing::declaration::{Approve, Isolation, OnHandlerChange, Start};
pub use crate::processing::effects::Effect;
pub use crate::processing::emission::{Due, Emission};
pub use crate::processing::processor::Delivery;
pub use crate::retry::{OnFailure, Strategy};
