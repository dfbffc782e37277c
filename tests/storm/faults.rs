//! The faults: drawn from a seed, and counted only when they were seen to land.

mod forgotten_ids;
mod network;
mod versions;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use espd::internals::tracker::LEASE;
use fastrand::Rng;
use nix::sys::signal::Signal;
use tokio::time::sleep;

use crate::daemons::Daemon;
use crate::load::Lull;
use crate::operators;
use crate::processes::{Process, State};
use crate::world::World;
use network::{NetworkTally, Outage};

/// The mean time between two faults. Some find no victim.
const MEAN_GAP: Duration = Duration::from_millis(150);

/// The longest time between two faults.
const LONGEST_GAP: Duration = Duration::from_secs(1);

/// How long it may take to see that a signal has had its effect.
const PROOF_LIMIT: Duration = Duration::from_secs(2);

/// How long after its time a storm may take to show each of its faults once.
const PATIENCE: Duration = Duration::from_secs(60);

/// The shortest time that a worker is frozen.
const SHORTEST_FREEZE: Duration = Duration::from_millis(20);

/// A kind of violence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    KillWorker,
    TerminateBackend,
    FreezeWorker,
    CrashServer,
    KillDaemon,
    FreezeDaemon,
    CutNetwork,
    SwallowNetwork,
    DelayNetwork,
    /// See [`forgotten_ids`].
    ForgetIds,
    /// A projector is declared in a higher version, which the daemons build.
    RaiseVersion,
    /// An operator does something with the versions of a projector.
    Operate,
    /// The operator's command is killed.
    KillOperator,
}

/// How often each happens, relative to the others.
const WEIGHTS: [(Fault, u32); 13] = [
    (Fault::KillWorker, 20),
    (Fault::TerminateBackend, 10),
    (Fault::FreezeWorker, 6),
    (Fault::CrashServer, 4),
    (Fault::KillDaemon, 3),
    (Fault::FreezeDaemon, 2),
    (Fault::CutNetwork, 3),
    (Fault::SwallowNetwork, 2),
    (Fault::DelayNetwork, 2),
    (Fault::ForgetIds, 1),
    (Fault::RaiseVersion, 2),
    (Fault::Operate, 8),
    (Fault::KillOperator, 5),
];

/// The faults that have landed.
#[derive(Debug, Default)]
pub struct Tally {
    pub workers_killed: u32,
    pub daemons_killed: u32,
    pub servers_crashed: u32,
    pub backends_terminated: u32,
    /// Crashes after which ids were drawn again that had been drawn before.
    pub ids_forgotten: u32,
    pub workers_frozen: u32,
    /// With all of their workers.
    pub daemons_frozen: u32,
    pub network: NetworkTally,
    /// Projectors that were declared in a higher version.
    pub versions_raised: u32,
    /// What operators have done with versions.
    pub operators: operators::Tally,
    /// Frozen for longer than a lease, and then woken.
    pub sleepers_woken: u32,
    /// The longest time that a child has survived its daemon.
    pub longest_orphan: Duration,
    /// What must not happen.
    pub complaints: Vec<String>,
}

/// A process that was stopped by SIGSTOP.
struct Frozen {
    process: Process,
    since: Instant,
    until: Instant,
}

/// The storm while it blows.
pub struct Storm<'w> {
    world: &'w mut World,
    lull: Lull,
    rng: Rng,
    tally: Tally,
    frozen: Vec<Frozen>,
    outage: Option<Outage>,
    /// Faults that have to happen once whatever is drawn.
    due: VecDeque<Fault>,
}

impl<'w> Storm<'w> {
    /// A storm that is yet to break out.
    pub fn new(world: &'w mut World, lull: Lull, mut rng: Rng) -> Self {
        let mut due: Vec<Fault> = WEIGHTS.iter().map(|(fault, _)| *fault).collect();
        rng.shuffle(&mut due);
        // Early, as the first freeze is long.
        due.sort_by_key(|fault| *fault != Fault::FreezeWorker);
        Self { world, lull, rng, tally: Tally::default(), frozen: Vec::new(), outage: None, due: due.into() }
    }

    /// Blows for `time`, or until each kind of fault has landed, and then repairs what can be repaired.
    pub async fn blow(mut self, time: Duration) -> anyhow::Result<Tally> {
        let end = Instant::now() + time;
        while Instant::now() < end || (self.owes_something() && Instant::now() < end + PATIENCE) {
            sleep(self.draw_gap()).await;
            self.wake_sleepers(Instant::now());
            self.restore_network(Instant::now());
            self.start_daemons(false)?;
            self.welcome_servers(false).await?;
            self.strike_next(Instant::now() >= end).await?;
        }
        if self.owes_something() {
            self.tally.complaints.push(format!("this was no storm: it lacks {:?}, or a sleeper", self.due));
        }
        self.wake_sleepers(Instant::now() + LEASE * 2);
        self.restore_network(Instant::now() + LEASE * 2);
        self.start_daemons(true)?;
        self.welcome_servers(true).await?;
        self.world.operators.finish().await?;
        self.tally.operators = self.world.operators.tally;
        self.tally.complaints.append(&mut self.world.operators.complaints);
        Ok(self.tally)
    }

    /// One more fault: one that is due or, while the storm is not `over`, any.
    async fn strike_next(&mut self, over: bool) -> anyhow::Result<()> {
        if self.lacks_sleeper() && !self.due.contains(&Fault::FreezeWorker) {
            self.due.push_front(Fault::FreezeWorker);
        }
        let due = if over || self.rng.bool() { self.due.pop_front() } else { None };
        let Some(fault) = due.or_else(|| (!over).then(|| self.draw_fault())) else { return Ok(()) };
        if self.strike(fault).await? {
            self.due.retain(|other| *other != fault);
        } else {
            self.due.extend(due);
        }
        Ok(())
    }

    /// Whether a kind of fault has not landed yet.
    fn owes_something(&self) -> bool {
        !self.due.is_empty() || self.tally.sleepers_woken == 0
    }

    /// Exponentially distributed, as independent accidents are.
    fn draw_gap(&mut self) -> Duration {
        MEAN_GAP.mul_f64(-(1.0 - self.rng.f64()).ln()).min(LONGEST_GAP)
    }

    fn draw_fault(&mut self) -> Fault {
        let sum: u32 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut place = self.rng.u32(..sum);
        for (fault, weight) in WEIGHTS {
            if place < weight {
                return fault;
            }
            place -= weight;
        }
        Fault::KillWorker
    }

    /// Returns whether the fault has landed. That of a crash is counted when the server is up again.
    async fn strike(&mut self, fault: Fault) -> anyhow::Result<bool> {
        let (landed, count) = match fault {
            Fault::CrashServer => return Ok(self.world.server(&mut self.rng).crash()),
            Fault::RaiseVersion => (self.raise_version()?, &mut self.tally.versions_raised),
            Fault::Operate => return self.operate(),
            Fault::KillOperator => return self.kill_operator().await,
            Fault::ForgetIds => (self.forget_ids().await?, &mut self.tally.ids_forgotten),
            Fault::KillWorker => (self.kill_worker().await, &mut self.tally.workers_killed),
            Fault::CutNetwork | Fault::SwallowNetwork | Fault::DelayNetwork => {
                return Ok(self.strike_network(fault));
            }
            Fault::FreezeDaemon => (self.freeze_daemon().await, &mut self.tally.daemons_frozen),
            Fault::FreezeWorker => (self.freeze_worker().await, &mut self.tally.workers_frozen),
            Fault::KillDaemon => (self.kill_daemon().await, &mut self.tally.daemons_killed),
            Fault::TerminateBackend => (self.terminate_backend().await, &mut self.tally.backends_terminated),
        };
        *count += u32::from(landed);
        Ok(landed)
    }

    async fn kill_worker(&mut self) -> bool {
        let Some(worker) = self.draw_worker() else { return false };
        worker.signal(Signal::SIGKILL) && worker.comes_to(State::Dead, PROOF_LIMIT).await
    }

    async fn freeze_worker(&mut self) -> bool {
        let Some(worker) = self.draw_worker() else { return false };
        if !worker.signal(Signal::SIGSTOP) || !worker.comes_to(State::Frozen, PROOF_LIMIT).await {
            return false;
        }
        let since = Instant::now();
        let until = since + self.draw_freeze();
        self.frozen.push(Frozen { process: worker, since, until });
        true
    }

    /// Stops a daemon with all of its workers, as a machine does that is suspended.
    async fn freeze_daemon(&mut self) -> bool {
        let daemons: Vec<&Daemon> = self.world.daemons.iter().filter(|daemon| daemon.is_started()).collect();
        let Some(daemon) = self.rng.choice(daemons) else { return false };
        let processes = daemon.processes();
        let since = Instant::now();
        let until = since + self.draw_freeze();
        let mut landed = !processes.is_empty();
        for process in processes {
            landed &= process.signal(Signal::SIGSTOP) && process.comes_to(State::Frozen, PROOF_LIMIT).await;
            self.frozen.push(Frozen { process, since, until });
        }
        landed
    }

    /// A worker that is not frozen.
    fn draw_worker(&mut self) -> Option<Process> {
        let mut workers: Vec<Process> = self.world.daemons.iter().flat_map(Daemon::workers).collect();
        workers.retain(|worker| worker.state() == State::Alive);
        self.rng.choice(workers)
    }

    /// Whether nobody has been woken after his lease, and nobody who lives is going to be. A worker that is frozen may
    /// die meanwhile, as by its daemon that gives up a version.
    fn lacks_sleeper(&self) -> bool {
        let sleeps_long = |sleeper: &Frozen| {
            sleeper.until - sleeper.since > LEASE && sleeper.process.state() == State::Frozen
        };
        self.tally.sleepers_woken == 0 && !self.frozen.iter().any(sleeps_long)
    }

    /// Anything up to twice a lease, short times more often; longer than a lease while somebody lacks who sleeps so long.
    fn draw_freeze(&mut self) -> Duration {
        let longest = LEASE * 2;
        let shortest = if self.lacks_sleeper() { LEASE.mul_f64(1.2) } else { SHORTEST_FREEZE };
        shortest.mul_f64(longest.div_duration_f64(shortest).powf(self.rng.f64()))
    }

    fn wake_sleepers(&mut self, now: Instant) {
        for sleeper in self.frozen.extract_if(.., |sleeper| sleeper.until <= now) {
            let was_frozen = sleeper.process.state() == State::Frozen;
            if was_frozen && sleeper.process.signal(Signal::SIGCONT) && sleeper.since.elapsed() > LEASE {
                self.tally.sleepers_woken += 1;
            }
        }
    }

    /// A server that does not answer has no sessions.
    async fn terminate_backend(&mut self) -> bool {
        let mut rng = self.rng.fork();
        self.world.server(&mut rng).terminate_backend(&mut self.rng).await.unwrap_or(false)
    }

    async fn kill_daemon(&mut self) -> bool {
        let mut daemons: Vec<&mut Daemon> = self.world.daemons.iter_mut().collect();
        daemons.retain(|daemon| daemon.is_started());
        if self.tally.sleepers_woken == 0 {
            // Somebody has to live through a freeze, and a frozen child dies with its daemon.
            daemons.retain(|daemon| daemon.workers().iter().all(|worker| worker.state() != State::Frozen));
        }
        let Some(daemon) = self.rng.choice(daemons) else { return false };
        match daemon.kill().await {
            Ok(orphaned) => {
                self.tally.longest_orphan = self.tally.longest_orphan.max(orphaned);
                true
            }
            Err(error) => {
                self.tally.complaints.push(format!("daemon {}: {error:#}", daemon.name));
                false
            }
        }
    }

    /// Starts the daemons that are down, sooner or later or all of them `now`.
    fn start_daemons(&mut self, now: bool) -> anyhow::Result<()> {
        for daemon in &mut self.world.daemons {
            if let Some(status) = daemon.end()? {
                self.tally.complaints.push(format!("daemon {} ended by itself: {status}", daemon.name));
            }
            if !daemon.is_started() && (now || self.rng.bool()) {
                daemon.start()?;
            }
        }
        Ok(())
    }
    /// Counts the servers that have come back from a crash, or waits for `all` of them.
    async fn welcome_servers(&mut self, all: bool) -> anyhow::Result<()> {
        for server in [&mut self.world.events, &mut self.world.projections] {
            self.tally.servers_crashed += u32::from(server.come_back(all).await?);
        }
        Ok(())
    }
}
