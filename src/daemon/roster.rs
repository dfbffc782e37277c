//! Who works where: the table `workers`, so that others than the daemon can tell a crash loop.
//!
//! The roster writes when something has changed, at most once a second, and every ten seconds as a sign of
//! life. It waits for no database and nobody waits for it: what cannot be written now is written later, as it
//! is then. Nothing in espd depends on what it writes.

use std::time::{Duration, Instant};

use serde::Serialize;
use sqlx::postgres::PgConnectOptions;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::postgres::quote::quote_identifier;
use crate::postgres::sqlstate::describe;
use crate::processing::tracker::Owner;
use crate::retry::{Retry, RetryPolicy};
use crate::shutdown::Shutdown;
use crate::supervision::{End, Snapshot};

/// Between two writes.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Between two writes while nothing changes.
const INTERVAL_MAX: Duration = Duration::from_secs(10);

/// How long the database may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the table is.
#[derive(Debug, Clone)]
pub struct RosterPlace {
    /// The database of the projections.
    pub database: PgConnectOptions,
    /// The schema of the trackers.
    pub schema: String,
}

/// Writes what a supervisor shows.
#[derive(Debug)]
pub struct Roster {
    owner: Owner,
    snapshots: watch::Receiver<Vec<Snapshot>>,
    /// Changes when the configuration does.
    place: watch::Receiver<RosterPlace>,
    /// Made when it is needed, thrown away when it fails.
    connection: Option<PgConnection>,
}

/// What is worth a write when it changes.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    worker: String,
    processors: Vec<String>,
    pid: Option<i32>,
    state: &'static str,
    starts: u32,
    last_end: Option<End>,
    next_start: Option<Instant>,
}

/// An entry as it is sent. Times are distances from now: the server's clock is the one that counts.
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

impl Roster {
    /// A roster of what `snapshots` shows.
    pub fn new(
        owner: Owner,
        snapshots: watch::Receiver<Vec<Snapshot>>,
        place: watch::Receiver<RosterPlace>,
    ) -> Self {
        Self { owner, snapshots, place, connection: None }
    }

    /// Writes until the stop is requested, then removes this daemon's rows if the database lets it.
    pub async fn run(mut self, mut stop: Shutdown) {
        let mut outage = Retry::new(RetryPolicy::infrastructure());
        loop {
            let entries = self.entries();
            let Some(written) = stop.run_until_requested(self.write(&entries)).await else { break };
            let pause = match written {
                Ok(()) => {
                    outage.succeeded();
                    INTERVAL_MIN
                }
                Err(error) => {
                    self.connection = None;
                    if outage.attempts() == 0 {
                        warn!(error = describe(&error), "could not write down the workers' states, going on");
                    }
                    outage.failed(()).max(INTERVAL_MIN)
                }
            };
            if stop.run_until_requested(sleep(pause)).await.is_none() {
                break;
            }
            if outage.attempts() == 0 && stop.run_until_requested(self.wait(&entries)).await.is_none() {
                break;
            }
        }
        // A write may have been given up in the middle: its connection is of no use any more.
        self.connection = None;
        if let Err(error) = self.write(&[]).await {
            debug!(
                error = describe(&error),
                "this daemon's workers stay written down until they are outdated"
            );
        }
    }

    fn entries(&mut self) -> Vec<Entry> {
        self.snapshots.borrow_and_update().iter().map(Entry::from).collect()
    }

    /// Returns when there is something else to write, or the same again as a sign of life.
    async fn wait(&mut self, written: &[Entry]) {
        let Self { snapshots, place, connection, .. } = self;
        let differs = |shown: &Vec<Snapshot>| !shown.iter().map(Entry::from).eq(written.iter().cloned());
        tokio::select! {
            Ok(_) = snapshots.wait_for(differs) => {}
            Ok(()) = place.changed() => *connection = None,
            () = sleep(INTERVAL_MAX - INTERVAL_MIN) => {}
        }
    }

    async fn write(&mut self, entries: &[Entry]) -> Result<(), sqlx::Error> {
        let late = |_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
        timeout(ANSWER_TIMEOUT, self.replace_rows(entries)).await.map_err(late)?
    }

    /// Replaces this daemon's rows, and removes those of daemons that are dead.
    async fn replace_rows(&mut self, entries: &[Entry]) -> Result<(), sqlx::Error> {
        let RosterPlace { database, schema } = self.place.borrow().clone();
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => database.application_name("espd: daemon").disable_statement_logging().connect().await?,
        };
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
            quote_identifier(&schema)
        );
        let query = sqlx::query(AssertSqlSafe(statement));
        query.bind(self.owner.id).bind(&self.owner.label).bind(Json(rows)).execute(&mut connection).await?;
        if entries.is_empty() {
            return connection.close().await;
        }
        self.connection = Some(connection);
        Ok(())
    }
}

impl Entry {
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
