//! Hooks in Rust: `examples/hooks`, a program whose closures note what they are told.

use espd::event::NewEvent;
use espd::store::{EventStore as _, Layout, PostgresEventStore};
use nix::sys::signal::{Signal, kill};
use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::facts::{append, eventually, reaches};
use crate::support::program::{Installation, Program};
use crate::support::{self, SCHEMA};

/// Starts the program of `examples/hooks`, which cargo builds beside the tests.
fn start(installation: &Installation) -> Program {
    let own = std::env::current_exe().unwrap();
    let program = own.parent().and_then(std::path::Path::parent).unwrap().join("examples/hooks");
    let mut command = installation.command(program.to_str().unwrap(), &["run"]);
    command.env("HOOKS_FOLDER", installation.path());
    Program::start(command)
}

/// The facts that a closure has noted.
fn noted(installation: &Installation, file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(installation.path().join(file)).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn closures_are_called_in_the_worker_that_starts_and_in_the_daemon_when_it_has_ended() {
    let db = support::database().await;
    let installation =
        Installation::new(&db.url, "[runner]\npoll_interval_max = '50ms'\nrestart_max = '1s'\n");
    std::fs::write(installation.path().join("refuse"), "").unwrap();
    let daemon = start(&installation);
    let ended = daemon.says("worker ended, restarting").await;
    assert_eq!(ended["status"], "exit code 71 (on_worker_start has failed)");
    assert_eq!(
        daemon.says("the worker ends").await["error"],
        "on_worker_start has failed: this worker is not to start"
    );
    let first = daemon.child("ledger", 1).await;
    let worker = |pid: i32| json!({ "worker": "ledger", "processors": ["ledger"], "kinds": ["projector"], "versions": [3], "pid": pid });
    assert_eq!(noted(&installation, "starts")[0], worker(first.as_raw()));

    std::fs::remove_file(installation.path().join("refuse")).unwrap();
    let last = append(&db.pool, 10).await;
    reaches(&db.pool, "ledger", last).await;
    let running = *daemon.children("ledger").last().unwrap();
    kill(running, Signal::SIGKILL).unwrap();
    let end = eventually("the end of the worker", async || {
        noted(&installation, "ends").into_iter().find(|end| end["pid"] == running.as_raw())
    })
    .await;
    assert_eq!((&end["end"], &end["expected"]), (&"signal SIGKILL".into(), &false.into()));
    daemon.child("ledger", daemon.children("ledger").len()).await;
    let last = append(&db.pool, 10).await;
    reaches(&db.pool, "ledger", last).await;
    daemon.stop().await;
}

#[tokio::test]
async fn closures_are_told_of_failures_and_of_events_that_are_set_aside() {
    let db = support::database().await;
    let settings = "[runner]\npoll_interval_max = '50ms'\n[retry]\ninitial = '50ms'\nmax_attempts = 2\non_failure = 'skip'\n";
    let installation = Installation::new(&db.url, settings);
    let daemon = start(&installation);
    let store = PostgresEventStore::new(db.pool.clone(), Layout::espd(SCHEMA).unwrap());
    let body = || to_raw_value(&json!({})).unwrap();
    let appended = store.append(&[NewEvent::new(Uuid::new_v4(), "Broken", body())]).await.unwrap();
    let set_aside =
        eventually("the event is set aside", async || noted(&installation, "dead_letters").pop()).await;
    // Each closure is called by itself, so this one may come later.
    let failures = eventually("the failure is told", async || {
        Some(noted(&installation, "failures")).filter(|failures| !failures.is_empty())
    })
    .await;
    assert_eq!(failures.len(), 1, "{failures:?}");
    let line =
        daemon.says("set an event aside that could not be handled: `hooks dead-letters list` shows it");
    assert_eq!(line.await["event.id"], failures[0]["event_id"]);
    let told =
        |facts: &Value| (facts["error"].clone(), facts["event_type"].clone(), facts["event_id"].clone());
    let expected = ("no entry can be made of this".into(), "Broken".into(), appended[0].id.get().into());
    assert_eq!((told(&failures[0]), told(&set_aside)), (expected.clone(), expected));
    assert_eq!((&failures[0]["attempt"], &failures[0]["condition"]), (&1.into(), &"retrying".into()));
    assert_eq!((&set_aside["attempt"], &set_aside["events"]), (&2.into(), &1.into()));
    daemon.stop().await;
}
