//! The todo projectors of `config/processors` do what they say, on a real PostgreSQL.
//!
//! Their handlers are run here one event at a time, without the runner: this is about the SQL that the
//! demo and a newcomer's first configuration consist of.

use espd::internals::config::Config;
use espd::internals::declaration::{HandledEvents, ProcessorDeclaration};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use super::espd_example;
use crate::support;

/// A store with these events, all todos named by a number, and the projector that has seen them.
async fn project(name: &str, events: &[(u128, &str, Value)]) -> PgPool {
    let pool = support::database().await.pool;
    let Config { processors, .. } = espd_example();
    let projector = processors.iter().find(|projector| projector.name == name).unwrap();
    create_tables(&pool, projector).await;
    for (todo, event_type, body) in events {
        let id = append(&pool, *todo, event_type, body).await;
        for (number, handler) in projector.handlers().iter().enumerate() {
            let HandledEvents::Types(types) = &handler.events else { panic!("all projectors are typed") };
            if types.iter().any(|handled| handled == event_type) {
                let call = format!("select handler_{number}(event) from espd.events event where id = $1");
                sqlx::query(AssertSqlSafe(call)).bind(id).execute(&pool).await.unwrap();
            }
        }
    }
    pool
}

async fn create_tables(pool: &PgPool, projector: &ProcessorDeclaration) {
    let tables =
        projector.tables.iter().map(|table| format!("create table {} ({})", table.name, table.columns.text));
    let ddl = projector.ddl.iter().map(|statement| statement.text.clone());
    let functions = projector.handlers().iter().enumerate().map(|(number, handler)| {
        format!(
            "create function handler_{number}(event espd.events) returns void language plpgsql \
             as $handler$ begin {}; end $handler$",
            handler.sql.text
        )
    });
    for statement in tables.chain(ddl).chain(functions).collect::<Vec<_>>() {
        sqlx::query(AssertSqlSafe(statement)).execute(pool).await.unwrap();
    }
}

async fn append(pool: &PgPool, todo: u128, event_type: &str, body: &Value) -> i64 {
    let statement = "
        insert into espd.events (aggregate_id, type, version, body, created_at)
        select $1, $2, count(*) + 1, $3, '2024-03-01 23:30:00-05' from espd.events where aggregate_id = $1
        returning id";
    let insert = sqlx::query_scalar(statement).bind(Uuid::from_u128(todo)).bind(event_type).bind(body);
    insert.fetch_one(pool).await.unwrap()
}

/// The rows of a table as JSON, with a todo's number for its uuid, in that order.
async fn rows(pool: &PgPool, table: &str) -> Vec<Value> {
    let statement = format!("select to_jsonb(row) from {table} row order by to_jsonb(row)::text");
    let mut rows: Vec<Value> = sqlx::query_scalar(AssertSqlSafe(statement)).fetch_all(pool).await.unwrap();
    for row in rows.iter_mut().filter_map(Value::as_object_mut) {
        if let Some(id) = row.remove("todo_id") {
            let todo: Uuid = serde_json::from_value(id).unwrap();
            row.insert("todo".into(), json!(todo.as_u128() as u64));
        }
    }
    rows.sort_by_key(|row| row["todo"].as_u64());
    rows
}

/// A todo of each fate, and one that is amended.
fn lives() -> Vec<(u128, &'static str, Value)> {
    vec![
        (1, "TodoAdded", json!({ "title": "milk" })),
        (
            2,
            "TodoAdded",
            json!({ "title": "rent", "description": "march", "due_date": "2024-03-31", "stakeholder_email": "a@b" }),
        ),
        (3, "TodoAdded", json!({ "title": "climb" })),
        (4, "TodoAdded", json!({ "title": "fly", "due_date": "2030-01-01" })),
        (1, "TodoAmended", json!({ "due_date": "2024-03-02", "description": "oat" })),
        (2, "TodoAmended", json!({ "title": "rent!", "description": null })),
        (3, "TodoCompleted", json!({ "completed_on": "2024-03-01" })),
        (4, "TodoAbandoned", json!({ "abandoned_on": "2024-03-01" })),
        (4, "SomethingElse", json!({})),
    ]
}

/// What [`lives`] leaves to be done.
fn outstanding() -> Vec<Value> {
    vec![
        json!({ "todo": 1, "title": "milk", "description": "oat", "due_date": "2024-03-02", "stakeholder_email": null }),
        json!({ "todo": 2, "title": "rent!", "description": null, "due_date": "2024-03-31", "stakeholder_email": "a@b" }),
    ]
}

#[tokio::test]
async fn outstanding_todos_are_those_not_closed() {
    let pool = project("outstanding_todos", &lives()).await;
    assert_eq!(rows(&pool, "outstanding_todos").await, outstanding());
}

#[tokio::test]
async fn scheduled_todos_keep_the_undated_ones_until_they_are_amended() {
    let pool = project("scheduled_todos", &lives()).await;
    assert_eq!(rows(&pool, "scheduled_todos").await, outstanding());

    let undated = [(9, "TodoAdded", json!({ "title": "some day" }))];
    let pool = project("scheduled_todos", &undated).await;
    let calendar = "(select * from scheduled_todos where due_date is not null)";
    assert_eq!(rows(&pool, calendar).await, Vec::<Value>::new());
    assert_eq!(rows(&pool, "scheduled_todos").await.len(), 1);
}

#[tokio::test]
async fn completed_todos_are_as_they_were_when_they_were_done() {
    let mut events = lives();
    events.push((2, "TodoCompleted", json!({ "completed_on": "2024-04-01" })));
    let pool = project("completed_todos", &events).await;
    let done = [
        json!({ "todo": 2, "title": "rent!", "description": null, "due_date": "2024-03-31", "stakeholder_email": "a@b", "completed_on": "2024-04-01" }),
        json!({ "todo": 3, "title": "climb", "description": null, "due_date": null, "stakeholder_email": null, "completed_on": "2024-03-01" }),
    ];
    assert_eq!(rows(&pool, "completed_todos").await, done);
    assert_eq!(rows(&pool, "incomplete_todos").await, outstanding()[..1]);
}

#[tokio::test]
async fn todos_per_day_counts_by_utc() {
    let pool = project("todos_per_day", &lives()).await;
    let expected = [json!({ "day": "2024-03-02", "added": 4, "closed": 2 })];
    assert_eq!(rows(&pool, "todos_per_day").await, expected);
}
