//! The events of one batch, read into this process.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use futures_util::stream::BoxStream;
use sqlx::{PgConnection, Row as _};

use crate::event::{Event, Position};
use crate::postgres::deadline::timed_out;
use crate::postgres::literal::simple;
use crate::postgres::quote::quote_literal;
use crate::postgres::transaction;
use crate::processing::declaration::BatchLimits;
use crate::processing::processor::{Events, ProcessorError};
use crate::store::layout::Layout;
use crate::store::witness::{Standing, Trail, Witness};
use crate::store::{PostgresEventStore, read_after_on};

/// Events in the first page of all, before anything is known about their size: the database sends all of a page, however large
/// they are.
const FIRST_PAGE_EVENTS: i64 = 64;

/// Most events in any page.
const PAGE_EVENTS_MAX: i64 = 1_000;

/// Most events that are read for a batch, however many a batch may have: all of them are in memory.
const BATCH_EVENTS_MAX: i64 = 10_000;

/// How long a database may take to return a page. After that it counts as gone.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// An event on its way to a handler.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The event.
    pub event: Event,
    /// Whether the event was handled before: before a reset, or, where a version is built beside the one that serves, by that. Its
    /// effects must not be repeated.
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
    /// Bytes of an event, as those that were read before had them; 0: none were read.
    pub(crate) event_bytes: i64,
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
                let mut transaction = in_time(transaction::begin(store.pool(), begin)).await?;
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

    /// Whether the store that the batch was read from has the `witness` and the `partitions` still, the same last event at or
    /// below the end of the batch, and as many events in it. `after` is the position that the batch begins at.
    pub(crate) async fn still_stands(
        &self,
        connection: &mut PgConnection,
        layout: &Layout,
        types: Option<&[String]>,
        after: Position,
        witness: Option<Witness>,
        partitions: Option<&[i64]>,
    ) -> Result<bool, ProcessorError> {
        let examining = Witness::examine(witness, self.upto, &mut *connection, layout);
        let examined = in_time(examining).await?;
        let is_same = examined.standing == Standing::Stands
            && self.trail.last() == Some(examined.end)
            && partitions.is_none_or(|known| examined.partitions.as_deref() == Some(known));
        let upto = self.upto;
        Ok(is_same && self.length() == in_time(count(connection, layout, types, after, upto)).await?)
    }

    async fn fill(
        &mut self,
        connection: &mut PgConnection,
        pages: &Pages<'_>,
        BatchQuery { types, after, upto, limits, event_bytes, .. }: BatchQuery<'_>,
    ) -> Result<(), ProcessorError> {
        let (mut after, mut bytes) = (after, 0);
        loop {
            let wanted = self.next_page(limits, bytes, event_bytes);
            let before = self.length();
            let page = pages.read(connection, types, after, upto, wanted);
            // What is beyond the limit of bytes is not even looked at.
            let reading = page.try_take_while(|event| {
                let is_wanted = bytes < limits.bytes;
                if is_wanted {
                    bytes += size_of(event);
                }
                futures_util::future::ok(is_wanted)
            });
            let events = in_time(reading.try_collect::<Vec<_>>()).await?;
            after = events.last().map_or(after, |last| last.id);
            self.events.extend(events);
            if bytes >= limits.bytes || self.length() >= size_max(limits) {
                self.upto = after;
                return Ok(());
            }
            if self.length() - before < wanted {
                return Ok(());
            }
        }
    }

    fn length(&self) -> i64 {
        self.events.len() as i64
    }

    /// Bytes of an event on average; `None`: there is none.
    pub(crate) fn event_bytes(&self) -> Option<i64> {
        self.events.iter().map(size_of).sum::<i64>().checked_div(self.length())
    }

    /// How many events to read next: as many as should fit, judged by the size of those read.
    fn next_page(&self, limits: &BatchLimits, bytes: i64, event_bytes: i64) -> i64 {
        let room = size_max(limits) - self.length();
        let fitting = match bytes.checked_div(self.length()).unwrap_or(event_bytes) {
            0 if self.events.is_empty() => FIRST_PAGE_EVENTS,
            each => (limits.bytes - bytes) / each.max(1),
        };
        // The next events may be larger than those before.
        fitting.clamp(1, PAGE_EVENTS_MAX).min(room)
    }
}

/// Counts the events of these types from one position up to another.
async fn count(
    connection: &mut PgConnection,
    layout: &Layout,
    types: Option<&[String]>,
    after: Position,
    upto: Position,
) -> Result<i64, sqlx::Error> {
    let of_types = types.map_or_else(String::new, |types| {
        let types: Vec<String> = types.iter().map(|name| quote_literal(name)).collect();
        format!(" and type = any (array[{}]::text[])", types.join(", "))
    });
    let statement = format!(
        "-- count_read_events
         select count(*) from {} as e where id > {after} and id <= {upto}{of_types}",
        layout.source()
    );
    simple(statement).fetch_one(connection).await?.try_get(0)
}

/// What an event counts for, in bytes.
fn size_of(event: &Event) -> i64 {
    (event.body.get().len() + event.metadata.get().len()) as i64
}

/// The most events of a batch that is read.
fn size_max(limits: &BatchLimits) -> i64 {
    limits.size.min(BATCH_EVENTS_MAX)
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

    fn read<'c>(
        &'c self,
        connection: &'c mut PgConnection,
        types: Option<&'c [String]>,
        after: Position,
        upto: Position,
        wanted: i64,
    ) -> BoxStream<'c, Result<Event, sqlx::Error>> {
        match self {
            Self::Unprepared(layout) => read_after_on(connection, layout, after, upto, types, wanted),
            Self::Prepared(store) => store.read_after_in(connection, after, upto, types, wanted),
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
