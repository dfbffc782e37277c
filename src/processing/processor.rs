//! The contract between a runner and what handles events: a projector or a reactor.

mod base;
mod batch;
mod tables;
mod unreadable;

use std::time::{Duration, Instant};

use async_trait::async_trait;
use sqlx::PgConnection;

use crate::event::Position;
use crate::postgres::server_mark::ServerMark;
use crate::postgres::sqlstate::is_infrastructure_error;
use crate::processing::declaration::{BatchLimits, ProcessorKind};
use crate::processing::failure::{FailedEvent, Failure};
use crate::processing::progress::PendingRetry;
use crate::processing::tracker::Claim;
use crate::store::PostgresEventStore;
use crate::store::layout::Layout;

pub use base::ProcessorBase;
pub(crate) use base::{OthersObjects, find_obstacle_to_emit};
pub(crate) use batch::Batch;
pub use batch::Delivery;
pub(crate) use tables::{
    Dependent, Dropped, Fit, HandledBy, ObjectId, Replaced, Tables, describe_missing, describe_moved,
    drop_tables, find_foreign_table, find_made, find_missing, find_moved, fingerprint, foresee_fit,
    forget_planned_dependents, is_only_looked_at, list_dependents_on, list_missing, list_moved,
    list_planned_dependents, note_made, observe, observe_planned, observe_with, were_made_from_other,
};

/// Where the events of a processor are.
#[expect(clippy::large_enum_variant, reason = "a processor has one of them")]
#[derive(Debug)]
pub enum Events {
    /// The events are in the database of the tracker and the tables, in this layout.
    SameDatabase(Layout),
    /// The events are in another database.
    Elsewhere(PostgresEventStore),
}

impl Events {
    /// The shape of the event table.
    pub fn layout(&self) -> &Layout {
        match self {
            Self::SameDatabase(layout) => layout,
            Self::Elsewhere(store) => store.layout(),
        }
    }
}

/// A request to handle the next events, or one dead letter.
#[derive(Debug, Clone, Copy)]
pub struct BatchRequest<'a> {
    /// The right to move the tracker, and the position that it moves from.
    pub claim: &'a Claim,
    /// Which events are to be handled.
    pub work: Work,
    /// Where the batch ends.
    pub limits: &'a BatchLimits,
    /// How long the lease lasts from the end of the batch on.
    pub lease: Duration,
    /// Since when at least the lease that there is now has lasted: from before it was asked for.
    pub leased_at: Instant,
    /// The mark that has to be on the server of the batch; `None`: there is nothing to compare.
    pub mark: Option<ServerMark>,
    /// Whether the session is one that no pooler gives to others, and keeps what is prepared and set on it.
    pub keeps_session: bool,
}

/// Which events a request is about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    /// The events after the claim's position.
    Batch {
        /// The last position to look at. At or below the settled horizon.
        upto: Position,
        /// Ids passed per second lately, for the tracker to show.
        rate: f32,
    },
    /// The event of this dead letter. The dead letter is removed if the event is handled; the position stays.
    DeadLetter(Position),
}

impl BatchRequest<'_> {
    /// The position that the requested events come after.
    pub fn after(&self) -> Position {
        match self.work {
            Work::Batch { .. } => self.claim.position,
            Work::DeadLetter(event_id) => event_id.previous(),
        }
    }

    /// The last position to look at.
    pub fn upto(&self) -> Position {
        match self.work {
            Work::Batch { upto, .. } => upto,
            Work::DeadLetter(event_id) => event_id,
        }
    }

    /// The event of the dead letter that the request is about, if it is about one.
    pub fn dead_letter(&self) -> Option<Position> {
        match self.work {
            Work::Batch { .. } => None,
            Work::DeadLetter(event_id) => Some(event_id),
        }
    }
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Rows, emissions and position are committed.
    Committed {
        /// Every event at or below this position has been handled, or is of a type that the processor does not handle.
        position: Position,
        /// How many events were handled.
        handled: i32,
        /// Why the batch ended before the next event, if that could not be handled.
        failure: Option<Box<Failure>>,
    },
    /// As [`Self::Committed`], by a processor that handles events beyond its position as well: see `RunsAhead`. Events that
    /// fail wait for another attempt while others go on.
    Ahead {
        /// Every event at or below this position has been handled, or is of a type that the processor does not handle.
        position: Position,
        /// Every event at or below this position has been looked at, so that the next batch may begin after it.
        seen: Position,
        /// How many events were handled.
        handled: i32,
        /// Whether the processor has more to do, so that the next request has to follow at once.
        under_way: bool,
        /// Whether what it needs beside the database has been reached, or nothing is left that needs it. Otherwise an outage of that is
        /// not over.
        reached: bool,
        /// The event that is due next for another attempt, if one is.
        pending_retry: Option<Box<PendingRetry>>,
    },
    /// What handlers want done after a commit has failed. It is tried again before anything else is handled.
    EffectFailed {
        /// As in [`Self::Committed`], if a batch was committed before.
        committed: Option<(Position, i32)>,
        /// Whether other effects were carried out before.
        progressed: bool,
        /// Why the effect could not be carried out. It names no event, because the event is handled.
        failure: Box<Failure>,
    },
    /// Nothing was done: the position or the owner of the tracker is not the one of the claim, or an operator has paused the
    /// processor.
    ClaimLost,
}

/// Why a processor cannot go on at all.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorError {
    /// Only an operator can help, because the declaration does not fit what is in the database.
    #[error("{0}")]
    Blocked(String),
    /// Nothing is handled until the declared version, which is built beside the one that serves, is live.
    #[error("version {serves} serves until version {declared}, which is built beside it, is live")]
    AwaitsVersion {
        /// The version that serves.
        serves: i32,
        /// The version that is declared.
        declared: i32,
    },
    /// The claim is no longer valid.
    #[error("another owner has claimed the processor")]
    ClaimLost,
    /// What would handle the events has changed since it was compared with what has handled them. Nothing was done.
    #[error("the program has changed meanwhile")]
    OtherHandlers,
    /// The store is not the one that was followed: it lacks what the tracker's witness says, or has other events. Nothing
    /// was done.
    #[error("the event store is not the one that was followed")]
    Diverged,
    /// The batch could not be handled, and it is not known which event is the reason. If the batch had one event, the failure
    /// names it.
    #[error("{0}")]
    Unattributed(Box<Failure>),
    /// The handler has not returned from a batch of several events in time.
    #[error("{0}")]
    NotReturned(Box<Failure>),
    /// Something that the handler needs beside the database is not there now. No event is counted as failed, and attempts do
    /// not end.
    #[error("{message}")]
    Unavailable {
        /// What happened, in one sentence.
        message: String,
        /// How long to wait at least before the next attempt, if that is known.
        wait: Option<Duration>,
    },
    /// The session, or a plan in it, may be to blame for the failure of an event: see
    /// `is_of_session`. It is tried again on a new session.
    #[error("{0}")]
    StaleSession(Box<Failure>),
    /// The database could not do it now.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl ProcessorError {
    /// The failure that the session may be to blame for, if it is of this kind.
    pub(crate) fn of_session(&self) -> Option<Failure> {
        match self {
            Self::StaleSession(failure) => Some(Failure::clone(failure)),
            Self::Unattributed(failure) if failure.is_of_session() => Some(Failure::clone(failure)),
            Self::Database(error) if !is_infrastructure_error(error) => {
                Some(Failure::of_database(error)).filter(Failure::is_of_session)
            }
            _ => None,
        }
    }
}

/// A projector or a reactor, as the runner sees it.
#[async_trait]
pub trait Processor: Send + Sync {
    /// The declaration, the tables and the event source that the processor is made of.
    fn base(&self) -> &ProcessorBase;

    /// The processor's name: unique, and the key of its tracker.
    fn name(&self) -> &str {
        self.base().name()
    }

    /// Whether it writes tables or acts.
    fn kind(&self) -> ProcessorKind {
        self.base().declaration.kind()
    }

    /// The version of its tables.
    fn version(&self) -> i32 {
        self.base().declaration.version
    }

    /// The position at which a processor begins that has never run; `now` is a settled position.
    async fn starting_position(
        &self,
        connection: &mut PgConnection,
        now: Position,
    ) -> Result<Position, sqlx::Error> {
        self.base().starting_position(connection, now).await
    }

    /// Creates the tables and functions that are missing, under a claim. A second call changes nothing. [`Self::close`] has
    /// been called since the last claim.
    async fn prepare(&mut self, connection: &mut PgConnection, claim: &Claim) -> Result<(), ProcessorError>;

    /// Takes note of the handlers that were compared with those of the last owner: from now on no others may handle events,
    /// [`ProcessorError::OtherHandlers`] says so. `None`: they are not known.
    fn bind_handlers(&mut self, _fingerprint: Option<&str>) {}

    /// Whether the last [`Self::prepare`] has found another declaration than the one that ran before.
    fn has_changed(&self) -> bool {
        false
    }

    /// Whether the authors of its handlers run statements on its connection. They may keep statements prepared, as drivers
    /// do by themselves, so the connection must not lead through a transaction pooler.
    fn hands_out_connection(&self) -> bool {
        false
    }

    /// Whether the processor needs nothing of its session from one call to the next, so that others may use it in between.
    fn shares_session(&self) -> bool {
        false
    }

    /// The types of stored events that the processor handles, if a position may be moved over all others without it; `None`: it
    /// has to look at each event.
    fn passes_over(&self) -> Option<Vec<String>> {
        None
    }

    /// What the runner may ask of a processor that handles events beyond its position; `None`: it is not one.
    fn runs_ahead(&mut self) -> Option<&mut dyn RunsAhead> {
        None
    }

    /// Whether a batch is one statement for all of its events, unless it meets a handler that cannot be folded.
    fn folds(&self) -> bool {
        false
    }

    /// Whether its handlers are in this process, which they can end or have hang.
    fn shares_process(&self) -> bool {
        false
    }

    /// The first event of a request, which nothing is done about; `None`: there is none, or the claim is no longer valid.
    async fn find_first(
        &mut self,
        _connection: &mut PgConnection,
        _request: &BatchRequest<'_>,
    ) -> Result<Option<FailedEvent>, ProcessorError> {
        Ok(None)
    }

    /// Whether something is to be done for events at or below the position. [`Self::process`] does it, whether or not there are
    /// new events.
    fn has_pending_effects(&self) -> bool {
        false
    }

    /// Lets go of everything that the processor holds or remembers outside of the database. [`Self::prepare`] may follow.
    async fn close(&mut self) {}

    /// Handles the requested events: rows, emissions and position in one transaction.
    async fn process(
        &mut self,
        connection: &mut PgConnection,
        request: BatchRequest<'_>,
    ) -> Result<Outcome, ProcessorError>;
}

/// A processor that handles events beyond its position, and answers with [`Outcome::Ahead`]. It counts attempts and sets
/// events aside itself.
pub trait RunsAhead: Processor {
    /// Begins nothing more, because the runner stops. What has been begun may end in the next calls of
    /// [`Processor::process`].
    fn stop_sending(&mut self);

    /// Tries every event that waits for another try in the next call of [`Processor::process`], because an operator wants
    /// it.
    fn retry_now(&mut self);
}
