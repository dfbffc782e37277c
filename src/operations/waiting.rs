//! Waiting until processors have handled events: `espctl wait`, the admin endpoint and applications share it.

mod blocked;
mod idle;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::time::sleep;

pub use crate::processing::emission::LaterEmission;
pub use idle::Idle;

use crate::event::Position;
use crate::operations::operator::{Operator, OperatorError, RunningDaemon};
use crate::postgres::deadline::in_time;
use crate::postgres::error::chain;
use crate::postgres::sqlstate::may_succeed_later;
use crate::processing::history::find_divergence;
use crate::processing::tracker::{TrackerRow, Trackers};
use crate::processors::{WaitError, deadline_after};

/// How a wait goes on while something keeps a processor from going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// An event that fails may succeed later. Who waits for a position does not wait for an operator.
    Patient,
    /// The first failure, dead letter or pause ends the wait.
    Impatient,
}

/// Some processors that are waited for.
#[derive(Debug)]
pub(crate) struct Waiting<'w> {
    operator: Operator<'w>,
    names: Vec<String>,
    patience: Patience,
}

/// The time between two reads of the trackers: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(50));

/// How much longer than the wait a look may take.
const LOOK_TIME: Duration = Duration::from_secs(5);

/// The end of a wait, and the pauses before that.
struct Clock {
    deadline: Instant,
    pause: Duration,
}

impl Clock {
    fn of(timeout: Duration) -> Self {
        Self { deadline: deadline_after(timeout), pause: PAUSES.0 }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// A look at the database that may take as long as the wait, and a little longer: one that begins at its end has an answer.
    async fn look<T>(&self, looking: impl Future<Output = Result<T, WaitError>>) -> Result<T, WaitError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        in_time(left + LOOK_TIME, async { Ok(looking.await) }).await?
    }

    async fn pause(&mut self) {
        sleep(self.pause.min(self.deadline.saturating_duration_since(Instant::now()))).await;
        self.pause = (self.pause * 2).min(PAUSES.1);
    }
}

impl<'w> Waiting<'w> {
    /// Waits for these processors, or for all that are known if there are `None`. One may be declared and not have run yet, and
    /// is waited for as well; one that nobody knows is probably mistyped.
    ///
    /// # Errors
    /// A name is unknown, or the database does not answer.
    pub(crate) async fn of(operator: Operator<'w>, names: Option<&[String]>) -> Result<Self, WaitError> {
        let known: BTreeSet<String> = operator.known_names().await?;
        let patience = Patience::Patient;
        let Some(names) = names else {
            return Ok(Self { operator, names: known.into_iter().collect(), patience });
        };
        match names.iter().find(|name| !known.contains(*name)) {
            None => Ok(Self { operator, names: names.to_vec(), patience }),
            Some(unknown) => {
                Err(OperatorError::Unknown { name: unknown.clone(), known: known.into_iter().collect() }
                    .into())
            }
        }
    }

    /// Waits for the processors that are declared, each in the version that is declared, and ends as soon as one of them does
    /// not go on by itself.
    pub(crate) fn impatiently(operator: Operator<'w>) -> Self {
        let names = operator.declared.iter().map(|declaration| declaration.name.clone()).collect();
        Self { operator, names, patience: Patience::Impatient }
    }

    /// Waits until all have reached a position, and says of each when it has.
    ///
    /// # Errors
    /// See [`WaitError`].
    pub(crate) async fn until_at(
        &self,
        wanted: Position,
        timeout: Duration,
        mut reached: impl FnMut(&str, Position),
    ) -> Result<(), WaitError> {
        let (mut left, mut clock) = (self.names.clone(), Clock::of(timeout));
        loop {
            match clock.look(Box::pin(self.look_at(wanted, &left))).await {
                Ok(rows) => {
                    left.retain(|name| match self.slowest(name, &rows).map(|row| row.position) {
                        Some(position) if position >= wanted => {
                            reached(name, position);
                            false
                        }
                        _ => true,
                    });
                    if left.is_empty() {
                        return Ok(());
                    }
                    if clock.is_over() {
                        let says =
                            |name: &String, why| format!("{name} has not reached {wanted} in time: {why}");
                        return Err(self.timed_out(&left, &rows, says).await?);
                    }
                }
                Err(error) => self.endure(error, &left, &clock)?,
            }
            clock.pause().await;
        }
    }

    /// The trackers of these processors, none of which is kept from reaching a position.
    async fn look_at(&self, wanted: Position, names: &[String]) -> Result<Vec<TrackerRow>, WaitError> {
        let rows = self.rows(names).await?;
        self.refuse_blocked(&rows, wanted).await?;
        self.refuse_halted(&rows, wanted)?;
        Ok(rows)
    }

    /// A patient wait goes on where the database does not answer: it may within the time.
    ///
    /// # Errors
    /// The same error where it says something else, or nobody is patient; that the time is over, where it is.
    fn endure(&self, error: WaitError, left: &[String], clock: &Clock) -> Result<(), WaitError> {
        if self.patience == Patience::Impatient || !is_outage(&error) {
            return Err(error);
        }
        if !clock.is_over() {
            return Ok(());
        }
        let message = format!("the time is over, and the database does not answer: {}", chain(&error));
        Err(WaitError::TimedOut { processors: left.to_vec(), message })
    }

    /// Waits until all have a tracker, of whatever version: one that is to be raised has begun as well. What has kept one from going on
    /// since, it has met afterwards.
    ///
    /// # Errors
    /// See [`WaitError`].
    pub(crate) async fn until_begun(&self, timeout: Duration) -> Result<(), WaitError> {
        let mut clock = Clock::of(timeout);
        loop {
            let databases = self.operator.databases;
            let rows = Trackers::of(&databases.layout).list(&databases.projections, None).await?;
            let has_begun = |name: &String| rows.iter().any(|row| row.name == *name);
            let missing: Vec<String> = self.names.iter().filter(|name| !has_begun(name)).cloned().collect();
            if missing.is_empty() {
                return Ok(());
            }
            if clock.is_over() {
                let says = |name: &String, _| {
                    let why =
                        "either a transaction that writes has been open since then, or the log says more";
                    format!("{name} has not begun in time: {why}")
                };
                return Err(self.timed_out(&missing, &rows, says).await?);
            }
            clock.pause().await;
        }
    }

    /// The trackers of these processors. A position that was reached in another store is refused, also where no daemon has
    /// noticed yet.
    async fn rows(&self, names: &[String]) -> Result<Vec<TrackerRow>, WaitError> {
        let databases = self.operator.databases;
        let trackers = Trackers::of(&databases.layout);
        let mut rows = trackers.list(&databases.projections, None).await?;
        rows.retain(|row| names.contains(&row.name));
        let (mut events, mut projections) =
            (databases.events.acquire().await?, databases.projections.acquire().await?);
        for row in &rows {
            let found =
                find_divergence(&trackers, row, &mut events, &mut projections, &databases.layout).await?;
            if let Some(found) = found {
                let message = format!("{}\n{}", found.describe(&row.name), found.remedy(&row.name));
                return Err(WaitError::Diverged { processor: row.name.clone(), message });
            }
        }
        Ok(rows)
    }

    /// The tracker of a processor; where it has several, the last of them, because it is as far as that. Who waits for what is
    /// declared does not mean the tables of an earlier version.
    fn slowest<'r>(&self, name: &str, rows: &'r [TrackerRow]) -> Option<&'r TrackerRow> {
        let declared = self.operator.declared.iter().find(|declaration| declaration.name == name);
        let version = declared.filter(|_| self.patience == Patience::Impatient).map(|one| one.version);
        let is_meant =
            |row: &&TrackerRow| row.name == name && version.is_none_or(|version| row.version == version);
        rows.iter().filter(is_meant).min_by_key(|row| row.position)
    }

    /// The error of a wait whose time is over.
    async fn timed_out(
        &self,
        left: &[String],
        rows: &[TrackerRow],
        says: impl Fn(&String, String) -> String,
    ) -> Result<WaitError, WaitError> {
        let daemons = match self.operator.daemons().await.map_err(WaitError::from) {
            // Why nobody has gone on can be said without.
            Err(error) if is_outage(&error) => Vec::new(),
            daemons => daemons?,
        };
        let complaint =
            |name: &String| says(name, describe(name, self.slowest(name, rows), &daemons, self.patience));
        let message = left.iter().map(complaint).collect::<Vec<_>>().join("\n");
        Ok(WaitError::TimedOut { processors: left.to_vec(), message })
    }
}

/// Whether an error only says that the database does not answer now.
fn is_outage(error: &WaitError) -> bool {
    let mut causes = anyhow::Chain::new(error);
    causes.any(|cause| cause.downcast_ref::<sqlx::Error>().is_some_and(may_succeed_later))
}

fn describe(name: &str, row: Option<&TrackerRow>, daemons: &[RunningDaemon], patience: Patience) -> String {
    let unowned = match patience {
        Patience::Patient => why_unowned(name, daemons),
        // No daemon is expected to run it.
        Patience::Impatient => String::new(),
    };
    let Some(row) = row else { return format!("it has never run on this database{unowned}") };
    let why = match (&row.last_error, &row.outage) {
        _ if row.paused_at.is_some() => ", paused".to_owned(),
        (Some(error), _) => format!(", {}", error.0),
        (None, Some(outage)) if row.owned => format!(", waiting: {}", outage.0.message),
        _ if !row.owned && unowned.is_empty() => ", no worker owns it".to_owned(),
        _ if !row.owned => unowned,
        _ => String::new(),
    };
    format!("it is at {}{why}", row.position)
}

/// What to do where daemons run and none has the processor in its configuration.
fn why_unowned(name: &str, daemons: &[RunningDaemon]) -> String {
    if daemons.is_empty() || daemons.iter().any(|daemon| daemon.processors.iter().any(|one| one == name)) {
        return String::new();
    }
    let labels: Vec<&str> = daemons.iter().map(|daemon| daemon.label.as_str()).collect();
    format!(", not in the running configuration of {}: reload it with `espctl reload`", labels.join(", "))
}

impl From<OperatorError> for WaitError {
    fn from(error: OperatorError) -> Self {
        match error {
            OperatorError::Unknown { name, known } => Self::Unknown { processor: name, known },
            other => Self::Database(other.into()),
        }
    }
}
