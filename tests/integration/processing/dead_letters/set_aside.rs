//! An operator sets one event aside at once, whatever the policy says.

use super::{add, dead_letters, failed, noted, notes_of, operator_log, waiting};
use crate::support;
use crate::support::facts::{eventually, position, reaches};
use crate::support::program::Installation;

/// Events are tried again after an hour, without end.
const PATIENT: &str = "[runner]\npoll_interval_max = '50ms'\n[retry]\ninitial = '1h'\nmax = '1h'\n";

const DIVIDE: &str = "perform 1 / (event.body->>'n')::bigint;";

async fn fails_at(installation: &Installation, event: i64) {
    eventually("the failure", async || {
        let status = installation.status("notes").await;
        (status["state"] == "retrying" && status["last_error"]["event_id"] == event).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_event_that_fails_is_skipped_and_handled_later() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, PATIENT);
    installation.declare_notes("notes", DIVIDE);
    for (aggregate, n) in [(1, 1), (1, 0), (2, 1), (1, 2)] {
        add(&db.pool, aggregate, n).await;
    }
    let daemon = installation.start_daemon();
    fails_at(&installation, 2).await;
    let said = installation.espctl(&["dead-letters", "skip", "notes"]).await.printed();
    assert!(
        said.starts_with("event 2 (A) is set aside for notes, later events of its aggregate go on"),
        "{said}"
    );
    reaches(&db.pool, "notes", 4).await;
    assert_eq!(notes_of(&db.pool, 3).await, [1, 3, 4]);
    assert_eq!(dead_letters(&db.pool).await, [failed(2, 1)]);
    assert_eq!(operator_log(&db.pool).await, [("skip_event".into(), 2, 2)]);
    let status = installation.status("notes").await;
    assert_eq!((&status["state"], &status["attempts"]), (&"live".into(), &0.into()), "{status}");
    assert!(status["last_error"].is_null(), "{status}");
    // The reason is kept, and the event is handled once it can be.
    let letter = installation.espctl(&["dead-letters", "show", "notes", "2", "--json"]).await.json();
    assert_eq!(letter["failure"]["sqlstate"], "22012", "{letter}");
    sqlx::query("update espd.events set body = '{\"n\": 7}' where id = 2").execute(&db.pool).await.unwrap();
    installation.espctl(&["dead-letters", "retry", "notes", "2"]).await.printed();
    assert_eq!((noted(&db.pool).await, dead_letters(&db.pool).await), (vec![1, 3, 4, 2], vec![]));

    let complaint = installation.espctl(&["dead-letters", "skip", "notes"]).await.complained(1);
    assert!(complaint.contains("notes fails at no event now: name the event with --event"), "{complaint}");
    let skip = ["dead-letters", "skip", "notes", "--event"];
    let complaint = installation.espctl(&[&skip[..], &["3"]].concat()).await.complained(1);
    assert!(complaint.contains("notes is done with event 3 already"), "{complaint}");
    let complaint = installation.espctl(&[&skip[..], &["99"]].concat()).await.complained(1);
    assert!(complaint.contains("there is no event 99 in the store"), "{complaint}");
    daemon.stop().await;
}

#[tokio::test]
async fn an_event_is_parked_before_the_processor_comes_to_it() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, PATIENT);
    installation.declare_notes("notes", DIVIDE);
    add(&db.pool, 1, 1).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", 1).await;
    installation.espctl(&["pause", "notes"]).await.printed();
    for (aggregate, n) in [(1, 1), (1, 0), (2, 1), (1, 2)] {
        add(&db.pool, aggregate, n).await;
    }
    let said = installation.espctl(&["dead-letters", "park", "notes", "--event", "3"]).await.printed();
    assert!(said.contains("later events of its aggregate wait behind it"), "{said}");
    assert_eq!(position(&db.pool, "notes").await, 1);
    installation.espctl(&["resume", "notes"]).await.printed();
    reaches(&db.pool, "notes", 5).await;
    assert_eq!(notes_of(&db.pool, 3).await, [1, 2, 4]);
    assert_eq!(dead_letters(&db.pool).await, [failed(3, 0), waiting(5)]);
    let actions: Vec<_> = operator_log(&db.pool).await.into_iter().map(|(action, ..)| action).collect();
    assert_eq!(actions, ["pause", "park_event", "resume"]);
    daemon.stop().await;
}
