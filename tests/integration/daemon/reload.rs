//! What surrounds the workers' lives: SIGHUP, systemd, and the table `workers`.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use sqlx::PgPool;

use crate::admin::client::Client;
use crate::support;
use crate::support::facts::{append, assert_exactly_once, eventually, reaches};
use crate::support::program::{Installation, Program, is_alive};

/// Small batches and short poll intervals.
const RUNNER: &str = "[runner]\nbatch_size = 100\npoll_interval_max = '50ms'\n";

/// Worker, state, starts and last end, by worker.
async fn written(pool: &PgPool) -> Vec<(String, String, i64, Option<String>)> {
    sqlx::query_as("select worker, state, starts, last_end from espd.workers order by worker, owner_label")
        .fetch_all(pool)
        .await
        .unwrap()
}

/// The workers with which the daemon said this, in order.
fn said_of(daemon: &Program, message: &str) -> Vec<String> {
    daemon.logged(message).iter().map(|line| line["worker"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_reload_restarts_what_has_changed_and_nothing_else() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, &format!("{RUNNER}[admin]\nlisten = '127.0.0.1:0'\n"));
    installation.declare_notes("same", "").declare_notes("changed", "").declare_notes("removed", "");
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 500).await;
    for name in ["same", "changed", "removed"] {
        reaches(&db.pool, name, last).await;
    }
    let (same, removed) = (daemon.child("same", 1).await, daemon.child("removed", 1).await);

    daemon.signal(Signal::SIGHUP);
    daemon.says("the configuration was read again: nothing has changed").await;
    installation.declare_notes("changed", "perform 1;").declare_notes("new", "");
    std::fs::remove_file(installation.path().join("processors/removed.toml")).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.child("changed", 2).await;
    daemon.child("new", 1).await;
    eventually("the end of the removed worker", async || (!is_alive(removed)).then_some(())).await;
    let last = append(&db.pool, 500).await;
    for name in ["same", "changed", "new"] {
        reaches(&db.pool, name, last).await;
        assert_exactly_once(&db.pool, &db.pool, name).await;
    }
    assert_eq!(said_of(&daemon, "worker is no longer configured, stopping it"), ["removed"]);
    assert_eq!(said_of(&daemon, "worker's configuration has changed, restarting it"), ["changed"]);
    assert_eq!(said_of(&daemon, "worker is new in the configuration"), ["new"]);
    assert_eq!(daemon.children("same"), [same]);
    assert_eq!((daemon.children("changed").len(), daemon.children("removed").len()), (2, 1));

    let client = Client::new(daemon.says("the admin endpoint listens").await["url"].as_str().unwrap());
    let metrics = client.get("/metrics").await.body;
    let restarts = "espd_worker_restarts_total{worker=\"changed\"}";
    assert!(metrics.contains(&format!("{restarts} 0\n")), "a reload is no restart: {metrics}");
    nix::sys::signal::kill(daemon.child("changed", 2).await, Signal::SIGKILL).unwrap();
    eventually("a restart", async || {
        client.get("/metrics").await.body.contains(&format!("{restarts} 1\n")).then_some(())
    })
    .await;

    // The processor is back, in a worker of its own name.
    installation.declare_notes("removed", "");
    daemon.signal(Signal::SIGHUP);
    reaches(&db.pool, "removed", last).await;
    assert_exactly_once(&db.pool, &db.pool, "removed").await;
    daemon.stop_after_kills().await;
}

#[tokio::test]
async fn a_reload_with_faults_keeps_everything_as_it_is_and_names_them_all() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("one", "").declare_notes("two", "");
    let daemon = installation.start_daemon();
    let (one, two) = (daemon.child("one", 1).await, daemon.child("two", 1).await);
    let good = std::fs::read_to_string(installation.path().join("espd.toml")).unwrap();
    std::fs::write(installation.path().join("espd.toml"), format!("colour = 1\n{good}")).unwrap();
    installation.declare("two", "[projector]\nname = 'two'\nversion = 0\n");
    daemon.signal(Signal::SIGHUP);
    let wrong = "the configuration was read again and is wrong, keeping the old one";
    eventually("three faults", async || (daemon.logged(wrong).len() == 3).then_some(())).await;
    let faults: Vec<_> =
        daemon.logged(wrong).iter().map(|line| line["fault"].as_str().unwrap().to_owned()).collect();
    for part in
        ["espd.toml:1:1: unknown key `colour`", "two.toml:3:11", "two.toml:1:1: [projector] needs `on`"]
    {
        assert!(faults.iter().any(|fault| fault.contains(part)), "{part}: {faults:?}");
    }
    let last = append(&db.pool, 100).await;
    for name in ["one", "two"] {
        reaches(&db.pool, name, last).await;
    }
    assert_eq!((daemon.children("one"), daemon.children("two")), (vec![one], vec![two]));
    daemon.stop().await;
}

#[tokio::test]
async fn a_reload_of_a_pipe_that_nobody_writes_holds_nothing() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    let daemon = installation.start_daemon();
    daemon.child("notes", 1).await;
    let file = installation.path().join("espd.toml");
    std::fs::remove_file(&file).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.says("the configuration was read again and is wrong, keeping the old one").await;
    let last = append(&db.pool, 5).await;
    reaches(&db.pool, "notes", last).await;
    daemon.stop().await;
}

/// Sends SIGHUP at every moment of the start, again and again.
#[tokio::test]
async fn a_reload_while_starting_does_no_harm() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    let daemon = installation.start_daemon();
    daemon.says("espd starts").await;
    for nth in 0..30 {
        installation.declare_notes("notes", &format!("perform {nth};"));
        daemon.signal(Signal::SIGHUP);
        tokio::time::sleep(Duration::from_millis(nth * 3)).await;
    }
    let last = append(&db.pool, 500).await;
    reaches(&db.pool, "notes", last).await;
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    daemon.stop().await;
}

#[tokio::test]
async fn the_states_of_workers_are_written_down_and_go_with_their_daemon() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("faulty", "perform 'no end;\n").declare_notes("fine", "");
    let daemon = installation.start_daemon();
    let configuration = Some("exit code 64 (wrong configuration or declaration)".to_owned());
    eventually("a crash loop", async || {
        let rows = written(&db.pool).await;
        let [(faulty, state, starts, last_end), fine] = rows.as_slice() else { return None };
        assert_eq!((faulty.as_str(), fine.0.as_str()), ("faulty", "fine"));
        let found = state == "crash_looping" && *starts >= 6 && *last_end == configuration;
        (found && *fine == ("fine".into(), "running".into(), 1, None)).then_some(())
    })
    .await;
    let due: bool = sqlx::query_scalar(
        "select bool_and(next_start_at > last_end_at and last_end_at > now() - interval '1 hour')
         from espd.workers where state = 'crash_looping'",
    )
    .fetch_one(&db.pool)
    .await
    .unwrap();
    assert!(due);

    // An outage is survived.
    sqlx::query(
        "select pg_terminate_backend(pid) from pg_stat_activity
         where datname = current_database() and application_name = 'espd: daemon'",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    kill(daemon.child("fine", 1).await, Signal::SIGKILL).unwrap();
    eventually("the second life of `fine`", async || {
        let rows = written(&db.pool).await;
        let (_, state, starts, last_end) = rows.iter().find(|row| row.0 == "fine")?;
        (state == "running" && *starts == 2 && last_end.as_deref() == Some("signal SIGKILL")).then_some(())
    })
    .await;
    daemon
        .stop_uncleanly("faulty (exit code 64 (wrong configuration or declaration), again and again)")
        .await;
    assert_eq!(written(&db.pool).await, []);
}

#[tokio::test]
async fn a_dead_daemons_workers_are_removed_by_another_one() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    let mut dead = installation.start_daemon();
    eventually("the first daemon's row", async || (written(&db.pool).await.len() == 1).then_some(())).await;
    dead.kill().await;
    sqlx::query("update espd.workers set updated_at = updated_at - interval '1 minute'")
        .execute(&db.pool)
        .await
        .unwrap();
    let daemon = installation.start_daemon();
    let label = format!(":{}", daemon.pid());
    eventually("the second daemon's row alone", async || {
        let labels: Vec<String> =
            sqlx::query_scalar("select owner_label from espd.workers").fetch_all(&db.pool).await.unwrap();
        (labels.len() == 1 && labels[0].ends_with(&label)).then_some(())
    })
    .await;
    daemon.stop().await;
}

#[tokio::test]
async fn systemd_receives_the_state_and_the_watchdogs_signal() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    let path = installation.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut heard = Vec::new();
    let mut hears = async |wanted: &str| {
        eventually(wanted, async || {
            let mut buffer = [0; 1024];
            while let Ok(length) = socket.recv(&mut buffer) {
                heard.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
            }
            let found = heard.iter().position(|message| message.starts_with(wanted))?;
            Some(heard.drain(..=found).next_back().unwrap())
        })
        .await
    };
    let mut command = installation.espd_command(&["run"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "600000");
    let mut daemon = Program::start(command);
    assert_eq!(hears("READY=1").await, "READY=1\nSTATUS=1 of 1 workers running");
    for _ in 0..3 {
        hears("WATCHDOG=1").await;
    }
    daemon.signal(Signal::SIGHUP);
    assert!(hears("RELOADING=1").await.starts_with("RELOADING=1\nMONOTONIC_USEC="));
    hears("READY=1").await;
    let child = daemon.child("notes", 1).await;
    let environment = std::fs::read(format!("/proc/{child}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("NOTIFY_SOCKET"));
    daemon.signal(Signal::SIGTERM);
    hears("STOPPING=1").await;
    assert_eq!(daemon.ended().await.code(), Some(0));
}
