//! One worker as the supervisor knows it.

use std::collections::BTreeMap;
use std::io;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde_json::{Value, json};
use tracing::{info, warn};

use super::child::Program;
use super::lifecycle::{State, Why};
use crate::process::exit_code::describe_end;
use crate::process::report::{Condition, Report};

/// Never given twice.
pub(super) type Id = u64;

/// One worker as others may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The program's name.
    pub name: String,
    /// The processors that live in it.
    pub processors: Vec<String>,
    /// Its process id while it runs.
    pub pid: Option<i32>,
    /// Where it is in its life.
    pub state: State,
    /// How often it was started.
    pub starts: u32,
    /// How and when it ended last.
    pub last_end: Option<End>,
    /// When it will be started again, while it waits for that.
    pub next_start: Option<Instant>,
    /// When everything in it was last known to be alive; `None` before its first sign of life.
    pub last_beat: Option<Instant>,
    /// What its processors are about, as far as it has said so in its present life.
    pub conditions: BTreeMap<String, Condition>,
}

/// How a process has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Its exit code or signal, in words.
    pub how: String,
    /// When.
    pub at: Instant,
}

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) id: Id,
    pub(super) program: Program,
    pub(super) state: State,
    pub(super) pid: Option<Pid>,
    pub(super) starts: u32,
    /// It is not configured any more.
    pub(super) removed: bool,
    last_end: Option<End>,
    last_beat: Option<Instant>,
    /// The processor that has been silent for longest, and for how long it was when that was last heard.
    silent: Option<(String, Duration)>,
    conditions: BTreeMap<String, Condition>,
    /// What hooks were told about which processor, and when.
    failures_told: BTreeMap<String, (Condition, Instant)>,
}

/// A processor that fails in the same way again is no news within this time.
const SAME_FAILURE: Duration = Duration::from_secs(60);

impl Worker {
    pub(super) fn new(id: Id, program: Program) -> Self {
        Self {
            id,
            program,
            state: State::new(Instant::now()),
            pid: None,
            starts: 0,
            removed: false,
            last_end: None,
            last_beat: None,
            silent: None,
            conditions: BTreeMap::new(),
            failures_told: BTreeMap::new(),
        }
    }

    pub(super) fn raw_pid(&self) -> Option<i32> {
        self.pid.map(Pid::as_raw)
    }

    /// Takes note of a report. Returns when everything in the process was last alive, if it says that.
    pub(super) fn hear(&mut self, report: Report) -> Option<Instant> {
        match report {
            Report::Heartbeat { overdue_ms, overdue } => {
                let silence = Duration::from_millis(overdue_ms);
                let beat = Instant::now().checked_sub(silence)?;
                self.last_beat = Some(beat);
                self.silent = overdue.map(|name| (name, silence));
                Some(beat)
            }
            Report::Condition { processor, condition } => {
                if self.program.processors.contains(&processor) {
                    self.conditions.insert(processor, condition);
                }
                None
            }
            Report::SetAside { .. } => None,
        }
    }

    /// Nothing is known about a process that has just been started.
    pub(super) fn forget_reports(&mut self) {
        self.last_beat = None;
        self.silent = None;
        self.conditions.clear();
    }

    /// Says so if it has just been found to hang.
    pub(super) fn log_hang(&self, before: State) {
        let State::Ending { why: Why::Hung, .. } = self.state else { return };
        let State::Running { beat, since, .. } = before else { return };
        // With a processor, the process itself still reports.
        warn!(
            worker = self.program.name,
            worker.pid = self.raw_pid(),
            processor = self.silent.as_ref().map(|(name, _)| name.as_str()),
            silent_ms = beat.elapsed().as_millis() as u64,
            alive_ms = since.elapsed().as_millis() as u64,
            "a worker gives no sign of life, restarting it"
        );
    }

    /// Takes note of an end. Returns whether it was asked for.
    pub(super) fn ended(&mut self, status: &io::Result<ExitStatus>) -> bool {
        let name = &self.program.name;
        let how = match status {
            Ok(status) => describe_end(*status),
            Err(error) => format!("lost sight of it: {error}"),
        };
        match self.state {
            State::Stopping { .. } => info!(worker = name, status = how, "worker stopped"),
            State::Ending { why: Why::Replaced, .. } => info!(worker = name, status = how, "worker ended"),
            _ => warn!(worker = name, status = how, "worker ended, restarting"),
        }
        self.last_end = Some(End { how, at: Instant::now() });
        matches!(self.state, State::Stopping { .. } | State::Ending { why: Why::Replaced, .. })
    }

    /// What a hook is told about an end.
    pub(super) fn end_facts(&self, pid: Option<Pid>, expected: bool) -> Value {
        json!({
            "hook": "on_worker_end",
            "worker": self.program.name,
            "processors": self.program.processors,
            "pid": pid.map(Pid::as_raw),
            "end": self.last_end.as_ref().map(|end| &end.how),
            "expected": expected,
            "starts": self.starts,
            "state": self.state.word(),
        })
    }

    /// What a hook is told about a processor that this report says to be failing, if that is news. One that is
    /// tried again and again comes into the same condition each time.
    pub(super) fn failing(&mut self, report: &Report) -> Option<Value> {
        let Report::Condition { processor, condition } = report else { return None };
        if !matches!(condition, Condition::Retrying | Condition::Failed) {
            return None;
        }
        let told = self.failures_told.get(processor);
        if told.is_some_and(|(before, when)| before == condition && when.elapsed() < SAME_FAILURE) {
            return None;
        }
        if self.program.processors.contains(processor) {
            self.failures_told.insert(processor.clone(), (*condition, Instant::now()));
        }
        let worker = &self.program.name;
        Some(
            json!({ "hook": "on_failure", "worker": worker, "processor": processor, "condition": condition }),
        )
    }

    /// What a hook is told about events that a processor has set aside.
    pub(super) fn set_aside_facts(&self, report: &Report) -> Option<Value> {
        let Report::SetAside { processor, events, last_event_id } = report else { return None };
        Some(json!({
            "hook": "on_dead_letter",
            "worker": self.program.name,
            "processor": processor,
            "events": events,
            "last_event_id": last_event_id,
        }))
    }

    pub(super) fn could_not_start(&mut self, error: &io::Error) {
        self.last_end = Some(End { how: format!("could not be started: {error}"), at: Instant::now() });
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let next_start = match self.state {
            State::Waiting { due, .. } => Some(due),
            _ => None,
        };
        Snapshot {
            name: self.program.name.clone(),
            processors: self.program.processors.clone(),
            pid: self.raw_pid(),
            state: self.state,
            starts: self.starts,
            last_end: self.last_end.clone(),
            next_start,
            last_beat: self.last_beat,
            conditions: self.conditions.clone(),
        }
    }
}
