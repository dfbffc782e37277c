//! espd runs projectors and reactors on a PostgreSQL event store.

mod bell;
pub mod config;
pub mod declaration;
pub mod embedded;
pub mod event;
pub mod event_store;
pub mod failure;
pub mod horizon;
pub mod layout;
pub mod preconditions;
pub mod processor;
pub mod projector;
pub mod retry;
mod row;
pub mod runner;
pub mod schema;
pub mod shutdown;
mod sql_lexer;
mod sql_quote;
pub mod subscription;
pub mod tracker;
pub mod watcher;
