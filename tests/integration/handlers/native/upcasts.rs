//! Upcasts that a program declares, in SQL and in Rust, for what handles events and for what writes them.

use async_trait::async_trait;
use espd::event::Version;
use espd::native::{Delivery, EventType, HandlerError, Projector, ProjectorContext, Registration};
use espd::store::{EventStore as _, PostgresEventStore, ReadError, Upcast};
use espd::{Config, Program, WaitError};
use futures_util::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::facts::PATIENCE;
use crate::support::program::Installation;
use crate::support::{self, Database};

#[derive(Serialize, Deserialize)]
struct Noted {
    text: String,
}

impl EventType for Noted {
    const NAME: &'static str = "Noted";
}

#[derive(Deserialize)]
struct OldNote {
    words: Vec<String>,
}

struct Notes;

#[async_trait]
impl Projector for Notes {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for event in events {
            let noted: Noted = event.read()?.ok_or("it handles nothing else")?;
            // What is folded from the history is read in the same way.
            let history = context.read_aggregate(&event.aggregate_id, event.version).await?;
            let all: String = history.iter().map(|event| event.body.get()).collect();
            let note = sqlx::query("insert into notes (text, history) values ($1, $2)");
            note.bind(noted.text).bind(all).execute(context.connection()).await?;
        }
        Ok(())
    }
}

/// First there were lines, then words, and now there is text.
fn program() -> Program {
    let notes = Registration::projector("notes").handles::<Noted>().table("notes", "text text, history text");
    Program::new()
        .projector(notes, || Notes)
        .upcast(
            Upcast::of(["LineWritten"])
                .as_type("WordsWritten")
                .body_sql("jsonb_build_object('words', string_to_array(event.body->>'line', ' '))"),
        )
        .upcast(Upcast::of(["WordsWritten"]).as_type("Noted").body(|old: OldNote| {
            if old.words.is_empty() {
                return Err("there are no words");
            }
            Ok(Noted { text: old.words.join(" ") })
        }))
}

async fn insert(pool: &PgPool, aggregate: Uuid, version: i64, event_type: &str, body: Value) {
    sqlx::query("insert into espd.events (aggregate_id, type, version, body) values ($1, $2, $3, $4)")
        .bind(aggregate)
        .bind(event_type)
        .bind(version)
        .bind(body)
        .execute(pool)
        .await
        .unwrap();
}

async fn history(db: &Database) -> Uuid {
    let aggregate = Uuid::new_v4();
    insert(&db.pool, aggregate, 1, "LineWritten", json!({ "line": "a b" })).await;
    insert(&db.pool, aggregate, 2, "WordsWritten", json!({ "words": ["c", "d"] })).await;
    insert(&db.pool, aggregate, 3, "Noted", json!({ "text": "e f" })).await;
    aggregate
}

#[tokio::test]
async fn processors_and_the_writing_side_read_the_same_new_events() {
    let db = support::database().await;
    let aggregate = history(&db).await;
    let config = Config::for_database(&db.url).unwrap();
    let running = program().start(&config).await.unwrap();
    running.caught_up().await.unwrap();
    let notes: Vec<(String, String)> =
        sqlx::query_as("select text, history from notes order by history").fetch_all(&db.pool).await.unwrap();
    assert_eq!(notes.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>(), ["a b", "c d", "e f"]);
    assert_eq!(notes[2].1, "{\"text\":\"a b\"}{\"text\":\"c d\"}{\"text\": \"e f\"}");

    for store in [program().event_store(&config).unwrap(), running.event_store().clone()] {
        let read = store.read_aggregate(aggregate.into(), Version::FIRST, None);
        let read: Vec<_> = read.map_ok(|event| (event.event_type, event.body)).try_collect().await.unwrap();
        assert!(read.iter().all(|(name, body)| name == "Noted" && body.get().contains("text")), "{read:?}");
    }

    insert(&db.pool, aggregate, 4, "WordsWritten", json!({ "words": [] })).await;
    let blocked = running.caught_up().await.unwrap_err();
    let WaitError::Blocked { reason, event_id, .. } = blocked else { panic!("{blocked}") };
    assert_eq!(event_id, Some(4.into()));
    assert!(reason.contains("there are no words"), "{reason}");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn what_cannot_read_a_body_that_rust_makes_does_not_start() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let declare = |events: &str| {
        installation.declare(
            "sql",
            &format!(
                "[projector]\nname = 'sql'\n[projector.tables]\nsql = 'id bigint'\n\
                 [[projector.on]]\nevents = ['{events}']\nsql = 'insert into sql values (event.id)'\n"
            ),
        );
        Config::load(&installation.path().join("espd.toml")).unwrap()
    };
    for events in ["Noted", "*"] {
        let said = program().start(&declare(events)).await.unwrap_err().to_string();
        assert!(said.contains("processor sql is not in Rust, and the bodies of WordsWritten"), "{said}");
    }
    history(&db).await;
    let running = program().start(&declare("Other")).await.unwrap();
    running.idle(PATIENCE).await.unwrap();
    running.stop().await.unwrap();

    let disordered = program().upcast(Upcast::of(["Noted"]).as_type("Late").when_sql("event.body ? 'text'"));
    let said = disordered.start(&declare("Other")).await.unwrap_err().to_string();
    assert!(said.contains("declare it before"), "{said}");
}

#[tokio::test]
async fn the_store_of_a_configuration_reads_as_its_processors_do() {
    let db = support::database().await;
    let aggregate = history(&db).await;
    let upcast = "[[upcast]]\nevents = ['LineWritten']\ntype = 'Noted'\n\
                  body = \"jsonb_build_object('text', event.body->>'line')\"\n";
    let installation = Installation::new(&db.url, upcast);
    let config = Config::load(&installation.path().join("espd.toml")).unwrap();
    for store in [
        PostgresEventStore::from_config(&config).unwrap(),
        PostgresEventStore::from_config_on(db.pool.clone(), &config).unwrap(),
    ] {
        let mut read = store.read_aggregate(aggregate.into(), Version::FIRST, Some(Version::FIRST));
        let first = read.try_next().await.unwrap().unwrap();
        assert_eq!((first.event_type.as_str(), first.body.get()), ("Noted", "{\"text\": \"a b\"}"));
    }
}

/// The database does not say of which event it could not make a body.
#[tokio::test]
async fn an_aggregate_that_cannot_be_loaded_names_the_event_whose_upcast_fails() {
    let db = support::database().await;
    let pool = db.pool.clone();
    let upcasts = [
        Upcast::of(["Counted"]).body_sql("jsonb_build_object('n', (event.body->>'n')::integer)"),
        Upcast::of(["Weighed"]).body(|old: Value| match old["n"].as_i64() {
            Some(_) => Ok(old),
            None => Err("it has no weight"),
        }),
    ];
    let config = Config::for_database(&db.url).unwrap();
    let program = upcasts.into_iter().fold(Program::new(), Program::upcast);
    let store = program.event_store(&config).unwrap();
    for event_type in ["Counted", "Weighed"] {
        let aggregate = Uuid::new_v4();
        for version in 1..=20 {
            let n = if version == 13 || version == 17 { json!("x") } else { json!(version) };
            insert(&pool, aggregate, version, event_type, json!({ "n": n })).await;
        }
        let position: i64 =
            sqlx::query_scalar("select id from espd.events where aggregate_id = $1 and version = 13")
                .bind(aggregate)
                .fetch_one(&pool)
                .await
                .unwrap();
        let error = store
            .read_aggregate(aggregate.into(), Version::FIRST, None)
            .try_collect::<Vec<_>>()
            .await
            .unwrap_err();
        let ReadError::Unreadable { position: named, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*named, position, "{error}");
        assert!(!error.is_transient());
        // The others can be had.
        let after: Vec<_> =
            store.read_aggregate(aggregate.into(), Version::new(18), None).try_collect().await.unwrap();
        assert_eq!(after.len(), 3);
    }
}
