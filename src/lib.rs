//! espd runs projectors and reactors on a PostgreSQL event store.

pub mod config;
pub mod declaration;
pub mod embedded;
pub mod event;
pub mod layout;
pub mod retry;
pub mod schema;
pub mod shutdown;
