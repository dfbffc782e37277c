//! How long commits take beside a build, as whoever appends sees it: measured by commits of its own, which write next to nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::debug;

use super::Rebuilding;
use crate::postgres::literal::simple;
use crate::postgres::sqlstate::describe;
use crate::processing::rebuild::CommitTimes;

/// The pause between two commits while a batch is handled.
const PAUSE_WORKING: Duration = Duration::from_millis(100);

/// Likewise while the build rests.
const PAUSE_RESTING: Duration = Duration::from_millis(400);

/// The pause after the database has not answered.
const PAUSE_FAILED: Duration = Duration::from_secs(5);

/// Measures until it is dropped.
pub(super) struct Probe {
    seen: Arc<Watched>,
    task: JoinHandle<()>,
}

/// What a build tells its probe, and what that has found out.
#[derive(Default)]
pub(super) struct Watched {
    /// How many batches are handled now.
    working: AtomicUsize,
    /// How many were begun.
    begun: AtomicU64,
    is_begun: Notify,
    /// Whether events are appended: otherwise nobody waits for a commit.
    is_appended: AtomicBool,
    times: Mutex<CommitTimes>,
}

/// A batch is handled until this is dropped.
pub(super) struct Working<'w>(&'w Watched);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.working.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Probe {
    /// Measures on a connection of its own, which it holds for each commit alone.
    fn begin(pool: PgPool) -> Self {
        let seen = Arc::new(Watched::default());
        let task = tokio::spawn(measure(pool, Arc::clone(&seen)));
        Self { seen, task }
    }
}

impl Watched {
    /// Says that a batch begins.
    pub(super) fn begin_batch(&self) -> Working<'_> {
        self.working.fetch_add(1, Ordering::SeqCst);
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.is_begun.notify_one();
        Working(self)
    }

    /// What fraction of its share a build may take.
    pub(super) fn fraction(&self) -> f64 {
        self.times().fraction()
    }

    fn times(&self) -> MutexGuard<'_, CommitTimes> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_working(&self) -> bool {
        self.working.load(Ordering::SeqCst) > 0
    }

    async fn pause(&self) {
        if self.is_working() {
            return sleep(PAUSE_WORKING).await;
        }
        tokio::select! {
            () = sleep(PAUSE_RESTING) => {}
            () = self.is_begun.notified() => {}
        }
    }
}

async fn measure(pool: PgPool, seen: Arc<Watched>) {
    loop {
        seen.pause().await;
        if !seen.is_appended.load(Ordering::Relaxed) {
            continue;
        }
        let (was_working, begun) = (seen.is_working(), seen.begun.load(Ordering::SeqCst));
        match time_commit(&pool).await {
            Ok(took) => {
                // A batch that has begun meanwhile, and perhaps ended, may have slowed it.
                let is_working = was_working || begun != seen.begun.load(Ordering::SeqCst);
                seen.times().note(is_working, took);
            }
            Err(error) => {
                debug!(error = describe(&error), "could not measure how long a commit takes");
                sleep(PAUSE_FAILED).await;
            }
        }
    }
}

/// Commits as an append does, which waits for the flush of the log and, where that is set, for standbys. The message is for nobody: who
/// follows the log gets such ones only where he asks for them.
async fn time_commit(pool: &PgPool) -> Result<Duration, sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let begun = Instant::now();
    let statement = "-- time_commit\nselect pg_catalog.pg_logical_emit_message(true, 'espd', ''::text)";
    simple(statement.to_owned()).execute(&mut *connection).await?;
    Ok(begun.elapsed())
}

impl Rebuilding<'_> {
    /// Measures from now on, where the build is to rest and whoever appends uses the same server.
    pub(super) fn begin_probe(&mut self) {
        let is_wanted = self.effort.share < 1.0 && !self.operator.databases.elsewhere;
        if is_wanted && self.probe.is_none() {
            self.probe = Some(Probe::begin(self.operator.databases.projections.clone()));
        }
    }

    /// Measures nothing until events are handled again: what is done meanwhile is neither rest nor a batch.
    pub(super) fn pause_probe(&self) {
        if let Some(seen) = self.watched() {
            seen.is_appended.store(false, Ordering::Relaxed);
        }
    }

    pub(super) fn watched(&self) -> Option<&Arc<Watched>> {
        self.probe.as_ref().map(|probe| &probe.seen)
    }

    /// What fraction of its share it may take.
    pub(super) fn fraction(&self) -> f64 {
        self.watched().map_or(1.0, |seen| seen.fraction())
    }

    /// Why it rests; `None`: it does not. Says once to who listens that commits are slowed.
    pub(super) fn rests_because(&mut self) -> Option<String> {
        let share = self.effort.share;
        let because = self.throttle.describe(share);
        let Some(seen) = self.watched() else { return because };
        seen.is_appended.store(because.is_some(), Ordering::Relaxed);
        let slowed = because.is_some().then(|| seen.times().describe(share)).flatten();
        if let Some(slowed) = slowed.as_ref().filter(|_| !self.is_slowing_told) {
            (self.listener.note)(&format!("rests longer, because {slowed}"));
            self.is_slowing_told = true;
        }
        slowed.or(because)
    }
}
