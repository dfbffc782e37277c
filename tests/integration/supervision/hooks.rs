//! Hooks, which run when a worker ends or a processor fails, and the orphans that they may leave.

use std::os::unix::process::CommandExt as _;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sqlx::PgPool;

use crate::support;
use crate::support::facts::{append, eventually, position, reaches};
use crate::support::program::{Installation, Program};

/// Small batches and short poll intervals.
const RUNNER: &str = "[runner]\nbatch_size = 100\npoll_interval_max = '50ms'\n";

/// The facts in a file that hooks add lines to.
fn told(installation: &Installation, file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(installation.path().join(file)).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn hooks_receive_the_facts_and_their_failure_has_no_consequence() {
    let db = support::database().await;
    let hooks = "[hooks]\non_worker_end = ['sh', '-c', 'cat >> ends; echo noted; exit 3']\n\
                 on_failure = ['sh', '-c', 'cat >> failures']\n";
    let installation = Installation::new(&db.url, &format!("{RUNNER}{hooks}"));
    installation.declare_notes("failing", "perform 1 / 0;").declare_notes("fine", "");
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 10).await;
    reaches(&db.pool, "fine", last).await;
    let first = daemon.child("fine", 1).await;
    kill(first, Signal::SIGKILL).unwrap();
    let failed = daemon.says("a hook has failed").await;
    assert_eq!((&failed["status"], &failed["output"]), (&"exit code 3".into(), &"noted".into()));
    let ends = told(&installation, "ends");
    let expected = serde_json::json!({
        "hook": "on_worker_end", "worker": "fine", "processors": ["fine"], "kinds": ["projector"], "versions": [1],
        "pid": first.as_raw(),
        "end": "signal SIGKILL", "expected": false, "starts": 1, "state": "waiting",
    });
    assert_eq!(ends, [expected]);
    eventually("a failure", async || (!told(&installation, "failures").is_empty()).then_some(())).await;
    let failure = &told(&installation, "failures")[0];
    assert_eq!((&failure["processor"], &failure["condition"]), (&"failing".into(), &"retrying".into()));
    daemon.child("fine", 2).await;
    daemon.stop().await;
    // The end of the daemon has waited for the hooks of its last workers.
    let ends = told(&installation, "ends");
    assert_eq!(ends.iter().filter(|end| end["expected"] == true).count(), 2, "{ends:?}");
    assert_eq!(told(&installation, "failures").len(), 1);
}

/// The variables that a hook has written down.
fn environment(installation: &Installation, file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(installation.path().join(file)).unwrap_or_default();
    // That of the tests themselves is not the hook's.
    text.lines().filter(|line| !line.starts_with("ESPD_PG_BIN=")).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_start_hook_runs_in_the_worker_before_anything_else_and_may_refuse_the_start() {
    let db = support::database().await;
    let hooks = "[hooks]\non_worker_start = ['sh', '-c', 'cat >> starts; env | grep ^ESPD_ | grep -v CONFIG | sort > on_start; \
                 echo not yet; test -e go']\non_worker_end = ['sh', '-c', 'env | grep ^ESPD_ | grep -v CONFIG | sort > on_end']\n";
    let installation = Installation::new(&db.url, &format!("{RUNNER}restart_max = '1s'\n{hooks}"));
    installation.declare_notes("notes", "");
    let daemon = installation.start_daemon();
    let ended = daemon.says("worker ended, restarting").await;
    assert_eq!(ended["status"], "exit code 71 (on_worker_start has failed)");
    assert_eq!(
        daemon.says("the worker ends").await["error"],
        "on_worker_start has failed: exit code 1: not yet"
    );
    let first = daemon.child("notes", 1).await;
    let facts = serde_json::json!({
        "hook": "on_worker_start", "worker": "notes", "processors": ["notes"], "kinds": ["projector"], "versions": [1],
        "pid": first.as_raw(),
    });
    assert_eq!(told(&installation, "starts")[0], facts);
    // Nothing has happened in a worker that was not to start.
    assert_eq!(daemon.logged("claimed").len(), 0);
    let trackers: i64 =
        sqlx::query_scalar("select count(*) from espd.trackers").fetch_one(&db.pool).await.unwrap();
    assert_eq!(trackers, 0);
    std::fs::write(installation.path().join("go"), "").unwrap();
    let last = append(&db.pool, 10).await;
    reaches(&db.pool, "notes", last).await;

    let running = *daemon.children("notes").last().unwrap();
    let variables = |hook: &str| {
        let pid = running.as_raw();
        vec![
            format!("ESPD_HOOK={hook}"),
            "ESPD_KIND=projector".to_owned(),
            format!("ESPD_PID={pid}"),
            "ESPD_PROCESSORS=notes".to_owned(),
            "ESPD_VERSION=1".to_owned(),
            "ESPD_WORKER=notes".to_owned(),
        ]
    };
    assert_eq!(environment(&installation, "on_start"), variables("on_worker_start"));
    daemon.stop().await;
    assert_eq!(environment(&installation, "on_end"), variables("on_worker_end"));
}

#[tokio::test]
async fn a_start_hook_that_hangs_is_killed_and_the_worker_is_no_hang() {
    let db = support::database().await;
    let hooks = "[hooks]\non_worker_start = ['sh', '-c', 'test -e go || sleep 600']\ntimeout = '6s'\n";
    let installation = Installation::new(&db.url, &format!("{RUNNER}hang_timeout = '5s'\n{hooks}"));
    installation.declare_notes("notes", "");
    let last = append(&db.pool, 10).await;
    let daemon = installation.start_daemon();
    let said = daemon.says("the worker ends").await;
    assert_eq!(said["error"], "on_worker_start has failed: killed, because it took longer than 6s");
    std::fs::write(installation.path().join("go"), "").unwrap();
    reaches(&db.pool, "notes", last).await;
    assert!(daemon.logged("a worker gives no sign of life, restarting it").is_empty());
    daemon.stop().await;
}

#[tokio::test]
async fn a_hook_runs_when_events_are_set_aside() {
    let db = support::database().await;
    let settings = "[retry]\nmax_attempts = 1\non_failure = 'skip'\n[hooks]\non_dead_letter = ['sh', '-c', 'cat >> dead_letters']\n";
    let installation = Installation::new(&db.url, &format!("{RUNNER}{settings}"));
    installation
        .declare_notes("notes", "perform 1 / ((event.body->>'n')::int % 5);")
        .declare_notes("fine", "");
    let last = append(&db.pool, 12).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", last).await;
    // The hook is told at most once a second, and in total of every event.
    let events = |facts: &[Value]| facts.iter().map(|fact| fact["events"].as_i64().unwrap()).sum::<i64>();
    let told_of = async |count: i64| {
        eventually("the hook", async || {
            let facts = told(&installation, "dead_letters");
            (events(&facts) >= count).then_some(facts)
        })
        .await
    };
    let facts = told_of(2).await;
    assert_eq!(events(&facts), 2);
    let told_last = &facts[facts.len() - 1];
    let id = |what: &str| told_last[what].clone();
    let expected = serde_json::json!({
        "hook": "on_dead_letter", "worker": "notes", "processor": "notes", "events": id("events"), "last_event_id": 10,
        "error": "division by zero", "sqlstate": "22012", "place": id("place"), "stderr": null, "event_id": 10,
        "event_uuid": id("event_uuid"), "event_type": "A", "aggregate_id": id("aggregate_id"), "attempt": 1,
        "next_try_at": null, "resumed": false,
    });
    assert_eq!(told_last, &expected);
    assert!(
        id("place").as_str().unwrap().contains("notes.toml:") && id("event_uuid").is_string(),
        "{told_last}"
    );

    // No news are: an event that only waits, a dead letter that fails again, a restarted worker.
    installation.espctl(&["dead-letters", "retry", "notes", "--all", "--yes"]).await.complained(1);
    kill(daemon.child("notes", 1).await, Signal::SIGKILL).unwrap();
    daemon.child("notes", 2).await;
    let last = append(&db.pool, 5).await;
    reaches(&db.pool, "notes", last).await;
    let facts = told_of(3).await;
    assert_eq!((events(&facts), &facts[facts.len() - 1]["last_event_id"]), (3, &last.into()));
    daemon.stop().await;
    assert_eq!(events(&told(&installation, "dead_letters")), 3);
}

/// The attempts that the tracker of `failing` has counted.
async fn attempts(pool: &PgPool) -> i32 {
    let statement = "select coalesce(max(attempts), 0) from espd.trackers where name = 'failing'";
    sqlx::query_scalar(statement).fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn a_failure_is_told_with_all_that_is_known_of_it_once_and_again_when_it_is_another_one() {
    let db = support::database().await;
    let settings =
        "[retry]\ninitial = '50ms'\nmax = '50ms'\n[hooks]\non_failure = ['sh', '-c', 'cat >> failures']\n";
    let installation = Installation::new(&db.url, &format!("{RUNNER}{settings}"));
    installation.declare_notes("failing", "perform 1 / ((event.body->>'n')::int - 3);");
    append(&db.pool, 5).await;
    let daemon = installation.start_daemon();
    eventually("the first failure", async || (!told(&installation, "failures").is_empty()).then_some(()))
        .await;
    eventually("attempts", async || (attempts(&db.pool).await >= 5).then_some(())).await;
    let failures = told(&installation, "failures");
    assert_eq!(failures.len(), 1, "{failures:?}");
    let first = &failures[0];
    let next = chrono::DateTime::parse_from_rfc3339(first["next_try_at"].as_str().unwrap());
    assert!(next.is_ok() && first["event_uuid"].is_string() && first["aggregate_id"].is_string(), "{first}");
    assert!(first["place"].as_str().unwrap().contains("failing.toml:"), "{first}");
    let known = ["hook", "worker", "processor", "condition", "error", "sqlstate", "event_type"];
    assert_eq!(
        known.map(|key| first[key].as_str().unwrap()),
        ["on_failure", "failing", "failing", "retrying", "division by zero", "22012", "A"]
    );
    assert_eq!(
        (&first["attempt"], &first["left_out"], &first["resumed"]),
        (&1.into(), &0.into(), &false.into())
    );
    let failed_at = position(&db.pool, "failing").await + 1;
    assert_eq!(first["event_id"], failed_at);

    // A worker that is restarted finds the same failure, which is no news.
    kill(daemon.child("failing", 1).await, Signal::SIGKILL).unwrap();
    daemon.child("failing", 2).await;
    let before = attempts(&db.pool).await;
    eventually("more attempts", async || (attempts(&db.pool).await > before + 2).then_some(())).await;
    let spoil =
        sqlx::query("update espd.events set body = '{\"n\": \"three\"}' where id = $1").bind(failed_at);
    spoil.execute(&db.pool).await.unwrap();
    let failures = eventually("another failure", async || {
        let failures = told(&installation, "failures");
        (failures.len() > 1).then_some(failures)
    })
    .await;
    let (second, more) = (&failures[1], failures.len() - 2);
    assert_eq!(
        (&second["event_id"], &second["sqlstate"], more),
        (&failed_at.into(), &"22P02".into(), 0),
        "{second}"
    );
    assert!(second["error"].as_str().unwrap().contains("three"), "{second}");
    assert!(second["attempt"].as_i64().unwrap() > i64::from(before), "{second}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_store_that_is_another_one_is_told() {
    let db = support::database().await;
    let hooks = "[hooks]\non_diverged = ['sh', '-c', 'cat >> divergences']\non_failure = ['sh', '-c', 'cat >> failures']\n";
    let installation = Installation::new(&db.url, &format!("{RUNNER}{hooks}"));
    installation.declare_notes("notes", "");
    let daemon = installation.start_daemon();
    for last in [5, 9] {
        append(&db.pool, last - position(&db.pool, "notes").await).await;
        reaches(&db.pool, "notes", last).await;
    }
    for go_back in ["delete from espd.events where id > 5", "select setval('espd.events_id_seq', 5)"] {
        sqlx::query(go_back).execute(&db.pool).await.unwrap();
    }
    let divergences = eventually("the divergence", async || {
        let divergences = told(&installation, "divergences");
        (!divergences.is_empty()).then_some(divergences)
    })
    .await;
    let told_of = &divergences[0];
    assert_eq!(
        ["hook", "worker", "processor", "kind"].map(|key| told_of[key].as_str().unwrap()),
        ["on_diverged", "notes", "notes", "event_gone"]
    );
    assert_eq!(["position", "last_common", "head"].map(|key| told_of[key].as_i64().unwrap()), [9, 5, 5]);
    assert!(told_of["remedy"].as_str().unwrap().contains("espctl reset notes --to 5"), "{told_of}");
    eventually("the failure", async || {
        told(&installation, "failures").into_iter().find(|failure| failure["condition"] == "diverged")
    })
    .await;
    daemon.stop().await;
    assert_eq!(told(&installation, "divergences").len(), 1);
}

#[tokio::test]
async fn a_hook_that_hangs_is_killed_and_delays_nothing_for_long() {
    let db = support::database().await;
    let hooks = "[hooks]\non_worker_end = ['sleep', '600']\ntimeout = '200ms'\n";
    let installation = Installation::new(&db.url, &format!("{RUNNER}{hooks}"));
    installation.declare_notes("notes", "");
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 10).await;
    reaches(&db.pool, "notes", last).await;
    kill(daemon.child("notes", 1).await, Signal::SIGKILL).unwrap();
    daemon.says("a hook takes too long, killed it").await;
    daemon.child("notes", 2).await;
    daemon.stop().await;
}

/// The zombies among the children of a process.
#[cfg(target_os = "linux")]
fn zombies(parent: Pid) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let stats = processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    stats.filter(|stat| stat.contains(&format!(") Z {parent} "))).collect()
}

/// The daemon is a subreaper, as process 1 of a container would be: it inherits the orphans of its hooks.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "std offers no safe way to run prctl between fork and exec")]
#[tokio::test]
async fn adopted_orphans_do_not_stay_as_zombies() {
    let db = support::database().await;
    // The hook's group is killed when it ends, and `sleep` is an orphan by then.
    let hooks = "[hooks]\non_worker_end = ['sh', '-c', 'sleep 600 > /dev/null 2>&1 & exit 0']\n";
    let installation = Installation::new(&db.url, &format!("{RUNNER}{hooks}"));
    installation.declare_notes("notes", "");
    let mut command = installation.espd_command(&["run"]);
    // SAFETY: one system call that is safe between fork and exec.
    unsafe { command.pre_exec(|| Ok(nix::sys::prctl::set_child_subreaper(true)?)) };
    let daemon = Program::start(command);
    for nth in 1..4 {
        kill(daemon.child("notes", nth).await, Signal::SIGKILL).unwrap();
    }
    eventually("zombies", async || (zombies(daemon.pid()).len() >= 2).then_some(())).await;
    daemon.child("notes", 4).await;
    eventually("no zombies", async || zombies(daemon.pid()).is_empty().then_some(())).await;
    let ended = daemon.logged("worker ended, restarting");
    assert!(ended.len() == 3 && ended.iter().all(|line| line["status"] == "signal SIGKILL"), "{ended:?}");
    daemon.stop().await;
}
