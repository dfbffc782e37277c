//! The processors of one worker, around one watcher.

use std::str::FromStr as _;
use std::sync::Arc;

use anyhow::Context as _;
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::error;

use super::reporting::{ReportedProcessor, report};
use super::{Assignment, WorkerSettings, task};
use crate::handlers::native::Registry;
use crate::handlers::program::ProgramProcessor;
use crate::handlers::sql::SqlProcessor;
use crate::handlers::webhook::Webhook;
use crate::process::exit_code::Exit;
use crate::processing::declaration::{Handling, ProcessorDeclaration};
use crate::processing::emission::Relay;
use crate::processing::heartbeat::Heartbeat;
use crate::processing::processor::{Events, Processor, ProcessorBase};
use crate::processing::runner::{LEASE, ReleaseChannel, Runner, RunnerContext};
use crate::processing::tracker::{Owner, ProcessorKey, Trackers};
use crate::shutdown::Shutdown;
use crate::store::PostgresEventStore;
use crate::store::layout::Layout;
use crate::store::subscription::Subscription;
use crate::store::watcher::{Watcher, WatcherSettings};

/// Runs all processors of the assignment until the stop is requested.
///
/// # Errors
/// The watcher has failed, or none of the processors can be run as it is declared.
pub(super) async fn work(
    assignment: Assignment,
    registry: Arc<Registry>,
    supervised: bool,
    stop: Shutdown,
) -> anyhow::Result<()> {
    let Assignment { owner, mut settings } = assignment;
    let declarations = std::mem::take(&mut settings.processors);
    let watcher = watcher(&settings, &declarations)?;
    let subscription = Subscription::new(watcher.horizon(), watcher.control());
    let foundation = Arc::new(Foundation::new(owner, settings, subscription, registry)?);
    if let Some(relay) = foundation.relay(&declarations) {
        tokio::spawn(relay.run(stop.clone()));
    }
    let (mut runners, reported) = start(&foundation, declarations, &stop)?;
    if supervised {
        tokio::spawn(report(reported));
    }
    let mut watching = tokio::spawn(watcher.run(stop));
    let running = async { while runners.join_next().await.is_some() {} };
    tokio::pin!(running);
    tokio::select! {
        () = &mut running => watching.await.context("the watcher has failed"),
        // Asked to stop, it ends before the runners have finished their batches; otherwise it has failed.
        watched = &mut watching => {
            watched.context("the watcher has failed")?;
            running.await;
            Ok(())
        }
    }
}

/// Starts every processor that can be run as it is declared.
fn start(
    foundation: &Arc<Foundation>,
    declarations: Vec<ProcessorDeclaration>,
    stop: &Shutdown,
) -> anyhow::Result<(JoinSet<()>, Vec<ReportedProcessor>)> {
    let (mut runners, mut reported, mut faults) = (JoinSet::new(), Vec::new(), Vec::new());
    for declaration in declarations {
        // What is declared wrongly stays wrong until it is configured anew, which starts another worker.
        if let Err(fault) = foundation.runner(&declaration) {
            error!(processor = declaration.name, error = %fault, "cannot be run as it is declared");
            faults.push(fault);
            continue;
        }
        let (foundation, stopped) = (Arc::clone(foundation), stop.clone());
        let name = declaration.name.clone();
        let run = move || {
            let runner = foundation.runner(&declaration);
            let stopped = stopped.clone();
            async move {
                if let Ok(runner) = runner {
                    runner.run(stopped).await;
                }
            }
        };
        let heartbeat = Heartbeat::new();
        runners.spawn(task::run_again_after_panics(name.clone(), heartbeat.clone(), run, stop.clone()));
        reported.push(ReportedProcessor::new(name, heartbeat));
    }
    if runners.is_empty() {
        return Err(Exit::configuration(faults.join("\n")).into());
    }
    Ok((runners, reported))
}

fn watcher(settings: &WorkerSettings, declarations: &[ProcessorDeclaration]) -> anyhow::Result<Watcher> {
    let layout = Layout::new(&settings.layout, &settings.event_store_schema)?;
    let for_whom = match declarations {
        [only] => only.name.as_str(),
        _ => "several",
    };
    let database = PgConnectOptions::from_str(settings.event_store_url.expose())?
        .application_name(&format!("espd: {for_whom} (watcher)"));
    let watcher_settings = WatcherSettings {
        idle_interval: settings.poll_interval_max,
        // Another database may be on another server, which rereported a position that this one forgets; and what is done
        // outside of databases is remembered whatever they forget.
        durable_only: settings.projections_url.is_some()
            || declarations.iter().any(ProcessorDeclaration::acts_outside),
        ..WatcherSettings::default()
    };
    let watcher = Watcher::new(database, layout, watcher_settings);
    if settings.projections_url.is_some() {
        return Ok(watcher);
    }
    // Nothing but processing moves the trackers, and a reset not beyond what is settled.
    Ok(watcher.with_floor(Trackers::new(&settings.event_store_schema).largest_position_statement()))
}

/// What all processors of a worker have in common.
struct Foundation {
    owner: Owner,
    settings: WorkerSettings,
    layout: Layout,
    events: PgConnectOptions,
    /// The database of the projections.
    batches: PgConnectOptions,
    subscription: Subscription,
    /// The processors that this program has registered.
    registry: Arc<Registry>,
    /// Notified when a reactor may have emitted something.
    wake_relay: Arc<Notify>,
}

impl Foundation {
    fn new(
        owner: Owner,
        settings: WorkerSettings,
        subscription: Subscription,
        registry: Arc<Registry>,
    ) -> anyhow::Result<Self> {
        let layout = Layout::new(&settings.layout, &settings.event_store_schema)?;
        let layout = layout.with_upcasts(&settings.upcasts);
        let events = PgConnectOptions::from_str(settings.event_store_url.expose())?;
        let batches = PgConnectOptions::from_str(settings.batches_url.expose())?;
        let wake_relay = Arc::new(Notify::new());
        Ok(Self { owner, settings, layout, events, batches, subscription, registry, wake_relay })
    }

    /// A new runner of a processor.
    fn runner(&self, declaration: &ProcessorDeclaration) -> Result<Runner, String> {
        let schema = &self.settings.event_store_schema;
        let runner_settings = RunnerContext {
            database: self.batches.clone(),
            pooled: self.settings.pooled,
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
        Ok(Runner::new(runner_settings, key, processor, self.subscription.clone()))
    }

    fn processor(&self, declaration: &ProcessorDeclaration) -> Result<Box<dyn Processor>, String> {
        let schema = &self.settings.event_store_schema;
        let projections_schema = &self.settings.projections_schema;
        let (events, declared) = (self.events_for(&declaration.name), declaration.clone());
        let base = |events| ProcessorBase::new(declared.clone(), schema, projections_schema, events);
        match &declaration.handling {
            Handling::Sql(_) => {
                let made = SqlProcessor::new(declaration.clone(), schema, projections_schema, events);
                Ok(Box::new(made.map_err(|fault| fault.to_string())?))
            }
            Handling::Native(_) => Ok(Box::new(self.registry.make(base(events))?)),
            Handling::Program(program) => Ok(Box::new(ProgramProcessor::new(base(events), program.clone()))),
            Handling::Webhook(webhook) => Ok(Box::new(Webhook::new(base(events), webhook)?)),
        }
    }

    /// Moves what the reactors emit for later, or into another database; `None`: there is no such reactor.
    fn relay(&self, declarations: &[ProcessorDeclaration]) -> Option<Relay> {
        let emits = |declaration: &&ProcessorDeclaration| {
            declaration.reaction.as_ref().is_some_and(|reaction| !reaction.emits.is_empty())
        };
        let reactors: Vec<String> = declarations.iter().filter(emits).map(|one| one.name.clone()).collect();
        let append = self.layout.append.as_ref().filter(|_| !reactors.is_empty())?;
        Some(Relay {
            database: self.batches.clone(),
            schema: self.settings.event_store_schema.clone(),
            reactors,
            events: self.events_for("relay"),
            wake_relay: Arc::clone(&self.wake_relay),
            channel: append.channel.clone(),
        })
    }

    fn events_for(&self, name: &str) -> Events {
        if self.settings.projections_url.is_none() {
            return Events::SameDatabase(self.layout.clone());
        }
        let reading = self.events.clone().application_name(&format!("espd: {name} (reader)"));
        let reading = reading.disable_statement_logging();
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(reading);
        Events::Elsewhere(PostgresEventStore::new(pool, self.layout.clone()))
    }
}
