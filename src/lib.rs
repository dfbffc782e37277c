//! espd runs projectors and reactors on a PostgreSQL event store.

pub mod embedded;
pub mod event;
pub mod horizon;
pub mod layout;
pub mod preconditions;
pub mod schema;
pub mod shutdown;
pub mod watcher;
