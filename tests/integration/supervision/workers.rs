//! The daemon and its children as real processes: killed, stopped, asked to end.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use espd::internals::config::Config;
use espd::internals::plan::worker_settings;
use espd::internals::tracker::Owner;
use espd::internals::worker::Assignment;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::getpgid;
use serde_json::Value;
use sqlx::PgPool;

use crate::support;
use crate::support::facts::{Gate, append, assert_exactly_once, eventually, position, reaches, within};
use crate::support::program::{Installation, Program, is_alive};

/// Small batches and short poll intervals.
const RUNNER: &str = "[runner]\nbatch_size = 100\npoll_interval_max = '50ms'\n";

/// How many trackers have an owner.
async fn owned(pool: &PgPool) -> i64 {
    sqlx::query_scalar(
        "select count(*) from espd.trackers where owner is not null or lease_until is not null",
    )
    .fetch_one(pool)
    .await
    .unwrap()
}

/// Sends TERM until the daemon has taken one as a second request: two in quick succession count as one.
async fn insist(daemon: &Program) {
    daemon.says("stopping").await;
    eventually("a second request", async || {
        daemon.signal(Signal::SIGTERM);
        tokio::time::sleep(Duration::from_millis(250)).await;
        daemon.logged("stopping").iter().any(|line| line["at_once"] == true).then_some(())
    })
    .await;
}

/// Seconds between the end of a child and the start of the next one, by the log's own times.
fn restart_delays(daemon: &Program) -> Vec<f64> {
    let time = |line: &Value| line["timestamp"].as_str().unwrap().parse::<DateTime<Utc>>().unwrap();
    let log = daemon.log();
    let ends = log.iter().enumerate().filter(|(_, line)| line["message"] == "worker ended, restarting");
    let delay = |(index, end): (usize, &Value)| {
        let start = log[index..].iter().find(|line| line["message"] == "worker started").unwrap();
        (time(start) - time(end)).as_seconds_f64()
    };
    ends.map(delay).collect()
}

#[tokio::test]
async fn a_killed_child_is_restarted_and_its_effects_are_exactly_once() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("slow", &(Gate::at(450) + &Gate::at(1_250)));
    installation.declare_notes("other", "");
    let last = append(&db.pool, 2_000).await;
    let (mut gate, mut next_gate) = (Gate::close(&db.pool, 450).await, Gate::close(&db.pool, 1_250).await);
    let daemon = installation.start_daemon();
    let other = daemon.child("other", 1).await;

    // In the middle of a batch: the server finishes the batch although no client waits for it any more.
    gate.visitor().await;
    kill(daemon.child("slow", 1).await, Signal::SIGKILL).unwrap();
    let second = daemon.child("slow", 2).await;
    gate.open().await;
    // In the middle of another batch: the server rolls the batch back.
    let visitor = next_gate.visitor().await;
    assert_eq!(position(&db.pool, "slow").await, 1_200);
    kill(second, Signal::SIGKILL).unwrap();
    sqlx::query("select pg_terminate_backend($1)").bind(visitor).execute(&db.pool).await.unwrap();
    let third = daemon.child("slow", 3).await;
    next_gate.open().await;

    for name in ["slow", "other"] {
        reaches(&db.pool, name, last).await;
        assert_exactly_once(&db.pool, &db.pool, name).await;
    }
    assert_eq!(daemon.children("slow").last(), Some(&third));
    let delays = restart_delays(&daemon);
    assert!(delays[0] >= 0.5 && delays[1] >= 1.0, "{delays:?}");
    assert_eq!(daemon.children("other"), [other]);
    assert!(is_alive(other));
    daemon.stop().await;
}

#[tokio::test]
async fn no_child_outlives_a_killed_daemon_and_a_new_one_continues() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("one", &Gate::at(450)).declare_notes("other", "");
    let last = append(&db.pool, 1_000).await;
    let mut gate = Gate::close(&db.pool, 450).await;
    let mut daemon = installation.start_daemon();
    let children = [daemon.child("one", 1).await, daemon.child("other", 1).await];
    gate.visitor().await;
    // A stopped process neither notices its lifeline nor handles a signal.
    killpg(children[1], Signal::SIGSTOP).unwrap();

    daemon.kill().await;
    within(Duration::from_secs(1), "the end of all children", async || {
        (!children.into_iter().any(is_alive)).then_some(())
    })
    .await;

    gate.open().await;
    let successor = installation.start_daemon();
    for name in ["one", "other"] {
        reaches(&db.pool, name, last).await;
        assert_exactly_once(&db.pool, &db.pool, name).await;
    }
    successor.stop().await;
}

#[tokio::test]
async fn a_child_runs_in_a_group_of_its_own_under_a_readable_name_without_secrets() {
    let db = support::database().await;
    let url = db.url.replace("espd@", "espd:hush-hush@");
    let installation = Installation::new(&url, RUNNER);
    installation.declare_notes("notes", "");
    let last = append(&db.pool, 10).await;
    let daemon = installation.start_daemon();
    let child = daemon.child("notes", 1).await;
    reaches(&db.pool, "notes", last).await;
    assert_eq!(getpgid(Some(child)).unwrap(), child);
    if cfg!(target_os = "linux") {
        let read = |file| {
            String::from_utf8_lossy(&std::fs::read(format!("/proc/{child}/{file}")).unwrap()).into_owned()
        };
        let title = read("cmdline");
        assert!(title.starts_with("espd: worker notes\0"), "{title}");
        assert!(!title.contains("hush-hush") && !read("environ").contains("hush-hush"));
    }
    assert!(!daemon.log().iter().any(|line| line.to_string().contains("hush-hush")));
    daemon.stop().await;
}

#[tokio::test]
async fn a_stop_lets_the_current_batch_end_and_releases_every_tracker() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("busy", &Gate::at(150)).declare_notes("idle", "");
    let last = append(&db.pool, 1_000).await;
    let mut gate = Gate::close(&db.pool, 150).await;
    let mut daemon = installation.start_daemon();
    gate.visitor().await;
    reaches(&db.pool, "idle", last).await;

    daemon.signal(Signal::SIGTERM);
    let idle = daemon.child("idle", 1).await;
    eventually("the end of the idle child", async || (!is_alive(idle)).then_some(())).await;
    assert!(is_alive(daemon.child("busy", 1).await) && is_alive(daemon.pid()));
    gate.open().await;

    assert_eq!(daemon.ended().await.code(), Some(0));
    daemon.is_deserted().await;
    assert_eq!(owned(&db.pool).await, 0);
    assert_eq!(position(&db.pool, "busy").await, 200);
    assert_eq!(daemon.logged("killing a worker that does not stop").len(), 0);
}

#[tokio::test]
async fn a_second_request_to_stop_ends_everything_at_once() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("busy", &Gate::at(150));
    append(&db.pool, 1_000).await;
    let mut gate = Gate::close(&db.pool, 150).await;
    let mut daemon = installation.start_daemon();
    gate.visitor().await;
    daemon.signal(Signal::SIGTERM);
    insist(&daemon).await;
    assert_eq!(daemon.ended().await.code(), Some(130));
    daemon.is_deserted().await;
    gate.open().await;
}

#[tokio::test]
async fn a_child_that_does_not_stop_is_killed_when_its_time_is_over() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, &format!("{RUNNER}shutdown_timeout = '1s'\n"));
    installation.declare_notes("deaf", "").declare_notes("fine", "");
    let last = append(&db.pool, 10).await;
    let mut daemon = installation.start_daemon();
    for name in ["deaf", "fine"] {
        reaches(&db.pool, name, last).await;
    }
    let deaf = daemon.child("deaf", 1).await;
    killpg(deaf, Signal::SIGSTOP).unwrap();
    let begun = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.ended().await.code(), Some(70));
    assert!(begun.elapsed() >= Duration::from_secs(1));
    daemon.is_deserted().await;
    let words =
        "not all workers have ended by themselves in time: deaf (killed, because it did not stop in time)";
    assert_eq!(daemon.says("espd ends").await["error"], words);
    let killed = daemon.logged("killing a worker that does not stop");
    let killed: Vec<_> = killed.iter().map(|line| line["worker"].as_str().unwrap()).collect();
    assert_eq!(killed, ["deaf"]);
    assert_eq!(owned(&db.pool).await, 1);
}

/// The kernel's signal at the death of a parent exists on Linux only; the lifeline works everywhere.
#[tokio::test]
async fn a_worker_ends_soon_after_its_lifeline_closes_whatever_it_does() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", &Gate::at(150));
    append(&db.pool, 1_000).await;
    let mut gate = Gate::close(&db.pool, 150).await;
    let config = Config::load(&installation.path().join("espd.toml")).unwrap();
    let url = config.event_store.url.as_ref().unwrap();
    let settings = worker_settings(&config, &[&config.processors[0]], url);
    let mut worker = installation.start(&["worker", "--supervised", "notes"]);
    worker.tell(&serde_json::to_string(&Assignment { owner: Owner::generate(), settings }).unwrap());
    gate.visitor().await;
    worker.hang_up();
    assert_eq!(worker.ended().await.code(), Some(130));
    gate.open().await;
}

#[tokio::test]
async fn a_worker_run_by_hand_stops_in_order_when_interrupted() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    let last = append(&db.pool, 10).await;
    let mut worker = installation.start(&["worker", "notes"]);
    reaches(&db.pool, "notes", last).await;
    worker.signal(Signal::SIGINT);
    assert_eq!(worker.ended().await.code(), Some(0));
    assert_eq!(owned(&db.pool).await, 0);
}

/// The stopped process remembers a claim that was valid when it was stopped.
#[tokio::test]
async fn a_stopped_and_resumed_process_commits_nothing() {
    let takeover = Takeover::happen().await;
    let (stopped, pool) = (&takeover.stopped, &takeover.pool);
    killpg(stopped.pid(), Signal::SIGCONT).unwrap();
    stopped.says("the claim is no longer valid").await;
    assert_exactly_once(pool, pool, "notes").await;
    assert_eq!(position(pool, "notes").await, takeover.last);
    // The resumed process works again once the other owner is gone.
    takeover.worker.stop().await;
    let last = append(pool, 300).await;
    reaches(pool, "notes", last).await;
    assert_exactly_once(pool, pool, "notes").await;
}

/// The negative control: if the epoch is reset, the same process commits.
#[tokio::test]
async fn without_the_epoch_a_resumed_process_would_do_it_all_again() {
    let takeover = Takeover::happen().await;
    let (stopped, pool) = (&takeover.stopped, &takeover.pool);
    sqlx::query("update espd.trackers set epoch = 1, position = 200").execute(pool).await.unwrap();
    killpg(stopped.pid(), Signal::SIGCONT).unwrap();
    reaches(pool, "notes", takeover.last).await;
    let noted: i64 = sqlx::query_scalar("select count(*) from notes").fetch_one(pool).await.unwrap();
    assert_eq!(noted, 1_000 + 800);
}

/// A worker that was stopped in the middle of a batch, and a second worker that has taken over from it.
struct Takeover {
    stopped: Program,
    worker: Program,
    pool: PgPool,
    last: i64,
    _installation: Installation,
}

impl Takeover {
    async fn happen() -> Self {
        let db = support::database().await;
        let installation = Installation::new(&db.url, RUNNER);
        installation.declare_notes("notes", &Gate::at(150));
        let last = append(&db.pool, 1_000).await;
        let mut gate = Gate::close(&db.pool, 150).await;
        let stopped = installation.start(&["worker", "notes"]);
        gate.visitor().await;
        killpg(stopped.pid(), Signal::SIGSTOP).unwrap();
        // Its batch commits, because its claim was still valid.
        gate.open().await;
        reaches(&db.pool, "notes", 200).await;
        let worker = installation.start(&["worker", "notes"]);
        worker.says("standing by: another daemon owns the processor").await;
        sqlx::query("update espd.trackers set lease_until = clock_timestamp()")
            .execute(&db.pool)
            .await
            .unwrap();
        reaches(&db.pool, "notes", last).await;
        assert_exactly_once(&db.pool, &db.pool, "notes").await;
        Self { stopped, worker, pool: db.pool, last, _installation: installation }
    }
}
