//! Collecting processes that became our children without being started by us.
//!
//! Whoever runs as process 1 of a container, or as a subreaper, inherits orphans, and must wait for them when
//! they end or they stay as zombies. Our own children are waited for by those who started them, whose
//! statuses must not be taken: so only what has been a zombie for a while is collected, and never what
//! somebody has reserved.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid};

/// Our own children are waited for well within this time.
const AGE_MIN: Duration = Duration::from_secs(3);

/// Children that may be looked after late. Written by those who start them.
static RESERVED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Whoever started this child will wait for it, however late.
pub(crate) fn reserve(pid: u32) {
    RESERVED.lock().unwrap_or_else(PoisonError::into_inner).insert(pid.cast_signed());
}

/// Collects zombies.
#[derive(Debug)]
pub(crate) struct Collector {
    adopts: bool,
    looked: Instant,
    /// Zombies at the last look.
    seen: BTreeSet<i32>,
}

impl Collector {
    pub(crate) fn new() -> Self {
        let adopts = getpid() == Pid::from_raw(1) || is_subreaper();
        Self { adopts, looked: Instant::now(), seen: BTreeSet::new() }
    }

    /// Collects those that were zombies at the last look, some seconds ago, and still are.
    pub(crate) fn look(&mut self) {
        if !self.adopts || self.looked.elapsed() < AGE_MIN {
            return;
        }
        self.looked = Instant::now();
        let mut zombies = find_zombies(getpid());
        {
            let reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
            zombies.retain(|pid| !reserved.contains(pid));
        }
        for pid in zombies.intersection(&self.seen) {
            // Somebody may have been faster after all.
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

/// The zombies among the children of a process.
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
