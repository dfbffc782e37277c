//! An owner with other handlers than those that have made the rows.

use crate::support;
use crate::support::facts::{append, eventually, reaches};
use crate::support::program::Installation;
use crate::support::projectors::numbers;

fn declare(installation: &Installation, policy: &str, value: &str) {
    installation.declare(
        "notes",
        &format!(
            "[projector]\nname = 'notes'\non_handler_change = '{policy}'\n[projector.tables]\n\
             notes = 'event_id bigint primary key, value int'\n[[projector.on]]\nevents = ['A']\n\
             sql = 'insert into notes values (event.id, {value})'\n"
        ),
    );
}

const VALUES: &str = "select value::bigint from notes order by event_id";

/// Three events are handled by a first daemon. The second one declares something else under the same version.
async fn second_daemon(policy: &str) -> (support::Database, Installation, support::program::Program) {
    let db = support::database().await;
    let first = Installation::new(&db.url, "");
    declare(&first, policy, "1");
    let daemon = first.start_daemon();
    let last = append(&db.pool, 3).await;
    reaches(&db.pool, "notes", last).await;
    daemon.stop().await;
    let second = Installation::new(&db.url, "");
    declare(&second, policy, "2");
    let check = second.espctl(&["check"]).await;
    let (said, words) = if policy == "warn" {
        (&check.stdout, "note: the handlers of notes are not those that have handled the events up to 3")
    } else {
        (&check.stderr, "warning: ")
    };
    assert!(check.code == Some(0) && said.contains(words), "{check:?}");
    let handlers_are_told =
        check.stdout.matches("handlers").count() + check.stderr.matches("its handlers have changed").count();
    assert_eq!(handlers_are_told, 1, "{check:?}");
    let daemon = second.start_daemon();
    (db, second, daemon)
}

#[tokio::test]
async fn a_warning_is_in_the_log_and_in_the_status() {
    let (db, installation, daemon) = second_daemon("warn").await;
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "notes", last).await;
    assert_eq!(numbers(&db.pool, VALUES).await, [1, 1, 1, 2]);
    let warned = daemon.log().into_iter().find(|line| {
        line["level"] == "WARN" && line["message"].as_str().unwrap().starts_with("the handlers are not those")
    });
    assert_eq!(warned.expect("a warning")["position"], 3);
    let status = installation.status("notes").await;
    assert_eq!(
        (&status["handler_change"]["position"], &status["advice"][0]["topic"]),
        (&3.into(), &"handlers_changed".into())
    );
    daemon.stop().await;
    // The same handlers again are no change.
    let daemon = installation.start_daemon();
    daemon.says("claimed").await;
    let again = installation.status("notes").await;
    assert_eq!(again["handler_change"], status["handler_change"]);
    assert!(!installation.espctl(&["check"]).await.printed().contains("note:"));
    daemon.stop().await;
}

#[tokio::test]
async fn a_rebuild_handles_all_events_with_the_new_handlers_and_is_recorded() {
    let (db, installation, daemon) = second_daemon("rebuild").await;
    eventually("the rebuilt rows", async || (numbers(&db.pool, VALUES).await == [2, 2, 2]).then_some(()))
        .await;
    let operators = "select operator from espd.operator_log where action = 'reset'";
    let operators: Vec<String> = sqlx::query_scalar(operators).fetch_all(&db.pool).await.unwrap();
    assert_eq!(operators, ["espd (on_handler_change)"]);
    reaches(&db.pool, "notes", 3).await;
    assert!(installation.status("notes").await["handler_change"].is_null());
    daemon.stop().await;
}

#[tokio::test]
async fn a_refusal_stops_the_processor_until_an_operator_resets_it() {
    let (db, installation, daemon) = second_daemon("refuse").await;
    let status = eventually("the refusal", async || {
        Some(installation.status("notes").await).filter(|status| status["state"] == "failed")
    })
    .await;
    let message = status["last_error"]["message"].as_str().unwrap();
    assert!(message.contains("espctl reset notes"), "{message}");
    assert_eq!(numbers(&db.pool, VALUES).await, [1, 1, 1]);
    installation.espctl(&["reset", "notes", "--in-place", "--yes"]).await.printed();
    eventually("the rebuilt rows", async || (numbers(&db.pool, VALUES).await == [2, 2, 2]).then_some(()))
        .await;
    daemon.stop().await;
}
