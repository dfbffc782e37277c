//! Old events are read as new ones, by every kind of handler; what is stored stays as it is.

use async_trait::async_trait;
use espd::Program;
use espd::internals::declaration::SourceText;
use espd::internals::processor::Events;
use espd::internals::retry::{OnFailure, RetryPolicy};
use espd::internals::runner::RunnerContext;
use espd::internals::upcast::Upcast;
use espd::native::{Delivery, EventType, HandlerError, Projector, ProjectorContext, Registration};
use espd::store::Layout;
use espd::store::{EventStore as _, PostgresEventStore};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::processing::runner::{Life, settings};
use crate::support::facts::{eventually, reaches};
use crate::support::program::Installation;
use crate::support::{self, SCHEMA};

const UPCASTS: &str = r#"
[[upcast]]
events = ["TodoCreated"]
type = "TodoAdded"
body = "jsonb_build_object('label', event.body->'name')"
[[upcast]]
events = ["TodoAdded"]
body = "jsonb_build_object('title', event.body->'label')"
when = "event.body ? 'label'"
"#;

const TITLES: &str = "[projector]\nname = 'titles'\n[projector.tables]\ntitles = 'event_id bigint, title text not null'\n\
     [[projector.on]]\nevents = ['TodoAdded']\nsql = \"insert into titles values (event.id, event.body->>'title')\"\n";

async fn append(pool: &PgPool, event_type: &str, body: Value) -> i64 {
    let insert = "insert into espd.events (aggregate_id, type, version, body)
                  values (gen_random_uuid(), $1, 1, $2) returning id";
    sqlx::query_scalar(insert).bind(event_type).bind(body).fetch_one(pool).await.unwrap()
}

/// Three versions of one event, and one of another type.
async fn history(pool: &PgPool) -> i64 {
    append(pool, "TodoCreated", json!({ "name": "first" })).await;
    append(pool, "TodoAdded", json!({ "label": "second" })).await;
    append(pool, "TodoAdded", json!({ "title": "third" })).await;
    append(pool, "Other", json!({})).await
}

async fn titles(pool: &PgPool) -> Vec<(i64, String)> {
    sqlx::query_as("select event_id, title from titles order by event_id").fetch_all(pool).await.unwrap()
}

fn expected() -> Vec<(i64, String)> {
    vec![(1, "first".into()), (2, "second".into()), (3, "third".into())]
}

#[tokio::test]
async fn declared_sql_sees_new_events_only() {
    let db = support::database().await;
    let last = history(&db.pool).await;
    let installation = Installation::new(&db.url, UPCASTS);
    installation.declare("titles", TITLES);
    installation.espctl(&["check"]).await.printed();
    let daemon = installation.start_daemon();
    reaches(&db.pool, "titles", last).await;
    assert_eq!(titles(&db.pool).await, expected());
    let stored: Vec<String> =
        sqlx::query_scalar("select type from espd.events order by id").fetch_all(&db.pool).await.unwrap();
    assert_eq!(stored, ["TodoCreated", "TodoAdded", "TodoAdded", "Other"]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_check_names_the_place_of_a_wrong_upcast_and_of_a_handler_that_sees_nothing() {
    let db = support::database().await;
    let wrong = UPCASTS.replace("event.body->'name'", "event.bodi->'name'");
    let installation = Installation::new(&db.url, &wrong);
    installation.declare("titles", &TITLES.replace("['TodoAdded']", "['TodoCreated']"));
    let complaint = installation.espctl(&["check"]).await.complained(64);
    assert!(complaint.contains("bodi"), "{complaint}");
    assert!(complaint.contains("handle TodoAdded"), "{complaint}");
    let installation = Installation::new(&db.url, "[[upcast]]\nevents = ['A']\n");
    let complaint = installation.espctl(&["check"]).await.complained(64);
    assert!(complaint.contains("changes nothing"), "{complaint}");
}

#[derive(Serialize, Deserialize)]
struct TodoAdded {
    title: String,
}

impl EventType for TodoAdded {
    const NAME: &'static str = "TodoAdded";
}

struct Titles;

#[async_trait]
impl Projector for Titles {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for event in events {
            let added: TodoAdded = event.read()?.ok_or("it handles nothing else")?;
            let insert = sqlx::query("insert into titles values ($1, $2)").bind(event.id).bind(added.title);
            insert.execute(context.connection()).await?;
        }
        Ok(())
    }
}

#[tokio::test]
async fn rust_sees_new_events_only_and_an_upcast_that_fails_names_its_event() {
    let db = support::database().await;
    history(&db.pool).await;
    append(&db.pool, "TodoCreated", json!({ "name": "poison" })).await;
    let last = append(&db.pool, "TodoCreated", json!({ "name": "sixth" })).await;
    let body = "jsonb_build_object('title', case event.body->>'name' when 'poison' then (1 / (event.version - 1))::text \
                else event.body->>'name' end)";
    let upcasts = [
        Upcast {
            events: vec!["TodoCreated".into()],
            event_type: Some("TodoAdded".into()),
            body: Some(SourceText::unplaced(body)),
            ..Upcast::default()
        },
        Upcast {
            events: vec!["TodoAdded".into()],
            event_type: None,
            body: Some(SourceText::unplaced("jsonb_build_object('title', event.body->'label')")),
            when: Some(SourceText::unplaced("event.body ? 'label'")),
            ..Upcast::default()
        },
    ];
    let declaration = Registration::projector("titles")
        .handles::<TodoAdded>()
        .table("titles", "event_id bigint, title text not null");
    let program = Program::new().projector(declaration, || Titles);
    let events = Events::SameDatabase(Layout::espd(SCHEMA).unwrap().with_upcasts(&upcasts));
    let processor = program.processor("titles", SCHEMA, "public", events).unwrap();
    let retry = RetryPolicy { max_attempts: Some(2), on_failure: OnFailure::Skip, ..settings(&db).retry };
    let life = Life::begin_with(&db, processor, RunnerContext { retry, ..settings(&db) });
    reaches(&db.pool, "titles", last).await;
    let dead_letter =
        eventually("the dead letter", async || crate::handlers::native::dead_letters(&db.pool).await.pop())
            .await;
    assert_eq!((dead_letter.event_id, dead_letter.event_type.as_str()), (5.into(), "TodoAdded"));
    assert!(dead_letter.failure.unwrap().0.message.contains("division by zero"));
    let mut all = expected();
    all.push((6, "sixth".into()));
    assert_eq!(titles(&db.pool).await, all);
    life.end().await;
}

/// Whatever the server computes before it sorts and applies the limit, no event is blamed for another one.
#[tokio::test]
async fn an_event_that_no_upcast_can_read_is_the_only_one_that_is_blamed() {
    for plan in ["", "&options=-c%20enable_indexscan%3Doff", "&options=-c%20enable_bitmapscan%3Doff"] {
        // The second makes no body at all. Both are cheap: the server postpones costly expressions until after the limit.
        for body in ["event.body - 'name'", "event.body->'nothing'"] {
            let db = support::database().await;
            for n in 1..=4 {
                append(&db.pool, "TodoAdded", json!({ "title": n.to_string() })).await;
            }
            append(&db.pool, "TodoCreated", json!("a scalar")).await;
            let last = append(&db.pool, "TodoAdded", json!({ "title": "6" })).await;
            let upcast = format!(
                "[[upcast]]\nevents = ['TodoCreated']\ntype = 'TodoAdded'\nbody = \"{body}\"\n\
                 [retry]\ninitial = '20ms'\nmax_attempts = 2\non_failure = 'park'\n"
            );
            let installation = Installation::new(&format!("{}{plan}", db.url), &upcast);
            installation.declare("titles", TITLES);
            let daemon = installation.start_daemon();
            reaches(&db.pool, "titles", last).await;
            let blamed: Vec<i64> = crate::handlers::native::dead_letters(&db.pool)
                .await
                .iter()
                .map(|dead_letter| dead_letter.event_id.get())
                .collect();
            let read: Vec<i64> = titles(&db.pool).await.into_iter().map(|(id, _)| id).collect();
            assert_eq!((blamed, read), (vec![5], vec![1, 2, 3, 4, 6]), "{plan}");
            daemon.stop().await;
        }
    }
}

#[tokio::test]
async fn a_condition_that_is_none_is_found_by_the_check() {
    let db = support::database().await;
    let upcast = "[[upcast]]\nevents = ['A']\ntype = 'B'\nwhen = \"1\"\n\
                  [[upcast]]\nevents = ['C']\nbody = \"event.body) , (select 1\"\n";
    let complaint = Installation::new(&db.url, upcast).espctl(&["check"]).await.complained(64);
    assert!(complaint.contains("must be type boolean"), "{complaint}");
    assert!(complaint.contains("syntax error"), "{complaint}");
}

#[tokio::test]
async fn a_reader_gets_the_events_before_an_unreadable_one() {
    for plan in ["", "&options=-c%20enable_indexscan%3Doff", "&options=-c%20enable_seqscan%3Doff"] {
        let db = support::database().await;
        append(&db.pool, "TodoAdded", json!({})).await;
        append(&db.pool, "TodoCreated", json!("a scalar")).await;
        let upcast = Upcast {
            events: vec!["TodoCreated".into()],
            event_type: None,
            body: Some(SourceText::unplaced("event.body - 'name'")),
            ..Upcast::default()
        };
        let pool = PgPool::connect(&format!("{}{plan}", db.url)).await.unwrap();
        let layout = Layout::espd(SCHEMA).unwrap().with_upcasts(&[upcast]);
        let store = PostgresEventStore::new(pool, layout).without_notifications();
        let read = store.read_after(0.into(), None, None, 1).await.unwrap();
        assert_eq!(read.iter().map(|event| event.id).collect::<Vec<_>>(), [1], "{plan}");
        store.read_after(0.into(), None, None, 2).await.unwrap_err();
    }
}
