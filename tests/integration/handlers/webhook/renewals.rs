//! What is noticed at a renewal of the lease, or forgotten with a claim, while an event that has failed is tried again.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use super::{QUICK, append, count, declare, installation, shows};
use crate::support;
use crate::support::facts::eventually;
use crate::support::receiver::{Received, Receiver, Reply};

/// A reply that outlasts some renewals.
fn late(reply: Reply) -> Reply {
    Reply::After(Duration::from_secs(5), Box::new(reply))
}

fn of(received: &[Received], n: i64) -> usize {
    received.iter().filter(|one| one.n() == n).count()
}

#[tokio::test]
async fn a_reactor_stops_over_an_event_also_where_another_one_takes_long() {
    let db = support::database().await;
    let receiver = Receiver::start(|request| match request.n() {
        1 => late(Reply::Status(200)),
        _ => Reply::Status(500),
    })
    .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", &format!("{QUICK}max_attempts = 1\non_failure = 'stop'\n"));
    append(&db.pool, &[(1, 1), (2, 2)]).await;
    let daemon = installation.start_daemon();
    let status = shows(&installation, "the stop", |status| status["state"] == "failed").await;
    assert_eq!((&status["last_error"]["event_id"], &status["attempts"]), (&2.into(), &1.into()), "{status}");
    assert_eq!(receiver.received().len(), 2);
    daemon.stop().await;
}

#[tokio::test]
async fn an_event_waits_as_long_as_its_receiver_says_while_another_one_is_tried_again() {
    let db = support::database().await;
    let receiver = Receiver::start(|request| match (request.n(), request.earlier) {
        (1, _) => Reply::Full(500, vec![("retry-after", "3600".into())], String::new()),
        (_, 0) => Reply::Status(500),
        _ => late(Reply::Status(500)),
    })
    .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", QUICK);
    append(&db.pool, &[(1, 1), (2, 2)]).await;
    let daemon = installation.start_daemon();
    let tried = async || Some(receiver.received()).filter(|received| of(received, 2) > 3);
    let received = eventually("three more attempts", tried).await;
    assert_eq!(of(&received, 1), 1);
    daemon.stop().await;
}

#[tokio::test]
async fn attempts_are_counted_on_where_a_worker_dies_while_the_event_is_under_way() {
    let db = support::database().await;
    let receiver = Receiver::start(|request| match (request.n(), request.earlier) {
        (1, 2) => Reply::Silence,
        (1, _) => Reply::Status(500),
        _ => Reply::Status(200),
    })
    .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", &format!("{QUICK}max_attempts = 3\non_failure = 'park'\n"));
    append(&db.pool, &[(1, 1)]).await;
    let daemon = installation.start_daemon();
    receiver.receives(3).await;
    append(&db.pool, &[(2, 2)]).await;
    let is_known = async || {
        let query = "select count(*) from espd.deliveries where is_done";
        (count(&db.pool, query).await == 1).then_some(())
    };
    eventually("another event that is committed as received", is_known).await;
    kill(daemon.child("hook", 1).await, Signal::SIGKILL).unwrap();
    let is_given_up =
        async || (count(&db.pool, "select count(*) from espd.dead_letters").await == 1).then_some(());
    eventually("a dead letter", is_given_up).await;
    assert_eq!(
        of(&receiver.received(), 1),
        4,
        "two failures, one attempt that was broken off, and the third failure"
    );
    daemon.stop().await;
}
