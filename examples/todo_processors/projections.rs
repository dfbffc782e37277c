//! The three projections. Each collects the changes of a batch and writes them in a few statements, instead of one for each
//! event. That is what makes a projector in Rust fast.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use espd::native::{Delivery, HandlerError, Projector, ProjectorContext, Registration};
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::events::{Fields, TodoAbandoned, TodoAdded, TodoAmended, TodoCompleted};

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

/// Keeps a table of the todos that are still to be done.
pub(crate) struct OpenTodos {
    table: &'static str,
    // The changes of the batch that are not written yet.
    added: BTreeMap<Uuid, Fields>,
    amended: BTreeMap<Uuid, Fields>,
    closed: BTreeSet<Uuid>,
}

impl OpenTodos {
    /// Registers a projector with a table of the same name.
    pub(crate) fn registration(name: &str) -> Registration {
        of_todos(Registration::projector(name)).table(name, OPEN_COLUMNS)
    }

    pub(crate) fn new(table: &'static str) -> Self {
        Self { table, added: BTreeMap::new(), amended: BTreeMap::new(), closed: BTreeSet::new() }
    }

    /// Whether this batch has closed the todo of an event. If it comes back, its removal has to be written first.
    fn has_closed(&self, event: &Delivery) -> bool {
        event.aggregate_id.as_uuid().is_some_and(|id| self.closed.contains(&id))
    }

    /// Collects the change that an event makes.
    fn collect(&mut self, event: &Delivery) -> Result<(), HandlerError> {
        let id = Uuid::try_from(&event.aggregate_id)?;
        if let Some(TodoAdded(todo)) = event.read()? {
            self.added.insert(id, todo);
        } else if let Some(TodoAmended(changes)) = event.read()? {
            let added = self.added.get_mut(&id);
            added.unwrap_or_else(|| self.amended.entry(id).or_default()).extend(changes);
        } else {
            self.closed.insert(id);
        }
        Ok(())
    }

    /// Writes the collected changes.
    async fn write(&mut self, connection: &mut PgConnection) -> Result<(), HandlerError> {
        self.write_open(connection).await?;
        self.remove_closed(connection).await
    }

    async fn write_open(&mut self, connection: &mut PgConnection) -> Result<(), HandlerError> {
        let table = self.table;
        let insert = format!("insert into {table} select * from jsonb_populate_recordset(null::{table}, $1)");
        run(connection, insert, &mut self.added).await?;
        let set = ["title", "description", "due_date", "stakeholder_email"].map(|column| {
            format!(
                "{column} = case when changes.\"all\" ? '{column}' then new.{column} else old.{column} end"
            )
        });
        let update = format!(
            "update {table} as old set {} from jsonb_array_elements($1) as changes (\"all\"),
               jsonb_populate_record(null::{table}, changes.\"all\") as new where old.todo_id = new.todo_id",
            set.join(", ")
        );
        run(connection, update, &mut self.amended).await
    }

    async fn remove_closed(&mut self, connection: &mut PgConnection) -> Result<(), HandlerError> {
        let closed: Vec<Uuid> = std::mem::take(&mut self.closed).into_iter().collect();
        let delete = format!("delete from {} where todo_id = any ($1)", self.table);
        sqlx::query(AssertSqlSafe(delete)).bind(closed).execute(connection).await?;
        Ok(())
    }
}

/// Runs a statement with the todos as a JSON array, each with its id, and empties the collection.
async fn run(
    connection: &mut PgConnection,
    statement: String,
    todos: &mut BTreeMap<Uuid, Fields>,
) -> Result<(), HandlerError> {
    let with_id = |(id, mut fields): (Uuid, Fields)| {
        fields.insert("todo_id".to_owned(), Value::String(id.to_string()));
        fields
    };
    let rows: Vec<Fields> = std::mem::take(todos).into_iter().map(with_id).collect();
    if !rows.is_empty() {
        sqlx::query(AssertSqlSafe(statement)).bind(Json(rows)).execute(connection).await?;
    }
    Ok(())
}

#[async_trait]
impl Projector for OpenTodos {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for event in events {
            if self.has_closed(event) {
                self.write(context.connection()).await?;
            }
            self.collect(event)?;
        }
        self.write(context.connection()).await
    }
}

/// Keeps a table of the todos that were done, with the fields that they had then. A second table keeps the open ones.
pub(crate) struct CompletedTodos {
    open: OpenTodos,
    completed: BTreeMap<Uuid, Option<String>>,
}

impl Default for CompletedTodos {
    fn default() -> Self {
        Self { open: OpenTodos::new("incomplete_todos"), completed: BTreeMap::new() }
    }
}

#[async_trait]
impl Projector for CompletedTodos {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for event in events {
            if self.open.has_closed(event) {
                self.write(context.connection()).await?;
            }
            if let Some(TodoCompleted { completed_on }) = event.read()? {
                self.completed.insert(Uuid::try_from(&event.aggregate_id)?, completed_on);
            }
            self.open.collect(event)?;
        }
        self.write(context.connection()).await
    }
}

impl CompletedTodos {
    pub(crate) fn registration() -> Registration {
        of_todos(Registration::projector("completed_todos"))
            .table("completed_todos", COMPLETED_COLUMNS)
            .table("incomplete_todos", OPEN_COLUMNS)
    }

    /// Writes the collected changes. Completed todos are copied before they are removed from the open ones.
    async fn write(&mut self, connection: &mut PgConnection) -> Result<(), HandlerError> {
        self.open.write_open(connection).await?;
        let (ids, dates): (Vec<Uuid>, Vec<Option<String>>) =
            std::mem::take(&mut self.completed).into_iter().unzip();
        sqlx::query(
            "insert into completed_todos (todo_id, title, description, due_date, stakeholder_email, completed_on)
             select t.todo_id, t.title, t.description, t.due_date, t.stakeholder_email, done.at::date
             from incomplete_todos as t join unnest($1::uuid[], $2::text[]) as done (id, at) on done.id = t.todo_id",
        )
        .bind(ids)
        .bind(dates)
        .execute(&mut *connection)
        .await?;
        self.open.remove_closed(connection).await
    }
}

/// Adds the events of todos to a registration.
fn of_todos(registration: Registration) -> Registration {
    registration
        .handles::<TodoAdded>()
        .handles::<TodoAmended>()
        .handles::<TodoCompleted>()
        .handles::<TodoAbandoned>()
}
