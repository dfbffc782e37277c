//! All workers' lives: start, watch, restart, replace, stop.
//!
//! The supervisor knows names, process ids, signs of life, exit reasons and times; it never sees an event and
//! holds no connection. Each turn of its loop waits for one thing to happen, asks [`lifecycle::next`] what
//! follows, and does that.

mod child;
mod crash_history;
pub mod hooks;
pub mod lifecycle;
mod listener;
mod loop_heartbeat;
mod supervised;

use std::io;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

pub use child::Program;
pub use crash_history::Ends;
pub use loop_heartbeat::Pulse;
pub use supervised::{End, Snapshot};

use crate::process::memory::resident_bytes;
use crate::process::orphans::Collector;
use crate::process::report::Report;
use crate::process::service_manager::ServiceManager;
use crate::supervision::hooks::{HookSettings, Hooks};
use child::{Child, signal_group};
use lifecycle::{Action, Event, Policy, State};
use supervised::{Id, Worker};

/// What to supervise, and how.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The workers; no two of the same name.
    pub programs: Vec<Program>,
    /// When to restart and when to lose patience.
    pub policy: Policy,
    /// The memory that a worker may use, in bytes; `None`: as much as there is.
    pub memory_max: Option<u64>,
    /// What to run when a worker ends or a processor fails.
    pub hooks: HookSettings,
}

/// What a supervisor is told.
#[derive(Debug)]
pub enum Order {
    /// End all workers; the second time: at once.
    Stop,
    /// Restart the workers that are another program now, start new ones, end those that are gone.
    Replace(Box<Plan>),
}

/// Supervises workers.
#[derive(Debug)]
pub struct Supervisor<'m> {
    policy: Policy,
    memory_max: Option<u64>,
    hooks: Hooks,
    orphans: Collector,
    workers: Vec<Worker>,
    /// How many workers there ever were.
    known: u64,
    /// The ends of the children.
    children: JoinSet<(Id, io::Result<ExitStatus>)>,
    /// Written by those who attend the children, read in the loop. A child that says more than is read is
    /// not waited for: its pipe is full, then.
    reporting: mpsc::Sender<(Pid, Report)>,
    reports: mpsc::Receiver<(Pid, Report)>,
    /// Written after each turn; read by whoever shows the workers, and by tests.
    snapshot: watch::Sender<Vec<Snapshot>>,
    pulse: Pulse,
    /// Told by the loop itself that it turns.
    manager: Option<&'m ServiceManager>,
    look_interval: Duration,
}

/// How the supervisor's work has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Every worker was given the time to end its batch.
    Orderly,
    /// A second request did not wait for that.
    Forced,
}

/// What ends a wait of the loop.
enum Happening {
    Exited(Id, io::Result<ExitStatus>),
    Reported(Pid, Report),
    Ordered(Order),
    Time,
}

/// Reports that are not read yet.
const REPORTS_MAX: usize = 64;

/// Between two looks at what a clock says or the workers use.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A loop that wakes so much later than it wanted was itself stopped.
const OVERSLEPT: Duration = Duration::from_secs(1);

impl<'m> Supervisor<'m> {
    /// A supervisor of these programs; none is started yet.
    pub fn new(plan: Plan) -> Self {
        let (reporting, reports) = mpsc::channel(REPORTS_MAX);
        let mut supervisor = Self {
            policy: plan.policy,
            memory_max: plan.memory_max,
            hooks: Hooks::new(plan.hooks),
            orphans: Collector::new(),
            workers: Vec::new(),
            known: 0,
            children: JoinSet::new(),
            reporting,
            reports,
            snapshot: watch::Sender::new(Vec::new()),
            pulse: Pulse::default(),
            manager: None,
            look_interval: LOOK_INTERVAL,
        };
        plan.programs.into_iter().for_each(|program| supervisor.add(program));
        supervisor.publish();
        supervisor
    }

    /// Has a service manager hear from the loop as often as it wants to.
    pub(crate) fn watched_by(mut self, manager: &'m ServiceManager) -> Self {
        self.look_interval =
            manager.watchdog_interval().map_or(LOOK_INTERVAL, |wanted| wanted.min(LOOK_INTERVAL));
        self.manager = Some(manager);
        self
    }

    /// What the workers are doing, from now on.
    pub fn snapshots(&self) -> watch::Receiver<Vec<Snapshot>> {
        self.snapshot.subscribe()
    }

    /// Tells when the loop last turned; it does once a second at least.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Runs until every worker has stopped after an order to stop. A second one kills.
    pub async fn run(mut self, mut orders: mpsc::Receiver<Order>) -> Ending {
        let (mut stopping, mut ending) = (false, Ending::Orderly);
        let mut look = Instant::now();
        self.apply_to_all(Event::Tick);
        while !(stopping && self.workers.iter().all(|worker| worker.state == State::Stopped)) {
            self.pulse.beat();
            match self.wait(&mut orders, look + self.look_interval).await {
                Happening::Exited(id, status) => self.exited(id, &status),
                Happening::Reported(pid, report) => self.reported(pid, report),
                Happening::Ordered(Order::Stop) => {
                    info!(workers = self.workers.len(), at_once = stopping, "stopping");
                    if stopping {
                        ending = Ending::Forced;
                    }
                    self.apply_to_all(if stopping { Event::KillRequested } else { Event::StopRequested });
                    stopping = true;
                }
                Happening::Ordered(Order::Replace(_)) if stopping => {}
                Happening::Ordered(Order::Replace(plan)) => self.replace(*plan),
                Happening::Time => {}
            }
            if look.elapsed() >= self.look_interval {
                self.look(look);
                look = Instant::now();
            }
            self.apply_to_all(Event::Tick);
        }
        if ending == Ending::Orderly {
            self.hooks.finish().await;
        }
        ending
    }

    async fn wait(&mut self, orders: &mut mpsc::Receiver<Order>, look: Instant) -> Happening {
        let deadlines = self.workers.iter().filter_map(|worker| worker.state.deadline(&self.policy));
        let deadline = deadlines.fold(look, Instant::min);
        tokio::select! {
            biased;
            Some(order) = orders.recv() => Happening::Ordered(order),
            Some(Ok((id, status))) = self.children.join_next() => Happening::Exited(id, status),
            Some((pid, report)) = self.reports.recv() => Happening::Reported(pid, report),
            () = tokio::time::sleep_until(deadline.into()) => Happening::Time,
        }
    }

    /// Looks after what nobody reports. `before`: when it last did.
    fn look(&mut self, before: Instant) {
        if let Some(manager) = self.manager {
            manager.watchdog();
        }
        // Who was stopped has heard nobody meanwhile, and accuses nobody.
        if before.elapsed() > LOOK_INTERVAL + OVERSLEPT {
            self.apply_to_all(Event::Beat(Instant::now()));
        }
        self.orphans.look();
        self.look_at_memory();
    }

    fn look_at_memory(&mut self) {
        let Some(memory_max) = self.memory_max else { return };
        for index in 0..self.workers.len() {
            let worker = &self.workers[index];
            let used = worker.pid.and_then(resident_bytes).unwrap_or_default();
            if used > memory_max && matches!(worker.state, State::Running { .. }) {
                let (name, pid) = (&worker.program.name, worker.raw_pid());
                warn!(
                    worker = name,
                    worker.pid = pid,
                    memory_bytes = used,
                    memory_max_bytes = memory_max,
                    "a worker uses more memory than it may, restarting it"
                );
                self.apply(index, Event::TooLarge);
            }
        }
    }

    fn reported(&mut self, pid: Pid, report: Report) {
        // One that has ended meanwhile has nothing to say any more.
        let Some(index) = self.workers.iter().position(|worker| worker.pid == Some(pid)) else { return };
        if let Some(facts) = self.workers[index].failing(&report) {
            self.hooks.processor_failed(facts);
        }
        if let Some(facts) = self.workers[index].set_aside_facts(&report) {
            self.hooks.event_set_aside(facts);
        }
        if let Some(beat) = self.workers[index].hear(report) {
            self.apply(index, Event::Beat(beat));
        }
        self.publish_one(index);
    }

    fn exited(&mut self, id: Id, status: &io::Result<ExitStatus>) {
        let Some(index) = self.workers.iter().position(|worker| worker.id == id) else { return };
        let worker = &mut self.workers[index];
        let pid = worker.pid.take();
        // What the child has started may still run; the group's id is not given away while it does.
        if let Some(pid) = pid {
            signal_group(pid, Signal::SIGKILL);
        }
        let expected = worker.ended(status);
        self.apply(index, Event::Exited);
        self.hooks.worker_ended(self.workers[index].end_facts(pid, expected));
        if let State::Waiting { due, ends } = self.workers[index].state
            && ends.is_crash_loop()
        {
            let retry_in_ms = due.saturating_duration_since(Instant::now()).as_millis() as u64;
            let (worker, ends) = (&self.workers[index].program.name, ends.in_a_row());
            warn!(worker, ends, retry_in_ms, "a worker ends again and again");
        }
        if self.workers[index].removed && self.workers[index].state == State::Stopped {
            self.workers.remove(index);
        }
        self.publish();
    }

    fn replace(&mut self, plan: Plan) {
        (self.policy, self.memory_max, self.hooks.settings) = (plan.policy, plan.memory_max, plan.hooks);
        for index in 0..self.workers.len() {
            let worker = &mut self.workers[index];
            let stays = plan.programs.iter().any(|program| program.name == worker.program.name);
            if !stays && !worker.removed {
                worker.removed = true;
                info!(worker = worker.program.name, "worker is no longer configured, stopping it");
                self.apply(index, Event::StopRequested);
            }
        }
        self.workers.retain(|worker| !(worker.removed && worker.state == State::Stopped));
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

    /// Replaces the program of a worker, if it is another one.
    fn renew(&mut self, index: usize, program: Program) {
        let worker = &mut self.workers[index];
        if worker.program == program && !worker.removed {
            return;
        }
        info!(worker = program.name, "worker is configured anew, restarting it");
        (worker.program, worker.removed) = (program, false);
        self.apply(index, Event::Replaced);
    }

    fn add(&mut self, program: Program) {
        self.known += 1;
        self.workers.push(Worker::new(self.known, program));
    }

    fn apply_to_all(&mut self, event: Event) {
        for index in 0..self.workers.len() {
            self.apply(index, event);
        }
    }

    /// Lets an event happen to one worker, and does what follows.
    fn apply(&mut self, index: usize, event: Event) {
        let worker = &mut self.workers[index];
        let before = worker.state;
        let (state, action) = lifecycle::next(before, event, Instant::now(), &self.policy);
        worker.state = state;
        worker.log_hang(before);
        match (action, worker.pid) {
            (Action::Start, _) => self.start(index),
            (Action::Terminate, Some(pid)) => signal_group(pid, Signal::SIGTERM),
            (Action::Kill, Some(pid)) => {
                let (name, pid_number) = (&worker.program.name, pid.as_raw());
                warn!(worker = name, worker.pid = pid_number, "killing a worker that does not stop");
                signal_group(pid, Signal::SIGKILL);
            }
            (Action::Nothing | Action::Terminate | Action::Kill, _) => {}
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
                Event::Started
            }
            Err(error) => {
                warn!(worker = worker.program.name, %error, "could not start a worker");
                worker.could_not_start(&error);
                Event::Exited
            }
        };
        let (state, _) = lifecycle::next(worker.state, event, Instant::now(), &self.policy);
        worker.state = state;
    }

    fn publish(&self) {
        self.snapshot.send_replace(self.workers.iter().map(Worker::snapshot).collect());
    }

    fn publish_one(&self, index: usize) {
        self.snapshot.send_modify(|all| {
            if let (Some(shown), Some(worker)) = (all.get_mut(index), self.workers.get(index)) {
                *shown = worker.snapshot();
            }
        });
    }
}
