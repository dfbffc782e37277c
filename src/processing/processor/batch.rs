//! The events of one batch, read into this process.

use std::time::Duration;

use sqlx::PgConnection;

use crate::event::{Event, Position};
use crate::postgres::deadline::timed_out;
use crate::processing::declaration::BatchLimits;
use crate::processing::processor::{Events, ProcessorError};
use crate::store::layout::Layout;
use crate::store::witness::{Standing, Trail, Witness};
use crate::store::{PostgresEventStore, read_after_on};

/// Events in the first page of a batch, before anything is known about their size. Few, because a page is in memory however
/// large its events are.
const FIRST_PAGE_EVENTS: i64 = 64;

/// Most events in a page.
const PAGE_EVENTS_MAX: i64 = 1_000;

/// How long a database may take to return a page. After that it counts as gone.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// An event on its way to a handler.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The event.
    pub event: Event,
    /// Whether the event was handled before a reset, so that its effects must not be repeated.
    pub replaying: bool,
}

/// The events of one batch, in order.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) events: Vec<Event>,
    /// Where the position moves to when all of them are handled.
    pub(crate) upto: Position,
    /// The witnesses of what was read.
    pub(crate) trail: Trail,
}

/// What a batch is read by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchQuery<'a> {
    /// The types that are wanted; `None`: all.
    pub(crate) types: Option<&'a [String]>,
    /// The position that the events come after.
    pub(crate) after: Position,
    /// The last position to look at.
    pub(crate) upto: Position,
    pub(crate) limits: &'a BatchLimits,
    /// What the store has to say still, so that it is the one that was followed.
    pub(crate) witness: Option<Witness>,
    /// The partitions that the table of events has to have still; `None`: none are known.
    pub(crate) partitions: Option<&'a [i64]>,
}

impl Batch {
    /// Reads events until a limit is reached: at least one event, if there is one. If the events are in the same database,
    /// they are read on `connection`.
    ///
    /// # Errors
    /// [`ProcessorError::Diverged`] if the witness does not stand in the store that the events were read from.
    pub(crate) async fn read(
        events: &Events,
        connection: &mut PgConnection,
        query: BatchQuery<'_>,
    ) -> Result<Self, ProcessorError> {
        match events {
            // Whoever sets the store back after the witness was examined does so after the events were read as well.
            Events::SameDatabase(layout) => {
                Self::read_on(connection, &Pages::Unprepared(layout), query).await
            }
            Events::Elsewhere(store) => {
                // One snapshot of one server: between two statements the address may lead to another one.
                let begin = "-- begin_reading\nbegin isolation level repeatable read, read only";
                let mut transaction = in_time(store.pool().begin_with(begin)).await?;
                let batch = Self::read_on(&mut transaction, &Pages::Prepared(store), query).await?;
                in_time(transaction.rollback()).await?;
                Ok(batch)
            }
        }
    }

    async fn read_on(
        connection: &mut PgConnection,
        pages: &Pages<'_>,
        query: BatchQuery<'_>,
    ) -> Result<Self, ProcessorError> {
        let mut batch = Self { events: Vec::new(), upto: query.upto, trail: Trail::default() };
        batch.fill(connection, pages, query).await?;
        let examining = Witness::examine(query.witness, batch.upto, connection, pages.layout());
        let examined = in_time(examining).await?;
        let is_whole = query.partitions.is_none_or(|known| examined.partitions.as_deref() == Some(known));
        if examined.standing != Standing::Stands || !is_whole {
            return Err(ProcessorError::Diverged);
        }
        batch.trail.extend(&batch.events, Some(examined.end));
        Ok(batch)
    }

    async fn fill(
        &mut self,
        connection: &mut PgConnection,
        pages: &Pages<'_>,
        BatchQuery { types, after, upto, limits, .. }: BatchQuery<'_>,
    ) -> Result<(), ProcessorError> {
        let (mut after, mut bytes) = (after, 0);
        loop {
            let wanted = self.next_page(limits, bytes);
            let page = in_time(pages.read(connection, types, after, upto, wanted)).await?;
            let last_page = (page.len() as i64) < wanted;
            for event in page {
                after = event.id;
                bytes += (event.body.get().len() + event.metadata.get().len()) as i64;
                self.events.push(event);
                if bytes >= limits.bytes || self.length() >= limits.size {
                    self.upto = after;
                    return Ok(());
                }
            }
            if last_page {
                return Ok(());
            }
        }
    }

    fn length(&self) -> i64 {
        self.events.len() as i64
    }

    /// How many events to read next: as many as should fit, judged by the size of those read.
    fn next_page(&self, limits: &BatchLimits, bytes: i64) -> i64 {
        let room = limits.size - self.length();
        let fitting = match self.length() {
            0 => FIRST_PAGE_EVENTS,
            length => (limits.bytes - bytes) / (bytes / length).max(1),
        };
        fitting.clamp(1, PAGE_EVENTS_MAX).min(room)
    }
}

/// How pages are read.
enum Pages<'p> {
    /// On a connection that may lead through a pooler, so that nothing is prepared.
    Unprepared(&'p Layout),
    /// On a connection of the store.
    Prepared(&'p PostgresEventStore),
}

impl Pages<'_> {
    fn layout(&self) -> &Layout {
        match self {
            Self::Unprepared(layout) => layout,
            Self::Prepared(store) => store.layout(),
        }
    }

    async fn read(
        &self,
        connection: &mut PgConnection,
        types: Option<&[String]>,
        after: Position,
        upto: Position,
        wanted: i64,
    ) -> Result<Vec<Event>, sqlx::Error> {
        match self {
            Self::Unprepared(layout) => read_after_on(connection, layout, after, upto, types, wanted).await,
            Self::Prepared(store) => store.read_after_in(connection, after, upto, types, wanted).await,
        }
    }
}

/// What a database answers within [`PAGE_TIMEOUT`].
async fn in_time<T>(answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, ProcessorError> {
    match tokio::time::timeout(PAGE_TIMEOUT, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_elapsed) => Err(timed_out("the database of the events").into()),
    }
}
