//! What handles events: SQL, Rust, programs and webhooks, each on a real database.

pub mod native;
pub mod program;
mod sql;
mod strange_times;
mod todo_example;
mod webhook;
