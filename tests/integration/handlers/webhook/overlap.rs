//! Requests go on while the database is at work.

use std::time::Duration;

use super::{QUICK, append, declare, installation};
use crate::support;
use crate::support::facts::{eventually, reaches};
use crate::support::receiver::{Receiver, Reply};

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
    // As long as somebody else holds the tracker, nothing can be committed.
    let mut holding = db.pool.begin().await.unwrap();
    sqlx::query("select from espd.trackers where name = 'hook' for update")
        .execute(&mut *holding)
        .await
        .unwrap();
    eventually("a commit that waits", async || {
        let statement = "select exists (select from pg_stat_activity where wait_event_type = 'Lock'
                         and datname = current_database() and query like '%lock_tracker%')";
        sqlx::query_scalar::<_, bool>(statement).fetch_one(&db.pool).await.unwrap().then_some(())
    })
    .await;
    assert!(receiver.received().len() < 300);
    receiver.receives(300).await;
    holding.rollback().await.unwrap();
    reaches(&db.pool, "hook", last).await;
    assert_eq!(receiver.numbers(), (1..=300).collect::<Vec<i64>>());
    daemon.stop().await;
}
