//! `espctl forget` and `espctl keys`: a person is forgotten in a store that processors follow.

use espd::event::{NewEvent, Position};
use espd::personal_data::{MasterKey, PersonalData, PostgresKeys};
use espd::store::{EventStore as _, Layout, PostgresEventStore};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::facts::reaches;
use crate::support::program::Installation;
use crate::support::{self, Database, SCHEMA};

const OLD: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const NEW: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

#[derive(serde::Serialize, serde::Deserialize)]
struct Registered {
    id: String,
    name: Value,
}

espd::event_type!(Registered, personal = ["/name"] of "/id");

fn sealing(db: &Database, master: &str) -> PostgresEventStore {
    let keys = PostgresKeys::new(&db.pool, MasterKey::from_base64(master).unwrap());
    let store = PostgresEventStore::new(db.pool.clone(), Layout::espd(SCHEMA).unwrap());
    store.with_codec(PersonalData::new(keys).of::<Registered>())
}

async fn names(store: &PostgresEventStore) -> Vec<Value> {
    let types = ["Registered".to_owned()];
    let events = store.read_after(Position::START, None, Some(&types), 9).await.unwrap();
    events.iter().map(|event| event.read::<Registered>().unwrap().unwrap().name).collect()
}

async fn register(store: &PostgresEventStore, id: &str, name: &str) -> Uuid {
    let aggregate = Uuid::new_v4();
    let event = NewEvent::of(aggregate, &Registered { id: id.to_owned(), name: json!(name) }).unwrap();
    store.append(&[event]).await.unwrap();
    aggregate
}

async fn take_snapshot(pool: &PgPool, aggregate: Uuid) {
    let insert =
        "insert into espd.snapshots (aggregate_id, name, format, event_types, version, event_id, state)
        values ($1, 'customer', 1, 1, 1, 1, '{\"name\": \"Ada\"}')";
    sqlx::query(insert).bind(aggregate).execute(pool).await.unwrap();
}

#[tokio::test]
async fn a_person_is_forgotten_and_what_may_hold_something_of_him_is_told() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "[runner]\npoll_interval_max = '50ms'\n");
    installation.declare(
        "customers",
        "[projector]\nname = 'customers'\n[projector.tables]\ncustomers = 'id text, name jsonb, is_forgotten boolean'\n\
         [projector.retry]\nmax_attempts = 1\non_failure = 'skip'\n\
         [[projector.on]]\nevents = ['Registered']\nsql = '''\n\
         if event.body->>'id' = 'ada' and exists (select from customers where id = 'ada') then raise exception 'twice'; end if;\n\
         insert into customers values (event.body->>'id', event.body->'name', false)'''\n\
         [[projector.on]]\nevents = ['SubjectForgotten']\n\
         sql = '''update customers set is_forgotten = true where id = event.body->>'subject' '''\n",
    );
    let missing = installation.espctl(&["forget", "ada", "--yes"]).await.complained(1);
    assert!(missing.contains("`espctl keys create` makes their tables"), "{missing}");
    installation.espctl(&["keys", "create"]).await.printed();
    let nobody = installation.espctl(&["forget", "ada", "--yes"]).await.complained(1);
    assert!(nobody.contains("has no key, and was never forgotten"), "{nobody}");

    let store = sealing(&db, OLD);
    let aggregate = register(&store, "ada", "Ada").await;
    register(&store, "bob", "Bob").await;
    register(&store, "ada", "Ada").await;
    take_snapshot(&db.pool, aggregate).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "customers", 3).await;
    let asked = installation.espctl(&["forget", "ada"]).await.complained(1);
    assert!(asked.contains("nobody will read what was sealed"), "{asked}");
    assert_eq!(names(&sealing(&db, OLD)).await, [json!("Ada"), json!("Bob"), json!("Ada")]);

    let forget = ["forget", "ada", "--why", "asked for", "--yes", "--json"];
    let report = installation.espctl(&forget).await.json();
    assert_eq!((&report["forgotten"]["keys"], &report["forgotten"]["why"]), (&json!(1), &json!("asked for")));
    let found = &report["report"];
    assert_eq!(
        (&found["events"], &found["snapshots_removed"]),
        (&json!({ "Registered": 2 }), &json!(1)),
        "{found}"
    );
    assert_eq!(
        (&found["dead_letters"], &found["readers"]),
        (&json!({ "customers": 1 }), &json!([])),
        "{found}"
    );
    assert_eq!(found["got_sealed"][0]["tables"], json!(["customers"]));
    let forgotten = json!({ "$forgotten": "ada" });
    assert_eq!(names(&sealing(&db, OLD)).await, [forgotten.clone(), json!("Bob"), forgotten]);

    reaches(&db.pool, "customers", 4).await;
    let rows: Value = sqlx::query_scalar(
        "select jsonb_agg(jsonb_build_array(id, name ? '$sealed', is_forgotten) order by id) from customers",
    )
    .fetch_one(&db.pool)
    .await
    .unwrap();
    assert_eq!(
        rows,
        json!([["ada", true, true], ["bob", true, false]]),
        "SQL gets the fields sealed, and the event"
    );
    let told = installation.espctl(&["forget", "ada"]).await.printed();
    for part in [
        "ada is forgotten since",
        "keys deleted: 1",
        "2 Registered",
        "it has got them sealed",
        "dead letters of customers",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
    daemon.stop().await;
    let events: i64 = sqlx::query_scalar("select count(*) from espd.events where type = 'SubjectForgotten'")
        .fetch_one(&db.pool)
        .await
        .unwrap();
    assert_eq!(events, 1, "once, however often");
}

#[tokio::test]
async fn the_master_key_is_replaced() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    installation.espctl(&["keys", "create"]).await.printed();
    register(&sealing(&db, OLD), "ada", "Ada").await;
    for (file, key) in [("old.key", OLD), ("new.key", NEW), ("bad.key", "secret")] {
        std::fs::write(installation.path().join(file), format!("{key}\n")).unwrap();
    }
    let rewrap = async |from, to| installation.espctl(&["keys", "rewrap", "--from", from, "--to", to]).await;
    let wrong = rewrap("new.key", "old.key").await;
    assert_eq!(wrong.printed(), "wrapped 0 keys anew\n", "they are wrapped by it already");
    let bad = rewrap("bad.key", "new.key").await.complained(1);
    assert!(bad.contains("not 32 bytes in base64") && !bad.contains("secret"), "{bad}");
    assert_eq!(rewrap("old.key", "new.key").await.printed(), "wrapped 1 keys anew\n");
    assert_eq!(names(&sealing(&db, NEW)).await, [json!("Ada")]);
    let types = ["Registered".to_owned()];
    sealing(&db, OLD).read_after(Position::START, None, Some(&types), 9).await.unwrap_err();
    std::fs::write(installation.path().join("other.key"), format!("{}=\n", "A".repeat(43))).unwrap();
    let other = rewrap("other.key", "old.key").await.complained(1);
    assert!(other.contains("which is not at hand"), "{other}");
}

#[tokio::test]
async fn nobody_is_forgotten_whose_event_would_be_refused() {
    let db = support::database().await;
    let refusing = "[[event]]\ntype = 'SubjectForgotten'\ncheck = 'append'\nschema = '{\"required\": [\"subject\", \"by\"]}'\n";
    let installation = Installation::new(&db.url, refusing);
    installation.espctl(&["keys", "create"]).await.printed();
    let store = sealing(&db, OLD);
    register(&store, "ada", "Ada").await;
    installation.espctl(&["schema", "apply"]).await.printed();
    let refused = installation.espctl(&["forget", "ada", "--yes"]).await.complained(1);
    assert!(refused.contains("nothing was done") && refused.contains("--no-event"), "{refused}");
    assert_eq!(names(&sealing(&db, OLD)).await, [json!("Ada")]);
    installation.espctl(&["forget", "ada", "--yes", "--no-event"]).await.printed();
    assert_ne!(names(&sealing(&db, OLD)).await, [json!("Ada")]);
    let refused = installation.espctl(&["forget", "ada", "--yes"]).await.complained(1);
    assert!(
        refused.contains("the keys are deleted, and the event SubjectForgotten cannot be appended"),
        "{refused}"
    );
}

/// Handlers in SQL may unseal what they read, so their former versions are told of as those in Rust are.
#[tokio::test]
async fn versions_of_projectors_in_sql_that_do_not_serve_are_told_of() {
    let db = support::database().await;
    let settings = "[runner]\npoll_interval_max = '50ms'\n[rebuild]\nparallelism = 0\n";
    let installation = Installation::new(&db.url, settings);
    let declare = |version: i32, more: &str| {
        installation.declare(
            "customers",
            &format!(
                "[projector]\nname = 'customers'\nversion = {version}\n[projector.tables]\n\
                 customers = 'id text, name jsonb, by_version int{more}'\n[[projector.on]]\nevents = ['Registered']\n\
                 sql = '''insert into customers values (event.body->>'id', event.body->'name', {version})'''\n"
            ),
        );
    };
    declare(1, "");
    installation.espctl(&["keys", "create"]).await.printed();
    register(&sealing(&db, OLD), "ada", "Ada").await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "customers", 1).await;
    declare(2, ", more int");
    installation.espctl(&["rebuild", "customers", "--yes", "--go-live", "swap"]).await.printed();
    declare(3, ", more bigint");
    assert_eq!(installation.espctl(&["rebuild", "customers"]).await.code, Some(1), "it waits");
    let verified = "insert into espd.verifications (processor, version, aggregates, compared_rows, round_aggregates, differing_rows, found)
                    values ('customers', 2, 1, 1, 1, 1, '[\"ada\"]')";
    sqlx::query(verified).execute(&db.pool).await.unwrap();

    let told = installation.espctl(&["forget", "ada", "--yes", "--no-event"]).await.printed();
    for part in [
        "version 1 of customers, which is kept in schema public_customers_v1",
        "version 3 of customers, which is built in schema public_customers_next",
        "keys of rows of customers that differ",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
    let report = installation.espctl(&["forget", "ada", "--yes", "--no-event", "--json"]).await.json();
    assert_eq!(report["report"]["got_sealed_versions"][0]["version"], json!(1), "{report}");
    daemon.stop().await;
}
