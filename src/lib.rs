//! espd runs projectors and reactors on a PostgreSQL event store.

pub mod embedded;
pub mod event;
pub mod shutdown;
