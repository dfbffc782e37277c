//! The table `workers`: shows the states of a daemon's workers to programs that do not talk to the daemon.
//!
//! The daemon writes when something has changed, at most once a second, and every ten seconds to show that it is alive.
//! Nothing waits for the table, and nothing in espd depends on it: states that cannot be written now are written later, as
//! they are then.

use std::time::{Duration, Instant};

use sqlx::{Connection as _, PgConnection};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::requests::ReloadRequests;
use super::worker_rows::{Entry, replace_workers};
use super::worker_table_place::WorkerTablePlace;
use crate::postgres::sqlstate::describe;
use crate::processing::tracker::Owner;
use crate::retry::{Retry, RetryPolicy};
use crate::shutdown::Shutdown;
use crate::supervision::Snapshot;

/// Least time between two writes.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Time between two writes while nothing changes.
const INTERVAL_MAX: Duration = Duration::from_secs(10);

/// How long the database may take for a write.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

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
                if matches!(error, sqlx::Error::Database(_)) {
                    self.look_at_schema().await;
                }
                sleep(outage.failed(()).max(INTERVAL_MIN)).await;
            }
        }
    }

    fn entries(&mut self) -> Vec<Entry> {
        entries(&self.snapshots.borrow_and_update(), &self.place.borrow().held)
    }

    /// Returns when there is something new to write, or when it is time to write the same again.
    async fn wait_for_change(&mut self, written: &[Entry]) {
        let held = self.place.borrow().held.clone();
        let differs = |shown: &Vec<Snapshot>| entries(shown, &held) != written;
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
        let place = self.place.borrow().clone();
        match self.reloads.serve(&mut connection, &place).await {
            Ok(()) => self.connection = Some(connection),
            Err(error) => {
                debug!(error = describe(&error), "could not look for requests of operators");
                // A server that refuses, because of a missing right, has left the connection as it was.
                let is_refused = matches!(error, sqlx::Error::Database(_));
                if is_refused && self.reloads.look_at_schema(&mut connection, &place).await.is_ok() {
                    self.connection = Some(connection);
                }
            }
        }
    }

    /// Where the server refuses what is written, the tables may be those of a newer espd.
    async fn look_at_schema(&self) {
        let place = self.place.borrow().clone();
        let looking = async {
            let mut connection = place.database.named("espd: daemon").connect().await?.connection;
            self.reloads.look_at_schema(&mut connection, &place).await
        };
        if let Ok(Err(error)) = timeout(ANSWER_TIMEOUT, looking).await {
            debug!(error = describe(&error), "could not look at the schema");
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

/// What is written: how the workers are, and why others do not run.
fn entries(shown: &[Snapshot], held: &[Entry]) -> Vec<Entry> {
    let mut entries: Vec<Entry> = shown.iter().map(Entry::from).collect();
    let runs = |entry: &&Entry| shown.iter().any(|worker| worker.name == entry.worker());
    entries.extend(held.iter().filter(|entry| !runs(entry)).cloned());
    entries
}
