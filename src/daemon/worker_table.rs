//! The table `workers`: shows the states of a daemon's workers to programs that do not talk to the daemon.
//!
//! The daemon writes when something has changed, at most once a second, and every ten seconds to show that it is alive.
//! Nothing waits for the table, and nothing in espd depends on it: states that cannot be written now are written later, as
//! they are then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::requests::ReloadRequests;
use crate::config::Config;
use crate::postgres::connector::Connector;
use crate::postgres::quote::quote_identifier;
use crate::postgres::sqlstate::describe;
use crate::processing::tracker::{Owner, Trackers};
use crate::retry::{Retry, RetryPolicy};
use crate::shutdown::Shutdown;
use crate::store::Layout;
use crate::store::scheduled::Scheduler;
use crate::supervision::{End, Snapshot};

/// Least time between two writes.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Time between two writes while nothing changes.
const INTERVAL_MAX: Duration = Duration::from_secs(10);

/// How long the database may take for a write.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the table is.
#[derive(Debug, Clone)]
pub(super) struct WorkerTablePlace {
    /// The database of the projections.
    pub database: Connector,
    /// The schema of the trackers.
    pub schema: String,
    /// The trackers.
    pub trackers: Trackers,
    /// The processors that the daemon is configured to run.
    pub processors: Vec<String>,
    /// Appends what applications have scheduled; `None`: espd appends nothing to the store.
    pub scheduler: Option<Scheduler>,
    /// The configuration whose projectors are verified slice by slice; `None`: they are not.
    pub verified: Option<Arc<Config>>,
}

/// Writes the snapshots of a supervisor to the table.
#[derive(Debug)]
pub(super) struct WorkerTable {
    owner: Owner,
    snapshots: watch::Receiver<Vec<Snapshot>>,
    /// Written when the configuration is read again.
    place: watch::Receiver<WorkerTablePlace>,
    /// Opened when it is needed, dropped when it fails.
    connection: Option<PgConnection>,
    /// What operators ask of the daemon through this database.
    reloads: ReloadRequests,
    /// Whether the configuration has been read since the retries of its processors were last made due.
    is_configuration_fresh: bool,
}

/// What is written of a worker, each time that it changes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    worker: String,
    processors: Vec<String>,
    pid: Option<i32>,
    state: &'static str,
    starts: u32,
    last_end: Option<End>,
    next_start: Option<Instant>,
}

/// An entry as it is sent. Times are sent as distances from now, because the server's clock decides.
#[derive(Debug, Serialize)]
struct Row<'e> {
    worker: &'e str,
    processors: &'e [String],
    pid: Option<i32>,
    state: &'static str,
    starts: u32,
    last_end: Option<&'e str>,
    ended_seconds_ago: Option<f64>,
    starts_in_seconds: Option<f64>,
}

impl WorkerTable {
    /// Prepares to write what `snapshots` shows, and to serve `reloads`.
    pub(super) fn new(
        owner: Owner,
        snapshots: watch::Receiver<Vec<Snapshot>>,
        place: watch::Receiver<WorkerTablePlace>,
        reloads: ReloadRequests,
    ) -> Self {
        Self { owner, snapshots, place, connection: None, reloads, is_configuration_fresh: true }
    }

    /// Writes until the stop is requested, then removes this daemon's rows if the database answers.
    pub(super) async fn run(mut self, mut stop: Shutdown) {
        let mut outage = Retry::new(RetryPolicy::infrastructure());
        while stop.run_until_requested(self.write_next(&mut outage)).await.is_some() {}
        // A write may have been cancelled in the middle, which leaves its connection unusable.
        self.connection = None;
        if let Err(error) = self.write(&[]).await {
            let error = describe(&error);
            debug!(error, "the rows of this daemon's workers stay until they are outdated");
        }
    }

    /// Writes once, then waits until there is something to write and the database may be asked again.
    async fn write_next(&mut self, outage: &mut Retry<()>) {
        let entries = self.entries();
        match self.write(&entries).await {
            Ok(()) => {
                outage.succeeded();
                self.make_retries_due().await;
                sleep(INTERVAL_MIN).await;
                self.wait_for_change(&entries).await;
            }
            Err(error) => {
                self.connection = None;
                if outage.attempts() == 0 {
                    warn!(error = describe(&error), "could not record the states of workers, trying again");
                }
                sleep(outage.failed(()).max(INTERVAL_MIN)).await;
            }
        }
    }

    fn entries(&mut self) -> Vec<Entry> {
        self.snapshots.borrow_and_update().iter().map(Entry::from).collect()
    }

    /// Returns when there is something new to write, or when it is time to write the same again.
    async fn wait_for_change(&mut self, written: &[Entry]) {
        let differs = |shown: &Vec<Snapshot>| !shown.iter().map(Entry::from).eq(written.iter().cloned());
        let until = Instant::now() + INTERVAL_MAX - INTERVAL_MIN;
        while Instant::now() < until {
            // This must not be cancelled: an answer would be lost.
            self.serve_requests().await;
            let Self { snapshots, place, connection, .. } = self;
            tokio::select! {
                Ok(_) = snapshots.wait_for(differs) => return,
                Ok(()) = place.changed() => {
                    (*connection, self.is_configuration_fresh) = (None, true);
                    return;
                }
                () = sleep(INTERVAL_MIN) => {}
            }
        }
    }

    /// Does what operators ask for.
    async fn serve_requests(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        let WorkerTablePlace { schema, trackers, .. } = self.place.borrow().clone();
        match self.reloads.serve(&mut connection, &schema, &trackers).await {
            Ok(()) => self.connection = Some(connection),
            Err(error) => {
                debug!(error = describe(&error), "could not look for requests of operators");
                // A server that refuses, because of a missing right, has left the connection as it was.
                self.connection = matches!(error, sqlx::Error::Database(_)).then_some(connection);
            }
        }
    }

    /// Has events tried at once that fail, after the configuration was read: somebody may have fixed what fails.
    async fn make_retries_due(&mut self) {
        let (true, Some(connection)) = (self.is_configuration_fresh, &mut self.connection) else { return };
        let WorkerTablePlace { trackers, processors, .. } = self.place.borrow().clone();
        match trackers.make_retries_due(connection, &processors).await {
            Ok(_) => self.is_configuration_fresh = false,
            Err(error) => {
                self.connection = None;
                debug!(error = describe(&error), "could not have failing events tried at once");
            }
        }
    }

    async fn write(&mut self, entries: &[Entry]) -> Result<(), sqlx::Error> {
        let late = |_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
        timeout(ANSWER_TIMEOUT, self.replace_rows(entries)).await.map_err(late)?
    }

    async fn replace_rows(&mut self, entries: &[Entry]) -> Result<(), sqlx::Error> {
        let WorkerTablePlace { database, schema, .. } = self.place.borrow().clone();
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => database.named("espd: daemon").connect().await?.connection,
        };
        replace_workers(&mut connection, &schema, &self.owner, entries).await?;
        if entries.is_empty() {
            return connection.close().await;
        }
        self.connection = Some(connection);
        Ok(())
    }
}

/// Replaces the rows of `owner`, and removes the rows of daemons that have not written for a minute.
pub(super) async fn replace_workers(
    connection: &mut PgConnection,
    schema: &str,
    owner: &Owner,
    entries: &[Entry],
) -> Result<(), sqlx::Error> {
    let rows: Vec<Row<'_>> = entries.iter().map(Entry::row).collect();
    let statement = format!(
        "-- replace_workers
         with shown as (
           select * from jsonb_to_recordset($3) as shown (
             worker text, processors text[], pid integer, state text, starts bigint, last_end text,
             ended_seconds_ago float8, starts_in_seconds float8
           )
         ),
         removed as (
           delete from {0}.workers
           where owner = $1 and worker not in (select worker from shown)
              or owner <> $1 and updated_at < clock_timestamp() - interval '1 minute'
         )
         insert into {0}.workers as present (
           owner, owner_label, worker, processors, pid, state, starts, last_end, last_end_at, next_start_at, updated_at
         )
         select $1, $2, worker, processors, pid, state, starts, last_end,
                clock_timestamp() - make_interval(secs => ended_seconds_ago),
                clock_timestamp() + make_interval(secs => starts_in_seconds),
                clock_timestamp()
         from shown
         on conflict (owner, worker) do update set
           processors = excluded.processors, pid = excluded.pid, state = excluded.state, starts = excluded.starts,
           last_end = excluded.last_end, last_end_at = excluded.last_end_at,
           next_start_at = excluded.next_start_at, updated_at = excluded.updated_at",
        quote_identifier(schema)
    );
    let query = sqlx::query(AssertSqlSafe(statement)).bind(owner.id).bind(&owner.label).bind(Json(rows));
    query.execute(connection).await?;
    Ok(())
}

impl WorkerTablePlace {
    /// Where the table is, if the configuration names a database.
    pub(super) fn of(config: &Config) -> Option<Self> {
        let url = config.direct_projections_url().or(config.direct_event_store_url())?;
        let processors = config.processors.iter().map(|processor| processor.name.clone()).collect();
        let layout = layout(config)?;
        Some(Self {
            database: url.connector().ok()?,
            trackers: Trackers::of(&layout),
            schema: config.event_store.schema.clone(),
            processors,
            scheduler: scheduler(config, &layout),
            verified: (config.verify.share > 0.0).then(|| Arc::new(config.clone())),
        })
    }
}

/// The scheduler of the configured store; `None`: espd appends nothing to it, or no database is known.
fn scheduler(config: &Config, layout: &Layout) -> Option<Scheduler> {
    let database = config.direct_event_store_url()?.connector().ok()?;
    Scheduler::new(&database, layout)
}

/// The layout of the configured store, whose names were checked when the configuration was read.
fn layout(config: &Config) -> Option<Layout> {
    Layout::new(&config.event_store.layout, &config.event_store.schema).ok()
}

impl Entry {
    /// A worker that the daemon has not started, because it waits for something.
    pub(super) fn waiting(worker: String, processors: Vec<String>, reason: &str) -> Self {
        let last_end = Some(End { how: reason.to_owned(), at: Instant::now() });
        Self { worker, processors, pid: None, state: "waiting", starts: 0, last_end, next_start: None }
    }

    fn from(snapshot: &Snapshot) -> Self {
        Self {
            worker: snapshot.name.clone(),
            processors: snapshot.processors.clone(),
            pid: snapshot.pid,
            state: snapshot.state.word(),
            starts: snapshot.starts,
            last_end: snapshot.last_end.clone(),
            next_start: snapshot.next_start,
        }
    }

    fn row(&self) -> Row<'_> {
        let until = |time: Instant| time.saturating_duration_since(Instant::now()).as_secs_f64();
        Row {
            worker: &self.worker,
            processors: &self.processors,
            pid: self.pid,
            state: self.state,
            starts: self.starts,
            last_end: self.last_end.as_ref().map(|end| end.how.as_str()),
            ended_seconds_ago: self.last_end.as_ref().map(|end| end.at.elapsed().as_secs_f64()),
            starts_in_seconds: self.next_start.map(until),
        }
    }
}
