//! Processes that became our children without being started by us.
//!
//! Process 1 of a container, and any subreaper, inherits orphans and has to wait for them when they end, or they stay as
//! zombies. Our own children are waited for where they were started, and their statuses must not be taken from there. So
//! only a child that has been a zombie for a while is collected, and never one that is reserved.
//!
//! The daemon and its workers are subreapers. What a worker's programs leave behind becomes the worker's, and when the
//! worker ends, the daemon's, which kills it: a process cannot get out of that by a group or a session of its own.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpgrp, getpid};

/// A zombie is collected after this time. Our own children are waited for well within it.
const AGE_MIN: Duration = Duration::from_secs(3);

/// Children that may be waited for late. Written where they are started, read by the collector.
static RESERVED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Children that were started here, and so are not orphans. An id may be another process's later; then that is spared.
static STARTED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// How often what is left of a worker is looked for again after it was killed.
const SWEEPS_MAX: u32 = 20;

/// Time between two looks.
const SWEEP_PAUSE: Duration = Duration::from_millis(2);

/// Has orphans of our descendants become our children. Without the means of Linux they become those of process 1.
pub(crate) fn adopt_orphans() {
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
        tracing::debug!(%error, "orphans cannot be adopted");
    }
}

/// Notes a child that was started here.
pub(crate) fn note_started(pid: u32) {
    STARTED.lock().unwrap_or_else(PoisonError::into_inner).insert(pid.cast_signed());
}

/// Reserves a child for the code that has started it, which will wait for it, however late.
pub(crate) fn reserve(pid: u32) {
    note_started(pid);
    RESERVED.lock().unwrap_or_else(PoisonError::into_inner).insert(pid.cast_signed());
}

/// Collects orphans that have ended, and kills those that a worker has left behind.
#[derive(Debug)]
pub(crate) struct Collector {
    adopts: bool,
    collected: Instant,
    /// The zombies of the previous call.
    seen: BTreeSet<i32>,
    /// Orphans that live, as of the previous call.
    seen_alive: BTreeSet<i32>,
    /// Living orphans that no worker has left behind: they were there while none ended.
    strangers: BTreeSet<i32>,
}

impl Collector {
    pub(crate) fn new() -> Self {
        let adopts = getpid() == Pid::from_raw(1) || is_subreaper();
        let strangers = if adopts { living_orphans() } else { BTreeSet::new() };
        Self {
            adopts,
            collected: Instant::now(),
            seen: BTreeSet::new(),
            seen_alive: BTreeSet::new(),
            strangers,
        }
    }

    /// Collects the children that were zombies at the previous call, some seconds ago, and still are.
    pub(crate) fn collect(&mut self) {
        if !self.adopts || self.collected.elapsed() < AGE_MIN {
            return;
        }
        self.collected = Instant::now();
        let mut zombies = find_zombies(getpid());
        {
            let reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
            zombies.retain(|pid| !reserved.contains(pid));
        }
        for pid in zombies.intersection(&self.seen) {
            // An error means that another part of the program has waited for it after all.
            if waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG)).is_ok() {
                tracing::debug!(pid, "collected an orphan");
            }
        }
        self.seen = zombies;
        self.note_strangers();
    }

    /// An orphan that is there for two calls, some seconds apart, was not left behind by a worker that has ended.
    fn note_strangers(&mut self) {
        let alive = living_orphans();
        self.strangers.retain(|pid| alive.contains(pid));
        self.strangers.extend(alive.intersection(&self.seen_alive));
        self.seen_alive = alive;
    }

    /// Kills what a worker that has just ended has left behind, wherever it has gone.
    pub(crate) fn kill_left_behind(&mut self) {
        if !self.adopts {
            return;
        }
        for _ in 0..SWEEPS_MAX {
            let mut left: BTreeSet<i32> = living_orphans();
            left.retain(|pid| !self.strangers.contains(pid));
            if left.is_empty() {
                return;
            }
            tracing::debug!(pids = ?left, "killing what a worker has left behind");
            let families = left.iter().flat_map(|pid| descendants(Pid::from_raw(*pid)));
            let families: Vec<Pid> = families.collect();
            for pid in left.into_iter().map(Pid::from_raw).chain(families) {
                // An error means that it has ended meanwhile.
                let _ = kill(pid, Signal::SIGKILL);
            }
            std::thread::sleep(SWEEP_PAUSE);
        }
    }
}

/// Our children that live and that we have not started.
fn living_orphans() -> BTreeSet<i32> {
    let started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut orphans: BTreeSet<i32> = children(getpid().as_raw()).into_iter().collect();
    orphans.retain(|pid| {
        !started.contains(pid) && state_of(*pid).is_some_and(|state| state != "Z" && state != "X")
    });
    orphans
}

/// All processes below one, as of now.
pub(crate) fn descendants(pid: Pid) -> Vec<Pid> {
    let mut found = children(pid.as_raw());
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        found.extend(children(pid));
        next += 1;
    }
    found.into_iter().map(Pid::from_raw).collect()
}

/// The children of all threads of a process; empty if the system does not tell.
fn children(pid: i32) -> Vec<i32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists =
        threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

fn state_of(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything.
    Some(stat.rsplit_once(") ")?.1.split(' ').next()?.to_owned())
}

#[cfg(target_os = "linux")]
fn is_subreaper() -> bool {
    nix::sys::prctl::get_child_subreaper().unwrap_or(false)
}

#[cfg(not(target_os = "linux"))]
fn is_subreaper() -> bool {
    false
}

/// Finds the zombies among the children of a process.
fn find_zombies(parent: Pid) -> BTreeSet<i32> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return BTreeSet::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_zombie = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name, in parentheses, may contain anything.
        let mut fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields).split(' ');
        let ours = fields.next() == Some("Z") && fields.next() == Some(&parent.to_string());
        // An application's own children are in our group, and waited for by the application.
        ours && fields.next() != Some(&getpgrp().to_string())
    };
    pids.filter(is_zombie).collect()
}
