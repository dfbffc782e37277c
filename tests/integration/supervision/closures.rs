//! Hooks in Rust: `examples/hooks`, a program whose closures note what they are told.

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::support;
use crate::support::facts::{append, eventually, reaches};
use crate::support::program::{Installation, Program};

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
        daemon.says("espd ends").await["error"],
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
