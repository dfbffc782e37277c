//! Events that have used up their attempts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{append, declare, installation, shows};
use crate::support;
use crate::support::Database;
use crate::support::facts::{eventually, reaches};
use crate::support::receiver::{Receiver, Reply};

/// A receiver that refuses event 1 until it is fixed.
async fn refusing() -> (Receiver, Arc<AtomicBool>) {
    let fixed = Arc::new(AtomicBool::new(false));
    let is_fixed = Arc::clone(&fixed);
    let script = move |request: &support::receiver::Received| match request.n() {
        1 if !is_fixed.load(Ordering::Relaxed) => Reply::Status(500),
        _ => Reply::Status(200),
    };
    (Receiver::start(script).await, fixed)
}

fn retry(on_failure: &str) -> String {
    format!("initial = '20ms'\nmax = '20ms'\nmax_attempts = 3\non_failure = '{on_failure}'\n")
}

async fn dead_letters(db: &Database) -> Vec<(i64, String, bool, i32)> {
    let query = "select event_id, reason, blocks, attempts from espd.dead_letters order by event_id";
    sqlx::query_as(query).fetch_all(&db.pool).await.unwrap()
}

/// As an operator does, who does not wait for the outcome.
async fn request_retry(db: &Database) {
    let update = "update espd.dead_letters set retry_requested_at = clock_timestamp()";
    sqlx::query(update).execute(&db.pool).await.unwrap();
}

#[tokio::test]
async fn a_parked_event_is_followed_aside_by_those_of_its_aggregate_and_by_no_other() {
    let db = support::database().await;
    let (receiver, fixed) = refusing().await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", &retry("park"));
    let last = append(&db.pool, &[(1, 1), (2, 2), (1, 3), (2, 4)]).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", last).await;
    let (failed, waiting) = ("failed".to_owned(), "waiting".to_owned());
    assert_eq!(dead_letters(&db).await, [(1, failed.clone(), true, 3), (3, waiting.clone(), true, 0)]);
    daemon.says("set an event aside that could not be handled: `espctl dead-letters list` shows it").await;

    // One that comes later waits as well.
    let last = append(&db.pool, &[(1, 5), (2, 6)]).await;
    reaches(&db.pool, "hook", last).await;
    assert_eq!(dead_letters(&db).await.len(), 3);
    assert_eq!(super::count(&db.pool, "select handled from espd.trackers").await, 6, "each is counted once");
    let mut numbers = receiver.numbers();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 1, 1, 2, 4, 6]);

    // It fails again, and stays with those behind it.
    request_retry(&db).await;
    eventually("the failure", async || (dead_letters(&db).await[0].3 == 4).then_some(())).await;
    assert_eq!(
        dead_letters(&db).await,
        [(1, failed, true, 4), (3, waiting.clone(), true, 0), (5, waiting, true, 0)]
    );

    fixed.store(true, Ordering::Relaxed);
    request_retry(&db).await;
    eventually("no more dead letters", async || dead_letters(&db).await.is_empty().then_some(())).await;
    assert_eq!(receiver.numbers()[6..], [1, 1, 3, 5], "in order");
    let last = append(&db.pool, &[(1, 7)]).await;
    reaches(&db.pool, "hook", last).await;
    let keys: std::collections::HashSet<_> =
        receiver.received().iter().map(|one| one.key().to_owned()).collect();
    assert_eq!(keys.len(), 7, "a dead letter has the key that its event had before");
    daemon.stop().await;
}

/// The tracker counts the attempts of the first one.
#[tokio::test]
async fn an_event_that_an_operator_sets_aside_has_the_attempts_that_it_has_had() {
    let db = support::database().await;
    let receiver = Receiver::start(|_| Reply::Status(500)).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", "initial = '20ms'\nmax = '20ms'\n");
    append(&db.pool, &[(1, 1), (2, 2)]).await;
    let daemon = installation.start_daemon();
    receiver.receives(9).await;
    installation.espctl(&["pause", "hook"]).await.printed();
    shows(&installation, "the pause", |status| status["state"] == "paused").await;
    let attempts = "select attempts from espd.deliveries where event_id = $1";
    let mut had = Vec::new();
    for id in [1_i64, 2] {
        had.push(sqlx::query_scalar::<_, i32>(attempts).bind(id).fetch_one(&db.pool).await.unwrap());
    }
    assert!(had[0] > 1 && had[1] > 1, "{had:?}");
    for id in ["2", "1"] {
        installation.espctl(&["dead-letters", "park", "hook", "--event", id]).await.printed();
    }
    let set_aside: Vec<_> = dead_letters(&db).await.into_iter().map(|(id, .., tries)| (id, tries)).collect();
    assert_eq!(set_aside, [(1, had[0]), (2, had[1])]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_skipped_event_keeps_no_other_waiting() {
    let db = support::database().await;
    let (receiver, _) = refusing().await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", &retry("skip"));
    let last = append(&db.pool, &[(1, 1), (1, 2)]).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", last).await;
    assert_eq!(dead_letters(&db).await, [(1, "failed".to_owned(), false, 3)]);
    assert_eq!(receiver.numbers(), [1, 1, 1, 2]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_reactor_that_stops_lets_requests_under_way_end_and_continues_after_a_retry() {
    let db = support::database().await;
    let (receiver, fixed) = refusing().await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", &retry("stop"));
    let last = append(&db.pool, &[(1, 1), (2, 2), (1, 3)]).await;
    let daemon = installation.start_daemon();
    let status = shows(&installation, "the stop", |status| status["state"] == "failed").await;
    assert_eq!((status["attempts"].as_i64(), status["last_error"]["event_id"].as_i64()), (Some(3), Some(1)));
    assert!(dead_letters(&db).await.is_empty());
    daemon.stop().await;

    // Another process stays where it is.
    let daemon = installation.start_daemon();
    daemon.says("claimed").await;
    let before = receiver.numbers();
    append(&db.pool, &[(4, 4)]).await;
    shows(&installation, "still stopped", |status| status["state"] == "failed" && status["head"] == 4).await;
    assert_eq!(receiver.numbers(), before);

    // After a retry the event has three attempts more; once the receiver is fixed, the reactor continues.
    installation.espctl(&["retry", "hook"]).await.printed();
    eventually("three more attempts", async || {
        let tries = receiver.numbers().iter().filter(|n| **n == 1).count();
        (tries >= 6).then_some(())
    })
    .await;
    shows(&installation, "the stop", |status| status["state"] == "failed").await;
    fixed.store(true, Ordering::Relaxed);
    installation.espctl(&["resume", "hook"]).await.printed();
    reaches(&db.pool, "hook", last + 1).await;
    assert_eq!(receiver.numbers().iter().filter(|n| **n == 1).count(), 7);
    daemon.stop().await;
}

/// What was handled or discarded beyond the position is not met again by another process.
#[tokio::test]
async fn a_dead_letter_that_was_handled_beyond_the_position_is_not_sent_again() {
    let db = support::database().await;
    let receiver = Receiver::start(|request| match (request.n(), request.earlier) {
        // It keeps the position back.
        (1, _) => Reply::Full(500, vec![("retry-after", "3600".into())], String::new()),
        (2, 0) => Reply::Status(500),
        _ => Reply::Status(200),
    })
    .await;
    let installation = installation(&db);
    let retry = "initial = '1h'\nmax = '1h'\nmax_attempts = 1\non_failure = 'park'\n";
    declare(&installation, &receiver, "", "", retry);
    // Only the second may be given up; the first waits for an hour.
    let patient = retry.replace("max_attempts = 1", "max_attempts = 5");
    declare(&installation, &receiver, "", "", &patient);
    append(&db.pool, &[(1, 1)]).await;
    let daemon = installation.start_daemon();
    shows(&installation, "the first failure", |status| status["attempts"] == 1).await;
    daemon.stop().await;
    declare(&installation, &receiver, "", "", retry);
    append(&db.pool, &[(2, 2), (2, 3), (3, 4)]).await;
    let daemon = installation.start_daemon();
    eventually("two dead letters", async || (dead_letters(&db).await.len() == 2).then_some(())).await;
    request_retry(&db).await;
    eventually("no more dead letters", async || dead_letters(&db).await.is_empty().then_some(())).await;
    daemon.stop().await;
    let before = receiver.numbers();
    let daemon = installation.start_daemon();
    append(&db.pool, &[(2, 5)]).await;
    receiver.receives(before.len() + 1).await;
    assert_eq!(receiver.numbers()[before.len()..], [5], "{before:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn an_operator_skips_or_parks_the_event_that_the_receiver_refuses() {
    for (action, order) in [("skip", &[1, 2, 4, 3][..]), ("park", &[1, 2, 4])] {
        let db = support::database().await;
        let (receiver, _) = refusing().await;
        let installation = installation(&db);
        declare(&installation, &receiver, "", "", "initial = '1h'\nmax = '1h'\n");
        let last = append(&db.pool, &[(1, 1), (2, 2), (1, 3), (2, 4)]).await;
        let daemon = installation.start_daemon();
        // The other aggregate has gone on meanwhile.
        eventually("both of the other", async || (receiver.numbers() == [1, 2, 4]).then_some(())).await;
        shows(&installation, "the failure", |status| status["last_error"]["event_id"] == 1).await;
        installation.espctl(&["dead-letters", action, "hook"]).await.printed();
        reaches(&db.pool, "hook", last).await;
        assert_eq!(receiver.numbers(), order, "{action}");
        let blocks = action == "park";
        assert_eq!(dead_letters(&db).await[0], (1, "failed".to_owned(), blocks, 1));
        assert_eq!(dead_letters(&db).await.len(), if blocks { 2 } else { 1 });
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_dead_letter_is_sent_again_when_nothing_of_its_aggregate_is_under_way() {
    let db = support::database().await;
    let late = || Reply::After(Duration::from_secs(3), Box::new(Reply::Status(200)));
    let receiver = Receiver::start(move |request| match (request.n(), request.earlier) {
        (1, 0) => Reply::Status(500),
        (1, _) => Reply::Status(200),
        _ => late(),
    })
    .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", "max_attempts = 1\non_failure = 'skip'\n");
    let last = append(&db.pool, &[(1, 1), (1, 2)]).await;
    let daemon = installation.start_daemon();
    receiver.receives(2).await;
    let retried = installation.espctl(&["dead-letters", "retry", "hook", "--all"]).await;
    assert_eq!(retried.code, Some(0), "{retried:?}");
    reaches(&db.pool, "hook", last).await;
    assert_eq!((receiver.numbers(), receiver.most_busy()), (vec![1, 2, 1], 1));
    assert_eq!(dead_letters(&db).await, []);
    daemon.stop().await;
}

#[tokio::test]
async fn of_several_events_that_fail_the_one_that_is_shown_is_the_one_that_is_set_aside() {
    let db = support::database().await;
    let receiver = Receiver::start(|_| Reply::Status(500)).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", super::QUICK);
    append(&db.pool, &[(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]).await;
    let daemon = installation.start_daemon();
    shows(&installation, "all fail", |status| status["failing_events"] == 5).await;
    let tried = receiver.numbers().len();
    eventually("each is tried again and again", async || {
        (receiver.numbers().len() > tried + 20).then_some(())
    })
    .await;
    for _ in 0..10 {
        let status = installation.status("hook").await;
        assert_eq!((&status["last_error"]["event_id"], &status["state"]), (&1.into(), &"retrying".into()));
        let advice = &status["advice"][0];
        let (problem, remedy) = (advice["problem"].as_str().unwrap(), advice["remedy"].as_str().unwrap());
        assert!(problem.contains("5 events fail, of which it is the first."), "{problem}");
        assert!(!problem.contains("are handled"), "{problem}");
        assert!(remedy.contains("`espctl dead-letters park hook --event 1`"), "{remedy}");
    }
    let said = installation.espctl(&["dead-letters", "park", "hook"]).await.printed();
    assert!(said.starts_with("event 1 (A) is set aside"), "{said}");
    let first = dead_letters(&db).await[0].clone();
    assert!(first.0 == 1 && first.3 > 0, "its attempts are kept: {first:?}");
    shows(&installation, "the next one", |status| {
        status["last_error"]["event_id"] == 2 && status["failing_events"] == 4
    })
    .await;
    let said = installation.espctl(&["dead-letters", "skip", "hook", "--event", "4"]).await.printed();
    assert!(said.starts_with("event 4 (A) is set aside"), "{said}");
    let letter = installation.espctl(&["dead-letters", "show", "hook", "4", "--json"]).await.json();
    assert!(letter["failure"]["message"].as_str().unwrap().contains("500"), "{letter}");
    shows(&installation, "the others", |status| status["failing_events"] == 3).await;
    daemon.stop().await;
}
