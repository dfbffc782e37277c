//! `espctl doctor`: finds each thing that may be wrong, names it and has a remedy.

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};

use crate::support;
use crate::support::facts::append;
use crate::support::program::Installation;

async fn run(pool: &PgPool, statements: &str) {
    sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(pool).await.unwrap();
}

/// The findings of one check.
async fn findings(installation: &Installation, check: &str) -> Vec<Value> {
    let outcome = installation.espctl(&["doctor", "--json"]).await;
    let findings: Vec<Value> =
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|_| panic!("{outcome:?}"));
    let failures = findings.iter().filter(|finding| finding["level"] == "failure").count();
    assert_eq!(outcome.code, Some(i32::from(failures > 0)), "{outcome:?}");
    assert!(findings.iter().all(|finding| (finding["level"] == "ok") == finding["remedy"].is_null()));
    findings.into_iter().filter(|finding| finding["check"] == check).collect()
}

/// The only finding of a check, which has to have this level.
async fn finds(installation: &Installation, check: &str, level: &str) -> String {
    let found = findings(installation, check).await;
    assert!(found.len() == 1 && found[0]["level"] == level, "{check}: {found:?}");
    format!("{} | {}", found[0]["message"], found[0]["remedy"])
}

#[tokio::test]
async fn a_sound_store_gets_a_line_for_each_thing() {
    let settings = [("fsync", "on"), ("full_page_writes", "on"), ("synchronous_commit", "on")];
    let server = support::server_with(&settings).await;
    server.create_database("sound", None).await.unwrap();
    let installation = Installation::new(&server.url("sound"), "");
    installation.espctl(&["migrate"]).await.printed();
    let pool = PgPool::connect(&server.url("sound")).await.unwrap();
    append(&pool, 3).await;
    let said = installation.espctl(&["doctor"]).await.printed();
    for check in
        ["server_version", "primary", "sequence", "pooler", "notifications", "clock", "triggers", "horizon"]
    {
        let line = said
            .lines()
            .find(|line| line.contains(&format!(" {check} ")))
            .unwrap_or_else(|| panic!("{said}"));
        assert!(line.starts_with("ok "), "{line}");
    }
    assert!(said.contains("settled up to 3, the head is 3"), "{said}");
    assert!(!said.contains("FAILURE") && !said.contains('\x1b'), "{said}");
    pool.close().await;
    server.stop().await;
}

#[tokio::test]
async fn what_loses_events_is_a_failure() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    for (breaks, check, says, fixes) in [
        (
            "alter sequence espd.events_id_seq cache 5",
            "sequence",
            "cache 5",
            "alter sequence espd.events_id_seq cache 1",
        ),
        (
            "alter table espd.events set unlogged",
            "events_logged",
            "unlogged",
            "alter table espd.events set logged",
        ),
        (
            "insert into espd.trackers (name, kind, version, position, handled)
             values ('p', 'projector', 1, 99, 1)",
            "running",
            "p is at position 99",
            "delete from espd.trackers",
        ),
    ] {
        finds(&installation, check, "ok").await;
        run(&db.pool, breaks).await;
        let found = finds(&installation, check, "failure").await;
        assert!(found.contains(says), "{found}");
        run(&db.pool, fixes).await;
    }
    run(&db.pool, "delete from espd._processing_migrations").await;
    let found = finds(&installation, "processing_schema", "failure").await;
    assert!(found.contains("espctl migrate"), "{found}");
    run(&db.pool, "drop table espd.events").await;
    finds(&installation, "events_table", "failure").await;
}

#[tokio::test]
async fn a_position_that_was_chosen_for_a_store_still_to_come_is_no_failure() {
    let db = support::database().await;
    append(&db.pool, 5).await;
    run(
        &db.pool,
        "insert into espd.trackers (name, kind, version, position) values ('early', 'reactor', 1, 50)",
    )
    .await;
    let outcome = Installation::new(&db.url, "").espctl(&["doctor", "--json"]).await;
    let findings: Vec<Value> = serde_json::from_str(&outcome.stdout).unwrap();
    let told = |finding: &Value| finding["message"].as_str().is_some_and(|message| message.contains("50"));
    let failures = findings.iter().filter(|finding| finding["level"] == "failure" && told(finding));
    assert_eq!(failures.count(), 0, "{findings:?}");
}

#[tokio::test]
async fn what_works_badly_is_a_warning() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    installation.declare_notes("notes", "");
    let found = finds(&installation, "processors", "warning").await;
    assert!(found.contains("notes is declared and has never run"), "{found}");
    run(&db.pool, "insert into espd.trackers (name, kind, version) values ('notes', 'projector', 1)").await;
    finds(&installation, "processors", "ok").await;
    run(&db.pool, "insert into espd.trackers (name, kind, version) values ('gone', 'projector', 1)").await;
    let found = finds(&installation, "processors", "warning").await;
    assert!(found.contains("gone has a tracker at 0 and is not declared"), "{found}");
    run(&db.pool, "delete from espd.trackers where name = 'gone'; update espd.trackers set version = 2")
        .await;
    finds(&installation, "processors", "failure").await;

    run(
        &db.pool,
        "create function noisy() returns trigger language plpgsql as 'begin return new; end';
         create trigger noisy after insert on espd.events for each row execute function noisy()",
    )
    .await;
    let found = finds(&installation, "triggers", "warning").await;
    assert!(found.contains("trigger noisy on"), "{found}");

    let mut writer = db.pool.begin().await.unwrap();
    sqlx::query("insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), 'A', 1, '{}')")
        .execute(&mut *writer)
        .await
        .unwrap();
    let found = finds(&installation, "horizon", "warning").await;
    assert!(found.contains("wait for open transactions of writers"), "{found}");
    writer.rollback().await.unwrap();

    run(&db.pool, &format!("alter database {} set statement_timeout = '500ms'", db.name)).await;
    let found = finds(&installation, "timeouts", "warning").await;
    assert!(found.contains("statement_timeout is 500 ms"), "{found}");
    run(&db.pool, &format!("alter database {} set synchronous_commit = off", db.name)).await;
    // The server of the tests runs with fsync and full_page_writes off.
    let found = findings(&installation, "durability").await;
    let said: Vec<&str> = found.iter().map(|finding| finding["level"].as_str().unwrap()).collect();
    assert_eq!(said, ["failure", "failure", "warning"], "{found:?}");
}

#[tokio::test]
async fn missing_privileges_are_found_with_the_grants_that_give_them() {
    let db = support::database().await;
    let role = format!("poor_{}", db.name);
    run(&db.pool, &format!("create role {role} login; grant usage on schema espd to {role}; grant select on all tables in schema espd to {role}")).await;
    let url = db.url.replace("//espd@", &format!("//{role}@")).replace("user=espd", &format!("user={role}"));
    assert_ne!(url, db.url);
    let installation = Installation::new(&url, "[projections]\nschema = 'views'\n");
    finds(&installation, "role", "ok").await;
    finds(&installation, "events_readable", "failure").await;
    let missing = findings(&installation, "privileges").await;
    let remedies: Vec<&str> = missing.iter().map(|finding| finding["remedy"].as_str().unwrap()).collect();
    assert_eq!(remedies.len(), 6, "{remedies:?}");
    run(&db.pool, "grant select on all sequences in schema espd to public").await;
    for remedy in remedies {
        run(&db.pool, remedy).await;
    }
    finds(&installation, "privileges", "ok").await;
    finds(&installation, "events_readable", "ok").await;
    finds(&installation, "sessions_visible", "warning").await;
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_the_only_finding() {
    let installation = Installation::new("postgres://nobody@127.0.0.1:9/none", "");
    let found = finds(&installation, "connection", "failure").await;
    assert!(found.contains("could not connect"), "{found}");
}

#[tokio::test]
async fn a_database_that_does_not_wait_for_the_disk_is_told_what_that_means() {
    let db = support::database().await;
    run(&db.pool, &format!("alter database {} set synchronous_commit = off", db.name)).await;
    let installation = Installation::new(&db.url, "");
    let found = findings(&installation, "durability").await;
    let found = found
        .iter()
        .find(|finding| finding["message"].as_str().unwrap().starts_with("synchronous_commit is off"))
        .unwrap_or_else(|| panic!("{found:?}"));
    let message = found["message"].as_str().unwrap();
    assert!(message.contains("An event may be among them that a reactor has acted on"), "{message}");
    let remedy = format!("alter database {} set synchronous_commit = on;", db.name);
    assert_eq!((found["level"].as_str(), found["remedy"].as_str()), (Some("warning"), Some(remedy.as_str())));
}

#[tokio::test]
async fn the_connections_that_a_configuration_needs_are_counted_and_compared_with_those_that_are_left() {
    let server = support::server_with(&[("max_connections", "25")]).await;
    server.create_database("small", None).await.unwrap();
    let url = server.url("small");
    let needs = "the daemon needs 28 connections as configured, 28 with isolation = \"process\" and 10 with \"task\"; ";
    for (isolation, level, needs) in [
        ("process", "warning", needs.to_owned()),
        ("task", "ok", needs.replace("28 connections", "10 connections")),
    ] {
        let installation = Installation::new(&url, &format!("[runner]\nisolation = '{isolation}'\n"));
        for number in 0..12 {
            installation.declare_notes(&format!("notes_{number}"), "");
        }
        installation.espctl(&["migrate"]).await.printed();
        let found = findings(&installation, "connections").await;
        let said = found[0]["message"].as_str().unwrap();
        assert!(found.len() == 1 && found[0]["level"] == level, "{found:?}");
        assert!(said.starts_with(&needs) && said.ends_with(" are left for it"), "{said}");
        let said = installation.espctl(&["check"]).await.printed();
        assert!(said.starts_with(&format!("note: {needs}")), "{said}");
    }
    server.stop().await;
}
