//! Processes of our daemons, told from everybody else's by a variable in their environment.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::sleep;

/// The variable; its value differs from one life of a daemon to the next.
pub const MARKER_VARIABLE: &str = "ESPD_STORM";

/// Between two looks at a process that is about to end or to stop.
const POLL: Duration = Duration::from_millis(2);

/// A process, and not just the number that another one may get after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pid: i32,
    /// Ticks from the start of the machine to its own.
    started: u64,
}

/// What a process is doing, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Running, or waiting for something.
    Alive,
    /// Stopped by a signal.
    Frozen,
    /// Gone, or a zombie, which does nothing any more.
    Dead,
}

impl Process {
    /// All living processes whose marker begins with `marker`.
    pub fn list(marker: &str) -> Vec<Self> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let marked = pids.filter(|pid| carries(*pid, marker));
        marked.filter_map(Self::find).filter(|process| process.state() != State::Dead).collect()
    }

    fn find(pid: i32) -> Option<Self> {
        let (started, _) = read_stat(pid)?;
        Some(Self { pid, started })
    }

    /// The process id.
    pub fn pid(self) -> i32 {
        self.pid
    }

    /// What it is doing now.
    pub fn state(self) -> State {
        match read_stat(self.pid) {
            Some((started, letter)) if started == self.started => match letter {
                'Z' | 'X' => State::Dead,
                'T' => State::Frozen,
                _ => State::Alive,
            },
            _ => State::Dead,
        }
    }

    /// Sends a signal; `false` if there is no process to receive it.
    pub fn signal(self, signal: Signal) -> bool {
        self.state() != State::Dead && kill(Pid::from_raw(self.pid), signal).is_ok()
    }

    /// Whether it comes to that state within `limit`.
    pub async fn comes_to(self, state: State, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.state() != state {
            if Instant::now() > deadline {
                return false;
            }
            sleep(POLL).await;
        }
        true
    }
}

/// Waits until no process carries the marker; returns those that still do when `limit` is over.
pub async fn wait_until_none(marker: &str, limit: Duration) -> Vec<Process> {
    let deadline = Instant::now() + limit;
    loop {
        let left = Process::list(marker);
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        sleep(POLL).await;
    }
}

fn carries(pid: i32, marker: &str) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
    let wanted = format!("{MARKER_VARIABLE}={marker}");
    environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(wanted.as_bytes()))
}

/// Start time and state of a process.
fn read_stat(pid: i32) -> Option<(u64, char)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((fields.nth(18)?.parse().ok()?, state))
}
