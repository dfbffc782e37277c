//! One worker as the supervisor knows it.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tracing::{info, warn};

use super::child::WorkerProgram;
use super::lifecycle::{Policy, RestartReason, WorkerState};
use crate::process::exit_code::describe_end;
use crate::process::hook::{
    DivergenceFacts, FailureFacts, ProcessorFailure, SetAsideEvents, StoreDivergence, WorkerEnd, WorkerFacts,
};
use crate::process::report::{Condition, Report, count_lost_lines};

/// Identifies a worker in its supervisor; never given twice.
pub(super) type Id = u64;

/// One worker as others may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The worker's name.
    pub name: String,
    /// The names of the processors that live in the worker.
    pub processors: Vec<String>,
    /// The process id; `None` while the worker is not alive.
    pub pid: Option<i32>,
    /// Where the worker is in its life.
    pub state: WorkerState,
    /// How often the worker was started.
    pub starts: u32,
    /// How often it was started again after an end that nobody had asked for.
    pub restarts: u32,
    /// How and when the worker ended last.
    pub last_end: Option<End>,
    /// When the worker will be started again; `None` unless it waits for that.
    pub next_start: Option<Instant>,
    /// When everything in the worker was last known to be alive; `None` before the first heartbeat of its present life.
    pub last_heartbeat: Option<Instant>,
    /// The conditions of the processors, as far as the worker has reported them in its present life.
    pub conditions: BTreeMap<String, Condition>,
}

/// How a process has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// The exit code or signal, in words.
    pub how: String,
    /// When the process has ended.
    pub at: Instant,
}

#[derive(Debug)]
pub(super) struct SupervisedWorker {
    pub(super) id: Id,
    pub(super) program: WorkerProgram,
    pub(super) state: WorkerState,
    pub(super) pid: Option<Pid>,
    pub(super) starts: u32,
    /// How often it has ended because its configuration had changed, or was taken away.
    replacements: u32,
    /// Whether the worker is no longer configured, so that it is forgotten once it has stopped.
    pub(super) removed: bool,
    last_end: Option<End>,
    /// How the worker has ended last, if it has not ended by itself in time.
    unclean_end: Option<String>,
    /// Whether the worker was ending again and again when it was asked to end for good.
    looped: bool,
    last_heartbeat: Option<Instant>,
    /// The processor that is overdue for longest, by the last heartbeat.
    overdue: Option<String>,
    conditions: BTreeMap<String, Condition>,
    /// The last failure of each processor, in this life of the worker or an earlier one.
    failures_told: BTreeMap<String, FailureFacts>,
}

/// The signal that asks a worker to end.
const TERM: i32 = Signal::SIGTERM as i32;

impl SupervisedWorker {
    pub(super) fn new(id: Id, program: WorkerProgram) -> Self {
        Self {
            id,
            program,
            state: WorkerState::new(Instant::now()),
            pid: None,
            starts: 0,
            replacements: 0,
            removed: false,
            last_end: None,
            unclean_end: None,
            looped: false,
            last_heartbeat: None,
            overdue: None,
            conditions: BTreeMap::new(),
            failures_told: BTreeMap::new(),
        }
    }

    pub(super) fn raw_pid(&self) -> Option<i32> {
        self.pid.map(Pid::as_raw)
    }

    /// Takes note of a report. If it is a heartbeat, returns when everything in the process was last alive.
    pub(super) fn record(&mut self, report: Report) -> Option<Instant> {
        match report {
            Report::Heartbeat { overdue_ms, overdue } => {
                let heartbeat = Instant::now().checked_sub(Duration::from_millis(overdue_ms))?;
                self.last_heartbeat = Some(heartbeat);
                self.overdue = overdue;
                Some(heartbeat)
            }
            Report::Condition { processor, condition } => {
                if self.program.processors.contains(&processor) {
                    self.conditions.insert(processor, condition);
                }
                None
            }
            Report::LogLinesLost { lines } => {
                count_lost_lines(lines);
                None
            }
            Report::Failed { .. } | Report::Diverged { .. } | Report::SetAside { .. } => None,
        }
    }

    /// Forgets what the process has reported before it was started again.
    pub(super) fn forget_reports(&mut self) {
        self.last_heartbeat = None;
        self.overdue = None;
        self.conditions.clear();
    }

    /// Writes a log line if the worker has just been found to hang. The line names a processor if one hangs in a process
    /// that still reports.
    pub(super) fn log_hang(&self, before: WorkerState) {
        let WorkerState::Restarting { reason: RestartReason::Hung, .. } = self.state else { return };
        let WorkerState::Running { last_heartbeat, since, .. } = before else { return };
        warn!(
            worker = self.program.name,
            worker.pid = self.raw_pid(),
            processor = self.overdue,
            silent_ms = last_heartbeat.elapsed().as_millis() as u64,
            alive_ms = since.elapsed().as_millis() as u64,
            "a worker gives no sign of life, restarting it"
        );
    }

    /// Writes a log line if the worker crashes again and again.
    pub(super) fn log_crash_loop(&self) {
        let WorkerState::Waiting { due, crashes } = self.state else { return };
        if crashes.is_crash_loop() {
            let retry_in_ms = due.saturating_duration_since(Instant::now()).as_millis() as u64;
            let (worker, ends) = (&self.program.name, crashes.in_a_row());
            warn!(worker, ends, retry_in_ms, "a worker ends again and again");
        }
    }

    /// Takes note of the end of the process. Returns whether the supervisor has asked for it.
    pub(super) fn record_end(&mut self, status: &io::Result<ExitStatus>) -> bool {
        use RestartReason::Replaced;

        let name = &self.program.name;
        let how = match status {
            Ok(status) => describe_end(*status),
            Err(error) => format!("its end could not be observed: {error}"),
        };
        let expected = match self.state {
            WorkerState::Stopping { .. } => {
                info!(worker = name, status = how, "worker stopped");
                true
            }
            WorkerState::Restarting { reason: Replaced, .. } => {
                info!(worker = name, status = how, "worker ended");
                true
            }
            _ => {
                warn!(worker = name, status = how, "worker ended, restarting");
                false
            }
        };
        self.replacements += u32::from(expected);
        // TERM ends a worker by itself that has just been started: it listens to nothing yet, and has nothing to finish.
        let by_itself = status.as_ref().is_ok_and(|status| status.success() || status.signal() == Some(TERM));
        self.note_end(by_itself, &how);
        self.last_end = Some(End { how, at: Instant::now() });
        expected
    }

    /// Takes note of what there is to say about an end when the daemon ends.
    fn note_end(&mut self, by_itself: bool, how: &str) {
        self.unclean_end = match self.state {
            WorkerState::Stopping { killed: true, .. } => {
                Some("killed, because it did not stop in time".to_owned())
            }
            // A crash loop does not end well because the request came while the worker was alive once more.
            _ if by_itself && self.looped => return,
            _ if by_itself => None,
            _ => Some(how.to_owned()),
        };
    }

    /// Takes note of the request to end for good.
    pub(super) fn note_stop(&mut self, policy: &Policy) {
        let is_healthy = match self.state {
            WorkerState::Running { since, .. } => since.elapsed() >= policy.healthy_after,
            _ => false,
        };
        self.looped |= self.state.is_crash_loop() && !is_healthy;
    }

    /// The worker's name and how it has ended, if it has not ended by itself in time.
    pub(super) fn describe_unclean_end(&self) -> Option<String> {
        let again = if self.looped { ", again and again" } else { "" };
        Some(format!("{} ({}{again})", self.program.name, self.unclean_end.as_ref()?))
    }

    pub(super) fn record_failed_start(&mut self, error: &io::Error) {
        let how = format!("could not be started: {error}");
        self.note_end(false, &how);
        self.last_end = Some(End { how, at: Instant::now() });
    }

    /// What the hook is told about an end.
    pub(super) fn end_facts(&self, pid: Option<Pid>, expected: bool) -> WorkerEnd {
        let WorkerProgram { name, processors, kinds, versions, .. } = &self.program;
        WorkerEnd {
            worker: WorkerFacts {
                worker: name.clone(),
                processors: processors.clone(),
                kinds: kinds.clone(),
                versions: versions.clone(),
                pid: pid.map(Pid::as_raw),
            },
            end: self.last_end.as_ref().map(|end| end.how.clone()),
            expected,
            starts: self.starts,
            state: self.state.word().to_owned(),
        }
    }

    /// What hooks are told if a report says that a processor fails; `None` if that is no news.
    pub(super) fn failure_facts(&mut self, report: &Report) -> Option<ProcessorFailure> {
        let Report::Failed { processor, failure, left_out } = report else { return None };
        if !self.program.processors.contains(processor) {
            return None;
        }
        let last = self.failures_told.insert(processor.clone(), FailureFacts::clone(failure));
        if last.is_some_and(|last| failure.repeats(&last)) {
            return None;
        }
        Some(ProcessorFailure {
            worker: self.program.name.clone(),
            processor: processor.clone(),
            failure: FailureFacts::clone(failure),
            left_out: *left_out,
        })
    }

    /// What hooks are told if a report says that a processor has set events aside.
    pub(super) fn set_aside_facts(&self, report: &Report) -> Option<SetAsideEvents> {
        let Report::SetAside { processor, events, last_event_id, failure } = report else { return None };
        Some(SetAsideEvents {
            worker: self.program.name.clone(),
            processor: processor.clone(),
            events: *events,
            last_event_id: *last_event_id,
            failure: failure.as_deref().cloned(),
        })
    }

    /// What hooks are told if a report says that a processor has found another store than it followed.
    pub(super) fn divergence_facts(&self, report: &Report) -> Option<StoreDivergence> {
        let Report::Diverged { processor, divergence } = report else { return None };
        Some(StoreDivergence {
            worker: self.program.name.clone(),
            processor: processor.clone(),
            divergence: DivergenceFacts::clone(divergence),
        })
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let next_start = match self.state {
            WorkerState::Waiting { due, .. } => Some(due),
            _ => None,
        };
        Snapshot {
            name: self.program.name.clone(),
            processors: self.program.processors.clone(),
            pid: self.raw_pid(),
            state: self.state,
            starts: self.starts,
            restarts: self.starts.saturating_sub(1).saturating_sub(self.replacements),
            last_end: self.last_end.clone(),
            next_start,
            last_heartbeat: self.last_heartbeat,
            conditions: self.conditions.clone(),
        }
    }
}
