//! Reads and appends on a connection of the caller, which may lead through a pooler: nothing stays prepared.

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use sqlx::PgConnection;
use uuid::Uuid;

use super::sql_text::sql;
use super::statements::{read_after, read_aggregate, read_uuids};
use super::{append, row};
use crate::event::{AggregateId, Appended, Event, NewEvent, Position, Version};
use crate::store::layout::Layout;
use crate::store::{AppendError, validity};

/// Appends to a store in transactions of the caller.
#[derive(Debug)]
pub(crate) struct TransactionAppender(append::Statements);

impl TransactionAppender {
    /// An appender to a store of this layout; `None` if espd only reads such a store.
    pub(crate) fn new(layout: &Layout) -> Option<Self> {
        let append = layout.append.as_ref()?;
        Some(Self(append::Statements::unprepared(layout, append)))
    }

    /// Those of the uuids that are stored already.
    pub(crate) async fn find_stored(
        &self,
        connection: &mut PgConnection,
        uuids: &[Uuid],
    ) -> Result<Vec<Uuid>, sqlx::Error> {
        append::find_stored(&self.0, connection, uuids).await
    }

    /// Refuses events that are to be appended later, as an append of them would where their bodies are not as declared.
    pub(crate) async fn check_bodies(
        &self,
        connection: &mut PgConnection,
        events: &[NewEvent],
    ) -> Result<(), AppendError> {
        append::refuse_departing(&self.0, connection, events).await
    }

    /// Appends as [`PostgresEventStore::append_in`](super::PostgresEventStore::append_in) does.
    pub(crate) async fn append(
        &self,
        connection: &mut PgConnection,
        events: &[NewEvent],
    ) -> Result<Vec<Appended>, AppendError> {
        validity::check(events)?;
        append::append_in_transaction(&self.0, connection, events).await
    }
}

/// Reads as [`EventStore::read_after`](crate::store::EventStore::read_after) does.
pub(crate) fn read_after_on<'c>(
    connection: &'c mut PgConnection,
    layout: &'c Layout,
    position: Position,
    upto: Position,
    event_types: Option<&'c [String]>,
    limit: i64,
) -> BoxStream<'c, Result<Event, sqlx::Error>> {
    let query = sqlx::query(sql(read_after(layout))).persistent(false);
    let query = query.bind(position).bind(upto).bind(event_types).bind(limit.max(0));
    query.fetch(connection).map(|row| layout.finish(row::event(&row?)?)).boxed()
}

/// Streams from the first version on as [`EventStore::read_aggregate`](crate::store::EventStore::read_aggregate) does. Rows are
/// read from the connection as the consumer takes them.
pub(crate) fn stream_aggregate_on<'c>(
    connection: &'c mut PgConnection,
    layout: &'c Layout,
    aggregate_id: AggregateId,
    upto: Version,
) -> BoxStream<'c, Result<Event, sqlx::Error>> {
    let query = sqlx::query(sql(read_aggregate(layout))).persistent(false);
    let query = query.bind(aggregate_id.as_uuid()).bind(Version::FIRST).bind(upto);
    query.fetch(connection).map(|row| layout.finish(row::event(&row?)?)).boxed()
}

/// Reads as [`EventStore::read_uuids`](crate::store::EventStore::read_uuids) does.
pub(crate) async fn read_uuids_on(
    connection: &mut PgConnection,
    layout: &Layout,
    uuids: &[Uuid],
) -> Result<Vec<Event>, sqlx::Error> {
    let query = sqlx::query(sql(read_uuids(layout))).persistent(false).bind(uuids);
    query.fetch(connection).and_then(async |row| layout.finish(row::event(&row)?)).try_collect().await
}
