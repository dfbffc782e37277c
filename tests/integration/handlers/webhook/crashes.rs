//! Workers and daemons that die: nothing is lost, and what is repeated is the last that the receiver has seen.

use std::collections::HashMap;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use super::{append, declare, installation};
use crate::support;
use crate::support::facts::{eventually, reaches};
use crate::support::receiver::{Received, Receiver, Reply};

/// Requires that each aggregate has received its events in order, repeats only next to each other and under one key.
fn check(received: &[Received], events: &[(u128, i64)]) {
    let mut keys: HashMap<i64, &str> = HashMap::new();
    let mut numbers: HashMap<String, Vec<i64>> = HashMap::new();
    for one in received {
        assert_eq!(*keys.entry(one.n()).or_insert(one.key()), one.key(), "one event, one key");
        numbers.entry(one.aggregate().to_owned()).or_default().push(one.n());
    }
    for (aggregate, mut numbers) in numbers {
        let all = numbers.clone();
        numbers.dedup();
        let of_it = |(other, _): &&(u128, i64)| uuid::Uuid::from_u128(*other).to_string() == aggregate;
        let expected: Vec<i64> = events.iter().filter(of_it).map(|(_, n)| *n).collect();
        assert_eq!(numbers, expected, "{aggregate}: {all:?}");
    }
    assert_eq!(keys.len(), events.len(), "every event");
}

#[tokio::test]
async fn a_worker_that_is_killed_loses_nothing_and_repeats_only_the_last() {
    let db = support::database().await;
    let receiver = Receiver::start(|request| {
        let reply =
            if request.n() % 11 == 0 && request.earlier == 0 { Reply::Reset } else { Reply::Status(200) };
        Reply::After(Duration::from_millis(3), Box::new(reply))
    })
    .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", "initial = '20ms'\n");
    let events: Vec<(u128, i64)> = (1..=600).map(|n| (u128::try_from(n % 13).unwrap(), n)).collect();
    let last = append(&db.pool, &events).await;
    let daemon = installation.start_daemon();
    for nth in 1..=4 {
        let worker = daemon.child("hook", nth).await;
        receiver.receives(nth * 100).await;
        kill(worker, Signal::SIGKILL).unwrap();
    }
    reaches(&db.pool, "hook", last).await;
    let received = receiver.received();
    check(&received, &events);
    assert!(received.len() < 750, "{} requests for 600 events", received.len());
    daemon.stop().await;
}

#[tokio::test]
async fn another_daemon_continues_where_the_first_one_died() {
    let db = support::database().await;
    let receiver =
        Receiver::start(|_| Reply::After(Duration::from_millis(5), Box::new(Reply::Status(200)))).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", "initial = '20ms'\n");
    let events: Vec<(u128, i64)> = (1..=400).map(|n| (u128::try_from(n % 5).unwrap(), n)).collect();
    let last = append(&db.pool, &events).await;
    let mut first = installation.start_daemon();
    receiver.receives(50).await;
    let second = installation.start_daemon();
    second.says("standing by: another daemon owns the processor").await;
    assert!(receiver.received().len() < 400, "the first one is not done");
    first.kill().await;
    reaches(&db.pool, "hook", last).await;
    check(&receiver.received(), &events);
    second.stop().await;
}

/// What is under way when the daemon is asked to stop may end, and nothing is repeated.
#[tokio::test]
async fn a_stop_waits_for_what_is_under_way() {
    let db = support::database().await;
    let receiver =
        Receiver::start(|_| Reply::After(Duration::from_millis(1_500), Box::new(Reply::Status(200)))).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "concurrency = 2", "");
    append(&db.pool, &[(1, 1), (2, 2), (3, 3), (1, 4)]).await;
    let daemon = installation.start_daemon();
    receiver.receives(2).await;
    daemon.stop().await;
    assert_eq!(receiver.received().len(), 2, "nothing more is begun");
    assert_eq!(super::count(&db.pool, "select position from espd.trackers").await, 2);
    let daemon = installation.start_daemon();
    receiver.receives(4).await;
    let mut numbers = receiver.numbers();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4]);
    daemon.stop().await;
}

/// A pause lets end what is under way as well; it is not repeated when the reactor continues.
#[tokio::test]
async fn a_pause_repeats_nothing() {
    let db = support::database().await;
    let receiver =
        Receiver::start(|_| Reply::After(Duration::from_secs(3), Box::new(Reply::Status(200)))).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", "");
    let last = append(&db.pool, &[(1, 1), (1, 2)]).await;
    let daemon = installation.start_daemon();
    receiver.receives(1).await;
    installation.espctl(&["pause", "hook"]).await.printed();
    daemon.says("claimed").await;
    eventually("the pause", async || (daemon.logged("claimed").len() == 2).then_some(())).await;
    installation.espctl(&["resume", "hook"]).await.printed();
    reaches(&db.pool, "hook", last).await;
    assert_eq!(receiver.numbers(), [1, 2]);
    daemon.stop().await;
}

/// A broken connection to the database makes nothing be sent twice: what came of the requests is still known.
#[tokio::test]
async fn a_lost_connection_to_the_database_repeats_nothing() {
    let db = support::database().await;
    let receiver =
        Receiver::start(|_| Reply::After(Duration::from_millis(2), Box::new(Reply::Status(200)))).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", "");
    let events: Vec<(u128, i64)> = (1..=300).map(|n| (u128::try_from(n % 7).unwrap(), n)).collect();
    let last = append(&db.pool, &events).await;
    let daemon = installation.start_daemon();
    for count in [50, 120, 200] {
        receiver.receives(count).await;
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
             where application_name = 'espd: hook' and datname = current_database()";
        super::count(&db.pool, end).await;
    }
    reaches(&db.pool, "hook", last).await;
    assert_eq!(receiver.received().len(), 300);
    check(&receiver.received(), &events);
    daemon.stop().await;
}

/// What is done beyond the position limits how far the reactor reads ahead, dead letters as well. It must not keep a new worker from
/// reading the event that holds the position back.
#[tokio::test]
async fn a_new_worker_reads_the_event_that_many_dead_letters_have_overtaken() {
    let db = support::database().await;
    let receiver = Receiver::start(|request| match (request.n(), request.earlier) {
        (1, _) => Reply::Status(500),
        (100, 0) => Reply::After(Duration::from_secs(60), Box::new(Reply::Status(200))),
        _ => Reply::Status(200),
    })
    .await;
    let installation = super::Installation::new(&db.url, "[runner]\nbatch_size = 1\n");
    declare(&installation, &receiver, "", "timeout = '100s'", "max_attempts = 1\non_failure = 'park'\n");
    append(&db.pool, &[(2, 100), (1, 1)]).await;
    let daemon = installation.start_daemon();
    let parked = async |wanted: i64| {
        let letters = "select count(*) from espd.dead_letters";
        eventually("the dead letters", async || {
            (super::count(&db.pool, letters).await == wanted).then_some(())
        })
        .await;
    };
    parked(1).await;
    let behind: Vec<(u128, i64)> = (2..=30).map(|n| (1, n)).collect();
    let last = append(&db.pool, &behind).await;
    parked(30).await;
    kill(daemon.child("hook", 1).await, Signal::SIGKILL).unwrap();
    reaches(&db.pool, "hook", last).await;
    assert_eq!(receiver.numbers().iter().filter(|n| **n == 100).count(), 2);
    daemon.stop().await;
}
