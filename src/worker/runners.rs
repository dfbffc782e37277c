//! The runners of one worker, around one watcher.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::error;

use super::mark_keeper::MarkKeeper;
use super::reporting::{ReportedProcessor, report};
use super::schema_guard::SchemaGuard;
use super::{Assignment, WorkerSettings, task};
use crate::handlers::native::Registry;
use crate::handlers::program::ProgramProcessor;
use crate::handlers::sql::SqlProcessor;
use crate::handlers::webhook::Webhook;
use crate::postgres::connector::Connector;
use crate::postgres::database_url::DatabaseUrl;
use crate::postgres::server_mark::ServerMark;
use crate::process::exit_code::Exit;
use crate::processing::declaration::{Handling, ProcessorDeclaration};
use crate::processing::emission::Relay;
use crate::processing::heartbeat::Heartbeat;
use crate::processing::processor::{Events, Processor, ProcessorBase};
use crate::processing::runner::{ReleaseChannel, Runner, RunnerContext, SHARED_SESSIONS, Shared, Steward};
use crate::processing::tracker::{LEASE, Owner, ProcessorKey, Trackers};
use crate::schema::SchemaError;
use crate::shutdown::{self, Shutdown};
use crate::store::PostgresEventStore;
use crate::store::layout::Layout;
use crate::store::subscription::Subscription;
use crate::store::watcher::{Watcher, WatcherSettings};

/// How long the first batch waits for the mark, before it is tried.
const MARK_PATIENCE: Duration = Duration::from_secs(2);

/// The runners of some processors with what they share: one watcher, one relay. They live in a worker process or in an
/// application's own; the crew does not know in which.
pub(crate) struct Crew {
    factory: Arc<RunnerFactory>,
    watcher: Watcher,
    /// Works for all runners, if they share something.
    steward: Option<Steward>,
    /// Looks whether this program may go on with the tables.
    guard: SchemaGuard,
    /// The processors that can be run as they are declared.
    processors: Vec<(ProcessorDeclaration, Heartbeat)>,
    /// Why others cannot.
    faults: Vec<String>,
    stop: Shutdown,
}

impl Crew {
    /// Makes the runners of the assignment, which do nothing before [`Self::run`] and end when `stop` is requested.
    ///
    /// # Errors
    /// The databases are not named as they have to be.
    pub(crate) async fn new(
        assignment: Assignment,
        registry: Arc<Registry>,
        stop: Shutdown,
    ) -> anyhow::Result<Self> {
        let Assignment { owner, mut settings } = assignment;
        let declarations = std::mem::take(&mut settings.processors);
        let events = settings.event_store_url.connector()?;
        let guard = SchemaGuard::new(&settings)?;
        let watcher = watcher(&settings, &declarations, &events)?;
        let subscription = Subscription::new(watcher.horizon(), watcher.control()).telling(watcher.heads());
        let mark = mark(&settings, &watcher, &events, &stop).await?;
        let subscription = match &mark {
            Some(mark) => subscription.marked_by(mark.clone()),
            None => subscription,
        };
        let mut factory = RunnerFactory::new(owner, settings, subscription, registry, events, mark)?;
        let steward = (declarations.len() > SHARED_SESSIONS).then(|| factory.share());
        let (mut processors, mut faults) = (Vec::new(), Vec::new());
        for declaration in declarations {
            match factory.runner(&declaration) {
                Ok(_) => processors.push((declaration, Heartbeat::new())),
                // A wrong declaration stays wrong until the configuration is changed, which starts another worker.
                Err(fault) => {
                    error!(processor = declaration.name, error = %fault, "cannot be run as it is declared");
                    faults.push(format!("{}: {fault}", declaration.name));
                }
            }
        }
        Ok(Self { factory: Arc::new(factory), watcher, steward, guard, processors, faults, stop })
    }

    /// Fails where processors cannot be run as they are declared.
    pub(crate) fn require_all(&self) -> anyhow::Result<()> {
        if self.faults.is_empty() { Ok(()) } else { Err(self.fault().into()) }
    }

    /// Fails where none of the processors can be run as it is declared.
    fn require_any(&self) -> anyhow::Result<()> {
        if self.processors.is_empty() { Err(self.fault().into()) } else { Ok(()) }
    }

    fn fault(&self) -> Exit {
        Exit::configuration(self.faults.join("\n"))
    }

    /// The processors as a supervisor is told of them.
    fn reported(&self) -> Vec<ReportedProcessor> {
        let reported = |(declaration, heartbeat): &(ProcessorDeclaration, Heartbeat)| {
            ReportedProcessor::new(declaration.name.clone(), heartbeat.clone())
        };
        self.processors.iter().map(reported).collect()
    }

    /// Fails where a newer espd has declared the tables to be not for this program.
    async fn require_schema(&mut self) -> Result<(), SchemaError> {
        let excluded = self.guard.find().await;
        // Where a daemon looks from now on, nobody needs the connection.
        self.guard.close();
        excluded.map_or(Ok(()), Err)
    }

    /// As [`Self::run`], where no daemon looks whether this program may go on with the tables. Once it may not, all end after the
    /// batch at hand.
    ///
    /// # Errors
    /// The watcher has failed, or a newer espd has declared the tables to be not for this program.
    pub(crate) async fn run_guarded(mut self) -> anyhow::Result<()> {
        let (end, stop) = shutdown::channel();
        let mut asked = std::mem::replace(&mut self.stop, stop);
        let mut guard = std::mem::replace(&mut self.guard, SchemaGuard::of_nothing());
        let running = self.run();
        tokio::pin!(running);
        let excluded = tokio::select! {
            ended = &mut running => return ended,
            () = asked.requested() => None,
            excluded = guard.excluded() => Some(excluded),
        };
        if let Some(reason) = &excluded {
            error!(%reason, "the schema is not for this program any more: nothing more is handled");
        }
        end.request();
        running.await?;
        excluded.map_or(Ok(()), |excluded| Err(excluded.into()))
    }

    /// Runs all processors until the stop is requested. Whoever drops this ends them where they are.
    ///
    /// # Errors
    /// The watcher has failed.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let Self { factory, watcher, steward, processors, stop, .. } = self;
        if let Some(steward) = steward {
            tokio::spawn(steward.run());
        }
        if let Some(relay) = factory.relay(processors.iter().map(|(declaration, _)| declaration)) {
            tokio::spawn(relay.run(stop.clone()));
        }
        let mut runners = JoinSet::new();
        for (declaration, heartbeat) in processors {
            runners.spawn(run_processor(Arc::clone(&factory), declaration, heartbeat, stop.clone()));
        }
        let mut watching = tokio::spawn(watcher.run(stop));
        let running = async {
            while runners.join_next().await.is_some() {}
            factory.end_sharing().await;
        };
        tokio::pin!(running);
        tokio::select! {
            () = &mut running => watching.await.context("the watcher has failed"),
            // When it is asked to stop, the watcher ends before the runners have finished their batches.
            watched = &mut watching => {
                watched.context("the watcher has failed")?;
                running.await;
                Ok(())
            }
        }
    }
}

/// Runs all processors of the assignment in a process of their own until the stop is requested. One that cannot be run as it
/// is declared is left out.
///
/// # Errors
/// The watcher has failed, or none of the processors can be run as it is declared.
pub(super) async fn run(
    assignment: Assignment,
    registry: Arc<Registry>,
    supervised: bool,
    stop: Shutdown,
) -> anyhow::Result<()> {
    let mut crew = Crew::new(assignment, registry, stop).await?;
    crew.require_any()?;
    crew.require_schema().await?;
    if !supervised {
        return crew.run_guarded().await;
    }
    tokio::spawn(report(crew.reported()));
    crew.run().await
}

/// Runs a processor until the stop is requested, with a new runner after each panic.
async fn run_processor(
    factory: Arc<RunnerFactory>,
    declaration: ProcessorDeclaration,
    heartbeat: Heartbeat,
    stop: Shutdown,
) {
    let (name, stopped) = (declaration.name.clone(), stop.clone());
    let run = move || {
        let runner = factory.runner(&declaration);
        let stopped = stopped.clone();
        async move {
            if let Ok(runner) = runner {
                runner.run(stopped).await;
            }
        }
    };
    task::run_again_after_panics(name, heartbeat, run, stop).await;
}

/// The watcher of the store, with a connection of its own.
fn watcher(
    settings: &WorkerSettings,
    declarations: &[ProcessorDeclaration],
    events: &Connector,
) -> anyhow::Result<Watcher> {
    let layout = Layout::new(&settings.layout, &settings.event_store_schema)?;
    let readers = match declarations {
        [only] => only.name.as_str(),
        _ => "several",
    };
    let database = events.named(&format!("espd: {readers} (watcher)"));
    let watcher_settings = WatcherSettings {
        idle_interval: settings.poll_interval_max,
        // A server may forget its last commits in a crash. A position in another database, which may be on another server,
        // would be remembered; and so would be whatever was done outside of databases.
        durable_only: settings.projections_url.is_some()
            || declarations.iter().any(ProcessorDeclaration::acts_outside),
        ..WatcherSettings::default()
    };
    Ok(Watcher::new(database, layout, watcher_settings))
}

/// The mark that batches have to be on the server of, where they go another way than who tells them how far they may go,
/// or may find another host.
async fn mark(
    settings: &WorkerSettings,
    watcher: &Watcher,
    events: &Connector,
    stop: &Shutdown,
) -> anyhow::Result<Option<watch::Receiver<Option<ServerMark>>>> {
    if settings.projections_url.is_none() {
        return Ok(
            (settings.direct_batches_url.is_some() || events.has_several_hosts()).then(|| watcher.mark())
        );
    }
    let Some(direct) = &settings.direct_batches_url else { return Ok(None) };
    let (keeper, mut mark) = MarkKeeper::new(direct.connector()?.named("espd: mark"));
    tokio::spawn(keeper.run(stop.clone()));
    // Without the mark there is nothing to do but to try again.
    let _ = tokio::time::timeout(MARK_PATIENCE, mark.changed()).await;
    Ok(Some(mark))
}

/// Makes the runners of a worker, from what they have in common.
struct RunnerFactory {
    owner: Owner,
    settings: WorkerSettings,
    layout: Layout,
    events: Connector,
    /// The database of the projections.
    batches: Connector,
    /// The way past the pooler that `batches` leads through, if there is one.
    direct_batches: Option<Connector>,
    /// The mark that has to be on the server of the batches; `None`: there is nothing to compare.
    mark: Option<watch::Receiver<Option<ServerMark>>>,
    subscription: Subscription,
    /// The processors that this program has registered.
    registry: Arc<Registry>,
    /// Notified when a reactor may have emitted something.
    wake_relay: Arc<Notify>,
    /// What the runners share, if they are many.
    shared: Option<Shared>,
}

impl RunnerFactory {
    fn new(
        owner: Owner,
        settings: WorkerSettings,
        subscription: Subscription,
        registry: Arc<Registry>,
        events: Connector,
        mark: Option<watch::Receiver<Option<ServerMark>>>,
    ) -> anyhow::Result<Self> {
        let layout = Layout::new(&settings.layout, &settings.event_store_schema)?;
        let layout = layout.with_upcasts(&registry.with_code(&settings.upcasts));
        let batches = settings.batches_url.connector()?;
        let direct_batches = settings.direct_batches_url.as_ref().map(DatabaseUrl::connector).transpose()?;
        let wake_relay = Arc::new(Notify::new());
        Ok(Self {
            owner,
            settings,
            layout,
            events,
            batches,
            direct_batches,
            mark,
            subscription,
            registry,
            wake_relay,
            shared: None,
        })
    }

    /// Has the runners share connections. Returns who works for all of them.
    fn share(&mut self) -> Steward {
        let trackers = Trackers::named(&self.settings.event_store_schema, self.layout.names());
        let beside = self.settings.projections_url.is_none().then(|| self.layout.clone());
        let (shared, steward) = Shared::new(&self.batches, trackers, LEASE, beside);
        self.shared = Some(shared);
        steward
    }

    /// Closes what the runners have shared.
    async fn end_sharing(&self) {
        if let Some(shared) = &self.shared {
            shared.close().await;
        }
    }

    /// Makes a new runner of a processor.
    fn runner(&self, declaration: &ProcessorDeclaration) -> Result<Runner, String> {
        let schema = &self.settings.event_store_schema;
        let context = RunnerContext {
            database: self.batches.clone(),
            direct: self.direct_batches.clone(),
            release_channel: ReleaseChannel {
                channel: self.layout.control_channel(),
                elsewhere: self.settings.projections_url.is_some().then(|| self.events.clone()),
            },
            schema: schema.clone(),
            owner: self.owner.clone(),
            limits: declaration.batch,
            retry: declaration.retry,
            lease: LEASE,
            wake_relay: Arc::clone(&self.wake_relay),
        };
        let processor = self.processor(declaration)?;
        let key = ProcessorKey::new(&declaration.name, declaration.version);
        let runner = Runner::new(context, key, processor, self.subscription.clone());
        Ok(match &self.shared {
            Some(shared) => runner.sharing(shared),
            None => runner,
        })
    }

    /// Makes the processor that a declaration describes.
    fn processor(&self, declaration: &ProcessorDeclaration) -> Result<Box<dyn Processor>, String> {
        let schema = &self.settings.event_store_schema;
        let scope = &self.settings.scope;
        let (events, declared) = (self.events_for(&declaration.name), declaration.clone());
        let base = |events| ProcessorBase::new(declared.clone(), schema, scope.clone(), events);
        match &declaration.handling {
            Handling::Sql(_) => {
                let made = SqlProcessor::new(declaration.clone(), schema, scope.clone(), events);
                Ok(Box::new(made.map_err(|fault| fault.to_string())?))
            }
            Handling::Native(_) => Ok(Box::new(self.registry.make(base(events), Some(&self.batches))?)),
            Handling::Program(program) => Ok(Box::new(ProgramProcessor::new(base(events), program.clone()))),
            Handling::Webhook(webhook) => Ok(Box::new(Webhook::new(base(events), webhook)?)),
        }
    }

    /// Makes the relay, which moves events that reactors emit for later or into another database. Returns `None` if no
    /// processor emits events.
    fn relay<'d>(&self, declarations: impl Iterator<Item = &'d ProcessorDeclaration>) -> Option<Relay> {
        let emits = |declaration: &&ProcessorDeclaration| {
            declaration.reactor.as_ref().is_some_and(|reactor| !reactor.emits.is_empty())
        };
        let reactors: Vec<String> = declarations.filter(emits).map(|one| one.name.clone()).collect();
        let append = self.layout.append.as_ref().filter(|_| !reactors.is_empty())?;
        Some(Relay {
            database: self.batches.clone(),
            mark: self.mark.clone(),
            schema: self.settings.event_store_schema.clone(),
            reactors,
            events: self.events_for("relay"),
            wake_relay: Arc::clone(&self.wake_relay),
            channel: append.channel.clone(),
        })
    }

    /// Where a processor reads its events: in the database of its batches, or in another one.
    fn events_for(&self, name: &str) -> Events {
        if self.settings.projections_url.is_none() {
            return Events::SameDatabase(self.layout.clone());
        }
        let reading = self.events.named(&format!("espd: {name} (reader)"));
        // The relay removes an emission when the store has acknowledged it, on another server perhaps.
        let pool = reading.prepared_pool(PgPoolOptions::new().max_connections(1), WAIT_FOR_THE_DISK);
        Events::Elsewhere(PostgresEventStore::new(pool, self.layout.clone()))
    }
}

/// Has the commits of a session written to disk before they are acknowledged, whatever the default of the database is. A
/// stricter default stays.
const WAIT_FOR_THE_DISK: &str = "-- wait_for_the_disk
    select set_config('synchronous_commit', 'local', false) where current_setting('synchronous_commit') = 'off'";
