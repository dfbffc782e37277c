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

#![cfg_attr(
    not(feature = "daemon"),
    allow(
        dead_code,
        unused_imports,
        unused_macros,
        reason = "a lower tier has tools that the higher ones use"
    )
)]

// Words and tools: no database, no process.
pub mod event;
mod postgres;
pub mod retry;
pub mod schema;
pub mod shutdown;

// Events.
pub mod store;

// A private PostgreSQL.
#[cfg(feature = "testing")]
pub mod embedded;
#[cfg(any(feature = "processors", feature = "testing"))]
pub mod process;

// Processing.
#[cfg(feature = "processors")]
pub mod diagnostic;
#[cfg(feature = "processors")]
pub mod handlers;
#[cfg(feature = "processors")]
pub mod processing;

// The daemon and its surfaces.
#[cfg(feature = "daemon")]
pub mod admin;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "daemon")]
pub mod espctl;
#[cfg(feature = "daemon")]
pub mod operations;
#[cfg(feature = "daemon")]
pub mod supervision;
#[cfg(feature = "daemon")]
pub mod telemetry;
#[cfg(feature = "daemon")]
pub mod worker;

#[cfg(feature = "daemon")]
pub use daemon::Program;
#[cfg(feature = "processors")]
pub use handlers::native;
