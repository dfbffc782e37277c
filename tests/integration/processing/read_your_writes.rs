//! Clients that read what they have just written.

use std::time::{Duration, Instant};

use espd::{Processors, WaitError};
use sqlx::{Connection as _, PgConnection, PgPool};

use crate::support::facts::{PATIENCE, append, position, reaches};
use crate::support::program::Installation;
use crate::support::{self, SCHEMA};

async fn wait_for(pool: &PgPool, name: &str, position: i64, timeout: &str) -> Result<bool, String> {
    let query = sqlx::query_scalar("select espd.wait_for($1, $2, $3::interval)");
    let waited = query.bind(name).bind(position).bind(timeout).fetch_one(pool).await;
    waited.map_err(|error| error.to_string())
}

#[tokio::test]
async fn one_statement_returns_when_the_processor_is_there() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    installation.declare_notes("notes", "");
    let last = append(&db.pool, 5).await;
    // It begins to wait before there is a tracker.
    let waiting = tokio::spawn({
        let pool = db.pool.clone();
        async move { wait_for(&pool, "notes", last, "60 s").await }
    });
    let daemon = installation.start_daemon();
    assert_eq!(waiting.await.unwrap(), Ok(true));
    assert!(position(&db.pool, "notes").await >= last);
    assert_eq!(wait_for(&db.pool, "notes", last + 1, "20 ms").await, Ok(false));
    assert_eq!(wait_for(&db.pool, "others", last, "20 ms").await, Ok(false));

    // Who is paused does not come: nobody waits for that.
    installation.espctl(&["pause", "notes"]).await.printed();
    let last = append(&db.pool, 1).await;
    let begun = Instant::now();
    assert_eq!(wait_for(&db.pool, "notes", last, "60 s").await, Ok(false));
    assert!(begun.elapsed() < Duration::from_secs(30));
    daemon.stop().await;
}

#[tokio::test]
async fn a_wait_that_could_never_end_is_refused() {
    let db = support::database().await;
    append(&db.pool, 1).await;
    let said = wait_for(&db.pool, "notes", 1, "61 s").await.unwrap_err();
    assert!(said.contains("0 to 60 seconds"), "{said}");
    let mut connection = PgConnection::connect(&db.url).await.unwrap();
    for (first, words) in [
        ("begin isolation level repeatable read", "repeatable read"),
        (
            "begin; select espd.append('[]'); insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), 'A', 1, '{}')",
            "has written",
        ),
    ] {
        sqlx::raw_sql(first).execute(&mut connection).await.unwrap();
        let waited = sqlx::raw_sql("select espd.wait_for('notes', 1)").execute(&mut connection).await;
        let error = waited.unwrap_err();
        assert_eq!(error.as_database_error().and_then(|error| error.code()).as_deref(), Some("25001"));
        assert!(error.to_string().contains(words), "{error}");
        sqlx::raw_sql("rollback").execute(&mut connection).await.unwrap();
    }
}

#[tokio::test]
async fn an_application_waits_without_holding_a_connection() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    installation.declare_notes("notes", "");
    let processors = Processors::new(db.pool.clone(), SCHEMA).unwrap();
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 5).await;
    assert_eq!(processors.wait_for("notes", last, PATIENCE).await.unwrap().get(), last);
    let notes: i64 = sqlx::query_scalar("select count(*) from notes").fetch_one(&db.pool).await.unwrap();
    assert_eq!(notes, 5);
    let late = processors.wait_for("notes", last + 1, Duration::from_millis(1)).await.unwrap_err();
    assert_eq!(late.to_string(), format!("notes has not reached {} in time: it is at {last}", last + 1));
    installation.espctl(&["pause", "notes"]).await.printed();
    let paused = processors.wait_for("notes", last + 1, PATIENCE).await.unwrap_err();
    assert!(matches!(paused, WaitError::Blocked { .. }), "{paused}");
    daemon.stop().await;
}

#[tokio::test]
async fn espctl_waits_until_nothing_is_left_to_do() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    installation.declare_notes("notes", "");
    installation.declare(
        "reminders",
        "[reactor]\nname = 'reminders'\nstart = 'beginning'\nemits = ['B', 'C']\n\
         [[reactor.on]]\nevents = ['A']\nsql = '''\n\
         perform espd.emit_after('B', event.aggregate_id, '{}', '1 ms');\n\
         perform espd.emit_after('C', event.aggregate_id, '{}', '9 days', 'k' || event.id);'''\n",
    );
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 2).await;
    let outcome = installation.espctl(&["wait", "--all", "--idle", "--timeout", "60s"]).await;
    let emitted: i64 = sqlx::query_scalar("select count(*) from espd.events where type = 'B'")
        .fetch_one(&db.pool)
        .await
        .unwrap();
    assert_eq!(emitted, 2);
    let head = last + 2;
    assert_eq!(outcome.stdout, format!("idle: everything is handled up to {head}\n"));
    assert_eq!(outcome.stderr.matches("not waited for: C of reminders at ").count(), 2, "{}", outcome.stderr);
    reaches(&db.pool, "notes", head).await;

    installation.espctl(&["pause", "notes"]).await.printed();
    append(&db.pool, 1).await;
    let complaint =
        installation.espctl(&["wait", "--all", "--idle", "--timeout", "100ms"]).await.complained(75);
    assert!(complaint.contains("notes is not idle in time"), "{complaint}");
    daemon.stop().await;
}
