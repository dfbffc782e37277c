//! What operators do while requests are under way.

use std::time::Duration;

use super::{append, count, declare, installation, shows};
use crate::support;
use crate::support::facts::{eventually, reaches};
use crate::support::receiver::{Receiver, Reply};

/// Nobody else was the owner in between, and a receiver that is slow must not be asked to do the same twice at a time.
#[tokio::test]
async fn what_is_under_way_goes_on_when_an_operator_ends_the_claim() {
    let db = support::database().await;
    let receiver = Receiver::start(|request| match request.n() {
        1..=3 => Reply::After(Duration::from_secs(15), Box::new(Reply::Status(200))),
        4..=6 => Reply::Status(500),
        _ => Reply::Status(200),
    })
    .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", "initial = '1h'\nmax = '1h'\n");
    let events: Vec<(u128, i64)> = (1..=6).map(|n| (u128::try_from(n).unwrap(), n)).collect();
    append(&db.pool, &events).await;
    let daemon = installation.start_daemon();
    receiver.receives(6).await;
    shows(&installation, "the failures", |status| status["failing_events"] == 3).await;
    let claims = async || daemon.logged("claimed").len();
    let failing = "select count(*) from espd.trackers where attempts > 0";
    let sixth = "00000000-0000-0000-0000-000000000006";
    for (earlier, act) in [
        vec!["dead-letters", "skip", "hook", "--event", "4"],
        vec!["retry", "hook"],
        vec!["dead-letters", "park", "hook", "--event", "5"],
        vec!["delete-aggregate", sixth, "--why", "asked for", "--yes"],
    ]
    .into_iter()
    .enumerate()
    {
        // What fails is in the tracker again once the last claim has committed.
        eventually("the failure", async || (count(&db.pool, failing).await == 1).then_some(())).await;
        installation.espctl(&act).await.printed();
        eventually("the next claim", async || (claims().await > earlier + 1).then_some(())).await;
    }
    let last = append(&db.pool, &[(1, 7), (7, 8)]).await;
    reaches(&db.pool, "hook", last).await;
    let numbers = receiver.numbers();
    for n in [1, 2, 3, 7, 8] {
        assert_eq!(numbers.iter().filter(|other| **other == n).count(), 1, "{n} in {numbers:?}");
    }
    assert_eq!(count(&db.pool, "select count(*) from espd.dead_letters").await, 2);
    daemon.stop().await;
}

/// What was answered for the owner before may have been done again since.
#[tokio::test]
async fn what_another_owner_has_been_there_for_is_sent_again() {
    let db = support::database().await;
    let receiver = Receiver::start(|request| match (request.n(), request.earlier) {
        (1, 0) => Reply::After(Duration::from_secs(3), Box::new(Reply::Status(200))),
        (2, _) => Reply::Status(500),
        _ => Reply::Status(200),
    })
    .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", "initial = '1h'\nmax = '1h'\n");
    append(&db.pool, &[(1, 1), (2, 2)]).await;
    let daemon = installation.start_daemon();
    shows(&installation, "the failure", |status| status["attempts"] == 1).await;
    // As another daemon does that has had the claim, and as an operator does.
    let claim =
        "update espd.trackers set epoch = epoch + 2, ended_claims = ended_claims + 1 where name = 'hook'";
    sqlx::query(claim).execute(&db.pool).await.unwrap();
    installation.espctl(&["retry", "hook"]).await.printed();
    eventually("the second request", async || {
        let received = receiver.received();
        received.iter().any(|request| request.n() == 1 && request.earlier == 1).then_some(())
    })
    .await;
    daemon.stop().await;
}
