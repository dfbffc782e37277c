//! espd runs projectors and reactors on a PostgreSQL event store, so that read models and reactions are never silently
//! wrong. This crate is the library around it: an application appends and reads events with it, and writes processors in
//! Rust. The programs `espd` and `espctl` are made of the same parts; their manual is the `README.md`.
//!
//! What an application's file needs is in the [`prelude`]. By task:
//!
//! # Append
//!
//! ```no_run
//! # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
//! use espd::prelude::*;
//!
//! let store = PostgresEventStore::new(pool, Layout::espd("espd")?);
//! let todo = Uuid::new_v4();
//! let body = serde_json::value::to_raw_value(&serde_json::json!({ "title": "buy milk" }))?;
//! let added = NewEvent::new(todo, "TodoAdded", body).expecting(ExpectedVersion::Absent);
//! match store.append(&[added]).await {
//!     Ok(appended) => println!("stored at {}", appended[0].id),
//!     Err(AppendError::Conflict { actual, .. }) => println!("it exists, at version {actual}"),
//!     Err(error) => return Err(error.into()),
//! }
//! # Ok(()) }
//! ```
//!
//! Other languages call the SQL function `espd.append`, with the same checks. See [`store`] and [`event`].
//!
//! # Decide
//!
//! ```
//! use espd::prelude::*;
//!
//! espd::event_set! { pub enum TodoEvent { TodoAdded { title: String }, TodoCompleted {} } }
//!
//! #[derive(Clone, Default)]
//! struct Todo { is_open: bool }
//!
//! impl Aggregate for Todo {
//!     type Event = TodoEvent;
//!     fn evolve(&mut self, event: &TodoEvent) { self.is_open = matches!(event, TodoEvent::TodoAdded(_)); }
//! }
//!
//! struct CompleteTodo;
//!
//! impl Decide<CompleteTodo> for Todo {
//!     type Refusal = &'static str;
//!     fn decide(&self, _: &CompleteTodo, _: &Context) -> Result<Vec<TodoEvent>, &'static str> {
//!         if self.is_open { Ok(espd::events![TodoCompleted {}]) } else { Err("there is nothing to be done") }
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let repository = Repository::new(MemoryEventStore::new()); // or PostgresEventStore
//! let refused = repository.execute(&Id::<Todo>::generate(), &CompleteTodo).await;
//! assert!(matches!(refused, Err(ExecuteError::Refused("there is nothing to be done"))));
//! # }
//! ```
//!
//! A repository loads, lets the state decide, appends with the version that was seen, and decides anew when another writer was
//! faster. Snapshots, several aggregates at once, tests without a database: [`aggregate`] and `docs/aggregates.md`.
//!
//! # Read
//!
//! ```no_run
//! # async fn example(store: impl espd::store::EventStore, todo: espd::event::AggregateId) -> Result<(), Box<dyn std::error::Error>> {
//! use espd::prelude::*;
//! use futures_util::TryStreamExt as _;
//!
//! let mut events = store.read_aggregate(todo, Version::FIRST, None);
//! while let Some(event) = events.try_next().await? {
//!     println!("{} {} {}", event.version, event.event_type, event.body);
//! }
//! # Ok(()) }
//! ```
//!
//! Whoever reads across aggregates reads up to the settled horizon: `docs/ordering.md` says why. Processors do, and so does
//! a stream that an application follows, from a position or from now on:
//!
//! ```no_run
//! # async fn example(store: espd::store::PostgresEventStore) -> Result<(), Box<dyn std::error::Error>> {
//! use futures_util::TryStreamExt as _;
//!
//! let mut events = store.subscribe(Some(&["TodoAdded".to_owned()]), None);
//! while let Some(event) = events.try_next().await? {
//!     println!("{} {}", event.id, event.body);
//! }
//! # Ok(()) }
//! ```
//!
//! # Project
//!
//! Most projectors are SQL in the configuration and need no crate at all. In Rust:
//!
//! ```no_run
//! # #[cfg(feature = "daemon")] mod example {
//! use espd::prelude::*;
//!
//! struct Titles;
//!
//! #[async_trait]
//! impl Projector for Titles {
//!     async fn project(&mut self, events: &[Delivery], context: &mut ProjectorContext<'_>) -> Result<(), HandlerError> {
//!         let insert = "insert into titles (todo_id, title) values ($1, $2)";
//!         for event in events {
//!             let title = event.read::<TodoAdded>()?.map(|added| added.title);
//!             let query = sqlx::query(insert).bind(event.aggregate_id.as_uuid()).bind(title);
//!             query.execute(context.connection()).await.map_err(|error| event.failed(error))?;
//!         }
//!         Ok(())
//!     }
//! }
//! # #[derive(serde::Serialize, serde::Deserialize)] struct TodoAdded { title: String }
//! # impl EventType for TodoAdded { const NAME: &'static str = "TodoAdded"; }
//! # }
//! ```
//!
//! Rows and position commit in one transaction. See [`native`] and `docs/native.md`.
//!
//! # React
//!
//! ```no_run
//! # #[cfg(feature = "daemon")] mod example {
//! use espd::prelude::*;
//!
//! struct Reminders;
//!
//! #[async_trait]
//! impl Reactor for Reminders {
//!     async fn react(&mut self, event: &Delivery, context: &mut ReactorContext<'_>) -> Result<(), HandlerError> {
//!         let Some(added) = event.read::<TodoAdded>()? else { return Ok(()) };
//!         context.emit(&event.aggregate_id, &ReminderSent { title: added.title })
//!     }
//! }
//! # #[derive(serde::Serialize, serde::Deserialize)] struct TodoAdded { title: String }
//! # impl EventType for TodoAdded { const NAME: &'static str = "TodoAdded"; }
//! # #[derive(serde::Serialize, serde::Deserialize)] struct ReminderSent { title: String }
//! # impl EventType for ReminderSent { const NAME: &'static str = "ReminderSent"; }
//! # }
//! ```
//!
//! Emitted events commit with the position, so each is emitted once. E-mails and calls are made at least once, under a
//! stable key: `docs/native.md`, "Reactors".
//!
//! # Test
//!
//! ```no_run
//! # #[cfg(feature = "testing")]
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use espd::embedded::{EmbeddedPostgres, Options};
//!
//! let server = EmbeddedPostgres::start_temporary(Options::default()).await?;
//! server.create_database("shop", None).await?;
//! let pool = sqlx::PgPool::connect(&server.url("shop")).await?;
//! espd::schema::migrate_event_store(&pool, "espd").await?;
//! // … the application, on a PostgreSQL of its own …
//! server.stop().await;
//! # Ok(()) }
//! ```
//!
//! Without a database, [`store::MemoryEventStore`] is a twin that passes the same [`store::conformance`] suite, and
//! [`testing`] runs processors on it. See [`embedded`].
//!
//! # Run
//!
//! ```no_run
//! # #[cfg(feature = "daemon")] mod example {
//! # use espd::prelude::*;
//! fn main() -> std::process::ExitCode {
//!     let titles = Registration::projector("titles")
//!         .handles::<TodoAdded>()
//!         .table("titles", "todo_id uuid primary key, title text");
//!     Program::new().projector(titles, || Titles).main()
//! }
//! # struct Titles;
//! # #[async_trait] impl Projector for Titles {
//! #     async fn project(&mut self, _: &[Delivery], _: &mut ProjectorContext<'_>) -> Result<(), HandlerError> { Ok(()) }
//! # }
//! # #[derive(serde::Serialize, serde::Deserialize)] struct TodoAdded { title: String }
//! # impl EventType for TodoAdded { const NAME: &'static str = "TodoAdded"; }
//! # }
//! ```
//!
//! That is espd with a processor of its own and the command line of espd: `titles run --config espd.toml`. See
//! [`Program`], `docs/configuration.md` and `docs/operations.md`.
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | none (`default-features = false`) | [`event`], [`store`], [`aggregate`], [`schema`]: for an application that writes events |
//! | `processors` | [`native`]: projectors and reactors in Rust |
//! | `testing` | [`embedded`]: a private PostgreSQL; with `processors`, [`testing`]: processors on the memory store |
//! | `personal-data` | [`personal_data`]: fields that are encrypted for each person, so that the person can be forgotten |
//! | `commands` (default) | [`commands`]: commands from outside, read from JSON and forms, validated, routed, recorded |
//! | `sqlite` | `store::SqliteEventStore`: an event store in one file |
//! | `daemon` (default) | [`Program`], both programs; `processors`, `testing` and `personal-data` |
//!
//! # Inside
//!
//! Follow one event through the folders, in the order of the flow; `ARCHITECTURE.md` has the map and the invariants.
//!
//! ```text
//!            append                                  wake (notification or timer)
//! aggregate ─────────►  EVENT STORE  ◄───────────────────  watcher
//!                           │  next batch after the position, up to the settled horizon
//!                           ▼
//!                      SUBSCRIPTION
//!                           │  batch
//!                           ▼
//!                       PROCESSOR      projector │ reactor        SQL, Rust, a program, a webhook
//!                           │                │
//!                           ▼                ▼
//!                      projection        emission ──► event store
//!                           └───────┬────────┘
//!                                   ▼
//!                                TRACKER             the position moves, never backward
//! ```

#![cfg_attr(
    not(feature = "daemon"),
    allow(
        dead_code,
        unreachable_pub,
        unused_imports,
        unused_macros,
        reason = "a lower tier has tools that the higher ones use"
    )
)]

// Words and tools: no database, no process.
#[cfg(feature = "processors")]
mod diagnostic;
pub mod event;
#[cfg(feature = "processors")]
mod own_name;
mod postgres;
#[cfg(any(feature = "processors", feature = "testing"))]
mod process;
mod retry;
pub mod schema;
mod shutdown;
#[cfg(feature = "daemon")]
mod telemetry;
#[cfg(feature = "daemon")]
mod visible;

// Events.
pub mod aggregate;
#[cfg(feature = "commands")]
pub mod commands;
#[cfg(feature = "testing")]
pub mod embedded;
#[cfg(feature = "personal-data")]
pub mod personal_data;
mod processors;
pub mod store;

// Processing.
#[cfg(feature = "processors")]
mod handlers;
#[cfg(feature = "processors")]
mod local;
#[cfg(feature = "processors")]
mod processing;
#[cfg(feature = "daemon")]
mod supervision;
#[cfg(feature = "daemon")]
mod worker;

// Surfaces.
#[cfg(feature = "daemon")]
mod admin;
#[cfg(feature = "daemon")]
mod config;
#[cfg(feature = "daemon")]
mod daemon;
#[cfg(feature = "daemon")]
mod espctl;
#[cfg(feature = "daemon")]
mod operations;

#[cfg(feature = "daemon")]
pub use config::{Config, InvalidConfig};
#[cfg(feature = "daemon")]
pub use daemon::{Program, Running, StartError};
#[cfg(feature = "processors")]
pub use handlers::native;
#[cfg(feature = "daemon")]
pub use operations::waiting::{Idle, LaterEmission};
pub use processors::{Processors, WaitError};

/// Processors in Rust without PostgreSQL: in tests on the memory store.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use espd::prelude::*;
/// use espd::testing::LocalProgram;
///
/// # #[derive(serde::Serialize, serde::Deserialize)] struct TodoAdded { title: String }
/// # espd::event_type!(TodoAdded);
/// /// Keeps the titles in memory.
/// struct Titles(Arc<Mutex<Vec<String>>>);
///
/// #[async_trait]
/// impl Projector for Titles {
///     async fn project(&mut self, events: &[Delivery], _: &mut ProjectorContext<'_>) -> Result<(), HandlerError> {
///         for event in events {
///             if let Some(added) = event.read::<TodoAdded>()? {
///                 self.0.lock().unwrap().push(added.title);
///             }
///         }
///         Ok(())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let titles = Arc::new(Mutex::new(Vec::new()));
/// let made = Arc::clone(&titles);
/// let store = MemoryEventStore::new();
/// let mut processors = LocalProgram::new()
///     .projector(Registration::projector("titles").handles::<TodoAdded>(), move || Titles(Arc::clone(&made)))
///     .start(&store)
///     .await?;
///
/// store.append(&[NewEvent::of(Uuid::new_v4(), &TodoAdded { title: "buy milk".into() })?]).await?;
/// processors.drain().await?;
/// assert_eq!(*titles.lock().unwrap(), ["buy milk"]);
/// # Ok(()) }
/// ```
///
/// Reactors run too; what they emit is stored, and what they emit for later is listed by [`Drained`](testing::Drained)`::later` and comes
/// when the test sets the clock forward: [`LocalProcessors::advance`](testing::LocalProcessors::advance). A handler that writes to
/// PostgreSQL needs one: [`database`](testing::database) is a database for a test, on which a whole [`Program`] runs.
///
/// One event and one reactor, or workflow, is a matter of [`reactor`](testing::reactor) and [`workflow`](testing::workflow). Decisions of
/// aggregates are tested by [`aggregate::testing`]. `docs/testing.md` has examples of all.
#[cfg(all(feature = "processors", any(feature = "testing", feature = "sqlite")))]
pub mod testing {
    #[cfg(feature = "daemon")]
    pub use crate::daemon::{TestDatabase, TestFailure, TestRunning, database};
    pub use crate::local::{
        Drained, LocalError, LocalProcessors, LocalProgram, LocalStore, Reaction, ReactorUnderTest, SetAside,
        reactor, workflow,
    };
    pub use crate::processing::emission::LaterEmission;
    pub use crate::processing::failure::FailedEvent;
}

/// What the hooks of a [`Program`] are told.
#[cfg(feature = "daemon")]
pub mod hooks {
    pub use crate::process::hook::{
        DivergenceFacts, FailureFacts, ProcessorFailure, SetAsideEvents, StoreDivergence, WorkerEnd,
        WorkerFacts,
    };
    pub use crate::process::report::Condition;
}

/// What an application's file uses: `use espd::prelude::*`.
pub mod prelude {
    pub use async_trait::async_trait;
    pub use sqlx;
    pub use uuid::Uuid;

    #[cfg(feature = "daemon")]
    pub use crate::Program;
    pub use crate::aggregate::{
        Aggregate, BoundaryContext, CommitError, Context, Decide, Draft, ExecuteError, Executed, Id,
        LoadError, Loaded, Repository, UnitOfWork, UnknownEvents,
    };
    #[cfg(feature = "commands")]
    pub use crate::commands::{Command, Commands, Envelope, HashedPassword, Outcome, Secret};
    pub use crate::event::{
        AggregateId, Appended, Event, EventSet, EventType, ExpectedVersion, NewEvent, Position, StoredTime,
        Tag, Version,
    };
    #[cfg(feature = "processors")]
    pub use crate::native::{
        Delivery, Effect, EventSourced, EventSourcedProjector, HandlerError, Projector, ProjectorContext,
        Reactor, ReactorContext, Registration, Start, StateStored, StateStoredProjector, Workflow,
        WorkflowContext,
    };
    pub use crate::store::{
        AppendError, AppendTime, BodyCodec, EventStore, EventStream, Layout, MemoryEventStore,
        PostgresEventStore, ReadError, TagQuery,
    };
}

/// What the programs, the tests and the benches of espd itself use. It is no part of the public interface: any version
/// may change it.
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod internals {
    pub mod config {
        pub use crate::config::{
            AdminSettings, Config, DatabaseUrl, EXAMPLE, InvalidConfig, Listen, LogFormat, RebuildSection,
            RunnerSection, Token, known_keys, parse_duration,
        };
    }
    pub mod dead_letters {
        pub use crate::processing::dead_letters::DeadLetter;
    }
    pub mod declaration {
        pub use crate::processing::declaration::{
            Approve, BatchLimits, Check, FoldedLimits, HandledEvents, Handler, Handling, Isolation,
            OnHandlerChange, ProcessorDeclaration, ProcessorKind, ProcessorSettings, ReactorDeclaration,
            RetrySettings, SourceText, Synchronous, TableDeclaration, WebhookDeclaration,
        };
    }
    pub mod failure {
        pub use crate::processing::failure::{
            FailedEvent, Failure, is_infrastructure, is_infrastructure_error,
        };
    }
    pub mod handlers {
        pub use crate::handlers::check;
    }
    pub mod horizon {
        pub use crate::store::horizon::{Horizon, Observer, Rule, Writer, observe_once, wait_beyond};
    }
    pub mod plan {
        pub use crate::daemon::plan::worker_settings;
    }
    pub mod preconditions {
        pub use crate::store::preconditions::{PreconditionError, Unmet, UnmetKind, check};
    }
    pub mod processor {
        pub use crate::processing::processor::{
            BatchRequest, Events, Outcome, Processor, ProcessorBase, ProcessorError, Work,
        };
    }
    pub mod retry {
        pub use crate::retry::{OnFailure, RetryPolicy, Strategy};
    }
    pub mod runner {
        pub use crate::processing::runner::{ReleaseChannel, Runner, RunnerContext};
    }
    pub mod shutdown {
        pub use crate::shutdown::{Shutdown, ShutdownHandle, channel};
    }
    pub mod signal {
        pub use crate::process::signal::requests;
    }
    pub mod sql {
        pub use crate::handlers::sql::SqlProcessor;
    }
    pub mod subscription {
        pub use crate::store::subscription::{ReadHead, Subscription};
    }
    pub mod programs {
        pub use crate::daemon::{command as espd_command, main as espd};
        pub use crate::espctl::main as espctl;
    }
    pub mod todo_history {
        pub use crate::daemon::todo_history::TodoHistory;
    }
    pub mod tracker {
        pub use crate::processing::divergence::{Divergence, DivergenceKind};
        pub use crate::processing::tracker::{
            Claim, LEASE, Owner, ProcessorKey, ReplayEffects, Reset, TrackerRow, Trackers,
        };
        pub use crate::store::witness::Witness;
    }
    pub mod upcast {
        pub use crate::store::upcast::Upcast;
    }
    pub mod watcher {
        pub use crate::store::watcher::{Watcher, WatcherSettings};
    }
    pub mod worker {
        pub use crate::worker::{Assignment, WorkerSettings};
    }
}
