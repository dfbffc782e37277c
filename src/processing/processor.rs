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

pub(crate) use base::Base;
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

/// A request to handle the next events.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'a> {
    /// The right to move the tracker, and where it stands.
    pub claim: &'a Claim,
    /// The last position to look at. At or below the settled horizon.
    pub upto: Position,
    /// Where the batch ends.
    pub limits: &'a BatchLimits,
    /// How long the lease runs on from the end of the batch.
    pub lease: Duration,
    /// Ids passed per second lately, for the tracker to show.
    pub rate: f32,
    /// Instead of a batch: handle the event of this dead letter, and remove the letter. The position stays.
    pub letter: Option<Position>,
}

impl Turn<'_> {
    /// The position that the events to handle come after.
    pub fn after(&self) -> Position {
        self.letter.map_or(self.claim.position, |event_id| event_id - 1)
    }
}

/// What one turn did.
#[derive(Debug, Clone, PartialEq)]
pub enum Turned {
    /// Rows, emissions and position are committed.
    Moved {
        /// Every event at or below it has been handled, or was of no concern.
        position: Position,
        /// Events handled.
        handled: i32,
        /// Why the batch ended before the next event, if it did.
        failure: Option<Box<Failure>>,
    },
    /// As [`Self::Moved`], by a processor that handles events beyond its position as well: those that fail wait for
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
    Lost,
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
    /// Its name: unique, and the key of its tracker.
    fn name(&self) -> &str;

    /// What it does with events.
    fn kind(&self) -> ProcessorKind;

    /// The version of its tables.
    fn version(&self) -> i32;

    /// Where it begins when it has never run: 0, unless it says otherwise.
    async fn starting_position(&self, _connection: &mut PgConnection) -> Result<Position, sqlx::Error> {
        Ok(0)
    }

    /// Makes tables and functions ready under a claim. Harmless where they are.
    async fn prepare(&mut self, connection: &mut PgConnection, claim: &Claim) -> Result<(), ProcessorError>;

    /// Whether the last [`Self::prepare`] has found it declared otherwise than it ran before.
    fn has_changed(&self) -> bool {
        false
    }

    /// Whether it handles events beyond its position, and answers with [`Turned::Ahead`].
    fn works_ahead(&self) -> bool {
        false
    }

    /// The runner is asked to stop: what is under way may end, nothing more is to be begun.
    fn wind_down(&mut self) {}

    /// An operator wants what waits for another try to be tried in the next turn.
    fn retry_now(&mut self) {}

    /// Lets go of what it holds outside of the database. It may be asked to prepare again.
    async fn close(&mut self) {}

    /// Handles the next batch: rows, emissions and position in one transaction.
    async fn turn(&mut self, connection: &mut PgConnection, turn: Turn<'_>)
    -> Result<Turned, ProcessorError>;
}
