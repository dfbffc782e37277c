//! What operators see of processors and do to them: `espctl` and the admin endpoint share it.
//!
//! Every change is recorded with the name of the operator, and daemons are notified of it.

mod daemons;
mod dead_letters;
mod emissions;
mod lock_patience;
mod reset;
mod retire;
mod set_aside;
mod targets;

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::Row as _;
use thiserror::Error;

pub(crate) use daemons::{ReloadRequest, RunningDaemon};
pub(crate) use dead_letters::{Affected, ExaminedDeadLetter};
pub(crate) use emissions::ListedEmission;
pub(crate) use lock_patience::{LockPatience, name_session};
pub(crate) use reset::Destination;
pub(crate) use retire::{Remains, Retirement};

use crate::diagnostic::Diagnostic;
use crate::event::Position;
use crate::handlers::native::Registry;
use crate::operations::databases::Databases;
use crate::operations::status::format::format_duration;
use crate::operations::status::{self, Declared, LockWait, ProcessorStatus, describe_wait, end_wait};
use crate::postgres::error::{chain, explain};
use crate::postgres::literal::simple;
use crate::postgres::{server_mark, transaction};
use crate::processing::declaration::ProcessorDeclaration;
use crate::processing::divergence::Divergence;
use crate::processing::history::{Comparison, find_divergence};
use crate::processing::tracker::{ProcessorKey, TrackerRow, Trackers};
use crate::store::horizon::{Horizon, ObserveError, observe_once};
use crate::store::{PostgresEventStore, ReadError};

/// How long to wait for the horizon to settle before naming the transactions that hold it back.
pub(crate) const PATIENCE: Duration = Duration::from_millis(250);

/// An operator of the processors of some databases.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operator<'o> {
    /// The databases of the processors.
    pub databases: &'o Databases,
    /// The processors that the configuration declares.
    pub declared: &'o [ProcessorDeclaration],
    /// The operator's name, for the table `operator_log`: `alice@host`.
    pub name: &'o str,
    /// The processors in Rust of the program that this is; `None`: it is espd's own, or builds nothing.
    pub native: Option<&'o Registry>,
}

/// Why an operation did nothing.
#[derive(Debug, Error)]
pub(crate) enum OperatorError {
    /// No processor of this name has run on the database.
    #[error("no processor {name}{}", others(known))]
    Unknown {
        /// The unknown name.
        name: String,
        /// The names that are known.
        known: Vec<String>,
    },
    /// The processor has several trackers, and the name alone does not identify one.
    #[error("there are {} trackers of {name}: {}", trackers.len(), listed(trackers))]
    Several {
        /// The name.
        name: String,
        /// The trackers of this name.
        trackers: Vec<ProcessorKey>,
    },
    /// The position is beyond the settled horizon, where events may still appear before it.
    #[error(
        "the last settled position is {settled}: a processor at {to} would skip events that are still being written"
    )]
    NotSettled {
        /// The requested position.
        to: Position,
        /// The highest position that is allowed now.
        settled: Position,
    },
    /// The store is not the one that the processor has followed, and the operator has not said what follows from that.
    #[error("{} {}", found.describe(name), found.remedy(name))]
    Diverged {
        /// The processor.
        name: String,
        /// How the store differs.
        found: Box<Divergence>,
    },
    /// There is no difference to accept.
    #[error("the event store is the one that {name} has followed: there is nothing to accept")]
    NotDiverged {
        /// The processor.
        name: String,
    },
    /// In a store that has not reached the position yet, the next events would be skipped.
    #[error(
        "{name} is at {position}, and the last id of the event store is {head}: the next events would be skipped. \
         `espctl reset {name} --to` moves it to a position that the store has"
    )]
    BeyondHead {
        /// The processor.
        name: String,
        /// The processor's position.
        position: Position,
        /// The last id of the store.
        head: Position,
    },
    /// Nothing that the processor does is an effect that could be repeated.
    #[error(
        "the handlers of {name} are SQL and have no effects to repeat: its rows are written again by a reset without --repeat-effects \
         (`repeat_effects` in a request)"
    )]
    NoEffects {
        /// The processor.
        name: String,
    },
    /// The tables cannot be created again, because the configuration does not declare the processor.
    #[error(
        "{name} is not declared: name the configuration that declares it with --config, or, if it is in Rust, run this as a command \
         of the program that has it"
    )]
    NotDeclared {
        /// The processor.
        name: String,
    },
    /// A daemon runs the processor.
    #[error(
        "{name} is run by {owner}: take it out of the configuration and reload that, or stop the daemon, then try again"
    )]
    Owned {
        /// The processor.
        name: String,
        /// The daemon.
        owner: String,
    },
    /// The tables are locked by others.
    #[error("nothing was done: {name} could not have its tables for itself within {}{}", format_duration(limit.as_secs_f64()), describe_locked(wait.as_deref()))]
    Locked {
        /// The processor.
        name: String,
        /// How long it was tried.
        limit: Duration,
        /// The lock, and who holds it; `None`: it was seen to be held by nobody.
        wait: Option<Box<LockWait>>,
    },
    /// The reactor has no such emission that is not in the event store yet.
    #[error("{name} has no pending emission {id}: `espctl emissions list {name}` shows those that it has")]
    NotPending {
        /// The reactor.
        name: String,
        /// The id.
        id: i64,
    },
    /// The event is not a dead letter of the processor.
    #[error("event {event_id} is not a dead letter of {name}")]
    NotADeadLetter {
        /// The processor.
        name: String,
        /// The event.
        event_id: Position,
    },
    /// The dead letter waits behind another one.
    #[error(
        "event {event_id} waits behind event {first} of its aggregate, which has to be handled before it"
    )]
    OutOfOrder {
        /// The processor.
        name: String,
        /// The event that was to be retried.
        event_id: Position,
        /// The event to retry first.
        first: Position,
    },
    /// No event is named, and the processor fails at none.
    #[error("{name} fails at no event now: name the event with --event")]
    NothingFails {
        /// The processor.
        name: String,
    },
    /// There is no such event in the store.
    #[error("there is no event {event_id} in the store")]
    NoSuchEvent {
        /// The event.
        event_id: Position,
    },
    /// The processor has handled the event, or passed it over.
    #[error("{name} is done with event {event_id} already: nothing was done")]
    AlreadyHandled {
        /// The processor.
        name: String,
        /// The event.
        event_id: Position,
    },
    /// The declaration cannot be compiled.
    #[error("nothing was done: {0}")]
    Declaration(Box<Diagnostic>),
    /// The declaration does not fit what is in the database.
    #[error("nothing was done: {0}")]
    Blocked(String),
    /// It is not known which rows are of which aggregate.
    #[error("nothing was done: the rows of single aggregates of {name} cannot be told apart: {reason}")]
    NotApart {
        /// The processor.
        name: String,
        /// Why.
        reason: String,
    },
    /// Somebody else builds a version of the processor.
    #[error(
        "a version of {name} is being built or verified just now, by a daemon (also as `[verify]` says) or an operator: try again in a moment; `espctl rebuild {name} --watch` shows how far it is"
    )]
    Building {
        /// The processor.
        name: String,
    },
    /// A version that was built beside the serving one does not go on, or does not go live. What is built stays.
    #[error("{0}")]
    Rebuild(String),
    /// The horizon could not be observed.
    #[error("{}", chain(.0))]
    Horizon(#[from] ObserveError),
    /// The event store could not be read.
    #[error("{}", chain(.0))]
    Events(#[from] ReadError),
    /// The database does not answer, or refuses.
    #[error("{}", explain(.0))]
    Database(#[from] sqlx::Error),
}

impl Operator<'_> {
    /// The status of every processor, or of one, as of now. Empty if the name is unknown.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn statuses(&self, name: Option<&str>) -> Result<Vec<ProcessorStatus>, OperatorError> {
        let Databases { events, projections, layout, upcasts, daemons_build, .. } = self.databases;
        // The positions come first: read the other way round, one that moves meanwhile would be beyond the head.
        let rows = self.trackers().list(projections, name).await?;
        let horizon = self.horizon().await?;
        let mut events = events.acquire().await?;
        let mut projections = projections.acquire().await?;
        let (events, projections) = (&mut *events, &mut *projections);
        let declared = Declared { processors: self.declared, upcasts, daemons_build: *daemons_build };
        Ok(status::collect(events, projections, layout, rows, &horizon, declared, name).await?)
    }

    /// The settled horizon as of now, as far as one look can know it.
    async fn horizon(&self) -> Result<Horizon, OperatorError> {
        let Databases { events, layout, .. } = self.databases;
        let mut events = events.acquire().await?;
        Ok(observe_once(&mut events, layout, PATIENCE).await?)
    }

    /// The tracker of a processor.
    ///
    /// # Errors
    /// [`OperatorError::Unknown`], [`OperatorError::Several`], or the database does not answer.
    pub(crate) async fn find(&self, name: &str) -> Result<TrackerRow, OperatorError> {
        let rows = self.trackers().list(&self.databases.projections, None).await?;
        let (mut found, others): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.name == name);
        let name = name.to_owned();
        if found.len() > 1 {
            let trackers = found.iter().map(TrackerRow::key).collect();
            return Err(OperatorError::Several { name, trackers });
        }
        let known: BTreeSet<String> = others.into_iter().map(|row| row.name).collect();
        found.pop().ok_or_else(|| OperatorError::Unknown { name, known: known.into_iter().collect() })
    }

    /// The position of a processor before its last reset, and right after it.
    pub(crate) async fn last_reset(&self, name: &str) -> Result<(Position, Position), OperatorError> {
        Ok(self.trackers().last_reset(&self.databases.projections, name).await?)
    }

    /// Pauses a processor until it is resumed. Returns the tracker as it was before, and whether it was running.
    ///
    /// # Errors
    /// As for [`Self::find`].
    pub(crate) async fn pause(&self, name: &str) -> Result<(TrackerRow, bool), OperatorError> {
        self.act(name, Act::Pause).await
    }

    /// Does something to the tracker of a processor, and tells its runner. Another version may have gone live while it waited for the
    /// tracker, which is of no version that serves then: it does the same to that of the one that does.
    async fn act(&self, name: &str, act: Act) -> Result<(TrackerRow, bool), OperatorError> {
        let (mut row, trackers) = (self.find(name).await?, self.trackers());
        let mut connection = self.databases.projections.acquire().await?;
        loop {
            if act != Act::Pause {
                refuse_diverged(&row)?;
            }
            let key = row.key();
            let changed = match act {
                Act::Pause => trackers.pause(&mut connection, &key, self.name).await?,
                Act::Retry => trackers.retry(&mut connection, &key, self.name).await?,
                Act::Resume => trackers.resume(&mut connection, &key, self.name).await?,
            };
            if changed && act == Act::Pause {
                // Where it stands now: it went on while this waited for the tracker.
                row = self.find(name).await?;
            }
            let now = if changed { None } else { Some(self.find(name).await?) };
            match now.filter(|now| now.key() != row.key()) {
                Some(now) => row = now,
                None => {
                    self.databases.notify_runners().await;
                    return Ok((row, changed));
                }
            }
        }
    }

    /// Has a failing event tried again now, even if the processor has stopped because of it. Returns the tracker as it was
    /// before, and whether there was a failure and no pause.
    ///
    /// # Errors
    /// As for [`Self::find`].
    pub(crate) async fn retry(&self, name: &str) -> Result<(TrackerRow, bool), OperatorError> {
        self.act(name, Act::Retry).await
    }

    /// Resumes a paused or failed processor. Returns the tracker as it was before, and whether it was paused or failed.
    ///
    /// # Errors
    /// As for [`Self::find`], or [`OperatorError::Diverged`].
    pub(crate) async fn resume(&self, name: &str) -> Result<(TrackerRow, bool), OperatorError> {
        self.act(name, Act::Resume).await
    }

    /// Lets a processor continue from its position in a store that is not the one that it has followed, and resumes it if it
    /// is paused. Returns the tracker as it was before.
    ///
    /// # Errors
    /// As for [`Self::find`]; [`OperatorError::NotDiverged`], or [`OperatorError::BeyondHead`].
    pub(crate) async fn accept_history(&self, name: &str) -> Result<TrackerRow, OperatorError> {
        let row = self.find(name).await?;
        let Some(found) = self.find_divergence(&row).await? else {
            return Err(OperatorError::NotDiverged { name: row.name });
        };
        let comparison = self.compare(&row).await?;
        if row.position > comparison.head() {
            let (position, head) = (row.position, comparison.head());
            return Err(OperatorError::BeyondHead { name: row.name, position, head });
        }
        let begin = server_mark::begin(None);
        let mut transaction = transaction::begin(&self.databases.projections, begin).await?;
        let (trackers, key) = (self.trackers(), row.key());
        let witness = comparison.present_witness();
        if !trackers.accept_history(&mut transaction, &key, self.name, &found, witness).await? {
            return Err(moved_on(name));
        }
        trackers.resume(&mut transaction, &key, self.name).await?;
        transaction.commit().await?;
        self.databases.notify_runners().await;
        Ok(row)
    }

    /// The events that are in the store now, at or below the processor's position and behind the last one that is known to be
    /// common, and all of them behind that one where triggers may have missed them. Who accepts the store takes them as handled.
    ///
    /// # Errors
    /// As for [`Self::find`].
    pub(crate) async fn taken_as_handled(&self, name: &str) -> Result<Option<TakenAsHandled>, OperatorError> {
        let row = self.find(name).await?;
        let Some(found) = self.find_divergence(&row).await? else { return Ok(None) };
        let missed = found.kind.is_of_triggers();
        let upto = if missed { String::new() } else { format!(" and id <= {}", row.position) };
        let statement = format!(
            "-- count_events_between
             select count(*) from {} where id > {}{upto}",
            self.databases.layout.events_table(),
            found.last_common
        );
        let mut events = self.databases.events.acquire().await?;
        let row = simple(statement).fetch_one(&mut *events).await?;
        let taken = TakenAsHandled { events: row.try_get(0)?, common: found.last_common, missed };
        Ok((taken.events > 0).then_some(taken))
    }

    /// How the store differs from the one that a processor has followed, also where no daemon has noticed yet: an operator's
    /// decision depends on which events are still as they were.
    pub(crate) async fn find_divergence(
        &self,
        row: &TrackerRow,
    ) -> Result<Option<Divergence>, OperatorError> {
        let Databases { events, projections, layout, .. } = self.databases;
        let (mut events, mut projections) = (events.acquire().await?, projections.acquire().await?);
        Ok(find_divergence(&self.trackers(), row, &mut events, &mut projections, layout).await?)
    }

    /// Compares the store with what a tracker remembers of it.
    async fn compare(&self, row: &TrackerRow) -> Result<Comparison, OperatorError> {
        let mut events = self.databases.events.acquire().await?;
        Ok(Comparison::take(&mut events, &self.databases.layout, row.memory()).await?)
    }

    /// The declaration of a processor.
    ///
    /// # Errors
    /// [`OperatorError::NotDeclared`].
    pub(crate) fn declaration(&self, name: &str) -> Result<&ProcessorDeclaration, OperatorError> {
        let declaration = self.declared.iter().find(|declaration| declaration.name == name);
        declaration.ok_or_else(|| OperatorError::NotDeclared { name: name.to_owned() })
    }

    pub(crate) fn trackers(&self) -> Trackers {
        Trackers::of(&self.databases.layout)
    }

    fn store(&self) -> PostgresEventStore {
        self.databases.stored_events()
    }
}

/// Events that count as handled from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TakenAsHandled {
    /// How many.
    pub(crate) events: i64,
    /// The position before the first of them.
    pub(crate) common: Position,
    /// Whether some of them may have been handled: the triggers of a synchronous projector may have missed the others.
    pub(crate) missed: bool,
}

/// What an operator does to a tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Pause,
    Retry,
    Resume,
}

/// The error that another version has gone live since it was looked at.
fn moved_on(name: &str) -> OperatorError {
    OperatorError::Blocked(format!(
        "another version of {name} has gone live meanwhile: nothing was done, so try again"
    ))
}

/// Refuses what would let a processor continue in a store that is not the one that it has followed.
fn refuse_diverged(row: &TrackerRow) -> Result<(), OperatorError> {
    let Some(found) = &row.diverged else { return Ok(()) };
    Err(OperatorError::Diverged { name: row.name.clone(), found: Box::new(found.0.clone()) })
}

/// The end of the message about tables that are locked.
fn describe_locked(wait: Option<&LockWait>) -> String {
    match wait {
        Some(wait) => {
            format!(", because of a lock{}. {}, then try again", describe_wait(wait), end_wait(wait))
        }
        None => ": others were always there first. Try again, or pause it before".to_owned(),
    }
}

/// The trackers of one name.
fn listed(trackers: &[ProcessorKey]) -> String {
    trackers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The end of the message about an unknown name.
fn others(known: &[String]) -> String {
    match known {
        [] => ": none has run on this database yet".to_owned(),
        known => format!("; there are {}", known.join(", ")),
    }
}
