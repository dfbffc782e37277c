//! What handles a batch: SQL, Rust, a program, a webhook; and the transaction that the last three share.

pub(crate) mod batch;
pub mod native;
pub(crate) mod program;
pub mod sql;
pub(crate) mod webhook;
