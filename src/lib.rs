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
//! 1. [`event`] is what travels. [`store`] appends and reads it, in the tables that [`store::layout`] names and
//!    [`schema`] creates.
//! 2. [`store::horizon`] is the rule that says up to which position nothing can appear any more; the
//!    [`store::watcher`] applies it and wakes those who wait.
//! 3. [`store::subscription`] is a runner's view of that; [`processing::processor`] the contract for what handles a
//!    batch. [`handlers`] has what handles it: declared SQL, Rust, a program, a webhook.
//! 4. [`processing::tracker`] is who is where. [`processing::runner`] lives one processor's life around it, with
//!    [`retry`] and [`processing::failure`] for what goes wrong, and [`processing::dead_letters`] for what is set aside.
//!
//! Around the flow: a [`worker`] is the process that runners live in, [`supervision`] starts, watches and restarts
//! workers, [`config`] says which, [`embedded`] provides a PostgreSQL where there is none, [`operations`] is what
//! operators see and do. The programs are [`daemon`] (`espd`) and [`espctl`]; `ARCHITECTURE.md` has the map and the
//! invariants.

// Words and tools: no database, no process.
pub mod event;
mod postgres;
pub mod process;
pub mod retry;
pub mod schema;
pub mod shutdown;
pub mod telemetry;

// Events.
pub mod embedded;
pub mod store;

// Processing.
pub mod handlers;
pub mod processing;
pub mod supervision;
pub mod worker;

// Surfaces.
pub mod admin;
pub mod config;
pub mod daemon;
pub mod espctl;
pub mod operations;

pub use daemon::Program;
