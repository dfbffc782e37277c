//! Collects processes that became our children without being started by us.
//!
//! Process 1 of a container, and any subreaper, inherits orphans and has to wait for them when they end, or they stay as
//! zombies. Our own children are waited for where they were started, and their statuses must not be taken from there. So
//! only a child that has been a zombie for a while is collected, and never one that is reserved.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid};

/// A zombie is collected after this time. Our own children are waited for well within it.
const AGE_MIN: Duration = Duration::from_secs(3);

/// Children that may be waited for late. Written where they are started, read by the collector.
static RESERVED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Reserves a child for the code that has started it, which will wait for it, however late.
pub(crate) fn reserve(pid: u32) {
    RESERVED.lock().unwrap_or_else(PoisonError::into_inner).insert(pid.cast_signed());
}

/// Collects orphans that have ended.
#[derive(Debug)]
pub(crate) struct Collector {
    adopts: bool,
    collected: Instant,
    /// The zombies of the previous call.
    seen: BTreeSet<i32>,
}

impl Collector {
    pub(crate) fn new() -> Self {
        let adopts = getpid() == Pid::from_raw(1) || is_subreaper();
        Self { adopts, collected: Instant::now(), seen: BTreeSet::new() }
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
    }
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
        fields.next() == Some("Z") && fields.next() == Some(&parent.to_string())
    };
    pids.filter(is_zombie).collect()
}
