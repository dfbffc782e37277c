//! The integration tests, in one binary: they share one PostgreSQL server.

#![expect(
    unreachable_pub,
    reason = "`pub` says here what a module offers to the others; nothing leaves the binary"
)]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, also in what the tests share")]

mod admin;
mod command;
mod config;
mod daemon;
mod dead_letters;
mod deployment;
mod embedded;
mod error_policy;
mod espctl;
mod event_sourcery;
mod event_store;
mod hooks;
mod horizon;
mod isolation;
mod native;
mod ownership;
mod pooler;
mod preconditions;
mod projector;
mod reactor;
mod relay;
mod reload;
mod restarts;
mod runner;
mod supervisor;
mod support;
mod todo_example;
mod tracker;
mod upcast;
mod wake_up;
mod webhook;
