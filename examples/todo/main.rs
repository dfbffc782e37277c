//! The to-do application's three projections and its notifier in Rust: what `config/processors` and `notifier.toml` declare
//! in SQL, with the same tables and the same emitted events.
//!
//! `cargo run --release --example todo -- --config examples/todo/rust.toml`

mod notifier;
mod projections;

use espd::declaration::Start;
use espd::native::{Declaration, EventType, Program};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use notifier::{Notified, Notifier};
use projections::{CompletedTodos, OpenTodos};

/// What is said of a todo: `title`, `description`, `due_date`, `stakeholder_email`. An amendment says only what changes;
/// a null in it takes a value away.
type Fields = Map<String, Value>;

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct TodoAdded(Fields);

impl EventType for TodoAdded {
    const NAME: &'static str = "TodoAdded";
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct TodoAmended(Fields);

impl EventType for TodoAmended {
    const NAME: &'static str = "TodoAmended";
}

#[derive(Serialize, Deserialize)]
struct TodoCompleted {
    completed_on: Option<String>,
}

impl EventType for TodoCompleted {
    const NAME: &'static str = "TodoCompleted";
}

#[derive(Serialize, Deserialize)]
struct TodoAbandoned {}

impl EventType for TodoAbandoned {
    const NAME: &'static str = "TodoAbandoned";
}

const OPEN_COLUMNS: &str = "
  todo_id           uuid primary key,
  title             text not null,
  description       text,
  due_date          date,
  stakeholder_email text";

const COMPLETED_COLUMNS: &str = "
  todo_id           uuid primary key,
  title             text not null,
  description       text,
  due_date          date,
  stakeholder_email text,
  completed_on      date";

fn main() -> std::process::ExitCode {
    let todo_events = |declaration: Declaration| {
        declaration
            .handles::<TodoAdded>()
            .handles::<TodoAmended>()
            .handles::<TodoCompleted>()
            .handles::<TodoAbandoned>()
    };
    let outstanding = Declaration::projector("outstanding_todos").table("outstanding_todos", OPEN_COLUMNS);
    let scheduled = Declaration::projector("scheduled_todos").table("scheduled_todos", OPEN_COLUMNS).ddl(
        "create index scheduled_todos_due_date on scheduled_todos (due_date) where due_date is not null",
    );
    let completed = Declaration::projector("completed_todos")
        .table("completed_todos", COMPLETED_COLUMNS)
        .table("incomplete_todos", OPEN_COLUMNS);
    let notifier = Declaration::reactor("todo_completed_notifier")
        .emits::<Notified>()
        .start(Start::Beginning)
        .table("notifiable_todos", "todo_id uuid primary key, title text not null, stakeholder_email text");
    Program::new()
        .projector(todo_events(outstanding), || OpenTodos::new("outstanding_todos"))
        .projector(todo_events(scheduled), || OpenTodos::new("scheduled_todos"))
        .projector(todo_events(completed), CompletedTodos::default)
        .reactor(todo_events(notifier), || Notifier)
        .main()
}
