//! The events of one batch, read into this process.

use std::time::Duration;

use sqlx::PgConnection;

use crate::event::{Event, Position};
use crate::postgres::deadline::timed_out;
use crate::processing::declaration::BatchLimits;
use crate::processing::processor::{Events, ProcessorError};
use crate::store::{EventStore as _, ReadError, read_after_on};

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
}

impl Batch {
    /// Reads the events after `position` until a limit is reached: at least one event, if there is one. If the events are in
    /// the same database, they are read on `connection`.
    pub(crate) async fn read(
        events: &Events,
        connection: &mut PgConnection,
        types: Option<&[String]>,
        position: Position,
        upto: Position,
        limits: &BatchLimits,
    ) -> Result<Self, ProcessorError> {
        let mut batch = Self { events: Vec::new(), upto };
        let (mut after, mut bytes) = (position, 0);
        loop {
            let wanted = batch.next_page(limits, bytes);
            let page = read_page(events, connection, types, after, upto, wanted).await?;
            let last_page = (page.len() as i64) < wanted;
            for event in page {
                after = event.id;
                bytes += (event.body.get().len() + event.metadata.get().len()) as i64;
                batch.events.push(event);
                if bytes >= limits.bytes || batch.length() >= limits.size {
                    batch.upto = after;
                    return Ok(batch);
                }
            }
            if last_page {
                return Ok(batch);
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

async fn read_page(
    events: &Events,
    connection: &mut PgConnection,
    types: Option<&[String]>,
    after: Position,
    upto: Position,
    wanted: i64,
) -> Result<Vec<Event>, ProcessorError> {
    let reading = async {
        match events {
            Events::SameDatabase(layout) => {
                Ok(read_after_on(connection, layout, after, upto, types, wanted).await?)
            }
            Events::Elsewhere(store) => store.read_after(after, Some(upto), types, wanted).await,
        }
    };
    match tokio::time::timeout(PAGE_TIMEOUT, reading).await {
        Ok(Ok(page)) => Ok(page),
        Ok(Err(ReadError::Database(error))) => Err(error.into()),
        Err(_elapsed) => Err(timed_out("the database of the events").into()),
    }
}
