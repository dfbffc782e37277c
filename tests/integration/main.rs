//! The integration tests, in one binary: they share one PostgreSQL server.

#![expect(
    unreachable_pub,
    reason = "`pub` says here what a module offers to the others; nothing leaves the binary"
)]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, also in what the tests share")]

mod admin;
mod aggregate;
mod commands;
mod config;
mod connections;
mod daemon;
mod documentation;
mod embedded;
mod espctl;
mod handlers;
mod processing;
mod store;
mod supervision;
mod support;
