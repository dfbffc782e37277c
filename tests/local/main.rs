//! Processors in Rust without PostgreSQL: the same scenarios on each store that they run on.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod draining;
mod failing;
mod reacting;
mod refusing;
mod scenario;
#[cfg(feature = "sqlite")]
mod sqlite;
mod workflows;
