//! An application that reads a table in a loop, with a prepared statement.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinHandle;

/// What a reader has met.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// When each query was begun and how long it took.
    queries: Vec<(Instant, Duration)>,
    /// Answers that lacked a row, or had one too many.
    pub(crate) wrong: usize,
    /// Errors by SQLSTATE.
    pub(crate) errors: BTreeMap<String, usize>,
}

impl Seen {
    /// The longest wait of a query that was under way at a time between these, in milliseconds.
    pub(crate) fn longest_wait(&self, from: Instant, to: Instant) -> f64 {
        let under_way = |(begun, took): &&(Instant, Duration)| *begun < to && *begun + *took > from;
        let waits = self.queries.iter().filter(under_way).map(|(_, took)| took.as_secs_f64() * 1_000.0);
        waits.fold(0.0, f64::max)
    }

    pub(crate) fn number(&self) -> usize {
        self.queries.len()
    }
}

/// How an application reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Habit {
    pub(crate) query: &'static str,
    /// The rows that each answer has.
    pub(crate) rows: usize,
    /// Between two queries.
    pub(crate) pause: Duration,
}

/// A reader on a connection of its own.
pub(crate) struct Reader {
    task: JoinHandle<anyhow::Result<Seen>>,
    stop: Arc<AtomicBool>,
}

impl Reader {
    pub(crate) fn start(url: &str, habit: Habit) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(read(url.to_owned(), habit, Arc::clone(&stop)));
        Self { task, stop }
    }

    pub(crate) async fn stop(self) -> anyhow::Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

async fn read(url: String, habit: Habit, stop: Arc<AtomicBool>) -> anyhow::Result<Seen> {
    let mut connection = PgConnection::connect(&url).await?;
    let mut seen = Seen::default();
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let answer = sqlx::query(habit.query).fetch_all(&mut connection).await;
        seen.queries.push((begun, begun.elapsed()));
        match answer {
            Ok(rows) => seen.wrong += usize::from(rows.len() != habit.rows),
            Err(sqlx::Error::Database(error)) => {
                *seen.errors.entry(error.code().unwrap_or_default().into_owned()).or_default() += 1;
                // As a driver does that prepares again.
                connection.clear_cached_statements().await?;
            }
            Err(error) => return Err(error.into()),
        }
        if !habit.pause.is_zero() {
            tokio::time::sleep(habit.pause).await;
        }
    }
    connection.close().await?;
    Ok(seen)
}
