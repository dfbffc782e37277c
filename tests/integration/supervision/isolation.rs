//! Processors that share a worker, and what they do not share.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support;
use crate::support::facts::{append, assert_exactly_once, eventually, position, reaches};
use crate::support::program::{Installation, Program};

/// Small batches and short poll intervals.
const RUNNER: &str = "[runner]\nbatch_size = 100\npoll_interval_max = '50ms'\n";

/// Declares one more processor of notes, with an isolation of its own.
fn declare_isolated(installation: &Installation, name: &str, isolation: &str, first: &str) {
    installation.declare_notes(name, first);
    let file = installation.path().join(format!("processors/{name}.toml"));
    let text = std::fs::read_to_string(&file).unwrap();
    let named = format!("name = '{name}'\n");
    std::fs::write(file, text.replace(&named, &format!("{named}isolation = '{isolation}'\n"))).unwrap();
}

/// The title of a process in process lists.
fn title(pid: Pid) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    String::from_utf8(line.split(|byte| *byte == 0).next().unwrap().to_vec()).unwrap()
}

/// The names of all workers that were ever started.
fn workers(daemon: &Program) -> Vec<String> {
    let started = daemon.logged("worker started");
    let mut names: Vec<_> = started.iter().map(|line| line["worker"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_group_shares_a_process_and_one_watcher_and_is_restarted_together() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, &format!("{RUNNER}isolation = 'task'\n"));
    installation.declare_notes("one", "").declare_notes("two", "");
    for name in ["three", "four"] {
        declare_isolated(&installation, name, "group:lists", "");
    }
    declare_isolated(&installation, "alone", "process", "");
    let names = ["one", "two", "three", "four", "alone"];
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 1_000).await;
    for name in names {
        reaches(&db.pool, name, last).await;
    }
    assert_eq!(workers(&daemon), ["all-tasks", "alone", "group:lists"]);
    let group = daemon.child("group:lists", 1).await;
    if cfg!(target_os = "linux") {
        assert_eq!(title(group), "espd: worker group:lists: four, three");
        assert_eq!(title(daemon.child("alone", 1).await), "espd: worker alone");
    }
    let watchers: i64 = sqlx::query_scalar(
        "select count(*) from pg_stat_activity
         where datname = current_database() and application_name like 'espd: % (watcher)'",
    )
    .fetch_one(&db.pool)
    .await
    .unwrap();
    assert_eq!(watchers, 3);

    kill(group, Signal::SIGKILL).unwrap();
    daemon.child("group:lists", 2).await;
    let last = append(&db.pool, 1_000).await;
    for name in names {
        reaches(&db.pool, name, last).await;
        assert_exactly_once(&db.pool, &db.pool, name).await;
    }
    assert_eq!(workers(&daemon).len(), 4);
    daemon.stop().await;
}

#[tokio::test]
async fn a_processor_that_fails_does_not_stop_the_others_of_its_worker() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, &format!("{RUNNER}isolation = 'task'\n"));
    installation.declare_notes("failing", "perform 1 / 0;").declare_notes("fine", "");
    installation.declare(
        "blocked",
        "[projector]\nname = 'blocked'\n[projector.tables]\nblocked = 'n no_such_type'\n\
         [[projector.on]]\nevents = ['A']\nsql = 'null'\n",
    );
    let last = append(&db.pool, 1_000).await;
    let daemon = installation.start_daemon();
    daemon.says("could not handle an event").await;
    daemon.says("cannot continue until an operator acts").await;
    reaches(&db.pool, "fine", last).await;
    let last = append(&db.pool, 1_000).await;
    reaches(&db.pool, "fine", last).await;
    assert_exactly_once(&db.pool, &db.pool, "fine").await;
    assert_eq!((position(&db.pool, "failing").await, position(&db.pool, "blocked").await), (0, 0));
    assert_eq!(workers(&daemon), ["all-tasks"]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_handler_that_cannot_be_compiled_ends_the_worker_only_if_it_is_alone() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, &format!("{RUNNER}restart_max = '1s'\n"));
    installation.declare_notes("alone", "perform 'no end;\n");
    declare_isolated(&installation, "faulty", "group:lists", "perform 'no end;\n");
    declare_isolated(&installation, "fine", "group:lists", "");
    let last = append(&db.pool, 100).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "fine", last).await;
    let of_faulty = eventually("the error of `faulty`", async || {
        let said = daemon.logged("cannot be run as it is declared");
        said.into_iter().find(|line| line["processor"] == "faulty")
    })
    .await;
    assert!(of_faulty["error"].as_str().unwrap().contains("faulty.toml:"), "{of_faulty}");
    eventually("the second life of `alone`", async || daemon.children("alone").get(1).copied()).await;
    assert_eq!(daemon.children("group:lists").len(), 1);
    daemon.says("a worker ends again and again").await;
    daemon.stop_uncleanly("alone (exit code 64 (wrong configuration or declaration), again and again)").await;
}
