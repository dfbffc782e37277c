//! The to-do application's three projectors and its notifier in Rust. They write the same tables and emit the same events as
//! those that `config/processors` and `notifier.toml` declare in SQL.
//!
//! `cargo run --release --example todo_processors -- run --config examples/todo_processors/rust.toml`
//!
//! It has every command of `espd` and `espctl`: `todo_processors status`, `todo_processors reset outstanding_todos`.
//!
//! `events` has the events, `projections` the projectors, `notifier` the reactor. Each handler has its registration beside
//! it: its name, its events and its tables.

mod events;
mod notifier;
mod old_events;
mod projections;

use espd::Program;

use notifier::Notifier;
use projections::{CompletedTodos, OpenTodos};

const BY_DUE_DATE: &str =
    "create index scheduled_todos_due_date on scheduled_todos (due_date) where due_date is not null";

fn main() -> std::process::ExitCode {
    let outstanding = OpenTodos::registration("outstanding_todos");
    let scheduled = OpenTodos::registration("scheduled_todos").ddl(BY_DUE_DATE);
    Program::new()
        .projector(outstanding, || OpenTodos::new("outstanding_todos"))
        .projector(scheduled, || OpenTodos::new("scheduled_todos"))
        .projector(CompletedTodos::registration(), CompletedTodos::default)
        .reactor(Notifier::registration(), || Notifier)
        .upcast(old_events::from_first_version())
        .main()
}
