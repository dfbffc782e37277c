//! espd runs projectors and reactors on a PostgreSQL event store.
//!
//! Follow one event through the files, in the order of the flow:
//!
//! ```text
//!            append                                  wake (notification or timer)
//! aggregate ─────────►  EVENT STORE  ◄───────────────────  watcher
//!                           │  next batch after the position, up to the settled horizon
//!                           ▼
//!                      SUBSCRIPTION
//!                           │  batch
//!                           ▼
//!                       PROCESSOR      projector │ reactor        declared SQL, Rust, a program, a webhook
//!                           │                │
//!                           ▼                ▼
//!                      projection        emission ──► event store
//!                           └───────┬────────┘
//!                                   ▼
//!                                TRACKER             the position moves, never backward
//! ```
//!
//! 1. [`event`] is what travels. [`event_store`] appends and reads it, in the tables that [`layout`] names and
//!    [`schema`] creates.
//! 2. [`horizon`] is the rule that says up to which position nothing can appear any more; the [`watcher`]
//!    applies it and wakes those who wait.
//! 3. [`subscription`] is a runner's view of that; [`processor`] the contract for what handles a batch, and
//!    [`sql_processor`] what turns declared SQL ([`declaration`]) into a function of the database. [`native`] is for
//!    handlers in Rust; other programs and webhooks stand beside it. Old events are read as new ones by [`upcast`].
//! 4. [`tracker`] is who is where. [`runner`] lives one processor's life around it, with [`retry`] and
//!    [`failure`] for what goes wrong, and [`dead_letters`] for what is set aside.
//!
//! Around the flow: a [`worker`] is the process that runners live in, the [`supervisor`] starts, watches and
//! restarts workers, [`config`] says which, [`embedded`] provides a PostgreSQL where there is none. The programs
//! are [`daemon`] (`espd`) and [`espctl`]; `ARCHITECTURE.md` has the map and the invariants.

// The flow.
mod bell;
mod command;
mod emission;
pub mod event;
pub mod event_store;
pub mod horizon;
mod hosted;
pub mod layout;
pub mod native;
pub mod processor;
pub mod runner;
pub mod schema;
pub mod sql_processor;
pub mod subscription;
pub mod tracker;
pub mod upcast;
pub mod watcher;
mod webhook;

// What a projector is declared as, and what may go wrong with it.
pub mod config;
pub mod dead_letters;
pub mod declaration;
mod doctor;
pub mod failure;
pub mod operator;
pub mod preconditions;
pub mod retry;
pub mod status;
mod takeover;

// Processes.
pub mod embedded;
pub mod heartbeat;
pub mod hooks;
mod memory;
mod orphans;
pub mod roster;
mod service_manager;
pub mod shutdown;
pub mod signal;
mod spawner;
pub mod supervisor;
pub mod telemetry;
pub mod worker;

// The programs.
pub mod admin;
pub mod daemon;
pub mod database;
mod demo;
pub mod espctl;
pub mod exit_code;
pub mod todo_history;

// Small things of SQL.
mod row;
mod sql_lexer;
mod sql_quote;
