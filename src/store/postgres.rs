//! The event store in PostgreSQL.
//!
//! Reads are plain statements (`postgres/statements.rs`). Appends have rules of their own (`postgres/append.rs`).

mod append;
mod connection;
mod deletion;
mod on_connection;
mod parameter;
mod refusal;
mod row;
mod scheduling;
mod selection;
mod sql_text;
mod statements;
mod tagged;
mod uncommitted;
mod unreadable;

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryFutureExt as _, TryStreamExt};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use uuid::Uuid;

use super::codec::{BodyCodec, Codec};
use super::event_stream::SharedWatching;
use super::{
    AppendCondition, AppendError, ConsistencyToken, EventStore, EventStream, Kept, ReadError, TagQuery,
    TaggedEvents, validity,
};
use crate::event::{AggregateId, Appended, Event, NewEvent, Position, StoredTime, Version};
use crate::postgres::connector::Connector;
use crate::postgres::error::chain;
use crate::postgres::transaction;
use crate::store::appended_hook::AppendedHook;
use crate::store::layout::{Append, Layout};
use crate::store::notifier::Notifier;

pub(crate) use deletion::delete_aggregate_on;
pub use deletion::{DeletedAggregate, DeletionError};
pub(crate) use on_connection::{TransactionAppender, read_after_on, read_uuids_on, stream_aggregate_on};
pub use scheduling::AppendTime;
pub(crate) use selection::{Direction, Selection};
use statements::Statements;
pub use uncommitted::Uncommitted;

/// An event store in PostgreSQL. Cheap to clone: clones share the pool and the notifier.
#[derive(Debug, Clone)]
pub struct PostgresEventStore {
    pool: PgPool,
    layout: Arc<Layout>,
    statements: Arc<Statements>,
    notifier: Option<Notifier>,
    watching: SharedWatching,
    /// Where the watcher of streams connects; `None`: as the pool does.
    watched_database: Option<Connector>,
    codec: Codec,
    on_appended: AppendedHook,
}

impl PostgresEventStore {
    /// The store that `layout` describes, which notifies the layout's channel after each append.
    pub fn new(pool: PgPool, layout: Layout) -> Self {
        // Where espd does not append, it has nothing to announce.
        let notifier = layout.append.as_ref().map(|append| Notifier::new(pool.clone(), &append.channel));
        Self {
            pool,
            statements: Arc::new(Statements::new(&layout)),
            layout: Arc::new(layout),
            notifier,
            watching: SharedWatching::default(),
            watched_database: None,
            codec: Codec::default(),
            on_appended: AppendedHook::default(),
        }
    }

    /// The shape of the event table.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The names of what an append needs; an error if espd only reads the store.
    pub(crate) fn append_names(&self) -> Result<&Append, AppendError> {
        Ok(&self.statements.append()?.append)
    }

    /// The connections that the store works on.
    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Begins a transaction of its pool, for [`Self::append_in`].
    ///
    /// Whoever stops waiting, as `tokio::time::timeout` does, leaves nothing behind. The `begin` of sqlx 0.9 leaves an open
    /// transaction in the pool then, in which later statements seem to be done, and are lost.
    ///
    /// # Errors
    /// The pool has no connection in time, or the database does not answer.
    pub async fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        transaction::begin(&self.pool, "begin").await
    }

    /// Ends the sessions that nobody uses. A session keeps the settings that it began with, such as that the database takes no
    /// writes.
    pub(crate) fn end_idle_sessions(&self) {
        while let Some(mut connection) = self.pool.try_acquire() {
            connection.close_on_drop();
        }
    }

    /// The same store, whose bodies are encoded when they are appended and decoded when they are read.
    pub fn with_codec(self, codec: impl BodyCodec) -> Self {
        Self { codec: Codec::new(codec), ..self }
    }

    /// The same store without notifications: those who follow it find new events when they look next.
    pub fn without_notifications(self) -> Self {
        Self { notifier: None, ..self }
    }

    /// The same store, whose streams watch it through connections to `database`: a direct one, where the pool leads through a
    /// pooler.
    pub(crate) fn watched_through(self, database: Connector) -> Self {
        Self { watched_database: Some(database), ..self }
    }

    /// Follows the store: the events after a position (`None`: those that are appended from now on), of the given types
    /// only (`None`: all), by ascending id, as they settle. The stream has no end. Call it in a runtime.
    ///
    /// What comes now begins when the stream is asked for its first event: whoever appends before that, and wants to see it,
    /// names a position.
    ///
    /// All streams of this store and its clones share one watcher, which has one connection of its own while there is a
    /// stream, made as the pool makes its own. A stream uses a connection of the pool only while it reads a page, of a
    /// hundred events at most, when its consumer asks for more.
    ///
    /// ```no_run
    /// # async fn example(store: espd::store::PostgresEventStore) -> Result<(), Box<dyn std::error::Error>> {
    /// use futures_util::TryStreamExt as _;
    /// let mut events = store.subscribe(Some(&["TodoAdded".to_owned()]), None);
    /// while let Some(event) = events.try_next().await? {
    ///     println!("{} {}", event.id, event.body);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn subscribe(&self, event_types: Option<&[String]>, after: Option<Position>) -> EventStream {
        let store = self.clone();
        let watch = move || store.watching.get(|| store.database_to_watch(), &store.layout);
        EventStream::new(self.clone(), watch, event_types, after)
    }

    fn database_to_watch(&self) -> Connector {
        match &self.watched_database {
            Some(database) => database.clone(),
            None => Connector::from((*self.pool.connect_options()).clone()),
        }
    }

    /// The same store, which calls `hook` with the stored events after each of its appends is committed: by
    /// [`EventStore::append`] before it returns, for [`Self::append_in`] when the caller says that the transaction is committed.
    ///
    /// It is called for appends through this value and its clones, not for those of other writers. It is called at most once: if
    /// the process ends between the commit and the call, or the events cannot be read again (which the log tells), it is not
    /// called. What must not be lost is the work of a reactor. It is called again for an append that is repeated with the same
    /// uuids. What was scheduled it is called for where [`Self::append_due`] of this value or a clone appends it, not where a daemon
    /// does, which is another process. It must not block, as nothing in async code must; its panic is logged.
    #[must_use]
    pub fn on_appended(self, hook: impl Fn(&[Event]) + Send + Sync + 'static) -> Self {
        Self { on_appended: AppendedHook::new(hook), ..self }
    }

    /// Calls what [`Self::on_appended`] names, with the events as they are stored.
    async fn tell_appended(&self, appended: &[Appended]) {
        if !self.on_appended.is_set() {
            return;
        }
        let ids: Vec<Position> = appended.iter().map(|event| event.id).collect();
        self.tell(sqlx::query(self.statements.read_ids.clone()).bind(ids), appended.len()).await;
    }

    /// As [`Self::tell_appended`], for events whose uuids are known.
    pub(crate) async fn tell_stored(&self, uuids: &[Uuid]) {
        if self.on_appended.is_set() && !uuids.is_empty() {
            self.tell(sqlx::query(self.statements.read_uuids.clone()).bind(uuids), uuids.len()).await;
        }
    }

    async fn tell(&self, query: Query<'_, Postgres, PgArguments>, count: usize) {
        let reading =
            query.fetch(&self.pool).map(|row| self.codec.decode(row::event(&row?)?)).try_collect::<Vec<_>>();
        match reading.await {
            Ok(events) if events.len() == count => self.on_appended.call(&events),
            Ok(_) => tracing::error!(
                events = count,
                "on_appended is not called: the events are not there, although the transaction is said to be committed"
            ),
            Err(error) => tracing::error!(
                events = count,
                error = chain(&error),
                "on_appended is not called: the events are stored, but could not be read again"
            ),
        }
    }

    /// Appends as part of the caller's own transaction on `connection`, in the same way as
    /// [`EventStore::append`].
    ///
    /// A connection on which no transaction is open is refused ([`AppendError::Invalid`]): many events are stored by several
    /// statements, of which the first would stay. After an error the transaction can only be rolled back (to a savepoint). Deadlocks and
    /// serialization failures are for the caller to retry, with the whole transaction. Once it is
    /// committed, say so by [`Uncommitted::committed`], or have it committed by [`Uncommitted::commit`]: then those who follow the
    /// store need not wait until they look next, and what [`Self::on_appended`] names is called.
    pub async fn append_in(
        &self,
        connection: &mut PgConnection,
        events: &[NewEvent],
    ) -> Result<Uncommitted, AppendError> {
        let events = &*self.codec.encode_all(events).await?;
        validity::check(events)?;
        connection::require_transaction(connection).await?;
        let appended = append::append_in_transaction(self.statements.append()?, connection, events).await?;
        Ok(Uncommitted::new(self, appended))
    }

    /// Reads as [`EventStore::read_after`] does, in the caller's transaction on a connection of [`Self::pool`].
    pub(crate) fn read_after_in<'c>(
        &'c self,
        connection: &'c mut PgConnection,
        position: Position,
        upto: Position,
        event_types: Option<&'c [String]>,
        limit: i64,
    ) -> BoxStream<'c, Result<Event, sqlx::Error>> {
        let query = sqlx::query(self.statements.read_after.clone());
        let query = query.bind(position).bind(upto).bind(event_types).bind(limit.max(0));
        query.fetch(connection).map(|row| self.layout.finish(row::event(&row?)?)).boxed()
    }

    /// Reads an aggregate from its first event on, in the caller's transaction.
    pub(crate) fn read_aggregate_in<'c>(
        &'c self,
        connection: &'c mut PgConnection,
        aggregate_id: &AggregateId,
        upto: Version,
    ) -> BoxStream<'c, Result<Event, ReadError>> {
        let query = sqlx::query(self.statements.read_aggregate.clone());
        let query = query.bind(aggregate_id.as_uuid()).bind(Version::FIRST).bind(upto);
        query.fetch(connection).map(|row| self.codec.decode(self.event(&row?)?)).boxed()
    }

    /// Reads as [`EventStore::read_uuids`] does, in the caller's transaction.
    pub(crate) async fn read_uuids_in(
        &self,
        connection: &mut PgConnection,
        uuids: &[Uuid],
    ) -> Result<Vec<Event>, ReadError> {
        let query = sqlx::query(self.statements.read_uuids.clone()).bind(uuids);
        query.fetch(connection).map(|row| self.codec.decode(self.event(&row?)?)).try_collect().await
    }

    /// Whether bodies are stored as a codec has encoded them.
    pub(crate) fn has_codec(&self) -> bool {
        self.codec.is_set()
    }

    /// Those of the uuids that are stored already.
    pub(crate) async fn find_stored(&self, uuids: &[Uuid]) -> Result<Vec<Uuid>, AppendError> {
        let mut connection = self.pool.acquire().await?;
        Ok(append::find_stored(self.statements.append()?, &mut connection, uuids).await?)
    }

    /// Tells those who follow the store that there may be more. Returns at once and never fails.
    pub fn notify(&self) {
        if let Some(notifier) = &self.notifier {
            notifier.notify();
        }
    }
}

#[async_trait]
impl EventStore for PostgresEventStore {
    async fn append(&self, events: &[NewEvent]) -> Result<Vec<Appended>, AppendError> {
        self.append_under(&mut Kept::default(), events, None).await
    }

    async fn append_keeping(
        &self,
        kept: &mut Kept,
        events: &[NewEvent],
    ) -> Result<Vec<Appended>, AppendError> {
        self.append_under(kept, events, None).await
    }

    async fn append_if(
        &self,
        events: &[NewEvent],
        condition: &AppendCondition,
    ) -> Result<Vec<Appended>, AppendError> {
        condition.check()?;
        self.append_under(&mut Kept::default(), events, Some(condition)).await
    }

    async fn read_tagged(
        &self,
        query: &TagQuery,
        since: Option<&ConsistencyToken>,
    ) -> Result<TaggedEvents, ReadError> {
        let mut connection = self.pool.acquire().await?;
        self.read_tagged_in(&mut connection, query, since).await
    }

    async fn read_after(
        &self,
        position: Position,
        upto: Option<Position>,
        event_types: Option<&[String]>,
        limit: i64,
    ) -> Result<Vec<Event>, ReadError> {
        let query = sqlx::query(self.statements.read_after.clone())
            .bind(position)
            .bind(upto.unwrap_or(Position::MAX))
            .bind(event_types.map(parameter::types))
            .bind(limit.max(0));
        self.stream(query).try_collect().await
    }

    fn read_aggregate(
        &self,
        aggregate_id: AggregateId,
        from: Version,
        to: Option<Version>,
    ) -> BoxStream<'_, Result<Event, ReadError>> {
        let to = to.unwrap_or(Version::MAX);
        let query = sqlx::query(self.statements.read_aggregate.clone())
            .bind(aggregate_id.as_uuid())
            .bind(from)
            .bind(to);
        let name = move |error| self.name_in_aggregate(error, aggregate_id.clone(), (from, to));
        self.stream(query).or_else(name).boxed()
    }

    fn read_aggregate_keeping<'s>(
        &'s self,
        kept: &'s mut Kept,
        aggregate_id: AggregateId,
        from: Version,
        to: Option<Version>,
    ) -> BoxStream<'s, Result<Event, ReadError>> {
        let to = to.unwrap_or(Version::MAX);
        let query = sqlx::query(self.statements.read_aggregate.clone())
            .bind(aggregate_id.as_uuid())
            .bind(from)
            .bind(to);
        let name = move |error| self.name_in_aggregate(error, aggregate_id.clone(), (from, to));
        let reading = async move {
            let connection = connection::acquire(&self.pool, kept).await?;
            Ok(query.fetch(connection).map(|row| self.codec.decode(self.event(&row?)?)))
        };
        reading.try_flatten_stream().or_else(name).boxed()
    }

    fn read_aggregates(&self, aggregate_ids: Vec<AggregateId>) -> BoxStream<'_, Result<Event, ReadError>> {
        let ids: Vec<Option<Uuid>> = aggregate_ids.iter().map(AggregateId::as_uuid).collect();
        self.stream(sqlx::query(self.statements.read_aggregates.clone()).bind(ids))
    }

    async fn read_uuids(&self, uuids: &[Uuid]) -> Result<Vec<Event>, ReadError> {
        self.stream(sqlx::query(self.statements.read_uuids.clone()).bind(uuids)).try_collect().await
    }

    fn read_aggregate_until(
        &self,
        aggregate_id: AggregateId,
        time: DateTime<Utc>,
    ) -> BoxStream<'_, Result<Event, ReadError>> {
        self.stream(
            sqlx::query(self.statements.read_aggregate_until.clone())
                .bind(aggregate_id.as_uuid())
                .bind(StoredTime::no_earlier_than(time)),
        )
    }

    fn read_correlation(&self, correlation_id: Uuid) -> BoxStream<'_, Result<Event, ReadError>> {
        self.stream(sqlx::query(self.statements.read_correlation.clone()).bind(correlation_id))
    }

    fn read_range(
        &self,
        from: Position,
        to: Position,
        event_types: Option<Vec<String>>,
    ) -> BoxStream<'_, Result<Event, ReadError>> {
        let query = sqlx::query(self.statements.read_range.clone()).bind(from).bind(to);
        // The query outlives the names.
        let types = event_types.as_deref().map(parameter::types);
        self.stream(query.bind(types.map(|types| types.into_iter().map(str::to_owned).collect::<Vec<_>>())))
    }

    async fn position_at(&self, time: DateTime<Utc>) -> Result<Position, ReadError> {
        let found = sqlx::query_scalar(self.statements.find_position_at.clone())
            .bind(StoredTime::no_earlier_than(time))
            .fetch_optional(&self.pool)
            .await?;
        Ok(found.unwrap_or_default())
    }

    async fn latest_id(&self, event_types: Option<&[String]>) -> Result<Position, ReadError> {
        let found = sqlx::query_scalar(self.statements.find_latest_id.clone())
            .bind(event_types.map(parameter::types))
            .fetch_optional(&self.pool)
            .await?;
        Ok(found.unwrap_or_default())
    }

    fn as_postgres(&self) -> Option<&PostgresEventStore> {
        Some(self)
    }
}

impl PostgresEventStore {
    /// The next event of these types after a position, settled or not, without its body.
    pub(super) async fn find_next_id(
        &self,
        position: Position,
        event_types: Option<&[String]>,
    ) -> Result<Option<Position>, ReadError> {
        let query = sqlx::query_scalar(self.statements.find_next_id.clone())
            .bind(position)
            .bind(event_types.map(parameter::types));
        Ok(query.fetch_optional(&self.pool).await?)
    }

    /// The event at this position as it is stored, whether or not readers could read it.
    pub(crate) async fn read_as_stored(&self, position: Position) -> Result<Option<Event>, ReadError> {
        let stored = Self::new(self.pool.clone(), self.layout.as_ref().clone().reading_as_stored());
        let events = stored.read_after(position.previous(), Some(position), None, 1).await?;
        Ok(events.into_iter().next())
    }

    /// The event in a row, as it is read through the upcasts.
    pub(super) fn event(&self, row: &PgRow) -> Result<Event, ReadError> {
        let stored = row::event(row)?;
        let position = stored.id;
        self.layout.finish(stored).map_err(|source| ReadError::Unreadable { position, source })
    }

    /// Streams rows as the consumer takes them, so memory stays flat however many there are.
    fn stream<'a>(
        &'a self,
        query: Query<'a, Postgres, PgArguments>,
    ) -> BoxStream<'a, Result<Event, ReadError>> {
        query.fetch(&self.pool).map(|row| self.codec.decode(self.event(&row?)?)).boxed()
    }
}
