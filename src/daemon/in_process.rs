//! Processors inside an application's own process: a web server that reads what it has just written, a test.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::plan::all_in_one;
use super::program::{Program, telling};
use super::registered::add_registered;
use super::start_error::StartError;
use crate::config::Config;
use crate::event::Position;
use crate::operations::check::require_own_tables;
use crate::operations::databases::Databases;
use crate::operations::declared_events::apply_after_migration;
use crate::operations::operator::Operator;
use crate::operations::waiting::{Idle, Waiting};
use crate::processing::declaration::ProcessorDeclaration;
use crate::processors::{Processors, WaitError};
use crate::shutdown::{self, Shutdown, ShutdownHandle};
use crate::store::scheduled::Scheduler;
use crate::store::{EventStore as _, PostgresEventStore};
use crate::worker::Crew;

/// How long [`Program::start`] waits for the processors to begin.
const BEGIN_TIME: Duration = Duration::from_secs(60);

/// How long [`Running::caught_up`] waits.
const CAUGHT_UP_TIME: Duration = Duration::from_secs(30);

/// The name of the sessions that look how far the processors are.
const NAME: &str = "espd in process";

impl Program {
    /// Runs the processors of this program and of the configuration as tasks of the present tokio runtime: runners, the
    /// watcher, the relay that moves what reactors emit for later, and what appends scheduled events when they are due. They follow the store until
    /// [`Running::stop`], or until the [`Running`] is dropped.
    ///
    /// It returns once each processor has a position: what is appended from then on is handled also by those that begin now. For one
    /// that begins now, it waits for transactions that write at this moment, for up to a minute.
    ///
    /// It is what a worker of `espd run` does, so several processes may run the same processors: one of them owns each, and
    /// another takes over when it ends. Whatever the configuration says of `isolation`, all share this process; `[admin]`,
    /// `[hooks]` and `[log]` are for the daemon, and log lines go to the subscriber of the application.
    ///
    /// # Errors
    /// The configuration and the program contradict each other, no database is named or it does not answer, espd's tables are
    /// not those of this version ([`Self::migrate`] makes them so), or a processor cannot be run as it is declared, or has not begun
    /// after a minute. Then nothing runs.
    pub async fn start(self, config: &Config) -> Result<Running, StartError> {
        let running = Running::start(self, config).await.map_err(|error| StartError::of(&error))?;
        let Err(error) = running.begun(BEGIN_TIME).await else { return Ok(running) };
        let stopped = running.stop().await;
        if matches!(error, WaitError::Ended) {
            // That says why.
            stopped?;
        }
        Err(StartError::of(&error.into()))
    }

    /// Creates espd's tables in the databases of the configuration, or migrates them to this version, and tells the event store what
    /// `[[event]]` declares. Does nothing if they are up to date.
    ///
    /// # Errors
    /// A database does not answer, or refuses.
    pub async fn migrate(config: &Config) -> Result<(), StartError> {
        let migrated = async {
            let databases = Databases::connect(config, NAME).await?;
            databases.migrate().await?;
            apply_after_migration(&databases, &config.events).await?;
            databases.close().await;
            Ok(())
        };
        migrated.await.map_err(|error| StartError::of(&error))
    }
}

/// Processors that run as tasks of this process. Dropping it stops them: they end after the batch at hand, or are cut off
/// after `shutdown_timeout` of the configuration.
#[derive(Debug)]
pub struct Running {
    stop: ShutdownHandle,
    /// Requested when all tasks have ended.
    ended: Shutdown,
    outcome: JoinHandle<anyhow::Result<()>>,
    databases: Databases,
    declared: Vec<ProcessorDeclaration>,
    processors: Processors,
    store: PostgresEventStore,
    /// Held by a look at all trackers: one at a time needs few connections.
    turn: Mutex<()>,
}

impl Running {
    async fn start(program: Program, config: &Config) -> anyhow::Result<Self> {
        let mut config = config.clone();
        let registry = program.into_registry();
        add_registered(&mut config, &registry).map_err(|faults| anyhow::anyhow!(faults.join("\n")))?;
        require_own_tables(&config)?;
        let databases = Databases::connect(&config, NAME).await?;
        databases.check_schema().await?;
        databases.check_store().await?;
        let layout = databases.layout.clone().with_upcasts(&config.upcasts);
        let store = telling(PostgresEventStore::new(databases.events.clone(), layout), &registry);
        let scheduler = scheduler(&config, &store)?;
        let (stop, stopping) = shutdown::channel();
        let crew = Crew::new(all_in_one(&config)?, Arc::new(registry), stopping.clone()).await?;
        crew.require_all()?;
        let (end, ended) = shutdown::channel();
        let grace = config.runner.shutdown_timeout;
        let outcome = tokio::spawn(async move {
            let scheduling = scheduler.map(|scheduler| {
                let stopping = stopping.clone();
                tokio::spawn(async move { scheduler.run(stopping).await })
            });
            let outcome = live(crew, stopping, grace).await;
            if let Some(scheduling) = scheduling {
                scheduling.abort();
            }
            drop(end);
            outcome
        });
        Ok(Self {
            stop,
            ended,
            outcome,
            declared: config.processors,
            processors: Processors::new(databases.projections.clone(), databases.layout.schema())?
                .with_tracker_table(&databases.layout.names().tracker_table),
            store,
            databases,
            turn: Mutex::default(),
        })
    }

    /// The event store that the processors follow, with their upcasts. An append through it is noticed at once.
    pub fn event_store(&self) -> &PostgresEventStore {
        &self.store
    }

    /// Returns as soon as a processor has handled everything up to `position`, as [`Processors::wait_for`] does.
    ///
    /// # Errors
    /// [`WaitError::Unknown`] for a processor that does not run here; otherwise as [`Processors::wait_for`].
    pub async fn wait(
        &self,
        processor: &str,
        position: impl Into<Position>,
        timeout: Duration,
    ) -> Result<Position, WaitError> {
        if !self.declared.iter().any(|declaration| declaration.name == processor) {
            let known = self.declared.iter().map(|declaration| declaration.name.clone()).collect();
            return Err(WaitError::Unknown { processor: processor.to_owned(), known });
        }
        self.while_running(self.processors.wait_for(processor, position, timeout)).await
    }

    /// Returns as soon as every processor has handled what is in the store now; waits for half a minute at most.
    ///
    /// # Errors
    /// [`WaitError::Blocked`] as soon as something keeps a processor from that: its first failure, which is its last error, also
    /// if the event is to be tried again; a dead letter, also an old one; an operator's pause. [`WaitError::TimedOut`] says how
    /// far the others are.
    pub async fn caught_up(&self) -> Result<(), WaitError> {
        let head = self.store.latest_id(None).await.map_err(|error| WaitError::Database(error.into()))?;
        let _turn = self.turn.lock().await;
        let waiting = Waiting::impatiently(self.operator());
        self.while_running(waiting.until_at(head, CAUGHT_UP_TIME, |_, _| ())).await
    }

    /// Returns as soon as nothing is left to do: every event is handled, also those that reactors have emitted meanwhile, and
    /// nothing that is due is pending. What is emitted for a later time is listed and not waited for.
    ///
    /// # Errors
    /// As for [`Self::caught_up`]; also [`WaitError::Blocked`] if the event store refuses what a reactor has emitted.
    pub async fn idle(&self, timeout: Duration) -> Result<Idle, WaitError> {
        let _turn = self.turn.lock().await;
        let waiting = Waiting::impatiently(self.operator());
        self.while_running(waiting.until_idle(timeout)).await
    }

    /// Stops the processors and returns when all have ended: each after the batch at hand, so that another process can
    /// continue at once.
    ///
    /// # Errors
    /// The tasks had ended before, or did not end within `shutdown_timeout` of the configuration and were cut off; what was not
    /// committed is handled again by whoever comes next.
    pub async fn stop(self) -> Result<(), StartError> {
        self.stop.request();
        let outcome = self.outcome.await.map_err(anyhow::Error::from).flatten();
        self.databases.close().await;
        outcome.map_err(|error| StartError::of(&error))
    }

    /// Returns as soon as each processor has a position: what is appended from then on is handled also by those that begin now.
    async fn begun(&self, timeout: Duration) -> Result<(), WaitError> {
        let waiting = Waiting::impatiently(self.operator());
        self.while_running(waiting.until_begun(timeout)).await
    }

    fn operator(&self) -> Operator<'_> {
        Operator { databases: &self.databases, declared: &self.declared, name: "", native: None }
    }

    /// Waits, but not for processors that have ended.
    async fn while_running<T>(
        &self,
        waiting: impl Future<Output = Result<T, WaitError>>,
    ) -> Result<T, WaitError> {
        let waited = self.ended.clone().run_until_requested(waiting).await;
        waited.unwrap_or(Err(WaitError::Ended))
    }
}

/// What appends scheduled events when they are due, in the store of the configuration; `None`: espd does not append to it.
fn scheduler(config: &Config, store: &PostgresEventStore) -> anyhow::Result<Option<Scheduler>> {
    let Some(url) = config.direct_event_store_url() else { return Ok(None) };
    let scheduler = Scheduler::new(&url.connector()?, store.layout());
    Ok(scheduler.map(|scheduler| scheduler.telling(store.clone())))
}

/// Runs a crew until the stop is requested, and cuts it off when it takes too long to end.
async fn live(crew: Crew, mut stop: Shutdown, grace: Duration) -> anyhow::Result<()> {
    let running = crew.run_guarded();
    tokio::pin!(running);
    tokio::select! {
        biased;
        ended = &mut running => return ended,
        () = stop.requested() => {}
    }
    let ended = tokio::time::timeout(grace, running).await;
    ended.unwrap_or_else(|_| anyhow::bail!("the processors did not end within {grace:?} and were cut off"))
}
