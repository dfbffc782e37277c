//! Workers, and daemons with workers, that are killed or stopped.

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{SETTINGS, counted, declare_counting, events};
use crate::support;
use crate::support::facts::{append, eventually, position, reaches};
use crate::support::program::{Installation, Program, is_alive};

/// The process ids of all programs that were ready, the present one last.
fn programs(daemon: &Program) -> Vec<Pid> {
    let ready = daemon.logged("the program is ready");
    ready.iter().map(|line| Pid::from_raw(line["command.pid"].as_i64().unwrap() as i32)).collect()
}

async fn program(daemon: &Program) -> Pid {
    eventually("a program", async || programs(daemon).last().copied().filter(|pid| is_alive(*pid))).await
}

async fn is_gone(pid: Pid) {
    eventually("the end of a process", async || (!is_alive(pid)).then_some(())).await;
}

/// The process id that a program has written into a file.
async fn written_pid(file: &Path) -> Pid {
    let read = async || std::fs::read_to_string(file).ok()?.trim().parse().ok().map(Pid::from_raw);
    eventually("a process id in a file", read).await
}

#[tokio::test]
async fn kills_of_programs_and_of_espd_lose_and_double_nothing() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, &format!("{SETTINGS}[runner]\nrestart_max = '1s'\n"));
    declare_counting(&installation, "struck", "well", "batch_size = 20");
    let daemon = installation.start_daemon();
    let mut last = append(&db.pool, 500).await;
    let (mut killed_programs, mut killed_workers) = (0, 0);
    for round in 0..24 {
        let before = position(&db.pool, "struck").await;
        last = append(&db.pool, 100).await;
        eventually("some progress", async || (position(&db.pool, "struck").await > before).then_some(()))
            .await;
        let pid = program(&daemon).await;
        if round % 6 == 5 {
            let worker = *daemon.children("struck").last().unwrap();
            kill(worker, Signal::SIGKILL).unwrap();
            killed_workers += 1;
            // It does not outlive its owner.
            is_gone(pid).await;
        } else if kill(pid, Signal::SIGKILL).is_ok() {
            killed_programs += 1;
            is_gone(pid).await;
        }
    }
    assert_eq!((killed_programs, killed_workers), (20, 4));
    reaches(&db.pool, "struck", last).await;
    assert_eq!(counted(&db.pool, "struck").await, events(&db.pool).await);
    daemon.stop().await;
}

#[tokio::test]
async fn a_program_that_ends_while_there_is_nothing_to_do_fails_no_event() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    declare_counting(&installation, "idle", "well", "");
    let last = append(&db.pool, 10).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "idle", last).await;
    let pid = program(&daemon).await;
    kill(pid, Signal::SIGKILL).unwrap();
    is_gone(pid).await;
    let last = append(&db.pool, 10).await;
    reaches(&db.pool, "idle", last).await;
    assert_eq!(daemon.logged("the program has ended while there was nothing to do").len(), 1);
    assert!(daemon.logged("could not handle an event").is_empty());
    assert_eq!(counted(&db.pool, "idle").await, events(&db.pool).await);
    daemon.stop().await;
}

/// A worker in shell that handles events of type `A` by doing `script` first.
fn declare_shell(installation: &Installation, name: &str, script: &str, keys: &str) {
    installation.declare(
        name,
        &format!(
            "[projector]\nname = '{name}'\nevents = ['A']\n{keys}\n\
             command = ['sh', '-c', '''\nread -r hello; echo '{{\"ready\":1}}'\n{script}\n''']\n"
        ),
    );
}

#[tokio::test]
async fn what_a_program_has_started_ends_with_it() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, SETTINGS);
    // The grandchild holds all pipes open.
    let script = "read -r batch; sleep 600 & echo $! > started.tmp; mv started.tmp started; exit 7";
    declare_shell(&installation, "parent", script, "");
    append(&db.pool, 1).await;
    let daemon = installation.start_daemon();
    let started = written_pid(&installation.path().join("processors/started")).await;
    let failed = daemon.says("could not handle an event").await;
    assert!(failed["error"].as_str().unwrap().ends_with("the program ended with exit code 7"), "{failed}");
    is_gone(started).await;
    daemon.stop().await;
}

/// Starts processes in the program's group, in a group of their own, in a session of their own, and orphaned, and writes
/// down all their ids.
const FAMILY: &str = "read -r batch\n\
     sleep 600 & one=$!\n(sleep 600 & echo $! > orphan) \n\
     setsid sh -c 'echo $$ > apart; exec sleep 600' & \n\
     (setsid sh -c 'echo $$ > far; sleep 600 & echo $! > farther; wait' &) \n\
     while [ ! -s farther ] || [ ! -s far ] || [ ! -s apart ]; do sleep 0.01; done\n\
     echo $one $(cat orphan) $(cat apart) $(cat far) $(cat farther) > family.tmp; mv family.tmp family; cat";

async fn family(installation: &Installation) -> Vec<Pid> {
    let file = installation.path().join("processors/family");
    let read = async || {
        let text = std::fs::read_to_string(&file).ok()?;
        std::fs::remove_file(&file).ok()?;
        Some(text.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect())
    };
    eventually("process ids in a file", read).await
}

#[tokio::test]
async fn what_a_program_has_started_ends_with_its_worker_wherever_it_has_gone() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "[runner]\nrestart_max = '1s'\n");
    declare_shell(&installation, "parent", FAMILY, "command_timeout = '1h'");
    declare_counting(&installation, "other", "well", "");
    append(&db.pool, 1).await;
    let daemon = installation.start_daemon();
    for nth in 1..=2 {
        let family = family(&installation).await;
        assert_eq!(family.len(), 5);
        assert!(family.iter().all(|pid| is_alive(*pid)));
        let worker = daemon.child("parent", nth).await;
        kill(worker, Signal::SIGKILL).unwrap();
        for pid in family {
            is_gone(pid).await;
        }
        for file in ["apart", "far", "farther"] {
            let _ = std::fs::remove_file(installation.path().join("processors").join(file));
        }
    }
    // The programs of other workers are left alone.
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "other", last).await;
    let worker = daemon.child("parent", 3).await;
    assert_eq!(daemon.children("other").len(), 1);
    let family = family(&installation).await;
    // Nothing is left either where the daemon stops meanwhile.
    daemon.signal(Signal::SIGTERM);
    daemon.says("stopping").await;
    kill(worker, Signal::SIGKILL).unwrap();
    for pid in family {
        is_gone(pid).await;
    }
    daemon.ends_after_kills().await;
}

#[tokio::test]
async fn the_group_of_a_program_ends_with_the_daemon_as_well() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    declare_shell(&installation, "parent", FAMILY, "command_timeout = '1h'");
    append(&db.pool, 1).await;
    let mut daemon = installation.start_daemon();
    let family = family(&installation).await;
    daemon.kill().await;
    // In the program's group; what has left it is for the service manager.
    is_gone(family[0]).await;
    is_gone(family[1]).await;
    for pid in &family[2..] {
        let _ = kill(*pid, Signal::SIGKILL);
    }
}

#[tokio::test]
async fn a_stop_lets_programs_end_in_order() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let script = "echo $$ > running.tmp; mv running.tmp running; cat > seen; sleep 0.2; echo > ended";
    declare_shell(&installation, "orderly", script, "command_timeout = '1h'");
    declare_counting(&installation, "counting", "well", "");
    let last = append(&db.pool, 1).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "counting", last).await;
    let counting = program(&daemon).await;
    let orderly = written_pid(&installation.path().join("processors/running")).await;
    daemon.signal(Signal::SIGTERM);
    is_gone(counting).await;
    // This one is in the middle of a batch, which takes for ever: a second signal is for that.
    assert!(is_alive(orderly));
    daemon.signal(Signal::SIGTERM);
    is_gone(orderly).await;
    daemon.is_deserted().await;
}

#[tokio::test]
async fn a_program_outlives_neither_its_processors_pause_for_good_nor_its_reset() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    declare_counting(&installation, "again", "well", "");
    let last = append(&db.pool, 300).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "again", last).await;
    let before = program(&daemon).await;
    // It remembers a total that is not so any more.
    installation.espctl(&["reset", "again", "--in-place", "--yes"]).await.printed();
    eventually("another program", async || programs(&daemon).last().filter(|pid| **pid != before).copied())
        .await;
    is_gone(before).await;
    reaches(&db.pool, "again", last).await;
    assert_eq!(counted(&db.pool, "again").await, events(&db.pool).await);
    daemon.stop().await;
}
