//! What handles a batch: SQL, Rust, a program, a webhook; and the transaction that the last three share.

pub(crate) mod batch;
mod check;
pub mod native;
mod others_tables;
pub(crate) mod program;
mod scratch;
pub(crate) mod sql;
pub(crate) mod webhook;

pub use check::check;
pub(crate) use check::{check_some, find_foreign_tables};
