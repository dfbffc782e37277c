//! Requests go on while the database is at work.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use sqlx::PgPool;

use super::{QUICK, append, declare, installation};
use crate::support;
use crate::support::facts::{eventually, reaches};
use crate::support::receiver::{Receiver, Reply};

/// Waits until such a statement has waited for a lock for so many seconds.
async fn waits(pool: &PgPool, pattern: &str, seconds: f64) {
    eventually(&format!("{pattern} that waits {seconds} s"), async || {
        let statement = "select exists (select from pg_stat_activity where wait_event_type = 'Lock'
                         and datname = current_database() and query like $1
                         and clock_timestamp() - query_start > $2 * interval '1 second')";
        let query = sqlx::query_scalar::<_, bool>(statement).bind(pattern).bind(seconds);
        query.fetch_one(pool).await.unwrap().then_some(())
    })
    .await;
}

/// Whoever holds the tracker may be a new owner.
#[tokio::test]
async fn nothing_is_begun_for_long_while_somebody_else_holds_the_tracker() {
    let db = support::database().await;
    let receiver =
        Receiver::start(|_| Reply::After(Duration::from_millis(10), Box::new(Reply::Status(200)))).await;
    let events: Vec<(u128, i64)> = (1..=900).map(|n| (n as u128, n)).collect();
    let last = append(&db.pool, &events).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "concurrency = 1", QUICK);
    let daemon = installation.start_daemon();
    receiver.receives(1).await;
    let mut holding = db.pool.begin().await.unwrap();
    let lock = "select from espd.trackers where name = 'hook' for update";
    sqlx::query(lock).execute(&mut *holding).await.unwrap();
    waits(&db.pool, "%lock_tracker%", 1.5).await;
    let begun = receiver.received().len();
    waits(&db.pool, "%lock_tracker%", 2.5).await;
    assert_eq!(receiver.received().len(), begun);
    assert!(begun < 900);
    holding.rollback().await.unwrap();
    reaches(&db.pool, "hook", last).await;
    assert_eq!(receiver.numbers(), (1..=900).collect::<Vec<i64>>());
    daemon.stop().await;
}

#[tokio::test]
async fn events_that_were_read_are_sent_while_a_commit_waits() {
    let db = support::database().await;
    let receiver =
        Receiver::start(|_| Reply::After(Duration::from_millis(10), Box::new(Reply::Status(200)))).await;
    let events: Vec<(u128, i64)> = (1..=300).map(|n| (n as u128, n)).collect();
    let last = append(&db.pool, &events).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "concurrency = 1", QUICK);
    let daemon = installation.start_daemon();
    receiver.receives(1).await;
    // As long as nobody can note a witness, nothing can be committed.
    let mut holding = db.pool.begin().await.unwrap();
    let lock = "lock table espd.witnesses in exclusive mode";
    sqlx::query(lock).execute(&mut *holding).await.unwrap();
    waits(&db.pool, "%advance_tracker%", 0.0).await;
    assert!(receiver.received().len() < 300);
    receiver.receives(300).await;
    holding.rollback().await.unwrap();
    reaches(&db.pool, "hook", last).await;
    assert_eq!(receiver.numbers(), (1..=300).collect::<Vec<i64>>());
    daemon.stop().await;
}

/// It was in no transaction, so that nobody had to end its session: the first sign of it is that a transaction does not begin.
#[tokio::test]
async fn an_owner_that_was_frozen_while_it_waited_for_answers_begins_nothing_when_it_wakes() {
    let db = support::database().await;
    let receiver =
        Receiver::start(|_| Reply::After(Duration::from_millis(400), Box::new(Reply::Status(200)))).await;
    let events: Vec<(u128, i64)> = (1..=40).map(|n| (n as u128, n)).collect();
    let last = append(&db.pool, &events).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "concurrency = 2", QUICK);
    let owner = installation.start_daemon();
    receiver.receives(1).await;
    let standby = installation.start_daemon();
    standby.says("standing by: another daemon owns the processor").await;
    let worker = owner.child("hook", 1).await;
    let sent = receiver.received().len();
    receiver.receives(sent + 1).await;
    // What was answered before is committed by then.
    tokio::time::sleep(Duration::from_millis(200)).await;
    for pid in [owner.pid(), worker] {
        kill(pid, Signal::SIGSTOP).unwrap();
    }
    assert!(receiver.received().len() < 36, "hardly anything is left to send");
    reaches(&db.pool, "hook", last).await;
    let sent = receiver.received().len();
    for pid in [worker, owner.pid()] {
        kill(pid, Signal::SIGCONT).unwrap();
    }
    owner.says("standing by: another daemon owns the processor").await;
    assert_eq!(receiver.received().len(), sent, "what was sent after later events had been");
    owner.stop().await;
    standby.stop().await;
}

#[tokio::test]
async fn an_owner_that_was_frozen_begins_nothing_when_it_wakes() {
    let db = support::database().await;
    let receiver =
        Receiver::start(|_| Reply::After(Duration::from_millis(10), Box::new(Reply::Status(200)))).await;
    let events: Vec<(u128, i64)> = (1..=1500).map(|n| (n as u128, n)).collect();
    let last = append(&db.pool, &events).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "concurrency = 1", QUICK);
    let owner = installation.start_daemon();
    receiver.receives(1).await;
    let standby = installation.start_daemon();
    standby.says("standing by: another daemon owns the processor").await;
    // It sends beside a transaction that has the tracker locked, and waits.
    let mut holding = db.pool.begin().await.unwrap();
    let lock = "lock table espd.witnesses in exclusive mode";
    sqlx::query(lock).execute(&mut *holding).await.unwrap();
    waits(&db.pool, "%advance_tracker%", 0.0).await;
    let worker = owner.child("hook", 1).await;
    for pid in [owner.pid(), worker] {
        kill(pid, Signal::SIGSTOP).unwrap();
    }
    let sent = receiver.received().len();
    assert!(sent < 1400, "{sent} were sent before it was frozen");
    standby.says("ended the backend of an owner that gives no sign of life").await;
    holding.rollback().await.unwrap();
    reaches(&db.pool, "hook", last).await;
    let sent = receiver.received().len();
    for pid in [worker, owner.pid()] {
        kill(pid, Signal::SIGCONT).unwrap();
    }
    owner.says("standing by: another daemon owns the processor").await;
    assert_eq!(receiver.received().len(), sent, "what was sent after later events had been");
    owner.stop().await;
    standby.stop().await;
}
