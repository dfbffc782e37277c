//! All workers' lives: start, watch, restart, stop.
//!
//! The supervisor knows names, process ids, exit reasons and times; it never sees an event and holds no
//! connection. Each turn of its loop waits for one thing to happen, asks [`lifecycle::next`] what follows,
//! and does that.

mod child;
pub mod lifecycle;

use std::io;
use std::process::ExitStatus;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

pub use child::Program;

use crate::signal::Request;
use child::{Child, signal_group};
use lifecycle::{Action, Event, Policy, State};

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
}

/// Supervises a fixed set of workers.
#[derive(Debug)]
pub struct Supervisor {
    policy: Policy,
    workers: Vec<Worker>,
    /// The ends of the children, by index of their worker.
    children: JoinSet<(usize, io::Result<ExitStatus>)>,
    /// Written after each turn; read by whoever shows the workers, and by tests.
    snapshot: watch::Sender<Vec<Snapshot>>,
}

#[derive(Debug)]
struct Worker {
    program: Program,
    state: State,
    pid: Option<Pid>,
    starts: u32,
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
    Exited(usize, io::Result<ExitStatus>),
    Requested(Request),
    Time,
}

impl Supervisor {
    /// A supervisor of these programs; none is started yet.
    pub fn new(programs: Vec<Program>, policy: Policy) -> Self {
        let state = State::new(Instant::now());
        let workers =
            programs.into_iter().map(|program| Worker { program, state, pid: None, starts: 0 }).collect();
        let snapshot = watch::Sender::new(Vec::new());
        Self { policy, workers, children: JoinSet::new(), snapshot }
    }

    /// What the workers are doing, from now on.
    pub fn snapshots(&self) -> watch::Receiver<Vec<Snapshot>> {
        self.snapshot.subscribe()
    }

    /// Runs until every worker has stopped after a request to stop. A second request kills.
    pub async fn run(mut self, mut requests: mpsc::Receiver<Request>) -> Ending {
        let (mut stopping, mut ending) = (false, Ending::Orderly);
        self.tick();
        while !self.workers.iter().all(|worker| worker.state == State::Stopped) {
            match self.wait(&mut requests).await {
                Happening::Exited(index, status) => self.exited(index, &status),
                Happening::Requested(Request::Stop) => {
                    let event = if stopping { Event::KillRequested } else { Event::StopRequested };
                    info!(workers = self.workers.len(), at_once = stopping, "stopping");
                    if stopping {
                        ending = Ending::Forced;
                    }
                    stopping = true;
                    for index in 0..self.workers.len() {
                        self.apply(index, event);
                    }
                }
                Happening::Time => self.tick(),
            }
        }
        ending
    }

    async fn wait(&mut self, requests: &mut mpsc::Receiver<Request>) -> Happening {
        let deadline = self.workers.iter().filter_map(|worker| worker.state.deadline()).min();
        let time = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(request) = requests.recv() => Happening::Requested(request),
            Some(Ok((index, status))) = self.children.join_next() => Happening::Exited(index, status),
            () = time => Happening::Time,
        }
    }

    fn tick(&mut self) {
        for index in 0..self.workers.len() {
            self.apply(index, Event::Tick);
        }
    }

    fn exited(&mut self, index: usize, status: &io::Result<ExitStatus>) {
        let worker = &mut self.workers[index];
        // What the child has started may still run; the group's id is not given away while it does.
        if let Some(pid) = worker.pid.take() {
            signal_group(pid, Signal::SIGKILL);
        }
        let name = &worker.program.name;
        match status {
            Ok(status) if matches!(worker.state, State::Stopping { .. }) => {
                info!(worker = name, %status, "worker stopped")
            }
            Ok(status) => warn!(worker = name, %status, "worker ended, restarting"),
            Err(error) => warn!(worker = name, %error, "lost sight of a worker, restarting"),
        }
        self.apply(index, Event::Exited);
    }

    /// Lets an event happen to one worker, and does what follows.
    fn apply(&mut self, index: usize, event: Event) {
        let worker = &mut self.workers[index];
        let (state, action) = lifecycle::next(worker.state, event, Instant::now(), &self.policy);
        worker.state = state;
        match (action, worker.pid) {
            (Action::Start, _) => self.start(index),
            (Action::Terminate, Some(pid)) => signal_group(pid, Signal::SIGTERM),
            (Action::Kill, Some(pid)) => {
                warn!(
                    worker = worker.program.name,
                    worker.pid = pid.as_raw(),
                    "killing a worker that does not stop"
                );
                signal_group(pid, Signal::SIGKILL);
            }
            (Action::Nothing | Action::Terminate | Action::Kill, _) => {}
        }
        self.publish();
    }

    fn start(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        worker.starts += 1;
        let event = match Child::start(&worker.program) {
            Ok(child) => {
                info!(worker = worker.program.name, worker.pid = child.pid().as_raw(), "worker started");
                worker.pid = Some(child.pid());
                let settings = worker.program.settings.clone();
                self.children.spawn(async move { (index, child.attend(settings).await) });
                Event::Started
            }
            Err(error) => {
                warn!(worker = worker.program.name, %error, "could not start a worker");
                Event::Exited
            }
        };
        let (state, _) = lifecycle::next(worker.state, event, Instant::now(), &self.policy);
        worker.state = state;
    }

    fn publish(&self) {
        let snapshot = |worker: &Worker| Snapshot {
            name: worker.program.name.clone(),
            processors: worker.program.processors.clone(),
            pid: worker.pid.map(Pid::as_raw),
            state: worker.state,
            starts: worker.starts,
        };
        self.snapshot.send_replace(self.workers.iter().map(snapshot).collect());
    }
}
