//! What handles events: the contract between a runner and a projector or reactor.

mod base;
mod batch;
mod tables;

use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::event::Position;
use crate::processing::declaration::BatchLimits;
use crate::processing::failure::Failure;
use crate::processing::tracker::Claim;
use crate::store::PostgresEventStore;
use crate::store::layout::Layout;

pub use base::ProcessorBase;
pub(crate) use batch::Batch;
pub use batch::Delivery;
pub(crate) use tables::Tables;

/// What a processor does with the events that it handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessorKind {
    /// Writes tables.
    Projector,
    /// Acts, and may emit events.
    Reactor,
}

impl ProcessorKind {
    /// The word for it: `projector` or `reactor`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Projector => "projector",
            Self::Reactor => "reactor",
        }
    }
}

/// Where the events of a processor are.
#[derive(Debug)]
pub enum Events {
    /// In the database of its tracker and its tables, in this layout.
    SameDatabase(Layout),
    /// In another database.
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

/// What one turn did.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Rows, emissions and position are committed.
    Committed {
        /// Every event at or below it has been handled, or was of no concern.
        position: Position,
        /// Events handled.
        handled: i32,
        /// Why the batch ended before the next event, if it did.
        failure: Option<Box<Failure>>,
    },
    /// As [`Self::Committed`], by a processor that handles events beyond its position as well: those that fail wait for
    /// another try while others go on. It sees to attempts and dead letters itself.
    Ahead {
        /// Every event at or below it has been handled, or was of no concern.
        position: Position,
        /// Every event at or below it has been looked at: the next turn may begin behind it.
        seen: Position,
        /// Events handled.
        handled: i32,
        /// Whether there is more to do that nobody has to wait for: the next turn follows at once.
        under_way: bool,
        /// What waits for another try, if anything does.
        put_off: Option<Box<PutOff>>,
    },
    /// The tracker is no longer where or whose the claim says, or is paused: nothing was done.
    ClaimLost,
}

/// An event that waits for another try while others go on.
#[derive(Debug, Clone, PartialEq)]
pub struct PutOff {
    /// Why the event that is due next could not be handled.
    pub failure: Failure,
    /// How often it has been tried.
    pub attempts: u32,
    /// When it is tried again; `None`: not before an operator acts.
    pub until: Option<Instant>,
}

/// Why a processor cannot go on at all.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorError {
    /// Only an operator can help: the declaration does not fit what is there.
    #[error("{0}")]
    Blocked(String),
    /// The claim is no longer valid.
    #[error("another owner has claimed the processor")]
    Lost,
    /// The batch could not be handled, and nobody knows over which event; of a batch of one event, the failure names it.
    #[error("{0}")]
    Unattributed(Box<Failure>),
    /// Something that the handler needs beside the database is not there now. No event is to blame; it is tried
    /// for ever.
    #[error("{message}")]
    Unavailable {
        /// What happened, in one sentence.
        message: String,
        /// How long to wait at least, if that is known.
        wait: Option<Duration>,
    },
    /// The database could not do it now.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
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

    /// The position at which a processor begins that has never run.
    async fn starting_position(&self, connection: &mut PgConnection) -> Result<Position, sqlx::Error> {
        self.base().starting_position(connection).await
    }

    /// Creates the tables and functions that are missing, under a claim. A second call changes nothing.
    async fn prepare(&mut self, connection: &mut PgConnection, claim: &Claim) -> Result<(), ProcessorError>;

    /// Whether the last [`Self::prepare`] has found another declaration than the one that ran before.
    fn has_changed(&self) -> bool {
        false
    }

    /// What the runner may ask of a processor that handles events beyond its position; `None`: it is not one.
    fn runs_ahead(&mut self) -> Option<&mut dyn RunsAhead> {
        None
    }

    /// Lets go of everything that the processor holds outside of the database. [`Self::prepare`] may follow.
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
