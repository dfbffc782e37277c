//! Rows that a policy hides from espd's role: whatever would not see them fails, and no position moves.

use espd::internals::declaration::ReactorDeclaration;
use espd::internals::failure::is_infrastructure_error;
use espd::internals::processor::ProcessorError;
use espd::native::Start;
use sqlx::{AssertSqlSafe, PgPool};

use crate::support::facts::{append, assert_exactly_once, eventually, position, reaches};
use crate::support::program::Installation;
use crate::support::projectors::{Running, declare, insert, numbers};
use crate::support::{self, Database};

const SEEN: &[(&str, &str)] = &[("seen", "event_id bigint primary key, n bigint")];

/// A role that owns neither events nor trackers and may do all that a daemon does.
async fn least(db: &Database) -> PgPool {
    let role = format!("least_{}", db.name);
    let statement = format!(
        "create role {role} login;
         grant usage, create on schema espd, public to {role};
         grant all on all tables in schema espd to {role}; grant all on all sequences in schema espd to {role}"
    );
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&db.pool).await.unwrap();
    PgPool::connect(&least_url(db)).await.unwrap()
}

fn least_url(db: &Database) -> String {
    let role = format!("least_{}", db.name);
    let url = db.url.replace("//espd@", &format!("//{role}@")).replace("user=espd", &format!("user={role}"));
    assert_ne!(url, db.url);
    url
}

async fn run(pool: &PgPool, statements: &str) {
    sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(pool).await.unwrap();
}

/// Requires that a batch waits, because a policy would hide rows, and that no event is blamed.
async fn waits(running: &mut Running, upto: i64, what: &str) {
    match running.process(upto).await {
        Err(ProcessorError::Database(error)) => {
            let state = error.as_database_error().and_then(|answer| answer.code().map(String::from));
            assert_eq!(state.as_deref(), Some("42501"), "{what}: {error}");
            assert!(is_infrastructure_error(&error), "{what}: {error}");
        }
        other => panic!("{what}: {other:?}"),
    }
}

#[tokio::test]
async fn hidden_rows_stop_a_processor_wherever_they_are() {
    let db = support::database().await;
    let pool = least(&db).await;
    let sql = "insert into seen (event_id, n) values (event.id, 1); update seen set n = n + 1 where event_id = event.id";
    let mut running = Running::start(&pool, declare("p", SEEN, &[(&["A"], sql)])).await.unwrap();
    let ids = insert(&db.pool, &["A", "A", "A"]).await;
    running.process(ids[0]).await.unwrap();
    for (table, force) in [
        ("espd.events", false),
        ("espd.dead_letters", false),
        ("espd.trackers", false),
        ("public.seen", true),
    ] {
        let forced =
            if force { format!("alter table {table} force row level security;") } else { String::new() };
        run(&db.pool, &format!("{forced} alter table {table} enable row level security")).await;
        waits(&mut running, ids[2], table).await;
        run(&db.pool, &format!("alter table {table} disable row level security")).await;
        assert_eq!(numbers(&db.pool, "select position from espd.trackers").await, [ids[0]], "{table}");
    }
    running.process(ids[2]).await.unwrap();
    assert_eq!(numbers(&db.pool, "select event_id from seen where n = 2 order by 1").await, ids);
}

#[tokio::test]
async fn a_hidden_emission_is_neither_cancelled_nor_doubled_in_silence() {
    let db = support::database().await;
    let pool = least(&db).await;
    for (name, sql) in [
        ("later", "perform espd.emit_after('Later', event.aggregate_id, '{}', '1 hour', 'k')"),
        ("never", "perform espd.cancel('k')"),
        ("now", "perform espd.emit('Later', event.aggregate_id, '{}')"),
    ] {
        let mut declaration = declare(name, SEEN, &[(&["A"], sql)]);
        declaration.tables.clear();
        declaration.start = Some(Start::Beginning);
        declaration.reactor =
            Some(ReactorDeclaration { emits: vec!["Later".to_owned()], ..ReactorDeclaration::default() });
        let mut running = Running::start(&pool, declaration).await.unwrap();
        let ids = insert(&db.pool, &["A"]).await;
        let table = if name == "now" { "espd.events" } else { "espd.emissions" };
        run(&db.pool, &format!("alter table {table} enable row level security")).await;
        waits(&mut running, ids[0], name).await;
        run(&db.pool, &format!("alter table {table} disable row level security")).await;
        running.process(ids[0]).await.unwrap();
    }
}

#[tokio::test]
async fn every_function_that_looks_into_a_table_refuses_to_look_through_policies() {
    let db = support::database().await;
    let without: Vec<String> = sqlx::query_scalar(
        "select p.proname::text from pg_proc as p
         where p.pronamespace = 'espd'::regnamespace
           and p.prosrc ~ '\\m(from|into|update|exists|table)\\M'
           and not coalesce('row_security=off' = any (p.proconfig), false)
           -- These leave what a policy may hide to a function that refuses.
           and not p.prosrc ~ 'and not pg_catalog.row_security_active'
         order by 1",
    )
    .fetch_all(&db.pool)
    .await
    .unwrap();
    // What these mention behind such a word is no table.
    let known = [
        "append",
        "append_after",
        "begin_emission",
        "count_events",
        "emit_after",
        "find_departing_item",
        "find_departing_property",
        "find_departure",
        "find_fault",
        "is_replaying",
    ];
    let unexpected: Vec<_> = without.iter().filter(|name| !known.contains(&name.as_str())).collect();
    assert_eq!(unexpected, Vec::<&String>::new());
}

#[tokio::test]
async fn an_append_does_not_take_hidden_events_for_none() {
    let db = support::database().await;
    let pool = least(&db).await;
    run(&db.pool, "alter table espd.events enable row level security; create policy add on espd.events for insert with check (true)")
        .await;
    let append = "select id from espd.append('{\"aggregate_id\": \"00000000-0000-4000-8000-000000000001\", \"type\": \"A\", \"body\": 1}')";
    let refused = sqlx::query(append).fetch_all(&pool).await.unwrap_err();
    let state = refused.as_database_error().and_then(|answer| answer.code().map(String::from));
    assert_eq!(state.as_deref(), Some("42501"), "{refused}");
}

#[tokio::test]
async fn a_daemon_waits_while_a_policy_hides_rows_and_loses_none() {
    let db = support::database().await;
    let pool = least(&db).await;
    let settings = "[runner]\npoll_interval_max = '50ms'\n";
    let installation = Installation::new(&least_url(&db), settings);
    installation.declare_notes("notes", "");
    let first = append(&db.pool, 2).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", first).await;
    run(&db.pool, "alter table espd.events enable row level security").await;
    append(&db.pool, 1).await;
    let advice = eventually("the outage", async || {
        let status = installation.status("notes").await;
        (status["state"] == "waiting").then(|| status["advice"].to_string())
    })
    .await;
    assert!(advice.contains("row security") && advice.contains("bypassrls"), "{advice}");
    assert_eq!(position(&db.pool, "notes").await, first);
    run(&db.pool, "alter table espd.events disable row level security").await;
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "notes", last).await;
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    daemon.stop().await;
    pool.close().await;
}

#[tokio::test]
async fn a_status_is_told_while_a_policy_hides_events_and_somebody_writes() {
    let db = support::database().await;
    let pool = least(&db).await;
    let installation = Installation::new(&least_url(&db), "");
    installation.declare_notes("notes", "");
    run(&db.pool, "alter table espd.events enable row level security").await;
    let mut writer = db.pool.begin().await.unwrap();
    let insert = "insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), 'A', 1, '{}')";
    sqlx::query(insert).execute(&mut *writer).await.unwrap();
    assert_eq!(installation.status("notes").await["name"], "notes");
    writer.rollback().await.unwrap();
    pool.close().await;
}
