//! A worker: the process that one processor lives in.
//!
//! It has two connections. The watcher's looks after the store; the runner's does the work. Its standard
//! input is a lifeline: the supervisor writes one line, the assignment, and keeps the pipe open for as long
//! as it lives.

use std::io::BufRead as _;
use std::str::FromStr as _;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::config::WorkerSettings;
use crate::event_store::PostgresEventStore;
use crate::exit_code::{Exit, ExitCode};
use crate::layout::Layout;
use crate::projector::{Events, SqlProjector};
use crate::runner::{LEASE, Runner, RunnerSettings};
use crate::shutdown::{self, Shutdown};
use crate::subscription::Subscription;
use crate::tracker::{Owner, Trackers};
use crate::watcher::{Watcher, WatcherSettings};
use crate::{signal, telemetry};

/// What a worker is to do, as it is handed to a child. Holds the database's password.
#[derive(Debug, Serialize, Deserialize)]
pub struct Assignment {
    /// The daemon that the worker works for.
    pub owner: Owner,
    /// What to run, and where.
    pub settings: WorkerSettings,
}

/// How long a worker may still take after its supervisor has died.
const ORPHAN_GRACE: Duration = Duration::from_millis(500);

/// Runs as the child of a supervisor: the assignment comes first on standard input.
pub fn run_supervised() -> anyhow::Result<()> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("could not read the assignment")?;
    let assignment: Assignment = serde_json::from_str(&line).context("the assignment is not understood")?;
    run(assignment, true)
}

/// Runs one worker in this process until it is asked to stop.
pub fn run(assignment: Assignment, supervised: bool) -> anyhow::Result<()> {
    telemetry::start(&assignment.settings.log);
    // One thread is enough: the work is done by the database.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (handle, stop) = shutdown::channel();
        let requests = signal::requests().context("could not listen for signals")?;
        if supervised {
            end_with_supervisor();
        }
        tokio::spawn(signal::stop_on_request(requests, handle, ExitCode::Interrupted as i32));
        work(assignment, stop).await
    })
}

/// Ends this process soon after the lifeline closes, whatever it is doing.
fn end_with_supervisor() {
    std::thread::spawn(|| {
        // Nothing more is ever written: this returns when the supervisor is gone.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM);
        std::thread::sleep(ORPHAN_GRACE);
        std::process::exit(ExitCode::Interrupted as i32);
    });
}

async fn work(assignment: Assignment, stop: Shutdown) -> anyhow::Result<()> {
    let Assignment { owner, settings } = assignment;
    let layout = Layout::espd(&settings.event_store_schema)?;
    let name = settings.processor.name.clone();
    let events_database = PgConnectOptions::from_str(settings.event_store_url.expose())?;

    let watching = events_database.clone().application_name(&format!("espd: {name} (watcher)"));
    let watcher_settings = WatcherSettings {
        idle_interval: settings.poll_interval_max,
        // Another database may be on another server, which remembers a position that this one forgets.
        durable_only: settings.projections_url.is_some(),
        ..WatcherSettings::default()
    };
    let mut watcher = Watcher::new(watching, layout.clone(), watcher_settings);
    if settings.projections_url.is_none() {
        // Nothing but processing moves the trackers, and a reset not beyond what is settled.
        watcher =
            watcher.with_floor(Trackers::new(&settings.event_store_schema).largest_position_statement());
    }
    let subscription = Subscription::new(watcher.horizon(), watcher.control());
    let mut watching = tokio::spawn(watcher.run(stop.clone()));

    let (database, events) = match &settings.projections_url {
        None => (events_database, Events::SameDatabase(layout)),
        Some(url) => {
            let reading = events_database
                .application_name(&format!("espd: {name} (reader)"))
                .disable_statement_logging();
            let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(reading);
            let store = PostgresEventStore::new(pool, layout);
            (PgConnectOptions::from_str(url.expose())?, Events::Elsewhere(store))
        }
    };
    let runner_settings = RunnerSettings {
        database,
        schema: settings.event_store_schema.clone(),
        owner,
        limits: settings.processor.batch,
        retry: settings.processor.retry,
        lease: LEASE,
    };
    let projector = SqlProjector::new(
        settings.processor,
        &settings.event_store_schema,
        &settings.projections_schema,
        events,
    )
    .map_err(Exit::configuration)?;
    let running = Runner::new(runner_settings, Box::new(projector), subscription).run(stop);
    tokio::pin!(running);
    tokio::select! {
        () = &mut running => watching.await.context("the watcher has failed"),
        // Asked to stop, it ends before the runner has finished its batch; otherwise it has failed.
        watched = &mut watching => {
            watched.context("the watcher has failed")?;
            running.await;
            Ok(())
        }
    }
}
