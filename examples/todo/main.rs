//! The to-do application's three projections and its notifier in Rust: what `config/processors` and `notifier.toml` declare
//! in SQL, with the same tables and the same emitted events.
//!
//! `cargo run --release --example todo -- --config examples/todo/rust.toml`

mod events;
mod notifier;
mod projections;

use espd::Program;
use espd::native::Registration;
use espd::processing::declaration::Start;

use events::{TodoAbandoned, TodoAdded, TodoAmended, TodoCompleted};
use notifier::{Notified, Notifier};
use projections::{CompletedTodos, OpenTodos};

const BY_DUE_DATE: &str =
    "create index scheduled_todos_due_date on scheduled_todos (due_date) where due_date is not null";

fn main() -> std::process::ExitCode {
    let notifier = Registration::reactor("todo_completed_notifier")
        .handles::<TodoAdded>()
        .handles::<TodoAmended>()
        .handles::<TodoCompleted>()
        .handles::<TodoAbandoned>()
        .emits::<Notified>()
        .start(Start::Beginning)
        .table("notifiable_todos", "todo_id uuid primary key, title text not null, stakeholder_email text");
    Program::new()
        .projector(OpenTodos::declaration("outstanding_todos"), || OpenTodos::new("outstanding_todos"))
        .projector(OpenTodos::declaration("scheduled_todos").ddl(BY_DUE_DATE), || {
            OpenTodos::new("scheduled_todos")
        })
        .projector(CompletedTodos::declaration(), CompletedTodos::default)
        .reactor(notifier, || Notifier)
        .main()
}
