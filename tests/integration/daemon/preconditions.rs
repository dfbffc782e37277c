//! What must be true of a store before it may be read is checked again and again while the daemon runs: nothing is handled
//! that was read while it was not known to hold, and everything is when it holds again.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};

use crate::support::facts::{append, assert_exactly_once, eventually, position, reaches};
use crate::support::program::{Installation, Program};
use crate::support::{self, Database};

const RUNNER: &str = "[runner]\npoll_interval_max = '50ms'\n";

/// A store with ten events that projector `seen` has noted; it skips what it cannot handle.
async fn seen() -> (Database, Installation, Program) {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    let daemon = start(&db, &installation).await;
    (db, installation, daemon)
}

async fn start(db: &Database, installation: &Installation) -> Program {
    installation.declare_notes("seen", "");
    let last = append(&db.pool, 10).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "seen", last).await;
    daemon
}

async fn run(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.unwrap();
}

/// Waits until the status says why nothing is handled, in these words.
async fn is_told(installation: &Installation, words: &str) {
    let what = format!("a status that says {words:?}");
    eventually(&what, async || {
        let status = installation.status("seen").await;
        status["advice"].to_string().contains(words).then_some(())
    })
    .await;
}

/// The store is broken, an event is appended, the operator is told why it is not handled, the store is repaired; then every
/// event is handled once.
async fn is_noticed_and_recovered_from(breaking: &str, words: &str, repair: &str) {
    let (db, installation, daemon) = seen().await;
    run(&db.pool, breaking).await;
    append(&db.pool, 1).await;
    is_told(&installation, words).await;
    assert_eq!(position(&db.pool, "seen").await, 10, "an event was handled in spite of it");
    let said =
        daemon.says("the event store cannot be read safely: nothing is handled until it is repaired").await;
    assert!(said["error"].as_str().unwrap().contains(words), "{said}");
    run(&db.pool, repair).await;
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "seen", last).await;
    assert_exactly_once(&db.pool, &db.pool, "seen").await;
    eventually("a status without trouble", async || {
        (installation.status("seen").await["advice"] == serde_json::json!([])).then_some(())
    })
    .await;
    let dead: i64 =
        sqlx::query_scalar("select count(*) from espd.dead_letters").fetch_one(&db.pool).await.unwrap();
    assert_eq!(dead, 0);
    daemon.stop().await;
}

#[tokio::test]
async fn a_sequence_that_hands_out_ids_in_blocks_while_running() {
    is_noticed_and_recovered_from(
        "alter sequence espd.events_id_seq cache 50",
        "cache 50",
        "alter sequence espd.events_id_seq cache 1",
    )
    .await;
}

#[tokio::test]
async fn a_column_of_another_type_while_running() {
    is_noticed_and_recovered_from(
        "alter table espd.events alter column version type int",
        "column version should be bigint, is integer",
        "alter table espd.events alter column version type bigint",
    )
    .await;
}

#[tokio::test]
async fn ids_above_the_sequence_while_running() {
    let (db, installation, daemon) = seen().await;
    run(
        &db.pool,
        "insert into espd.events (id, aggregate_id, type, version, body) overriding system value
         values (100, gen_random_uuid(), 'A', 1, '{}')",
    )
    .await;
    is_told(&installation, "select setval(").await;
    run(&db.pool, "select setval('espd.events_id_seq', 100)").await;
    reaches(&db.pool, "seen", 100).await;
    assert_exactly_once(&db.pool, &db.pool, "seen").await;
    daemon.stop().await;
}

/// Events that arrived while they were hidden are there when they are shown again.
#[tokio::test]
async fn row_security_while_running() {
    let db = support::database().await;
    let role = format!("least_{}", db.name);
    run(
        &db.pool,
        &format!(
            "create role {role} login; grant usage, create on schema espd, public to {role};
             grant all on all tables in schema espd to {role}; grant all on all sequences in schema espd to {role};
             grant execute on all functions in schema espd to {role}; grant pg_read_all_stats to {role}"
        ),
    )
    .await;
    let url = db.url.replace("//espd@", &format!("//{role}@")).replace("user=espd", &format!("user={role}"));
    let installation = Installation::new(&url, RUNNER);
    let daemon = start(&db, &installation).await;
    run(&db.pool, "alter table espd.events enable row level security").await;
    append(&db.pool, 1).await;
    // To the owner, because the daemon's role sees nothing any more.
    let owner = Installation::new(&db.url, RUNNER);
    owner.declare_notes("seen", "");
    is_told(&owner, "row security").await;
    run(&db.pool, "alter table espd.events disable row level security").await;
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "seen", last).await;
    assert_exactly_once(&db.pool, &db.pool, "seen").await;
    daemon.stop().await;
    run(&db.pool, &format!("drop owned by {role}; drop role {role}")).await;
}

/// A session that draws blocks of ids uses the last of them when the other events are long handled.
#[tokio::test]
async fn no_event_is_lost_between_a_cached_sequence_and_its_repair() {
    let (db, _installation, daemon) = seen().await;
    let mut one = PgConnection::connect(&db.url).await.unwrap();
    let mut other = PgConnection::connect(&db.url).await.unwrap();
    run(&db.pool, "alter sequence espd.events_id_seq cache 50").await;
    const INSERT: &str = "insert into espd.events (aggregate_id, type, version, body)
                          values (gen_random_uuid(), 'A', 1, '{}')";
    for _ in 0..5 {
        sqlx::raw_sql(INSERT).execute(&mut one).await.unwrap();
        sqlx::raw_sql(INSERT).execute(&mut other).await.unwrap();
    }
    daemon.says("the event store cannot be read safely: nothing is handled until it is repaired").await;
    sqlx::raw_sql(INSERT).execute(&mut one).await.unwrap();
    // As the message says.
    run(&db.pool, "alter sequence espd.events_id_seq cache 1").await;
    one.close().await.unwrap();
    other.close().await.unwrap();
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "seen", last).await;
    assert_exactly_once(&db.pool, &db.pool, "seen").await;
    daemon.stop().await;
}
