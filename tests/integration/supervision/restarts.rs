//! When the supervisor ends a worker, and what it does about workers that end.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};

use crate::support;
use crate::support::facts::{Gate, append, assert_exactly_once, eventually, reaches, within};
use crate::support::program::{Installation, is_alive};

/// Small batches and short poll intervals.
const RUNNER: &str = "[runner]\nbatch_size = 100\npoll_interval_max = '50ms'\n";

#[tokio::test]
async fn a_worker_that_hangs_is_killed_and_restarted_and_nothing_is_lost() {
    let db = support::database().await;
    let settings = format!("{RUNNER}hang_timeout = '5s'\nshutdown_timeout = '1s'\n");
    let installation = Installation::new(&db.url, &settings);
    installation.declare_notes("notes", &Gate::at(450)).declare_notes("other", "");
    let last = append(&db.pool, 1_000).await;
    let mut gate = Gate::close(&db.pool, 450).await;
    let daemon = installation.start_daemon();
    let (first, other) = (daemon.child("notes", 1).await, daemon.child("other", 1).await);
    gate.visitor().await;
    killpg(first, Signal::SIGSTOP).unwrap();
    gate.open().await;

    let said = daemon.says("a worker gives no sign of life, restarting it").await;
    assert_eq!(
        (&said["worker"], said["worker.pid"].as_i64()),
        (&"notes".into(), Some(first.as_raw().into()))
    );
    assert!(said["silent_ms"].as_i64().unwrap() >= 5_000, "{said}");
    // A stopped process does not handle TERM.
    daemon.says("killing a worker that does not stop").await;
    daemon.child("notes", 2).await;
    for name in ["notes", "other"] {
        reaches(&db.pool, name, last).await;
        assert_exactly_once(&db.pool, &db.pool, name).await;
    }
    let ended = daemon.says("worker ended, restarting").await;
    assert_eq!(ended["status"], "signal SIGKILL");
    assert_eq!(daemon.children("other"), [other]);
    daemon.stop().await;
}

/// A batch that takes long is no hang: its backend is known to be alive.
#[tokio::test]
async fn a_long_batch_is_no_hang() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, &format!("{RUNNER}hang_timeout = '5s'\n"));
    installation.declare_notes("long", &Gate::at(1));
    let last = append(&db.pool, 10).await;
    let mut gate = Gate::close(&db.pool, 1).await;
    let daemon = installation.start_daemon();
    gate.visitor().await;
    let begun = Instant::now();
    within(Duration::from_secs(90), "a batch of more than two looks at its backend", async || {
        (begun.elapsed() > Duration::from_secs(33)).then_some(())
    })
    .await;
    assert!(daemon.logged("a worker gives no sign of life, restarting it").is_empty());
    gate.open().await;
    reaches(&db.pool, "long", last).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_that_was_stopped_itself_restarts_no_worker_for_that() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, &format!("{RUNNER}hang_timeout = '5s'\n"));
    installation.declare_notes("notes", "");
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 10).await;
    reaches(&db.pool, "notes", last).await;
    daemon.signal(Signal::SIGSTOP);
    let begun = Instant::now();
    eventually("more than the time of a hang", async || {
        (begun.elapsed() > Duration::from_secs(7)).then_some(())
    })
    .await;
    daemon.signal(Signal::SIGCONT);
    // The daemon works again when it restarts a child that was killed.
    kill(daemon.child("notes", 1).await, Signal::SIGKILL).unwrap();
    daemon.child("notes", 2).await;
    assert!(daemon.logged("a worker gives no sign of life, restarting it").is_empty());
    daemon.stop().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_worker_that_uses_too_much_memory_is_restarted() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, &format!("{RUNNER}memory_max = '16MiB'\n"));
    // The last error's text stays in the worker's memory while it is recorded: 50 MB of it.
    installation.declare_notes("large", "raise exception '%', repeat('x', 50000000);");
    installation.declare_notes("small", "");
    let daemon = installation.start_daemon();
    append(&db.pool, 10).await;
    let said = daemon.says("a worker uses more memory than it may, restarting it").await;
    assert!(said["memory_bytes"].as_u64().unwrap() > 16 << 20, "{said}");
    assert_eq!(said["memory_max_bytes"], 16 << 20);
    let worker = said["worker"].as_str().unwrap().to_owned();
    let ended = daemon.says("worker ended, restarting").await;
    assert_eq!(ended["status"], "exit code 0 (done)");
    daemon.child(&worker, 2).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_worker_that_ends_at_once_is_restarted_ever_more_slowly_and_never_given_up() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, &format!("{RUNNER}restart_max = '1s'\n"));
    installation.declare_notes("faulty", "perform 'no end;\n").declare_notes("fine", "");
    let daemon = installation.start_daemon();
    let looping = daemon.says("a worker ends again and again").await;
    assert_eq!((&looping["worker"], looping["ends"].as_i64()), (&"faulty".into(), Some(6)));
    assert_eq!(looping["retry_in_ms"].as_i64().unwrap().clamp(900, 1_000), looping["retry_in_ms"]);
    let ended = daemon.says("worker ended, restarting").await;
    assert_eq!(ended["status"], "exit code 64 (wrong configuration or declaration)");
    daemon.child("faulty", 8).await;
    let last = append(&db.pool, 10).await;
    reaches(&db.pool, "fine", last).await;
    assert_eq!(daemon.children("fine").len(), 1);
    daemon
        .stop_uncleanly("faulty (exit code 64 (wrong configuration or declaration), again and again)")
        .await;
}

/// Sends TERM at every moment of the start: before the configuration is read, while the database is checked, while
/// children are started, while they claim.
#[tokio::test]
async fn a_request_to_stop_is_carried_out_at_every_moment_of_the_start() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("one", "").declare_notes("two", "");
    append(&db.pool, 100).await;
    for delay_ms in (0..300).step_by(10) {
        let mut daemon = installation.start_daemon();
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        daemon.signal(Signal::SIGTERM);
        let begun = Instant::now();
        let status = daemon.ended().await;
        // Before it listens to signals, the daemon ends as any process does.
        assert!(status.success() || daemon.log().is_empty(), "{delay_ms} ms: {status}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{delay_ms} ms: took {:?}", begun.elapsed());
        daemon.is_deserted().await;
        let children = ["one", "two"].map(|name| daemon.children(name));
        assert!(!children.iter().flatten().any(|child| is_alive(*child)), "{delay_ms} ms");
    }
    let owned: i64 = sqlx::query_scalar("select count(*) from espd.trackers where owner is not null")
        .fetch_one(&db.pool)
        .await
        .unwrap();
    assert_eq!(owned, 0);
}
