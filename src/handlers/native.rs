//! Processors written in Rust, in a program of the user's that espd is a part of.
//!
//! ```no_run
//! use espd::Program;
//! use espd::handlers::native::{Registration, Delivery, EventType, HandlerError, ProjectorContext, Projector};
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
//!     async fn project(&mut self, events: &[Delivery], context: &mut ProjectorContext<'_>) -> Result<(), HandlerError> {
//!         for event in events {
//!             let Some(added) = event.read::<TodoAdded>()? else { continue };
//!             sqlx::query("insert into titles (todo_id, title) values ($1, $2)")
//!                 .bind(event.aggregate_id)
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
//! Such a program is espd, with the same command line: `run`, `check`, `demo`; a worker is this program once more. A
//! configuration file says where the events are, and may say how each processor is to be run (`native = true`).

mod context;
mod error;
mod folding;
mod processor;
mod registration;
mod registry;
mod typed;

pub use context::{ProjectorContext, ReactorContext};
pub use error::{EventError, HandlerError};
pub use folding::{EventSourced, FoldingProjector, StateStored, StateStoredProjector};
pub use registration::Registration;
pub use registry::Registry;
pub use typed::EventType;

pub use crate::processing::emission::Emission;
pub use crate::processing::processor::Delivery;

use async_trait::async_trait;

/// Writes tables.
#[async_trait]
pub trait Projector: Send + Sync {
    /// Handles events, in order, by writing to the projector's tables in the transaction that also moves its position.
    ///
    /// Called again with some of the events when it fails, so nothing but the tables may remember them: an instance is
    /// thrown away after each failure, and another one made.
    ///
    /// # Errors
    /// Whatever keeps it from handling an event; [`Delivery::failed`] says which. Where that is not said, the batch is
    /// halved until it is known. The events before it are committed, and the processor's policy decides how it goes on.
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError>;
}

/// Acts, and may emit events.
#[async_trait]
pub trait Reactor: Send + Sync {
    /// Handles one event. What it emits and writes through `context` commits together with the position; what it does
    /// beside that may be done again after a crash, with the same event.
    ///
    /// # Errors
    /// Whatever keeps it from handling the event: what it has emitted and written for it is undone.
    async fn react(&mut self, event: &Delivery, context: &mut ReactorContext<'_>)
    -> Result<(), HandlerError>;
}
