//! Order within an aggregate, side by side across aggregates.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::{QUICK, append, declare, installation};
use crate::support;
use crate::support::facts::{append_typed, eventually, reaches};
use crate::support::program::Installation;
use crate::support::receiver::{Received, Receiver, Reply};

/// What each aggregate's events were received as, repeats next to each other left out.
fn by_aggregate(received: &[Received]) -> BTreeMap<String, Vec<i64>> {
    let mut numbers: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for one in received {
        numbers.entry(one.aggregate().to_owned()).or_default().push(one.n());
    }
    numbers.values_mut().for_each(Vec::dedup);
    numbers
}

#[tokio::test]
async fn each_aggregate_is_received_in_order_whatever_fails() {
    let db = support::database().await;
    // Every third request fails at first, one way or the other; event 40 five times.
    let receiver = Receiver::start(|request| match (request.n() % 9, request.earlier) {
        _ if request.n() == 40 && request.earlier < 5 => Reply::Status(500),
        (0, 0) => Reply::Status(500),
        (3, 0) => Reply::Reset,
        (6, 0) => Reply::BreakOff,
        (1, _) => Reply::After(Duration::from_millis(5), Box::new(Reply::Status(200))),
        _ => Reply::Status(200),
    })
    .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "batch_size = 20", "", QUICK);
    let events: Vec<(u128, i64)> = (1..=100).map(|n| (u128::try_from(n % 7).unwrap(), n)).collect();
    let last = append(&db.pool, &events).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", last).await;
    let received = receiver.received();
    for (aggregate, numbers) in by_aggregate(&received) {
        let first = numbers[0];
        let expected: Vec<i64> = (first..=100).step_by(7).collect();
        assert_eq!(numbers, expected, "{aggregate}");
    }
    assert_eq!(by_aggregate(&received).len(), 7);
    assert!(receiver.most_busy() > 1 && receiver.most_busy() <= 8, "{}", receiver.most_busy());
    assert_eq!(
        super::count(&db.pool, "select count(*) from espd.deliveries").await,
        0,
        "the position has passed all"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_failing_aggregate_keeps_no_other_waiting() {
    let db = support::database().await;
    let receiver =
        Receiver::start(|request| if request.n() == 1 { Reply::Status(422) } else { Reply::Status(200) })
            .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", "initial = '1h'\nmax = '1h'\n");
    let last = append(&db.pool, &[(1, 1), (2, 2), (1, 3), (3, 4), (2, 5)]).await;
    let daemon = installation.start_daemon();
    let mut numbers: Vec<i64> = receiver.receives(4).await.iter().map(Received::n).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 4, 5], "the other one of the aggregate waits");
    let status = super::shows(&installation, "the failure", |status| status["attempts"] == 1).await;
    assert_eq!(
        (status["state"].as_str(), status["position"].as_i64()),
        (Some("retrying"), Some(0)),
        "{status}"
    );
    assert_eq!(status["last_error"]["event_type"], "A");
    assert!(status["last_error"]["message"].as_str().unwrap().contains("422"), "{status}");

    // New events go past it as well, and an operator can have it tried at once.
    append(&db.pool, &[(4, 6)]).await;
    receiver.receives(5).await;
    let done = "select count(*) from espd.deliveries where is_done";
    eventually("the end of the others", async || (super::count(&db.pool, done).await == 4).then_some(()))
        .await;
    installation.espctl(&["retry", "hook"]).await.printed();
    let again = receiver.receives(6).await.remove(5);
    assert_eq!((again.n(), again.earlier), (1, 1));
    assert!(last > 0);
    daemon.stop().await;
}

#[tokio::test]
async fn a_receiver_that_never_answers_shows_as_a_processor_that_stands_still() {
    let db = support::database().await;
    let receiver =
        Receiver::start(|_| Reply::After(Duration::from_secs(600), Box::new(Reply::Status(200)))).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "timeout = '5m'", QUICK);
    append(&db.pool, &[(1, 1), (2, 2)]).await;
    let mut daemon = installation.start_daemon();
    receiver.receives(2).await;
    let advised = |status: &Value| status["advice"].to_string().contains("standing_still");
    let status = super::shows(&installation, "that it stands", |s| s["standing_since"].is_string()).await;
    assert!(!advised(&status), "not before minutes have passed: {status}");
    // As if the events had been there, and the worker too, for ten minutes.
    let earlier = "update espd.events set created_at = created_at - interval '10 minutes';
                   update espd.trackers set standing_since = standing_since - interval '10 minutes'";
    sqlx::raw_sql(earlier).execute(&db.pool).await.unwrap();
    let status = super::shows(&installation, "the advice", advised).await;
    assert_eq!((&status["state"], &status["position"]), (&"running".into(), &0.into()), "{status}");
    daemon.kill().await;
}

#[tokio::test]
async fn one_aggregate_never_has_two_requests_under_way() {
    let db = support::database().await;
    let receiver =
        Receiver::start(|_| Reply::After(Duration::from_millis(10), Box::new(Reply::Status(200)))).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "concurrency = 64", QUICK);
    let events: Vec<(u128, i64)> = (1..=20).map(|n| (1, n)).collect();
    let last = append(&db.pool, &events).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", last).await;
    assert_eq!((receiver.numbers(), receiver.most_busy()), ((1..=20).collect(), 1));
    daemon.stop().await;
}

#[tokio::test]
async fn no_more_requests_are_under_way_than_is_allowed() {
    let db = support::database().await;
    let receiver =
        Receiver::start(|_| Reply::After(Duration::from_millis(20), Box::new(Reply::Status(200)))).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "concurrency = 3", QUICK);
    let events: Vec<(u128, i64)> = (1..=30).map(|n| (u128::try_from(n).unwrap(), n)).collect();
    let last = append(&db.pool, &events).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", last).await;
    assert_eq!((receiver.numbers().len(), receiver.most_busy()), (30, 3));
    daemon.stop().await;
}

/// A request that takes long outlives the turn that has begun it; it delays the commit of others and new events by
/// nothing that a person would notice.
#[tokio::test]
async fn a_slow_receiver_of_one_aggregate_delays_no_other() {
    let db = support::database().await;
    let receiver = Receiver::start(|request| match (request.n(), request.earlier) {
        (1, 0) => Reply::Trickle,
        _ => Reply::Status(200),
    })
    .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "timeout = '20s'", QUICK);
    append(&db.pool, &[(1, 1)]).await;
    let daemon = installation.start_daemon();
    receiver.receives(1).await;
    for n in 2..=5 {
        append(&db.pool, &[(2, n)]).await;
        receiver.receives(usize::try_from(n).unwrap()).await;
    }
    let done = "select count(*) from espd.deliveries where is_done";
    eventually("four commits", async || (super::count(&db.pool, done).await == 4).then_some(())).await;
    let elapsed = receiver.received()[0].at.elapsed();
    assert!(elapsed < Duration::from_secs(15), "{elapsed:?}: the slow request has ended before");
    drop(daemon);
}

/// How far ahead of a failing event the others may go is bounded, and waiting for it costs nothing.
#[tokio::test]
async fn an_event_that_fails_for_long_is_retried_without_haste() {
    let db = support::database().await;
    let fixed = Arc::new(AtomicBool::new(false));
    let is_fixed = Arc::clone(&fixed);
    let receiver = Receiver::start(move |request| match request.n() {
        1 if !is_fixed.load(Ordering::Relaxed) => Reply::Status(500),
        _ => Reply::Status(200),
    })
    .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "batch_size = 2", "", "initial = '1h'\nmax = '1h'\n");
    let events: Vec<(u128, i64)> = (1..=50).map(|n| (u128::try_from(n).unwrap(), n)).collect();
    let last = append(&db.pool, &events).await;
    let daemon = installation.start_daemon();
    receiver.receives(20).await;
    let transactions = async || {
        let query =
            "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()";
        super::count(&db.pool, query).await
    };
    let before = transactions().await;
    let mut own = 0;
    for _ in 0..2 {
        let lease = async || {
            let query = "select (extract(epoch from lease_until) * 1000000)::bigint from espd.trackers";
            super::count(&db.pool, query).await
        };
        let held = lease().await;
        eventually("a renewed lease", async || {
            own += 1;
            (lease().await > held).then_some(())
        })
        .await;
    }
    let during = transactions().await - before - own;
    assert!(during < 200, "{during} transactions while a lease was renewed twice");
    assert_eq!(receiver.numbers().len(), 20, "ten batches of two");

    fixed.store(true, Ordering::Relaxed);
    installation.espctl(&["retry", "hook"]).await.printed();
    reaches(&db.pool, "hook", last).await;
    let mut numbers = receiver.numbers();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!((numbers, receiver.numbers().len()), ((1..=50).collect(), 51));
    daemon.stop().await;
}

/// An event whose upcast fails cannot be read, and so not be sent. It holds up only the events behind it.
#[tokio::test]
async fn an_event_that_cannot_be_read_is_set_aside_as_any_other() {
    let db = support::database().await;
    let receiver = Receiver::start(|_| Reply::Status(200)).await;
    let upcast =
        "[[upcast]]\nevents = ['A']\nbody = \"jsonb_build_object('n', 12 / (event.body->>'n')::int)\"\n";
    let installation = Installation::new(&db.url, upcast);
    let retry = format!("{QUICK}max_attempts = 2\non_failure = 'park'\n");
    declare(&installation, &receiver, "", "", &retry);
    // In a table so small that it is sorted, the server would read them all before it returns the first.
    let first = append_typed(&db.pool, "Other", 5_000).await;
    let last = append(&db.pool, &[(1, 1), (2, 2), (3, 0), (3, 3), (1, 4)]).await;
    sqlx::query("analyze espd.events").execute(&db.pool).await.unwrap();
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", last).await;
    let mut numbers = receiver.numbers();
    numbers.sort_unstable();
    assert_eq!(numbers, [3, 6, 12], "{:#?}", daemon.log());
    let dead_letters = "select event_id - $1, reason from espd.dead_letters order by event_id";
    let dead_letters: Vec<(i64, String)> =
        sqlx::query_as(dead_letters).bind(first).fetch_all(&db.pool).await.unwrap();
    assert_eq!(dead_letters, [(3, "failed".to_owned()), (4, "waiting".to_owned())]);
    daemon.stop().await;
}
