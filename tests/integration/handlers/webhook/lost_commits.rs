//! Commits that the server forgets in a crash, or never makes: nothing in memory outlives them.

use std::time::Duration;

use espd::embedded::{EmbeddedPostgres, StopMode};
use serde_json::json;
use sqlx::Connection as _;

use super::{append, count, declare, installation};
use crate::support::facts::{eventually, reaches};
use crate::support::receiver::{Received, Receiver, Reply};
use crate::support::{self, Database};

const PARK_AT_ONCE: &str = "initial = '20ms'\nmax_attempts = 1\non_failure = 'park'\n";

/// A database on a server of its own, which writes commits that may be lost to disk as late as it can.
async fn forgetful_server() -> (EmbeddedPostgres, Database) {
    let server = support::server_with(&[("wal_writer_delay", "10s")]).await;
    let db = support::database_on(&server).await;
    (server, db)
}

async fn dead_letters(db: &Database) -> Vec<(i64, String)> {
    let query = "select event_id, reason from espd.dead_letters order by event_id";
    sqlx::query_as(query).fetch_all(&db.pool).await.unwrap()
}

/// The first event is parked and this one waits behind it.
fn with_one_behind(waiting: i64) -> [(i64, String); 2] {
    [(1, "failed".to_owned()), (waiting, "waiting".to_owned())]
}

/// A good answer that takes long, the first time.
fn late_once(request: &Received) -> Reply {
    let time = Duration::from_millis(if request.earlier == 0 { 2_500 } else { 0 });
    Reply::After(time, Box::new(Reply::Status(200)))
}

#[tokio::test]
async fn an_event_that_waits_behind_a_parked_one_survives_a_crash_of_the_server() {
    let (server, db) = forgetful_server().await;
    let receiver = Receiver::start(|request| match request.n() {
        1 => Reply::Status(500),
        9 => late_once(request),
        _ => Reply::Status(200),
    })
    .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", PARK_AT_ONCE);
    append(&db.pool, &[(1, 1), (2, 9)]).await;
    let daemon = installation.start_daemon();
    eventually("the parked event", async || (dead_letters(&db).await.len() == 1).then_some(())).await;
    let last = append(&db.pool, &[(1, 2)]).await;
    eventually("the event behind it", async || (dead_letters(&db).await.len() == 2).then_some(())).await;
    let server = server.restart(StopMode::Immediate).await.unwrap();
    reaches(&db.pool, "hook", last).await;
    assert_eq!(dead_letters(&db).await, with_one_behind(3));
    assert!(!receiver.numbers().contains(&2), "{:?}", receiver.numbers());
    daemon.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn an_emission_survives_a_crash_where_the_database_does_not_wait_for_the_disk() {
    let (server, db) = forgetful_server().await;
    let receiver = Receiver::start(|request| {
        if request.n() == 9 {
            return late_once(request);
        }
        let emission = json!({ "type": "Answered", "aggregate_id": request.aggregate(), "body": {} });
        Reply::json(&json!({ "emit": [emission] }))
    })
    .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "emits = ['Answered']", "", "");
    append(&db.pool, &[(2, 9)]).await;
    sqlx::query("alter database shop set synchronous_commit = off").execute(&db.pool).await.unwrap();
    let daemon = installation.start_daemon();
    receiver.receives(1).await;
    // This session waits for the disk, as it was opened before.
    let last = append(&db.pool, &[(1, 2)]).await;
    let answers = "select count(*) from espd.events where type = 'Answered'";
    eventually("the answer", async || (count(&db.pool, answers).await == 1).then_some(())).await;
    let server = server.restart(StopMode::Immediate).await.unwrap();
    reaches(&db.pool, "hook", last).await;
    assert_eq!(count(&db.pool, answers).await, 1);
    daemon.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn an_event_never_overtakes_one_whose_parking_was_interrupted() {
    let db = support::database().await;
    let receiver = Receiver::start(|request| Reply::Status(if request.n() == 1 { 500 } else { 200 })).await;
    let installation = super::Installation::new(&db.url, "[runner]\nbatch_size = 1\n");
    declare(&installation, &receiver, "", "", PARK_AT_ONCE);
    append(&db.pool, &[(1, 1)]).await;
    let mut holder = db.pool.acquire().await.unwrap().detach();
    let mut lock = holder.begin().await.unwrap();
    sqlx::query("lock table espd.dead_letters in share mode").execute(&mut *lock).await.unwrap();
    let daemon = installation.start_daemon();
    let blocked = eventually("the runner waits for the lock", async || {
        let query = "select pid from pg_stat_activity where application_name = 'espd: hook'
             and wait_event_type = 'Lock' and datname = current_database()";
        sqlx::query_scalar::<_, i32>(query).fetch_optional(&db.pool).await.unwrap()
    })
    .await;
    let last = append(&db.pool, &[(1, 2)]).await;
    sqlx::query("select pg_terminate_backend($1)").bind(blocked).execute(&db.pool).await.unwrap();
    lock.rollback().await.unwrap();
    reaches(&db.pool, "hook", last).await;
    assert_eq!(dead_letters(&db).await, with_one_behind(2));
    assert!(!receiver.numbers().contains(&2), "{:?}", receiver.numbers());
    daemon.stop().await;
}
