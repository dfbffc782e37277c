//! Other names of tables and functions: everything works under them, and nothing under those of the documentation.

use std::time::Duration;

use espd::event::{ExpectedVersion, NewEvent};
use espd::schema::{self, SchemaError};
use espd::store::{AppendError, EspdNames, EventStore as _, Layout, PostgresEventStore};
use serde_json::json;
use serde_json::value::to_raw_value;
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::support::facts::eventually;
use crate::support::program::Installation;
use crate::support::{self, Database};

/// As long as a derived name cannot be.
const LONG: &str = "where_every_processor_is_and_who_it_belongs_to_at_this_moment";

/// A name with a space, keywords, a name of a common table expression in the functions, and one that leaves no room.
fn odd_names() -> EspdNames {
    EspdNames {
        events_table: "My Events".into(),
        sequence: Some("select".into()),
        tracker_table: LONG.into(),
        append_events: "placed".into(),
        append: "Record-It".into(),
        append_at: "table".into(),
        append_after: "record_after".into(),
        cancel_scheduled: "forget it".into(),
    }
}

fn section(names: &EspdNames) -> String {
    let EspdNames { events_table, tracker_table, append_events, append, append_at, append_after, .. } = names;
    let sequence = names.sequence.as_ref().map_or(String::new(), |name| format!("sequence = '{name}'\n"));
    format!(
        "[event_store.espd]\nevents_table = '{events_table}'\n{sequence}tracker_table = '{tracker_table}'\n\
         append_events = '{append_events}'\nappend = '{append}'\nappend_at = '{append_at}'\n\
         append_after = '{append_after}'\ncancel_scheduled = '{}'\n",
        names.cancel_scheduled
    )
}

const RUNNER: &str = "[runner]\npoll_interval_max = '50ms'\n";

async fn execute(pool: &PgPool, statements: &str) {
    sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(pool).await.unwrap();
}

async fn count(pool: &PgPool, query: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_one(pool).await.unwrap()
}

fn event(event_type: &str) -> NewEvent {
    NewEvent::new(Uuid::new_v4(), event_type, to_raw_value(&json!({})).unwrap())
}

/// What there is in the schema.
async fn objects(pool: &PgPool, kind: &str) -> Vec<String> {
    let query = match kind {
        "relation" => "select relname::text from pg_class where relnamespace = 'espd'::regnamespace",
        "function" => "select distinct proname::text from pg_proc where pronamespace = 'espd'::regnamespace",
        _ => "select conname::text from pg_constraint where connamespace = 'espd'::regnamespace",
    };
    sqlx::query_scalar(query).fetch_all(pool).await.unwrap()
}

/// A reactor whose program emits later, and under a key.
const REMINDER: &str = r#"
import json, sys
json.loads(sys.stdin.readline())
print('{"ready":1}', flush=True)
for line in sys.stdin:
    batch = json.loads(line)
    for event in batch["events"]:
        actions = [{"emit": "Reminded", "aggregate_id": event["aggregate_id"], "body": {}, "after": 0.01, "key": str(event["id"])}]
        print(json.dumps({"done": event["id"], "actions": actions}))
    print(json.dumps({"end": batch["batch"]}), flush=True)
"#;

fn declare_processors(installation: &Installation) {
    installation.declare_notes("notes", "").declare(
        "answers",
        "[reactor]\nname = 'answers'\nemits = ['Answered', 'Later']\nstart = 'beginning'\n\
         [[reactor.on]]\nevents = ['A']\n\
         sql = \"\"\"perform espd.emit('Answered', event.aggregate_id, '{}');\n\
         perform espd.emit_after('Later', event.aggregate_id, '{}', interval '1 millisecond', event.id::text)\"\"\"\n",
    );
    installation.declare(
        "picky",
        "[projector]\nname = 'picky'\nretry = { max_attempts = 1, on_failure = 'park' }\n\
         [projector.tables]\npicked = 'event_id bigint primary key'\n\
         [[projector.on]]\nevents = ['A', 'Bad']\n\
         sql = \"\"\"if event.type = 'Bad' and not exists (select from pg_class where relname = 'forgiving') then\n\
         raise exception 'bad'; end if; insert into picked values (event.id)\"\"\"\n",
    );
    std::fs::write(installation.path().join("processors/reminder.py"), REMINDER).unwrap();
    installation.declare(
        "reminder",
        "[reactor]\nname = 'reminder'\nevents = ['A']\nemits = ['Reminded']\nstart = 'beginning'\n\
         command = ['python3', 'reminder.py']\n",
    );
}

/// Appends in every way that there is. Returns how many events of type `A` there are then.
async fn append_in_every_way(installation: &Installation, pool: &PgPool, names: &EspdNames) -> i64 {
    let one = |event_type: &str| {
        json!({"aggregate_id": Uuid::new_v4(), "type": event_type, "body": {}}).to_string()
    };
    let call = format!("select count(*) from espd.\"{}\"('{}')", names.append, one("A"));
    assert_eq!(count(pool, &call).await, 1);
    let arrays = "array[gen_random_uuid()], array['A'], array['{}'::jsonb]";
    let call = format!("select count(*) from espd.\"{}\"({arrays})", names.append_events);
    assert_eq!(count(pool, &call).await, 1);
    for after in ["'1 millisecond', '", "'1 hour', key => 'never', events => '"] {
        let call = format!("select count(*) from espd.\"{}\"({after}{}')", names.append_after, one("A"));
        assert_eq!(count(pool, &call).await, 1);
    }
    execute(pool, &format!("select espd.\"{}\"('never')", names.cancel_scheduled)).await;
    installation.espctl_fed(&["append"], &one("A")).await.printed();
    installation.espctl_fed(&["append"], &one("Bad")).await.printed();

    let store = PostgresEventStore::new(pool.clone(), Layout::espd_named("espd", names).unwrap());
    let first = NewEvent { expected_version: ExpectedVersion::Exact(0.into()), ..event("A") };
    let stored = store.append(std::slice::from_ref(&first)).await.unwrap();
    assert_eq!(store.append(std::slice::from_ref(&first)).await.unwrap(), stored, "the same again");
    let taken = NewEvent { uuid: Uuid::new_v4(), ..first.clone() };
    assert!(matches!(store.append(&[taken]).await, Err(AppendError::Conflict { .. })));
    let later = |event_type: &str| [event(event_type)];
    store.append_at(Duration::ZERO, None, &later("A")).await.unwrap();
    store.append_at(Duration::from_secs(3_600), Some("never"), &later("A")).await.unwrap();
    assert!(store.cancel_scheduled("never").await.unwrap());
    6
}

#[tokio::test]
async fn everything_works_under_other_names_and_nothing_has_a_default_name() {
    let settings = [("fsync", "on"), ("full_page_writes", "on"), ("synchronous_commit", "on")];
    let server = support::server_with(&settings).await;
    server.create_database("odd", None).await.unwrap();
    let url = server.url("odd");
    let pool = PgPool::connect(&url).await.unwrap();
    let names = odd_names();
    let installation = Installation::new(&url, &(section(&names) + RUNNER));
    installation.espctl(&["migrate"]).await.printed();
    let again = installation.espctl(&["migrate"]).await.printed();
    assert_eq!(again.matches("already").count(), 2, "{again}");
    nothing_has_a_default_name(&pool).await;
    roles_have_rights(&installation, &pool).await;

    declare_processors(&installation);
    installation.espctl(&["check"]).await.printed();
    installation.espctl(&["doctor"]).await.printed();
    let daemon = installation.start_daemon();
    let appended = append_in_every_way(&installation, &pool, &names).await;
    processors_follow(&installation, &pool, appended).await;
    operators_act(&installation, &pool, appended).await;
    daemon.stop().await;
    installation.espctl(&["check"]).await.printed();
    installation.espctl(&["doctor"]).await.printed();
    refuses_other_names(&url).await;
    pool.close().await;
    server.stop().await;
}

async fn nothing_has_a_default_name(pool: &PgPool) {
    let functions = ["append_events", "append", "append_at", "append_after", "cancel_scheduled"];
    for kind in ["relation", "function", "constraint"] {
        for object in objects(pool, kind).await {
            let of_table = ["events", "trackers"].iter().any(|table| object.starts_with(table));
            assert!(!of_table && !functions.contains(&object.as_str()), "{kind} {object}");
        }
    }
    let relations = objects(pool, "relation").await;
    for name in
        ["My Events", "My Events_pkey", "My Events_uuid_key", "My Events_correlation_id_idx", "select", LONG]
    {
        assert!(relations.iter().any(|relation| relation == name), "{name}: {relations:?}");
    }
}

async fn roles_have_rights(installation: &Installation, pool: &PgPool) {
    execute(pool, &installation.espctl(&["roles"]).await.printed()).await;
    execute(pool, &installation.espctl(&["roles", "--reader", "web"]).await.printed()).await;
    for right in [
        "has_column_privilege('espd_appender', 'espd.\"My Events\"', 'body', 'insert')".to_owned(),
        format!("has_table_privilege('espd_daemon', 'espd.{LONG}', 'update')"),
        format!("has_table_privilege('web', 'espd.{LONG}', 'select')"),
    ] {
        assert_eq!(count(pool, &format!("select count(*) where {right}")).await, 1, "{right}");
    }
}

async fn processors_follow(installation: &Installation, pool: &PgPool, appended: i64) {
    for event_type in ["A", "Answered", "Later", "Reminded"] {
        let query = format!("select count(*) from espd.\"My Events\" where type = '{event_type}'");
        eventually(event_type, async || (count(pool, &query).await == appended).then_some(())).await;
    }
    installation.espctl(&["wait", "notes"]).await.printed();
    assert_eq!(count(pool, "select count(*) from notes").await, appended);
    let head = count(pool, "select max(id) from espd.\"My Events\"").await;
    let waited = format!("select count(*) from (select espd.wait_for('notes', {head}, '10 seconds')) as w");
    assert_eq!(count(pool, &waited).await, 1);
    let processors = espd::Processors::new(pool.clone(), "espd").unwrap().with_tracker_table(LONG);
    processors.wait_for("picky", head, Duration::from_secs(30)).await.unwrap();
}

async fn operators_act(installation: &Installation, pool: &PgPool, appended: i64) {
    let listed = installation.espctl(&["dead-letters", "list", "picky"]).await.printed();
    assert!(listed.contains("Bad"), "{listed}");
    execute(pool, "create table forgiving ()").await;
    let bad = count(pool, "select id from espd.\"My Events\" where type = 'Bad'").await.to_string();
    installation.espctl(&["dead-letters", "retry", "picky", &bad]).await.printed();
    assert_eq!(count(pool, "select count(*) from picked").await, appended + 1);
    for arguments in [
        &["pause", "notes"][..],
        &["resume", "notes"],
        &["reset", "notes", "--in-place", "--yes"],
        &["wait", "notes"],
        &["emissions", "list"],
        &["status"],
        &["events", "--last", "1"],
    ] {
        installation.espctl(arguments).await.printed();
    }
    assert_eq!(count(pool, "select count(*) from notes").await, appended);
}

/// A configuration with other names than the database was made with says which to write, and changes nothing.
async fn refuses_other_names(url: &str) {
    let configured = Installation::new(url, "");
    configured.declare_notes("notes", "");
    for command in [&["migrate"][..], &["migrate", "--dry-run"], &["check"], &["status"], &["events"]] {
        let outcome = configured.espctl(command).await;
        assert_ne!(outcome.code, Some(0), "{outcome:?}");
        let said = outcome.stdout + &outcome.stderr;
        assert!(
            said.contains("write events_table = \"My Events\" (it is \"events\" now)"),
            "{command:?}: {said}"
        );
        assert!(said.contains("under [event_store.espd]"), "{said}");
    }
    let said = configured.espd(&["run"]).await;
    assert_ne!(said.code, Some(0));
    assert!(said.stderr.contains("was made with other names"), "{said:?}");
}

#[tokio::test]
async fn names_in_the_database_are_followed_by_later_migrations() {
    let Database { pool, url, .. } = support::empty_database().await;
    let names =
        EspdNames { events_table: "head".into(), tracker_table: "declared".into(), ..EspdNames::default() };
    // What an earlier version has made: the first files, by hand, which are recognised.
    execute(&pool, "create schema espd").await;
    let plans = [(plan(&url, "event store", &names).await, 3), (plan(&url, "processing", &names).await, 10)];
    for (plan, released) in &plans {
        for file in plan.iter().take(*released) {
            execute(&pool, file).await;
        }
    }
    execute(&pool, "insert into espd.declared (name, version, kind, epoch) values ('p', 1, 'projector', 7)")
        .await;
    let event =
        "insert into espd.head (aggregate_id, type, version, body) values (gen_random_uuid(), 'A', 1, '{}')";
    execute(&pool, event).await;

    for other in [
        EspdNames::default(),
        EspdNames { events_table: "tail".into(), tracker_table: "t".into(), ..names.clone() },
    ] {
        for refused in [
            schema::migrate_event_store_named(&pool, "espd", &other).await,
            schema::migrate_processing_named(&pool, "espd", &other).await,
        ] {
            assert!(matches!(refused, Err(SchemaError::UnknownNames { .. })), "{refused:?}");
        }
    }
    schema::migrate_event_store_named(&pool, "espd", &names).await.unwrap();
    schema::migrate_processing_named(&pool, "espd", &names).await.unwrap();
    schema::check_event_store_named(&pool, "espd", &names).await.unwrap();
    schema::check_processing_named(&pool, "espd", &names).await.unwrap();
    assert_eq!(
        count(&pool, "select count(*) from espd._event_store_migrations where execution_time < 0").await,
        3
    );
    assert_eq!(
        count(&pool, "select count(*) from espd._processing_migrations where execution_time < 0").await,
        10
    );
    assert_eq!(count(&pool, "select count(*) from espd.append('{\"aggregate_id\": \"00000000-0000-0000-0000-000000000001\", \"type\": \"A\", \"body\": 1}')").await, 1);
    assert_eq!(count(&pool, "select count(*) from espd.head").await, 2);
    assert_eq!(count(&pool, "select count(*) from espd.declared where version = 1").await, 1);
    for other in [EspdNames::default(), EspdNames { append_events: "tail".into(), ..names.clone() }] {
        match schema::check_event_store_named(&pool, "espd", &other).await {
            Err(SchemaError::OtherNames { others, .. }) => assert!(!others.is_empty()),
            other => panic!("{other:?}"),
        }
        assert!(schema::migrate_processing_named(&pool, "espd", &other).await.is_err());
    }
}

/// The statements of each migration, as an operator sees them.
async fn plan(url: &str, set: &str, names: &EspdNames) -> Vec<String> {
    let plan = Installation::new(url, &section(names)).espctl(&["migrate", "--dry-run"]).await.printed();
    let statements = |file: &str| {
        let statements = file.split_once('\n').unwrap().1;
        statements[..statements.find("\n-- processing:").unwrap_or(statements.len())].to_owned()
    };
    plan.split(&format!("\n-- {set} ")).skip(1).map(statements).collect()
}

#[tokio::test]
async fn a_table_of_others_with_a_default_name_is_left_alone() {
    let pool = support::empty_database().await.pool;
    execute(&pool, "create schema espd; create table espd.events (mine int constraint events_uuid_key unique); create table espd.trackers ()").await;
    let names =
        EspdNames { events_table: "facts".into(), tracker_table: "positions".into(), ..EspdNames::default() };
    schema::migrate_event_store_named(&pool, "espd", &names).await.unwrap();
    schema::migrate_processing_named(&pool, "espd", &names).await.unwrap();
    let layout = Layout::espd_named("espd", &names).unwrap();
    let store = PostgresEventStore::new(pool.clone(), layout);
    store.append(&[event("A")]).await.unwrap();
    assert_eq!(count(&pool, "select count(*) from espd.facts").await, 1);
    assert_eq!(count(&pool, "select count(*) from espd.events").await, 0);
}

/// Whatever a migration makes is refused as a name for something else.
#[tokio::test]
async fn no_name_can_be_chosen_that_espd_uses_for_something_else() {
    let pool = support::database().await.pool;
    let of_trackers = |name: &String| name.starts_with("trackers");
    for relation in objects(&pool, "relation").await.into_iter().filter(|name| !of_trackers(name)) {
        let names = EspdNames { tracker_table: relation.clone(), ..EspdNames::default() };
        assert!(
            Layout::espd_named("espd", &names).is_err(),
            "add it to src/schema/fixed_names.rs: {relation}"
        );
    }
    for function in objects(&pool, "function").await.into_iter().filter(|name| name != "append") {
        let names = EspdNames { append: function.clone(), ..EspdNames::default() };
        assert!(
            Layout::espd_named("espd", &names).is_err(),
            "add it to src/schema/fixed_names.rs: {function}"
        );
    }
}
