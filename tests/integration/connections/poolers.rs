//! Poolers that cannot do what espd does through them: every URL is tried, and the pooler is named.

use sqlx::{Connection as _, PgConnection};

use crate::support;
use crate::support::facts::{append, eventually, reaches};
use crate::support::pooler::Pooler;
use crate::support::program::Installation;

fn both(url: &str, direct_url: &str) -> Installation {
    let installation = Installation::without_database(&format!(
        "[event_store]\nurl = '{url}'\ndirect_url = '{direct_url}'\n"
    ));
    installation.declare_notes("notes", "");
    installation
}

/// `check` refuses and the doctor fails, both with these words.
async fn both_say(installation: &Installation, words: &[&str]) {
    let complaint = installation.espctl(&["check"]).await.complained(1);
    // The few connections of the pooler may all be taken at a moment.
    let findings = eventually("the doctor's findings", async || {
        let doctor = installation.espctl(&["doctor", "--json"]).await;
        serde_json::from_str::<Vec<serde_json::Value>>(&doctor.stdout).ok()
    })
    .await;
    let failures: Vec<String> =
        findings.iter().filter(|finding| finding["level"] == "failure").map(ToString::to_string).collect();
    for word in words {
        assert!(complaint.contains(word), "{word}: {complaint}");
        assert!(failures.iter().any(|failure| failure.contains(word)), "{word}: {findings:#?}");
    }
}

#[tokio::test]
#[ignore = "needs pgbouncer: ./bin/test and ./.ci/run have it and run this"]
async fn a_pooler_in_statement_mode_is_refused_by_name() {
    let db = support::database().await;
    let settings = "pool_mode = statement\nignore_startup_parameters = extra_float_digits\n";
    let pooler = Pooler::start_with(&db, settings).await;
    let installation = both(&pooler.alias_url(), &db.url);
    both_say(&installation, &["PgBouncer", "statement mode", "`url`", "transaction"]).await;
}

#[tokio::test]
#[ignore = "needs pgbouncer: ./bin/test and ./.ci/run have it and run this"]
async fn a_pooler_without_a_free_connection_is_named() {
    let db = support::database().await;
    let settings = "pool_mode = transaction\ndefault_pool_size = 1\nquery_wait_timeout = 1\n\
                    ignore_startup_parameters = extra_float_digits\n";
    let pooler = Pooler::start_with(&db, settings).await;
    let installation = both(&pooler.alias_url(), &db.url);
    let mut holder = PgConnection::connect(&pooler.alias_url()).await.unwrap();
    let held = holder.begin().await.unwrap();
    both_say(&installation, &["`url`", "query_wait_timeout"]).await;
    // A daemon that waits for it says so.
    let daemon = installation.start_daemon();
    let waits = eventually("the daemon in status", async || {
        let said = installation.espctl(&["status"]).await.printed();
        (said.contains("query_wait_timeout") && said.contains("waiting")).then_some(said)
    })
    .await;
    assert!(!waits.contains("Start `espd run`"), "{waits}");
    held.rollback().await.unwrap();
    let last = append(&db.pool, 3).await;
    reaches(&db.pool, "notes", last).await;
    daemon.stop().await;
}

#[tokio::test]
#[ignore = "needs pgbouncer: ./bin/test and ./.ci/run have it and run this"]
async fn a_pooler_needs_no_list_of_parameters_to_ignore() {
    let db = support::database().await;
    let pooler = Pooler::start_with(&db, "pool_mode = transaction\ndefault_pool_size = 2\n").await;
    let installation = both(&pooler.alias_url(), &db.url);
    installation.espctl(&["check"]).await.printed();
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 3).await;
    reaches(&db.pool, "notes", last).await;
    daemon.stop().await;
}

#[tokio::test]
#[ignore = "needs pgbouncer: ./bin/test and ./.ci/run have it and run this"]
async fn a_pooler_without_a_way_past_it_is_refused_by_name() {
    let db = support::database().await;
    let pooler = Pooler::start(&db).await;
    let installation = Installation::new(&pooler.alias_url(), "");
    installation.declare_notes("notes", "");
    both_say(&installation, &["PgBouncer", "transaction mode", "`direct_url`"]).await;
    // Every command says so, and the first time.
    let line = r#"{"aggregate_id":"149d5c70-a373-4857-91e2-1d5ea90c27e4","type":"A","body":{}}"#;
    for command in
        [&["append"][..], &["status"], &["wait", "notes"], &["pause", "notes"], &["reload"], &["plan"]]
    {
        let complaint = installation.espctl_fed(command, line).await.complained(1);
        assert!(
            complaint.contains("PgBouncer") && complaint.contains("`direct_url`"),
            "{command:?}: {complaint}"
        );
    }
    let states = installation.espctl(&["graph", "--state"]).await;
    assert!(states.stderr.contains("`direct_url`"), "{states:?}");
    let count: i64 =
        sqlx::query_scalar("select count(*) from espd.events").fetch_one(&db.pool).await.unwrap();
    assert_eq!(count, 0);
    // The other way round as well.
    both_say(&both(&db.url, &pooler.alias_url()), &["PgBouncer", "transaction mode", "`direct_url`"]).await;
}

/// Nothing is handled then, whatever the direct way does.
#[tokio::test]
#[ignore = "needs pgbouncer: ./bin/test and ./.ci/run have it and run this"]
async fn a_pooler_that_has_ended_makes_the_daemon_not_ready() {
    let db = support::database().await;
    let pooler = Pooler::start(&db).await;
    let settings = format!(
        "[event_store]\nurl = '{}'\ndirect_url = '{}'\n[admin]\nlisten = '127.0.0.1:0'\n",
        pooler.alias_url(),
        db.url
    );
    let installation = Installation::without_database(&settings);
    installation.declare_notes("notes", "");
    let daemon = installation.start_daemon();
    let client = crate::admin::endpoint(&daemon).await;
    let last = append(&db.pool, 3).await;
    reaches(&db.pool, "notes", last).await;
    client.get("/readyz").await.json(200);
    assert!(client.get("/metrics").await.body.contains("\nespd_database_up 1\n"));
    drop(pooler);
    let ready = eventually("it is not ready", async || {
        let reply = client.get("/readyz").await;
        (reply.status == 503).then_some(reply.body)
    })
    .await;
    assert!(ready.contains("[event_store] `url`"), "{ready}");
    let metrics = client.get("/metrics").await.body;
    assert!(
        metrics.contains("\nespd_database_up 0\n") && metrics.contains("espd_processor_position"),
        "{metrics}"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_way_that_leads_nowhere_is_no_database_that_answers() {
    let db = support::database().await;
    let settings = format!(
        "[event_store]\nurl = 'postgres://espd@127.0.0.1:1/shop'\ndirect_url = '{}'\n[admin]\nlisten = '127.0.0.1:0'\n",
        db.url
    );
    let installation = Installation::without_database(&settings);
    installation.declare_notes("notes", "");
    let daemon = installation.start_daemon();
    let client = crate::admin::endpoint(&daemon).await;
    let ready = client.get("/readyz").await;
    assert!(ready.status == 503 && ready.body.contains("[event_store] `url`"), "{ready:?}");
    assert!(client.get("/metrics").await.body.contains("\nespd_database_up 0\n"));
    daemon.stop().await;
}

#[tokio::test]
async fn a_url_that_leads_nowhere_is_named_although_the_other_works() {
    let db = support::database().await;
    let installation = both("postgres://espd@127.0.0.1:1/shop", &db.url);
    both_say(&installation, &["`url`", "Connection refused"]).await;
}
