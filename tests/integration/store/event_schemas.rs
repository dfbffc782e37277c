//! Declared events: the store refuses bodies that are not as they are declared, whoever appends them.

use espd::event::ExpectedVersion::{Absent, Any, Exact};
use espd::event::NewEvent;
use espd::internals::config::Config;
use espd::store::{AppendError, EventStore as _, Layout, PostgresEventStore};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use super::functions::append_on;
use super::refusal;
use crate::support::facts::eventually;
use crate::support::program::Installation;
use crate::support::projectors::numbers;
use crate::support::{self, Database};

/// Bodies, each with the path and the keyword of its first departure; `None`: it does not depart.
type Bodies = Vec<(Value, Option<(&'static str, &'static str)>)>;

/// Schemas with bodies, and for each body the path and the keyword of the first departure, if there is one.
#[expect(clippy::too_many_lines, reason = "a table")]
fn cases() -> Vec<(Value, Bodies)> {
    let ok = None;
    let todo = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Todo", "x-owner": "us",
        "type": "object", "required": ["title"], "additionalProperties": false, "minProperties": 1, "maxProperties": 3,
        "properties": {
            "title": { "type": "string", "minLength": 1, "maxLength": 3 },
            "due": { "type": ["string", "null"], "format": "date" },
            "a/b~c": { "type": "boolean" }, "n": { "type": "integer" },
        },
    });
    vec![
        (
            todo,
            vec![
                (json!({ "title": "\u{e4}\u{f6}\u{fc}" }), ok),
                (json!({ "title": "abc", "due": null, "n": 1e2 }), ok),
                (json!([]), Some(("", "type"))),
                (json!(null), Some(("", "type"))),
                (json!({ "due": null }), Some(("/title", "required"))),
                (json!({}), Some(("/title", "required"))),
                (json!({ "title": "" }), Some(("/title", "minLength"))),
                (json!({ "title": "abcd" }), Some(("/title", "maxLength"))),
                (json!({ "title": 1 }), Some(("/title", "type"))),
                (json!({ "title": "a", "titel": "a" }), Some(("/titel", "additionalProperties"))),
                (json!({ "title": "a", "a/b~c": 1 }), Some(("/a~1b~0c", "type"))),
                (json!({ "title": "a", "n": 1.5 }), Some(("/n", "type"))),
                (json!({ "title": "a", "due": null, "n": 1, "a/b~c": true }), Some(("", "maxProperties"))),
            ],
        ),
        (
            json!({ "additionalProperties": { "type": "integer" }, "minProperties": 2 }),
            vec![
                (json!({ "a": 1, "b": 2 }), ok),
                (json!("not an object"), ok),
                (json!({ "a": 1 }), Some(("", "minProperties"))),
                (json!({ "a": 1, "b": "2" }), Some(("/b", "type"))),
            ],
        ),
        (
            json!({ "items": { "type": "integer", "multipleOf": 0.5 }, "minItems": 1, "maxItems": 3, "uniqueItems": true }),
            vec![
                (json!([1, 2, 3]), ok),
                (json!({ "not": "an array" }), ok),
                (json!([]), Some(("", "minItems"))),
                (json!([1, 2, 3, 4]), Some(("", "maxItems"))),
                (json!([1, 2, 1.0]), Some(("", "uniqueItems"))),
                (json!([1, "2"]), Some(("/1", "type"))),
            ],
        ),
        (
            json!({ "minimum": 1, "exclusiveMaximum": 10, "multipleOf": 0.1 }),
            vec![
                (json!(1), ok),
                (json!(0.3 + 1.0), ok),
                (json!("a"), ok),
                (json!(0), Some(("", "minimum"))),
                (json!(10), Some(("", "exclusiveMaximum"))),
                (json!(1.25), Some(("", "multipleOf"))),
            ],
        ),
        (
            json!({ "maximum": 3, "exclusiveMinimum": 1 }),
            vec![
                (json!(3.0), ok),
                (json!(1), Some(("", "exclusiveMinimum"))),
                (json!(12_345_678_901_234_567_890_u64), Some(("", "maximum"))),
            ],
        ),
        (
            json!({ "enum": [1, "a", null, { "b": [1] }] }),
            vec![
                (json!(1.0), ok),
                (json!({ "b": [1] }), ok),
                (json!(null), ok),
                (json!({ "b": [] }), Some(("", "enum"))),
                (json!("b"), Some(("", "enum"))),
            ],
        ),
        (
            json!({ "properties": { "kind": { "const": "todo" } } }),
            vec![
                (json!({ "kind": "todo" }), ok),
                (json!({}), ok),
                (json!({ "kind": "Todo" }), Some(("/kind", "const"))),
            ],
        ),
        (
            json!({ "pattern": "^[A-Z]{2}[0-9]+$" }),
            vec![(json!("DE12"), ok), (json!(12), ok), (json!("DE"), Some(("", "pattern")))],
        ),
        (
            json!({ "format": "uuid" }),
            vec![
                (json!("149D5C70-a373-4857-91e2-1d5ea90c27e4"), ok),
                (json!("149d5c70a373485791e21d5ea90c27e4"), Some(("", "format"))),
            ],
        ),
        (
            json!({ "format": "date" }),
            vec![
                (json!("2024-02-29"), ok),
                (json!("2000-02-29"), ok),
                (json!("1900-02-29"), Some(("", "format"))),
                (json!("2023-02-29"), Some(("", "format"))),
                (json!("2023-04-31"), Some(("", "format"))),
                (json!("2023-13-01"), Some(("", "format"))),
                (json!("2023-1-1"), Some(("", "format"))),
            ],
        ),
        (
            json!({ "format": "date-time" }),
            vec![
                (json!("2024-02-29T12:00:00Z"), ok),
                (json!("2024-12-31t23:59:60.123+02:00"), ok),
                (json!("2024-02-29T12:00:00"), Some(("", "format"))),
                (json!("2024-02-30T12:00:00Z"), Some(("", "format"))),
                (json!("2024-02-29T24:00:00Z"), Some(("", "format"))),
                (json!("2024-02-29 12:00:00Z"), Some(("", "format"))),
                (json!("yesterday"), Some(("", "format"))),
            ],
        ),
        (
            json!({ "anyOf": [{ "type": "string" }, { "minimum": 3, "type": "number" }] }),
            vec![(json!("a"), ok), (json!(3), ok), (json!(2), Some(("", "anyOf")))],
        ),
        (
            json!({ "oneOf": [{ "type": "integer" }, { "minimum": 3 }] }),
            vec![(json!(2), ok), (json!(3.5), ok), (json!(4), Some(("", "oneOf")))],
        ),
        (
            json!({ "allOf": [{ "required": ["a"] }, { "properties": { "a": { "not": { "type": "null" } } } }] }),
            vec![
                (json!({ "a": 1 }), ok),
                (json!({}), Some(("/a", "required"))),
                (json!({ "a": null }), Some(("/a", "not"))),
            ],
        ),
        (
            json!({ "$ref": "#/$defs/Node",
                    "$defs": { "Node": { "type": "object", "properties": { "next": { "$ref": "#/$defs/Node" } } } } }),
            vec![
                (json!({ "next": { "next": {} } }), ok),
                (json!({ "next": { "next": 1 } }), Some(("/next/next", "type"))),
            ],
        ),
        (
            json!({ "items": { "$ref": "#" }, "type": "array" }),
            vec![(json!([[], [[]]]), ok), (json!([[], [1]]), Some(("/1/0", "type")))],
        ),
        (json!(true), vec![(json!(1), ok)]),
        (
            json!({ "properties": { "old": false } }),
            vec![(json!({}), ok), (json!({ "old": null }), Some(("/old", "not")))],
        ),
    ]
}

/// A configuration that declares this schema is right: no keyword is accepted there that the store does not check, and the store
/// finds in each body what the table says.
#[tokio::test]
async fn bodies_depart_from_schemas_where_they_should() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    for (schema, bodies) in cases() {
        installation.declare("event", &format!("[[event]]\ntype = 'T'\nschema = '{schema}'"));
        Config::load(&installation.path().join("espd.toml"))
            .unwrap_or_else(|faults| panic!("{schema}: {faults}"));
        for (body, expected) in bodies {
            let departure = "select espd.find_departure($1, $2)";
            let departure = sqlx::query_scalar(departure).bind(&schema).bind(&body);
            let departure: Option<Value> = departure.fetch_one(&db.pool).await.unwrap();
            let found = departure.as_ref().map(|found| {
                let keyword = found["expected"].as_object().unwrap().keys().next().unwrap();
                (found["path"].as_str().unwrap(), keyword.as_str())
            });
            assert_eq!(found, expected, "{schema} {body}: {departure:?}");
        }
    }
    let unknown = sqlx::query("select espd.find_departure('{\"if\": {}}', '1')").execute(&db.pool).await;
    assert_eq!(refusal(&unknown.unwrap_err()).0, "ES003");
}

/// What an append is told whose event of type `T` has this body, in a store that was told of the schema without espctl.
async fn refuse(pool: &PgPool, schema: &Value, body: &Value) -> Option<String> {
    let declare = "insert into espd.event_schemas (type, schema, check_at_append) values ('T', $1, true)
                   on conflict (type) do update set schema = excluded.schema";
    sqlx::query(declare).bind(schema).execute(pool).await.unwrap();
    let event = json!({ "aggregate_id": Uuid::new_v4(), "type": "T", "body": body });
    let append = "select id from espd.append(jsonb_build_array($1))";
    let error = sqlx::query(append).bind(event).execute(pool).await.err()?;
    let (state, _, detail) = refusal(&error);
    assert_eq!((state.as_str(), &detail["event"]), ("ES007", &json!(1)), "{error}");
    Some(error.as_database_error().unwrap().message().to_owned())
}

/// A body of depth 16 took longer than anybody waits, because each level was gone into twice.
#[tokio::test]
async fn a_property_that_tells_alternatives_apart_is_looked_at_first() {
    let db = support::database().await;
    let of_kind = |kind: &str| {
        json!({ "type": "object", "required": ["kind", "a"],
                "properties": { "kind": { "const": kind }, "a": { "$ref": "#/$defs/n" } } })
    };
    let schema = json!({ "$ref": "#/$defs/n", "$defs": { "n": { "oneOf": [{ "type": "null" }, of_kind("x"), of_kind("y")] } } });
    let nested = |depth| (0..depth).fold(json!(null), |body, _| json!({ "kind": "y", "a": body }));
    let looked_at = async |depth| {
        let mut session = db.pool.begin().await.unwrap();
        let find = sqlx::query_scalar("select espd.find_departure($1, $2)").bind(&schema).bind(nested(depth));
        let departure: Option<Value> = find.fetch_one(&mut *session).await.unwrap();
        assert_eq!(departure, None);
        let followed = "select current_setting('espd.references')::int";
        sqlx::query_scalar::<_, i32>(followed).fetch_one(&mut *session).await.unwrap()
    };
    for depth in [0, 4, 16, 20] {
        assert_eq!(looked_at(depth).await, depth + 1);
    }
    assert_eq!(refuse(&db.pool, &schema, &nested(16)).await, None);
}

/// A schema that was declared before `espctl check` refused it, or without it.
#[tokio::test]
async fn a_schema_that_takes_too_long_is_refused_in_plain_words() {
    let db = support::database().await;
    let message = refuse(&db.pool, &json!({ "$ref": "#" }), &json!(1)).await.unwrap();
    let deep = "event 1: the body of T cannot be checked: the schema goes on for more than 64 levels";
    assert!(message.starts_with(deep), "{message}");
    let long = "event 1: the body of T cannot be checked: the schema takes more than 100000 references";
    // Inside `not`, what is not known would count as met. The count begins anew with each body.
    let twice = json!({ "anyOf": [{ "$ref": "#/$defs/a" }, { "$ref": "#/$defs/a" }] });
    let turned = json!({ "not": { "$ref": "#/$defs/a" }, "$defs": { "a": twice } });
    let message = refuse(&db.pool, &turned, &json!(1)).await.unwrap();
    assert!(message.starts_with(long), "{message}");
    let small = json!({ "$ref": "#/$defs/a", "$defs": { "a": { "type": "integer" } } });
    assert_eq!(refuse(&db.pool, &small, &json!(1)).await, None);
}

#[tokio::test]
async fn a_schema_that_leads_back_to_itself_is_no_configuration() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    installation.declare("event", "[[event]]\ntype = 'T'\nschema = '{ \"$ref\": \"#\" }'");
    let complaint = installation.espctl(&["check"]).await.complained(64);
    assert!(complaint.contains("# leads back to itself without going into the body"), "{complaint}");
}

const DECLARED: &str = "[[event]]\ntype = 'Checked'\ncheck = 'append'\n\
    schema = '{ \"type\": \"object\", \"required\": [\"n\"], \"properties\": { \"n\": { \"type\": \"integer\", \"minimum\": 1 } } }'\n\
    [[event]]\ntype = 'Reported'\nschema = { type = 'object', required = ['n'] }\n";

/// A database whose store has been told of [`DECLARED`], and its configuration.
async fn declared() -> (Database, Installation, PostgresEventStore) {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    installation.declare("events", DECLARED);
    let migrated = installation.espctl(&["migrate"]).await.printed();
    assert!(migrated.contains("event schemas: 2 declared, 2 new, 0 changed"), "{migrated}");
    let config = Config::load(&installation.path().join("espd.toml")).unwrap();
    let store = PostgresEventStore::from_config_on(db.pool.clone(), &config).unwrap();
    (db, installation, store)
}

fn checked(aggregate_id: Uuid, body: &str) -> NewEvent {
    NewEvent::new(aggregate_id, "Checked", super::json(body))
}

/// That an append was refused because of the event at `index`.
fn assert_refused(outcome: Result<impl std::fmt::Debug, AppendError>, index: usize) {
    match outcome {
        Err(AppendError::Invalid { index: Some(found), reason }) if found == index => {
            let wanted = "/n of Checked is not as declared: expected {\"minimum\": 1}, found number";
            assert_eq!(reason, wanted);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_library_is_held_to_what_is_declared() {
    let (db, _installation, store) = declared().await;
    let a = Uuid::new_v4();
    let (good, bad) = (|| checked(a, r#"{"n": 1}"#), || checked(a, r#"{"n": 0}"#));
    let free = || NewEvent::new(a, "Free", super::json("{}"));
    // One event, one with an expected version, several of one aggregate, of several, and in a transaction of the caller.
    assert_refused(store.append(&[bad()]).await, 0);
    assert_refused(store.append(&[bad().expecting(Absent)]).await, 0);
    assert_refused(store.append(&[free().expecting(Absent), bad()]).await, 1);
    assert_refused(store.append(&[good(), checked(Uuid::new_v4(), r#"{"n": 0}"#)]).await, 1);
    let many: Vec<NewEvent> = (0..1_500).map(|_| good()).chain([bad()]).collect();
    assert_refused(store.append(&many).await, 1_500);
    let mut transaction = db.pool.begin().await.unwrap();
    assert_refused(store.append_in(&mut transaction, &[good(), bad()]).await, 1);
    drop(transaction);
    assert_refused(store.append_at(chrono::Utc::now(), None, &[good(), bad()]).await, 1);
    let stored = "select (select count(*) from espd.events) + (select count(*) from espd.scheduled_events)";
    assert_eq!(numbers(&db.pool, stored).await, [0]);

    store.append(&[good().expecting(Absent), free()]).await.unwrap();
    store.append(&[good().expecting(Exact(2.into()))]).await.unwrap();
    store.append(&[NewEvent::new(a, "Reported", super::json("[]")).expecting(Any)]).await.unwrap();
    assert_eq!(numbers(&db.pool, stored).await, [4]);
}

#[tokio::test]
async fn every_other_client_is_held_to_what_is_declared() {
    let (db, installation, _store) = declared().await;
    let event = |n: i32| json!({ "aggregate_id": Uuid::new_v4(), "type": "Checked", "body": { "n": n } });
    let append = |events: &Value| format!("select id from espd.append('{events}')");
    let refused = sqlx::query(AssertSqlSafe(append(&json!([event(1), event(0)])))).execute(&db.pool).await;
    let detail = json!({ "event": 2, "type": "Checked", "path": "/n", "expected": { "minimum": 1 }, "found": "number" });
    assert_eq!(refusal(&refused.unwrap_err()), ("ES007".to_owned(), String::new(), detail));
    let lines = format!("{}\n{}\n", event(1), event(0));
    let complaint = installation.espctl_fed(&["append"], &lines).await.complained(1);
    assert!(complaint.contains("/n of Checked is not as declared: expected {\"minimum\": 1}"), "{complaint}");
    assert_eq!(numbers(&db.pool, "select count(*) from espd.events").await, [0]);

    // What a reactor emits fails its handler, which says so.
    let reactor = "[reactor]\nname = 'emitter'\nemits = ['Checked']\nstart = 'beginning'\n[[reactor.on]]\nevents = ['A']\n\
                   sql = \"perform espd.emit('Checked', event.aggregate_id, event.body)\"\n";
    installation.declare("emitter", reactor);
    let append = "select id from espd.append('[{\"aggregate_id\": \"00000000-0000-0000-0000-00000000000a\", \"type\": \"A\",
                   \"body\": {\"n\": 0}}]')";
    sqlx::query(append).execute(&db.pool).await.unwrap();
    let daemon = installation.start_daemon();
    let state = "select last_error->>'sqlstate' from espd.trackers where name = 'emitter'";
    eventually("a refused emission", async || {
        let state: Option<Option<String>> = sqlx::query_scalar(state).fetch_optional(&db.pool).await.unwrap();
        state.flatten().filter(|state| state == "ES007")
    })
    .await;
    daemon.stop().await;
    assert_eq!(numbers(&db.pool, "select count(*) from espd.events").await, [1]);
}

/// When it is due, nobody is left to be told.
#[tokio::test]
async fn what_a_reactor_emits_for_later_is_checked_when_it_is_emitted() {
    let (db, installation, _store) = declared().await;
    let by_sql = |name: &str, call: &str| {
        format!(
            "[reactor]\nname = '{name}'\nemits = ['Checked']\nstart = 'beginning'\n[[reactor.on]]\nevents = ['A']\n\
             sql = \"perform espd.{call}\"\n"
        )
    };
    let at = "emit_at('Checked', event.aggregate_id, event.body, clock_timestamp() + interval '1 hour')";
    let after = "emit_after('Checked', event.aggregate_id, event.body, interval '1 hour')";
    let program = "[reactor]\nname = 'later'\nevents = ['A']\nstart = 'beginning'\nemits = ['Checked']\ncommand = ['python3', 'later.py']\n";
    let script = "import json, sys\nsys.stdin.readline()\nprint('{\"ready\":1}', flush=True)\n\
        for line in sys.stdin:\n    batch = json.loads(line)\n    for e in batch['events']:\n        \
            print(json.dumps({'done': e['id'], 'actions': [{'emit': 'Checked', 'aggregate_id': e['aggregate_id'], 'body': e['body'], 'after': 3600}]}))\n    \
        print(json.dumps({'end': batch['batch']}), flush=True)\n";
    std::fs::write(installation.path().join("processors/later.py"), script).unwrap();
    installation.declare("at", &by_sql("at", at));
    installation.declare("after", &by_sql("after", after));
    installation.declare("later", program);
    let append = "select id from espd.append('[
        {\"aggregate_id\": \"00000000-0000-0000-0000-00000000000a\", \"type\": \"A\", \"body\": {\"n\": 1}},
        {\"aggregate_id\": \"00000000-0000-0000-0000-00000000000a\", \"type\": \"A\", \"body\": {\"n\": 0}}]')";
    sqlx::query(append).execute(&db.pool).await.unwrap();
    let daemon = installation.start_daemon();
    for name in ["at", "after", "later"] {
        let failure = "select last_error from espd.trackers where name = $1 and attempts > 0";
        let failure: Value = eventually(&format!("a refused emission of {name}"), async || {
            sqlx::query_scalar(failure).bind(name).fetch_optional(&db.pool).await.unwrap()
        })
        .await;
        let message = failure["message"].as_str().unwrap();
        assert!(message.contains("/n of Checked is not as declared: expected {\"minimum\": 1}"), "{failure}");
        assert_eq!(failure["event_id"], 2, "{failure}");
    }
    daemon.stop().await;
    let kept = "select count(*) from espd.emissions where (body->>'n')::int = 1";
    assert_eq!(numbers(&db.pool, kept).await, [3]);
    assert_eq!(numbers(&db.pool, "select count(*) from espd.emissions").await, [3]);
}

#[tokio::test]
async fn what_is_stored_stays_and_is_found_when_it_is_appended_again() {
    let (db, installation, store) = declared().await;
    let old = [NewEvent::new(Uuid::new_v4(), "Reported", super::json("{}")).expecting(Absent)];
    let stored = store.append(&old).await.unwrap();
    installation.declare("events", &DECLARED.replace("'Reported'\n", "'Reported'\ncheck = 'append'\n"));
    installation.espctl(&["schema", "apply"]).await.printed();
    assert_eq!(store.append(&old).await.unwrap(), stored);
    assert_eq!(store.read_after(0.into(), None, None, 10).await.unwrap().len(), 1);
    let new = NewEvent::new(Uuid::new_v4(), "Reported", super::json("{}"));
    assert!(matches!(
        store.append(std::slice::from_ref(&new)).await,
        Err(AppendError::Invalid { index: Some(0), .. })
    ));

    // What was scheduled before is refused when it is due, and holds up no other.
    installation.declare("events", "");
    installation.espctl(&["schema", "apply", "--forget-others"]).await.printed();
    store.append_at(chrono::Utc::now(), None, &[new]).await.unwrap();
    installation.declare("events", &DECLARED.replace("'Reported'\n", "'Reported'\ncheck = 'append'\n"));
    installation.espctl(&["schema", "apply"]).await.printed();
    store.append_due().await.unwrap();
    let listed = installation.espctl(&["emissions", "list", "-", "--refused", "--json"]).await.json();
    assert_eq!(listed[0]["sqlstate"], "ES007", "{listed}");
    assert_eq!(numbers(&db.pool, "select count(*) from espd.events").await, [1]);
}

/// A role that may insert events and read them needs no further right.
#[tokio::test]
async fn who_may_append_is_checked_and_needs_no_other_right() {
    let (db, _installation, store) = declared().await;
    let role = format!("writer_{}", Uuid::new_v4().simple());
    let grants = format!(
        "create role {role}; grant usage on schema espd to {role}; grant select, insert on espd.events to {role}"
    );
    sqlx::raw_sql(AssertSqlSafe(grants)).execute(&db.pool).await.unwrap();
    let mut connection = db.pool.acquire().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("set role {role}"))).execute(&mut *connection).await.unwrap();
    let a = Uuid::new_v4();
    assert_refused(append_on(&store, &mut connection, &[checked(a, r#"{"n": 0}"#)]).await, 0);
    append_on(&store, &mut connection, &[checked(a, r#"{"n": 1}"#)]).await.unwrap();
    connection.close().await.unwrap();
    let drop_role = format!("drop owned by {role}; drop role {role}");
    sqlx::raw_sql(AssertSqlSafe(drop_role)).execute(&db.pool).await.unwrap();
}

/// The library of this version appends to a store that was migrated by the version before.
#[tokio::test]
async fn a_store_without_declared_events_takes_appends() {
    let db = support::empty_database().await;
    migrate_to_version_6(&db.pool).await;
    let store = PostgresEventStore::new(db.pool.clone(), Layout::espd(support::SCHEMA).unwrap());
    let a = Uuid::new_v4();
    store.append(&[checked(a, "{}").expecting(Absent)]).await.unwrap();
    store.append(&[checked(a, "{}").expecting(Exact(1.into())), checked(a, "{}")]).await.unwrap();
    assert_eq!(numbers(&db.pool, "select count(*) from espd.events").await, [3]);
}

async fn migrate_to_version_6(pool: &PgPool) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/event_store");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    sqlx::raw_sql("create schema espd").execute(pool).await.unwrap();
    for file in &files[..6] {
        let text = std::fs::read_to_string(file).unwrap().replace(":\"schema\"", "espd");
        let mut transaction = pool.begin().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut *transaction).await.unwrap();
        transaction.commit().await.unwrap();
    }
}
