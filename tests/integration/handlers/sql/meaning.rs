//! What a handler's SQL means depends on its declaration, not on the defaults of the database, the role or the session.

use espd::internals::declaration::SourceText;
use espd::internals::tracker::ReplayEffects;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};

use crate::support;
use crate::support::facts::{append, append_typed, reaches};
use crate::support::program::Installation;
use crate::support::projectors::{Running, declare, insert};

/// Everything that a default of the database could change: texts of times, intervals, floats, bytes, XML and money; how
/// such texts and strings are read.
const SENSITIVE: &str = r"insert into seen values (event.id,
  '01/02/2026'::date,
  to_timestamp(0)::text,
  timestamptz '2026-01-02 03:04:05'::text,
  interval '1 day 02:03:04'::text,
  interval '-1-2'::text,
  '\x41\'::text,
  (1::float8 / 3)::text,
  '\x4142'::bytea::text,
  to_char(1234.5, '9G999D9'),
  to_char(date '2026-03-01', 'TMMonth'),
  12.5::numeric::money::text,
  array_to_string('{a,NULL}'::text[], ',', '*'),
  to_jsonb(to_timestamp(0)) #>> '{}',
  quote_ident('plain'),
  coalesce((select 'null = null' where event.causation_id = null), 'none'))";

const COLUMNS: &str = "event_id bigint primary key, d date default '03/04/2026', a text, b text, c text, e text, f text, g text,
  h text, i text, j text, k text, l text, m text, n text, o text";

/// Defaults that differ from PostgreSQL's own in whatever changes what SQL means.
const OTHER_DEFAULTS: &[(&str, &str)] = &[
    ("timezone", "America/New_York"),
    ("datestyle", "German, DMY"),
    ("intervalstyle", "sql_standard"),
    ("standard_conforming_strings", "off"),
    ("backslash_quote", "on"),
    ("escape_string_warning", "off"),
    ("extra_float_digits", "-15"),
    ("bytea_output", "escape"),
    ("xmloption", "document"),
    ("xmlbinary", "hex"),
    ("array_nulls", "off"),
    ("transform_null_equals", "on"),
    ("quote_all_identifiers", "on"),
    ("row_security", "on"),
    ("check_function_bodies", "off"),
];

async fn change_defaults(pool: &PgPool, database: &str) {
    for (name, value) in OTHER_DEFAULTS {
        let statement = format!("alter database {database} set {name} = '{value}'");
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(pool).await.unwrap();
    }
}

async fn set_all(session: &mut PgConnection) {
    for (name, value) in OTHER_DEFAULTS {
        sqlx::raw_sql(AssertSqlSafe(format!("set {name} = '{value}'"))).execute(&mut *session).await.unwrap();
    }
}

async fn rows(pool: &PgPool, table: &str) -> Vec<String> {
    let query = AssertSqlSafe(format!("select to_jsonb(t)::text from {table} as t order by event_id"));
    sqlx::query_scalar(query).fetch_all(pool).await.unwrap()
}

#[tokio::test]
async fn a_rebuild_after_other_defaults_gives_the_same_rows() {
    let db = support::database().await;
    let mut declaration = declare("p", &[("seen", COLUMNS)], &[(&["A"], SENSITIVE)]);
    declaration
        .ddl
        .push(SourceText::unplaced("alter table seen add p text default '05/06/2026'::date || '\\x'"));
    let ids = insert(&db.pool, &["A", "A"]).await;
    let mut running = Running::start(&db.pool, declaration.clone()).await.unwrap();
    running.process(ids[1]).await.unwrap();
    let before = rows(&db.pool, "seen").await;
    assert_eq!(before.len(), 2);
    drop(running);

    change_defaults(&db.pool, &db.name).await;
    sqlx::query("update espd.trackers set lease_until = null").execute(&db.pool).await.unwrap();
    // Nothing of the driver's own defaults helps: this session has those of the database.
    let changed = PgPool::connect(&db.url).await.unwrap();
    let mut running = Running::start(&changed, declaration.clone()).await.unwrap();
    set_all(&mut running.connection).await;
    assert!(running.reset("alice@here", ReplayEffects::Suppress).await);
    let key = running.claim.key.clone();
    let mut again = Running::start(&changed, declaration).await.unwrap();
    assert_eq!(again.claim.key, key);
    set_all(&mut again.connection).await;
    again.process(ids[1]).await.unwrap();
    assert_eq!(rows(&db.pool, "seen").await, before);
}

#[tokio::test]
async fn the_rows_of_a_program_mean_the_same_under_any_defaults() {
    let script = r#"
import json, sys
json.loads(sys.stdin.readline())
print('{"ready":1}', flush=True)
for line in sys.stdin:
    batch = json.loads(line)
    for event in batch["events"]:
        row = {"event_id": event["id"], "d": "01/02/2026", "t": "2026-01-02 03:04:05", "i": "-1 2:03:04"}
        print(json.dumps({"done": event["id"], "actions": [{"upsert": "told", "row": row}]}))
    print(json.dumps({"end": batch["batch"]}), flush=True)
"#;
    let told = async |defaults: bool| {
        let db = support::database().await;
        if defaults {
            change_defaults(&db.pool, &db.name).await;
        }
        let installation = Installation::new(&db.url, "");
        std::fs::write(installation.path().join("processors/told.py"), script).unwrap();
        installation.declare(
            "told",
            "[projector]\nname = 'told'\nevents = ['A']\ncommand = ['python3', 'told.py']\n[projector.tables]\n\
             told = \"event_id bigint primary key, d date, t timestamptz, i interval, x text default '\\\\x', y date default '05/06/2026'\"\n",
        );
        let last = append(&db.pool, 1).await;
        let daemon = installation.start_daemon();
        reaches(&db.pool, "told", last).await;
        daemon.stop().await;
        rows(&db.pool, "told").await
    };
    assert_eq!(told(true).await, told(false).await);
}

#[tokio::test]
async fn what_is_pinned_can_be_declared_and_nothing_else() {
    let db = support::database().await;
    let installation = Installation::new(
        &db.url,
        "[projections]\nsettings = { timezone = 'Asia/Tokyo', DateStyle = 'ISO, DMY' }\n",
    );
    installation.declare(
        "times",
        "[projector]\nname = 'times'\n[projector.tables]\ntimes = 'event_id bigint primary key, t text, d date'\n\
         [[projector.on]]\nevents = ['A']\nsql = \"insert into times values (event.id, to_timestamp(0)::text, '01/02/2026')\"\n",
    );
    let last = append(&db.pool, 1).await;
    installation.espctl(&["check"]).await.printed();
    let daemon = installation.start_daemon();
    reaches(&db.pool, "times", last).await;
    daemon.stop().await;
    let row: (String, String) =
        sqlx::query_as("select t, d::text from times").fetch_one(&db.pool).await.unwrap();
    assert_eq!(row, ("1970-01-01 09:00:00+09".into(), "2026-02-01".into()));
    let shown = installation.espctl(&["config", "show", "--json"]).await.json();
    assert_eq!(shown["projections"]["settings"]["TimeZone"], "Asia/Tokyo", "{shown}");

    let wrong =
        Installation::new(&db.url, "[projections]\nsettings = { TimeZon = 'UTC', work_mem = '1MB' }\n");
    let complaint = wrong.espctl(&["config", "show"]).await.complained(64);
    assert!(
        complaint.contains("did you mean `TimeZone`?") && complaint.contains("`work_mem`"),
        "{complaint}"
    );
}

const CITEXT: &str = "create schema extensions; create extension citext schema extensions";

fn declare_logins(installation: &Installation) {
    installation.declare(
        "logins",
        "[projector]\nname = 'logins'\n[projector.tables]\n\
         logins = 'event_id bigint primary key, email extensions.citext not null, n int not null'\n\
         [[projector.on]]\nevents = ['A']\n\
         sql = \"insert into logins values (event.id, 'Jo@Example.org', 0)\"\n\
         [[projector.on]]\nevents = ['B']\n\
         sql = \"update logins set n = n + 1 where email = 'jo@example.org'\"\n\
         [[projector.on]]\nevents = ['C']\n\
         sql = \"if exists (select from logins where email = 'JO@example.org') then update logins set n = n + 10; end if\"\n",
    );
}

#[tokio::test]
async fn operators_of_another_schema_are_told_of_and_found_when_it_is_declared() {
    let db = support::database().await;
    let path = format!("{CITEXT}; alter database {} set search_path = public, extensions", db.name);
    sqlx::raw_sql(AssertSqlSafe(path)).execute(&db.pool).await.unwrap();
    append(&db.pool, 1).await;
    append_typed(&db.pool, "B", 1).await;
    let last = append_typed(&db.pool, "C", 1).await;

    let installation = Installation::new(&db.url, "");
    declare_logins(&installation);
    let outcome = installation.espctl(&["check"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stdout.starts_with("ok: "), "{outcome:?}");
    for words in ["warning: ", "logins.toml:", "extensions", "search_path"] {
        assert!(outcome.stderr.contains(words), "{words}: {outcome:?}");
    }
    let json = installation.espctl(&["check", "--json"]).await.json();
    let found = json.as_array().unwrap();
    assert!(!found.is_empty() && found.iter().all(|one| one["severity"] == "warning"), "{json}");

    let settings = "[projections]\nsearch_path = ['public', 'extensions']\n";
    let installation = Installation::new(&db.url, settings);
    declare_logins(&installation);
    let outcome = installation.espctl(&["check"]).await;
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
    let daemon = installation.start_daemon();
    reaches(&db.pool, "logins", last).await;
    daemon.stop().await;
    let n: i32 = sqlx::query_scalar("select n from logins").fetch_one(&db.pool).await.unwrap();
    assert_eq!(n, 11);

    // A program's and a table's names are looked up in the same path.
    let shown = installation.espctl(&["config", "show", "--json"]).await.json();
    assert_eq!(shown["projections"]["search_path"], serde_json::json!(["public", "extensions"]), "{shown}");
    let wrong = Installation::new(&db.url, "[projections]\nsearch_path = ['pg_temp', 'a-b']\n");
    let complaint = wrong.espctl(&["config", "show"]).await.complained(64);
    assert!(complaint.contains("pg_temp") && complaint.contains("a-b"), "{complaint}");
}

#[tokio::test]
async fn a_type_that_another_schema_knows_differently_is_told_of() {
    let db = support::database().await;
    let other = format!(
        "create schema app; create function app.kind(text) returns text language sql as 'select ''app''';
         create function public.kind(text) returns text language sql as 'select ''public''';
         alter database {} set search_path = app, public",
        db.name
    );
    sqlx::raw_sql(AssertSqlSafe(other)).execute(&db.pool).await.unwrap();
    append(&db.pool, 1).await;
    let installation = Installation::new(&db.url, "");
    installation.declare_notes("notes", "perform kind(event.type);");
    let outcome = installation.espctl(&["check"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    // PostgreSQL 13 cannot say what a statement refers to, so nothing is compared there.
    let version = "select current_setting('server_version_num')::int >= 140000";
    let is_compared: bool = sqlx::query_scalar(version).fetch_one(&db.pool).await.unwrap();
    assert_eq!(outcome.stderr.contains("function app.kind(text)"), is_compared, "{outcome:?}");
}
