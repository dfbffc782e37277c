//! Types that have had other names: old events are read, new ones get the new name, whatever handles them.

use espd::Program;
use espd::event::{EventType as _, NewEvent};
use espd::native::{Delivery, HandlerError, Projector, ProjectorContext, Registration};
use espd::store::{EventStore as _, Layout, PostgresEventStore};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::make;
use crate::processing::runner::{Life, settings};
use crate::support::facts::reaches;
use crate::support::program::Installation;
use crate::support::projectors::numbers;
use crate::support::{self, SCHEMA};

#[derive(Debug, Serialize, Deserialize)]
struct TodoAdded {
    n: i64,
}

espd::event_type!(TodoAdded, naming = underscored, was = ["TodoAdded", "TodoCreated"]);

/// Notes the number of each todo.
struct Numbers;

#[async_trait::async_trait]
impl Projector for Numbers {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for event in events {
            let added: TodoAdded = event.read()?.ok_or("it handles nothing else")?;
            sqlx::query("insert into native values ($1)").bind(added.n).execute(context.connection()).await?;
        }
        Ok(())
    }
}

#[tokio::test]
async fn events_under_old_names_are_handled_as_the_type_and_new_ones_get_its_name() {
    let db = support::database().await;
    let store = PostgresEventStore::new(db.pool.clone(), Layout::espd(SCHEMA).unwrap());
    let add = async |n: i64, name: Option<&str>| {
        let mut event = NewEvent::of(Uuid::new_v4(), &TodoAdded { n }).unwrap();
        event.event_type = name.map_or(event.event_type, str::to_owned);
        store.append(&[event]).await.unwrap()[0].id.get()
    };
    add(1, Some("TodoCreated")).await;
    add(2, Some("TodoAdded")).await;
    add(0, Some("TodoRemoved")).await;
    let last = add(3, None).await;
    let stored = store.read_after(0.into(), None, None, 9).await.unwrap();
    assert_eq!((stored[3].event_type.as_str(), TodoAdded::NAME), ("todo_added", "todo_added"));
    let read: Vec<Option<i64>> =
        stored.iter().map(|event| event.read::<TodoAdded>().unwrap().map(|added| added.n)).collect();
    assert_eq!(read, [Some(1), Some(2), None, Some(3)]);

    let declaration = Registration::projector("native").handles::<TodoAdded>().table("native", "n bigint");
    let program = Program::new().projector(declaration, || Numbers);
    let life = Life::begin_with(&db, make(&program, "native"), settings(&db));
    reaches(&db.pool, "native", last).await;
    assert_eq!(numbers(&db.pool, "select n from native").await, [1, 2, 3]);
    life.end().await;

    let alias = "[[upcast]]\nevents = ['TodoCreated', 'TodoAdded']\ntype = 'todo_added'\n";
    let installation = Installation::new(&db.url, alias);
    installation.declare(
        "declared",
        "[projector]\nname = 'declared'\n[projector.tables]\ndeclared = 'n bigint, type text'\n\
         [[projector.on]]\nevents = ['todo_added']\n\
         sql = \"insert into declared values ((event.body->>'n')::bigint, event.type)\"\n",
    );
    let daemon = installation.start_daemon();
    reaches(&db.pool, "declared", last).await;
    assert_eq!(numbers(&db.pool, "select n from declared where type = 'todo_added'").await, [1, 2, 3]);
    daemon.stop().await;
    let named = async |name: &str| -> Vec<Value> {
        let lines = installation.espctl(&["events", "--type", name, "--json"]).await.json_lines();
        lines.iter().map(|event| event["type"].clone()).collect()
    };
    assert_eq!(named("todo_added").await, ["TodoCreated", "TodoAdded", "todo_added"]);
    assert_eq!(named("TodoCreated").await, ["TodoCreated"]);
}
