//! Commands: read from JSON and from forms, checked, routed to what decides about them, and recorded.
//!
//! It is a layer over [`Repository`](crate::aggregate::Repository) for what comes from outside: HTTP requests, forms, a queue. It needs the feature `commands`,
//! no daemon, and no web framework; an application has the crate `validator` besides, for its `#[derive(Validate)]`.
//!
//! ```
//! use espd::commands::{Command, Commands, Envelope, Outcome};
//! use espd::prelude::*;
//! use serde::{Deserialize, Serialize};
//! use validator::Validate;
//!
//! # espd::event_set! { pub enum BookEvent { BookLent { to: String, days: u32 }, BookReturned {} } }
//! # #[derive(Debug, Clone, Default)] struct Book { lent_to: Option<String> }
//! # impl Aggregate for Book {
//! #     type Event = BookEvent;
//! #     fn evolve(&mut self, event: &BookEvent) {
//! #         self.lent_to = match event { BookEvent::BookLent(lent) => Some(lent.to.clone()), BookEvent::BookReturned(_) => None };
//! #     }
//! # }
//! #[derive(Debug, Serialize, Deserialize, Validate)]
//! struct LendBook {
//!     book: Id<Book>,
//!     #[validate(length(min = 1, max = 80))]
//!     to: String,
//!     #[validate(range(min = 1, max = 30))]
//!     days: u32,
//! }
//!
//! impl Command for LendBook {
//!     const NAME: &'static str = "LendBook";
//!     type Aggregate = Book;
//!     fn aggregate_id(&self) -> Id<Book> { self.book.clone() }
//! }
//!
//! #[derive(Debug, Serialize)]
//! enum BookRefusal { LentToAnother { to: String } }
//! espd::refusal!(BookRefusal, message = |BookRefusal::LentToAnother { to }| format!("{to} has the book"));
//!
//! impl Decide<LendBook> for Book {
//!     type Refusal = BookRefusal;
//!
//!     fn decide(&self, lend: &LendBook, _: &Context) -> Result<Vec<BookEvent>, BookRefusal> {
//!         match &self.lent_to {
//!             Some(to) => Err(BookRefusal::LentToAnother { to: to.clone() }),
//!             None => Ok(espd::events![BookLent { to: lend.to.clone(), days: lend.days }]),
//!         }
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let commands = Commands::new(Repository::new(MemoryEventStore::new())).register::<LendBook>();
//! let book = Uuid::new_v4().to_string();
//!
//! let wrong = format!(r#"{{"book": "{book}", "to": "", "days": "many"}}"#);
//! let outcome = commands.execute_json("LendBook", wrong, Envelope::new()).await;
//! assert_eq!(outcome.status(), 400);
//! assert_eq!(outcome.to_string(), "invalid: days: must be a whole number; to: must have a length from 1 to 80");
//!
//! let form = [("book", &*book), ("to", "Ada"), ("days", "12")];
//! let outcome = commands.execute_form("LendBook", form, Envelope::new().metadata("user", "ada")).await;
//! let Outcome::Executed(receipt) = outcome else { panic!("{outcome}") };
//! assert_eq!((receipt.version, receipt.events[0].event_type.as_deref()), (Some(1.into()), Some("BookLent")));
//!
//! let outcome = commands.execute_form("LendBook", form, Envelope::new()).await;
//! assert_eq!((outcome.status(), outcome.to_string()), (422, "refused: Ada has the book".to_owned()));
//! # }
//! ```
//!
//! What comes in passes: [`Middleware::around`]; reading and the rules ([`Input`]); [`Middleware::check`]; the look-up of its id
//! ([`CommandLog`], if commands are recorded); the hashing of [`Secret`]s; the decision; the append, with the record in the same transaction.
//! What becomes of it is an [`Outcome`], in all cases.

mod command;
mod envelope;
mod fault;
mod handling;
mod input;
mod log;
mod middleware;
mod outcome;
mod repetition;
mod router;
mod secret;
mod unstorable;

#[doc(hidden)]
pub use command::refusal_parts;
pub use command::{Command, Refusal};
pub use envelope::{Envelope, Message};
pub use fault::CommandError;
pub use input::Input;
pub use log::{CommandLog, CommandRecord, Complete, MemoryCommandLog, PostgresCommandLog};
pub use middleware::{Call, Incoming, Middleware, Next};
pub use outcome::{Outcome, Plan, PlannedEvent, Problem, Receipt, Refused, StoredEvent};
pub use router::{CommandSet, Commands, Fields, Received};
pub use secret::{HashError, HashedPassword, Secret};

/// Parameters of an error, by name.
pub type Params = serde_json::Map<String, serde_json::Value>;
