//! `url` and `direct_url` are two ways to one database. Where they lead to two, nothing is handled.

use std::time::Duration;

use crate::admin::endpoint;
use crate::support::facts::{append, eventually, position, reaches};
use crate::support::pooler::Pooler;
use crate::support::program::{Installation, Program};
use crate::support::{self, Database};

const RUNNER: &str =
    "[runner]\npoll_interval_max = '50ms'\n[retry]\ninitial = '1s'\n[admin]\nlisten = '127.0.0.1:0'\n";

fn installation(url: &str, direct_url: &str) -> Installation {
    let store = format!("[event_store]\nurl = '{url}'\ndirect_url = '{direct_url}'\n{RUNNER}");
    let installation = Installation::without_database(&store);
    installation.declare_notes("notes", "");
    installation
}

/// Waits for a line whose error names both ways.
async fn complains(daemon: &Program) {
    eventually("a line that names the two ways", async || {
        daemon.log().into_iter().find(|line| {
            let error = line["error"].as_str().unwrap_or_default();
            error.contains("`direct_url`") && error.contains("another database")
        })
    })
    .await;
}

/// The endpoint says so as well: nothing can be handled.
async fn is_not_ready(daemon: &Program) {
    let client = endpoint(daemon).await;
    let ready = client.get("/readyz").await;
    assert!(ready.status == 503 && ready.body.contains("lead to different databases"), "{ready:?}");
    assert!(client.get("/metrics").await.body.contains("\nespd_database_up 0\n"));
}

/// Every surface says that the two differ.
async fn all_complain(installation: &Installation, section: &str) {
    for arguments in [&["check"][..], &["status"], &["pause", "notes"]] {
        let complaint = installation.espctl(arguments).await.complained(1);
        let names = complaint.contains("`url` and `direct_url`") && complaint.contains(section);
        assert!(names && complaint.contains("another database"), "{complaint}");
    }
    let doctor = installation.espctl(&["doctor", "--json"]).await;
    let findings: Vec<serde_json::Value> = serde_json::from_str(&doctor.stdout).unwrap();
    let fails = |finding: &serde_json::Value| finding["check"] == "ways" && finding["level"] == "failure";
    assert!(findings.iter().any(fails), "{findings:#?}");
}

#[tokio::test]
async fn a_slip_in_the_urls_handles_nothing() {
    let (one, other) = (support::database().await, support::database().await);
    append(&other.pool, 5).await;
    let installation = installation(&one.url, &other.url);
    all_complain(&installation, "[event_store]").await;
    let daemon = installation.start_daemon();
    complains(&daemon).await;
    is_not_ready(&daemon).await;
    assert_eq!((position(&one.pool, "notes").await, position(&other.pool, "notes").await), (0, 0));
    daemon.stop().await;
}

#[tokio::test]
async fn a_slip_in_the_urls_of_the_projections_handles_nothing() {
    let (events, one, other) =
        (support::database().await, support::database().await, support::database().await);
    append(&events.pool, 5).await;
    let elsewhere = format!("[projections]\nurl = '{}'\ndirect_url = '{}'\n{RUNNER}", one.url, other.url);
    let installation = Installation::new(&events.url, &elsewhere);
    installation.declare_notes("notes", "");
    all_complain(&installation, "[projections]").await;
    let daemon = installation.start_daemon();
    complains(&daemon).await;
    is_not_ready(&daemon).await;
    assert_eq!(position(&one.pool, "notes").await, 0);
    daemon.stop().await;
}

/// Runs a daemon through a pooler, leads the pooler to another database, and returns that one.
async fn repoint(installation: &Installation, pooler: &Pooler, events: &Database, db: &Database) -> Database {
    let daemon = installation.start_daemon();
    append(&events.pool, 10).await;
    reaches(&db.pool, "notes", 10).await;
    let other = support::database().await;
    pooler.repoint(&other);
    append(&events.pool, 10).await;
    complains(&daemon).await;
    is_not_ready(&daemon).await;
    // Whatever was under way is over by then; nothing more may move.
    let moved = position(&other.pool, "notes").await;
    assert_eq!(moved, 0, "the other database's position follows this one's events");
    // Back again, and it goes on where it was.
    pooler.repoint(db);
    reaches(&db.pool, "notes", 20).await;
    daemon.stop().await;
    other
}

#[tokio::test]
#[ignore = "needs pgbouncer: ./bin/test and ./.ci/run have it and run this"]
async fn a_pooler_that_is_led_elsewhere_handles_nothing() {
    let db = support::database().await;
    let pooler = Pooler::start(&db).await;
    let installation = installation(&pooler.alias_url(), &db.url);
    repoint(&installation, &pooler, &db, &db).await;
}

#[tokio::test]
#[ignore = "needs pgbouncer: ./bin/test and ./.ci/run have it and run this"]
async fn a_pooler_of_the_projections_that_is_led_elsewhere_handles_nothing() {
    let (events, db) = (support::database().await, support::database().await);
    let pooler = Pooler::start(&db).await;
    let ways = format!("url = '{}'\ndirect_url = '{}'", pooler.alias_url(), db.url);
    let installation = Installation::new(&events.url, &format!("[projections]\n{ways}\n{RUNNER}"));
    installation.declare_notes("notes", "");
    repoint(&installation, &pooler, &events, &db).await;
}

#[tokio::test]
#[ignore = "needs pgbouncer: ./bin/test and ./.ci/run have it and run this"]
async fn two_ways_to_one_database_are_no_trouble() {
    let db = support::database().await;
    let pooler = Pooler::start(&db).await;
    let installation = installation(&pooler.url(&db), &db.url);
    installation.espctl(&["check"]).await.printed();
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 10).await;
    reaches(&db.pool, "notes", last).await;
    // The session that the others are compared with is lost and made anew.
    let ended = sqlx::query_scalar::<_, i64>(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity
         where datname = current_database() and application_name like '%(watcher)'",
    );
    assert_eq!(ended.fetch_one(&db.pool).await.unwrap(), 1);
    let last = append(&db.pool, 10).await;
    reaches(&db.pool, "notes", last).await;
    assert!(daemon.logged("lost the database").is_empty());
    tokio::time::timeout(Duration::from_secs(30), daemon.stop()).await.unwrap();
}
