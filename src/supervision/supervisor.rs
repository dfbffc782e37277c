//! The supervisor: one loop over all workers.
//!
//! Each turn of the loop waits for one thing to happen, asks [`lifecycle::next`] what follows for the worker concerned,
//! and does that.

use std::io;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::child::{Child, WorkerProgram, signal_group};
use super::hooks::Hooks;
use super::lifecycle::{self, Policy, WorkerAction, WorkerEvent, WorkerState};
use super::loop_heartbeat::LoopHeartbeat;
use super::plan::SupervisionPlan;
use super::supervised::{Id, Snapshot, SupervisedWorker};
use crate::process::hook::HookClosures;
use crate::process::memory::resident_bytes;
use crate::process::orphans::Collector;
use crate::process::report::Report;
use crate::process::systemd::Systemd;

/// What a supervisor is asked to do.
#[derive(Debug)]
pub(crate) enum SupervisorRequest {
    /// Stop all workers; if asked a second time, at once.
    Stop,
    /// Restart the workers whose program has changed, start new ones, stop those that are gone.
    Replace(Box<SupervisionPlan>),
}

/// Supervises workers.
#[derive(Debug)]
pub(crate) struct Supervisor<'m> {
    policy: Policy,
    memory_max: Option<u64>,
    hooks: Hooks,
    orphans: Collector,
    workers: Vec<SupervisedWorker>,
    /// The id that was given last.
    last_id: Id,
    /// The ends of the worker processes.
    children: JoinSet<(Id, io::Result<ExitStatus>)>,
    /// Written by the tasks that attend the processes, read in the loop. A worker that reports more than the loop reads
    /// finds its pipe full, and continues without the supervisor.
    reporting: mpsc::Sender<(Pid, Report)>,
    reports: mpsc::Receiver<(Pid, Report)>,
    /// Written after each change; read by the admin endpoint, the table `workers`, systemd's status, and tests.
    snapshot: watch::Sender<Vec<Snapshot>>,
    heartbeat: LoopHeartbeat,
    /// Told by the loop itself that it turns.
    systemd: Option<&'m Systemd>,
    inspection_interval: Duration,
}

/// How the supervisor's work has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Every worker has ended by itself in time.
    Orderly,
    /// Some workers have not: which ones, and how each has ended.
    Unclean(Vec<String>),
    /// A second request did not wait for that.
    Forced,
}

/// What ends a wait of the loop.
enum LoopEvent {
    Exited(Id, io::Result<ExitStatus>),
    Reported(Pid, Report),
    Requested(SupervisorRequest),
    TimePassed,
}

/// Reports that the loop has not read yet, at most. The worker processes wait for no one, so a few are enough.
const REPORTS_MAX: usize = 64;

/// Time between two inspections of what does not report itself: clocks, memory, orphans.
const INSPECTION_INTERVAL: Duration = Duration::from_secs(1);

/// A loop that turns so much later than it wanted was itself stopped.
const OVERSLEPT: Duration = Duration::from_secs(1);

impl<'m> Supervisor<'m> {
    /// A supervisor of the workers in `plan`. None is started before [`Self::run`].
    pub(crate) fn new(plan: SupervisionPlan) -> Self {
        let (reporting, reports) = mpsc::channel(REPORTS_MAX);
        let mut supervisor = Self {
            policy: plan.policy,
            memory_max: plan.memory_max,
            hooks: Hooks::new(plan.hooks),
            orphans: Collector::new(),
            workers: Vec::new(),
            last_id: 0,
            children: JoinSet::new(),
            reporting,
            reports,
            snapshot: watch::Sender::new(Vec::new()),
            heartbeat: LoopHeartbeat::default(),
            systemd: None,
            inspection_interval: INSPECTION_INTERVAL,
        };
        plan.programs.into_iter().for_each(|program| supervisor.add(program));
        supervisor.publish();
        supervisor
    }

    /// Has these closures of the program called as hooks.
    pub(crate) fn with_closures(mut self, closures: HookClosures) -> Self {
        self.hooks.closures = closures;
        self
    }

    /// Has the loop tell systemd that it turns, as often as systemd wants to hear that.
    pub(crate) fn watched_by(mut self, systemd: &'m Systemd) -> Self {
        let wanted = systemd.watchdog_interval().unwrap_or(INSPECTION_INTERVAL);
        self.inspection_interval = wanted.min(INSPECTION_INTERVAL);
        self.systemd = Some(systemd);
        self
    }

    /// Shows what the workers are doing, from now on.
    pub(crate) fn snapshots(&self) -> watch::Receiver<Vec<Snapshot>> {
        self.snapshot.subscribe()
    }

    /// Tells when the loop last turned, which it does at least once a second.
    pub(crate) fn heartbeat(&self) -> LoopHeartbeat {
        self.heartbeat.clone()
    }

    /// Runs until every worker has stopped after a request to stop. A second request kills the workers.
    pub(crate) async fn run(mut self, mut requests: mpsc::Receiver<SupervisorRequest>) -> Ending {
        let mut stops = 0;
        let mut inspected = Instant::now();
        self.apply_to_all(WorkerEvent::Tick);
        while stops == 0 || self.workers.iter().any(|worker| worker.state != WorkerState::Stopped) {
            self.heartbeat.record();
            match self.wait(&mut requests, inspected + self.inspection_interval).await {
                LoopEvent::Exited(id, status) => self.exited(id, &status),
                LoopEvent::Reported(pid, report) => self.reported(pid, report),
                LoopEvent::Requested(SupervisorRequest::Stop) => {
                    self.stop(stops > 0);
                    stops += 1;
                }
                LoopEvent::Requested(SupervisorRequest::Replace(plan)) if stops == 0 => self.replace(*plan),
                LoopEvent::Requested(SupervisorRequest::Replace(_)) | LoopEvent::TimePassed => {}
            }
            if inspected.elapsed() >= self.inspection_interval {
                self.inspect(inspected);
                inspected = Instant::now();
            }
            self.apply_to_all(WorkerEvent::Tick);
        }
        if stops > 1 {
            return Ending::Forced;
        }
        self.hooks.finish().await;
        let unclean: Vec<_> =
            self.workers.iter().filter_map(|worker| worker.describe_unclean_end()).collect();
        if unclean.is_empty() { Ending::Orderly } else { Ending::Unclean(unclean) }
    }

    fn stop(&mut self, at_once: bool) {
        info!(workers = self.workers.len(), at_once, "stopping");
        self.workers.iter_mut().for_each(|worker| worker.note_stop(&self.policy));
        self.apply_to_all(if at_once { WorkerEvent::KillRequested } else { WorkerEvent::StopRequested });
    }

    async fn wait(
        &mut self,
        requests: &mut mpsc::Receiver<SupervisorRequest>,
        inspection: Instant,
    ) -> LoopEvent {
        let deadlines = self.workers.iter().filter_map(|worker| worker.state.deadline(&self.policy));
        let deadline = deadlines.fold(inspection, Instant::min);
        tokio::select! {
            biased;
            Some(request) = requests.recv() => LoopEvent::Requested(request),
            Some(Ok((id, status))) = self.children.join_next() => LoopEvent::Exited(id, status),
            Some((pid, report)) = self.reports.recv() => LoopEvent::Reported(pid, report),
            () = tokio::time::sleep_until(deadline.into()) => LoopEvent::TimePassed,
        }
    }

    /// Inspects what no one reports. `before` is the time of the previous inspection.
    fn inspect(&mut self, before: Instant) {
        if let Some(systemd) = self.systemd {
            systemd.watchdog();
        }
        // A supervisor that was itself stopped has not listened meanwhile, so no worker is late.
        if before.elapsed() > INSPECTION_INTERVAL + OVERSLEPT {
            self.apply_to_all(WorkerEvent::Heartbeat(Instant::now()));
        }
        self.orphans.collect();
        self.restart_too_large();
    }

    fn restart_too_large(&mut self) {
        let Some(memory_max) = self.memory_max else { return };
        for index in 0..self.workers.len() {
            let worker = &self.workers[index];
            let used = worker.pid.and_then(resident_bytes).unwrap_or_default();
            if used > memory_max && matches!(worker.state, WorkerState::Running { .. }) {
                warn!(
                    worker = worker.program.name,
                    worker.pid = worker.raw_pid(),
                    memory_bytes = used,
                    memory_max_bytes = memory_max,
                    "a worker uses more memory than it may, restarting it"
                );
                self.apply(index, WorkerEvent::TooLarge);
            }
        }
    }

    fn reported(&mut self, pid: Pid, report: Report) {
        // A worker that has ended meanwhile is not concerned any more.
        let Some(index) = self.workers.iter().position(|worker| worker.pid == Some(pid)) else { return };
        if let Some(facts) = self.workers[index].failure_facts(&report) {
            self.hooks.processor_failed(facts);
        }
        if let Some(facts) = self.workers[index].set_aside_facts(&report) {
            self.hooks.event_set_aside(facts);
        }
        if let Some(facts) = self.workers[index].divergence_facts(&report) {
            self.hooks.store_diverged(facts);
        }
        if let Some(heartbeat) = self.workers[index].record(report) {
            self.apply(index, WorkerEvent::Heartbeat(heartbeat));
        }
        self.publish_one(index);
    }

    fn exited(&mut self, id: Id, status: &io::Result<ExitStatus>) {
        let Some(index) = self.workers.iter().position(|worker| worker.id == id) else { return };
        let worker = &mut self.workers[index];
        let pid = worker.pid.take();
        // What the worker has started may still run. While it does, the group's id is not given to others.
        if let Some(pid) = pid {
            signal_group(pid, Signal::SIGKILL);
        }
        self.orphans.kill_left_behind();
        let expected = worker.record_end(status);
        self.apply(index, WorkerEvent::Exited);
        self.hooks.worker_ended(self.workers[index].end_facts(pid, expected));
        self.workers[index].log_crash_loop();
        if self.workers[index].removed && self.workers[index].state == WorkerState::Stopped {
            self.workers.remove(index);
        }
        self.publish();
    }

    fn replace(&mut self, plan: SupervisionPlan) {
        (self.policy, self.memory_max, self.hooks.settings) = (plan.policy, plan.memory_max, plan.hooks);
        self.stop_missing(&plan.programs, plan.is_resting);
        self.workers.retain(|worker| !(worker.removed && worker.state == WorkerState::Stopped));
        for program in plan.programs {
            match self.workers.iter().position(|worker| worker.program.name == program.name) {
                None => {
                    info!(worker = program.name, "worker is new in the configuration");
                    self.add(program);
                }
                Some(index) => self.renew(index, program),
            }
        }
        self.publish();
    }

    /// Stops the workers that are not among the programs.
    fn stop_missing(&mut self, programs: &[WorkerProgram], is_resting: bool) {
        for index in 0..self.workers.len() {
            let worker = &mut self.workers[index];
            let stays = programs.iter().any(|program| program.name == worker.program.name);
            if !stays && !worker.removed {
                worker.removed = true;
                if is_resting {
                    info!(
                        worker = worker.program.name,
                        "nothing may be handled at present, stopping the worker"
                    );
                } else {
                    info!(worker = worker.program.name, "worker is no longer configured, stopping it");
                }
                self.apply(index, WorkerEvent::StopRequested);
            }
        }
    }

    /// Replaces the program of a worker, if it has changed.
    fn renew(&mut self, index: usize, program: WorkerProgram) {
        let worker = &mut self.workers[index];
        if worker.program == program && !worker.removed {
            return;
        }
        info!(worker = program.name, "worker's configuration has changed, restarting it");
        (worker.program, worker.removed) = (program, false);
        self.apply(index, WorkerEvent::Replaced);
    }

    fn add(&mut self, program: WorkerProgram) {
        self.last_id += 1;
        self.workers.push(SupervisedWorker::new(self.last_id, program));
    }

    fn apply_to_all(&mut self, event: WorkerEvent) {
        for index in 0..self.workers.len() {
            self.apply(index, event);
        }
    }

    /// Applies an event to one worker, and does what follows.
    fn apply(&mut self, index: usize, event: WorkerEvent) {
        let worker = &mut self.workers[index];
        let before = worker.state;
        let (state, action) = lifecycle::next(before, event, Instant::now(), &self.policy);
        worker.state = state;
        worker.log_hang(before);
        match (action, worker.pid) {
            (WorkerAction::Start, _) => self.start(index),
            (WorkerAction::Terminate, Some(pid)) => signal_group(pid, Signal::SIGTERM),
            (WorkerAction::Kill, Some(pid)) => {
                let (name, pid_number) = (&worker.program.name, pid.as_raw());
                warn!(worker = name, worker.pid = pid_number, "killing a worker that does not stop");
                signal_group(pid, Signal::SIGKILL);
            }
            (WorkerAction::Nothing | WorkerAction::Terminate | WorkerAction::Kill, _) => {}
        }
        if self.workers[index].state != before {
            self.publish_one(index);
        }
    }

    fn start(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        worker.starts += 1;
        worker.forget_reports();
        let event = match Child::start(&worker.program) {
            Ok(child) => {
                info!(worker = worker.program.name, worker.pid = child.pid().as_raw(), "worker started");
                worker.pid = Some(child.pid());
                let (id, settings) = (worker.id, worker.program.settings.clone());
                let reports = self.reporting.clone();
                self.children.spawn(async move { (id, child.attend(settings, reports).await) });
                WorkerEvent::Started
            }
            Err(error) => {
                warn!(worker = worker.program.name, %error, "could not start a worker");
                worker.record_failed_start(&error);
                WorkerEvent::Exited
            }
        };
        let (state, _) = lifecycle::next(worker.state, event, Instant::now(), &self.policy);
        worker.state = state;
    }

    fn publish(&self) {
        self.snapshot.send_replace(self.workers.iter().map(SupervisedWorker::snapshot).collect());
    }

    fn publish_one(&self, index: usize) {
        self.snapshot.send_modify(|all| {
            if let (Some(shown), Some(worker)) = (all.get_mut(index), self.workers.get(index)) {
                *shown = worker.snapshot();
            }
        });
    }
}
