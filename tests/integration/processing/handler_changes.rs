//! An owner with other handlers than those that have made the rows.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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

/// Has a program handle events: each row has this value.
fn write_program(installation: &Installation, value: i32) {
    let program = format!(
        "import sys, json\nsys.stdin.readline()\nprint(json.dumps({{'ready': 1}}), flush=True)\n\
         for line in sys.stdin:\n    batch = json.loads(line)\n    for event in batch['events']:\n\
         \x20       row = {{'event_id': event['id'], 'value': {value}}}\n\
         \x20       print(json.dumps({{'done': event['id'], 'actions': [{{'upsert': 'notes', 'row': row}}]}}))\n\
         \x20   print(json.dumps({{'end': batch['batch']}}), flush=True)\n"
    );
    std::fs::write(installation.path().join("processors/notes.py"), program).unwrap();
}

/// Three events are handled by a program, which is then edited while the daemon runs.
async fn edited_program(policy: &str) -> (support::Database, Installation, support::program::Program) {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "[runner]\npoll_interval_max = '50ms'\n");
    write_program(&installation, 1);
    installation.declare(
        "notes",
        &format!(
            "[projector]\nname = 'notes'\nevents = ['A']\ncommand = ['python3', 'notes.py']\n\
             on_handler_change = '{policy}'\n[projector.tables]\nnotes = 'event_id bigint primary key, value int'\n"
        ),
    );
    let last = append(&db.pool, 3).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", last).await;
    write_program(&installation, 2);
    (db, installation, daemon)
}

/// Kills the running program, as the kernel does where memory ends.
fn kill_program(daemon: &support::program::Program) {
    let ready = daemon.logged("the program is ready");
    let pid = ready.last().and_then(|line| line["command.pid"].as_i64()).expect("a program");
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_program_that_was_edited_is_refused_when_it_is_started_again_after_a_crash() {
    let (db, installation, daemon) = edited_program("refuse").await;
    kill_program(&daemon);
    append(&db.pool, 1).await;
    let status = eventually("the refusal", async || {
        Some(installation.status("notes").await).filter(|status| status["state"] == "failed")
    })
    .await;
    let message = status["last_error"]["message"].as_str().unwrap();
    assert!(message.contains("not those that have handled the events up to 3"), "{message}");
    assert_eq!(numbers(&db.pool, VALUES).await, [1, 1, 1]);
    // Nothing is mixed once the change is taken back.
    write_program(&installation, 1);
    installation.espctl(&["resume", "notes"]).await.printed();
    reaches(&db.pool, "notes", 4).await;
    assert_eq!(numbers(&db.pool, VALUES).await, [1, 1, 1, 1]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_program_that_was_edited_is_warned_of_and_recorded_when_a_pause_is_over() {
    let (db, installation, daemon) = edited_program("warn").await;
    installation.espctl(&["pause", "notes"]).await.printed();
    daemon.says("paused").await;
    installation.espctl(&["resume", "notes"]).await.printed();
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "notes", last).await;
    assert_eq!(numbers(&db.pool, VALUES).await, [1, 1, 1, 2]);
    let warned = daemon.log().into_iter().find(|line| {
        line["level"] == "WARN" && line["message"].as_str().unwrap().starts_with("the handlers are not those")
    });
    assert_eq!(warned.expect("a warning")["position"], 3);
    let status = installation.status("notes").await;
    assert_eq!(status["handler_change"]["position"], 3, "{status}");
    let are_recorded = "select (handlers = handler_change ->> 'after')::int::bigint from espd.trackers";
    assert_eq!(numbers(&db.pool, are_recorded).await, [1]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_program_that_was_edited_makes_its_rows_anew_where_that_is_declared() {
    let (db, _installation, daemon) = edited_program("rebuild").await;
    kill_program(&daemon);
    append(&db.pool, 1).await;
    let is_rebuilt = async || (numbers(&db.pool, VALUES).await == [2, 2, 2, 2]).then_some(());
    eventually("the rebuilt rows", is_rebuilt).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_reload_starts_a_program_again_that_was_edited_and_no_other() {
    let (db, installation, daemon) = edited_program("warn").await;
    installation.declare_notes("others", "");
    installation.espctl(&["reload"]).await.printed();
    daemon.child("others", 1).await;
    daemon.child("notes", 2).await;
    // A file that is the same again is none that was edited.
    write_program(&installation, 3);
    write_program(&installation, 2);
    let said = installation.espctl(&["reload"]).await.printed();
    assert!(said.contains("nothing has changed"), "{said}");
    write_program(&installation, 3);
    let said = installation.espctl(&["reload"]).await.printed();
    assert!(said.ends_with("started again, because their programs have changed: notes\n"), "{said}");
    daemon.child("notes", 3).await;
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "notes", last).await;
    assert_eq!(numbers(&db.pool, VALUES).await, [1, 1, 1, 3]);
    assert_eq!(daemon.children("others").len(), 1);
    daemon.stop().await;
}
