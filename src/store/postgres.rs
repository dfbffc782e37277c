//! The event store in PostgreSQL.
//!
//! Reads are plain statements. How an append comes about is in `postgres/append.rs`.

mod append;
mod parameter;
mod refusal;
mod row;

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, SqlSafeStr, SqlStr};
use uuid::Uuid;

use super::{AppendError, EventStore, ReadError, validity};
use crate::event::{Appended, Event, NewEvent, Position, Version};
use crate::store::layout::Layout;
use crate::store::notifier::Notifier;

/// An event store in PostgreSQL. Cheap to clone: clones share the pool and the notifier.
#[derive(Debug, Clone)]
pub struct PostgresEventStore {
    pool: PgPool,
    layout: Arc<Layout>,
    statements: Arc<Statements>,
    notifier: Option<Notifier>,
}

impl PostgresEventStore {
    /// The store that `layout` describes, which notifies the layout's channel after each append.
    pub fn new(pool: PgPool, layout: Layout) -> Self {
        // Where espd does not append, it has nothing to announce.
        let notifier = layout.append.as_ref().map(|append| Notifier::new(pool.clone(), &append.channel));
        Self { pool, statements: Arc::new(Statements::new(&layout)), layout: Arc::new(layout), notifier }
    }

    /// The shape of the event table.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The connections that it works on.
    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// The same store without notifications: those who follow it find new events when they look next.
    pub fn without_notifications(self) -> Self {
        Self { notifier: None, ..self }
    }

    /// Appends as part of the caller's own transaction on `connection`, in the same way as
    /// [`EventStore::append`].
    ///
    /// After an error the transaction can only be rolled back (to a savepoint). Deadlocks and
    /// serialization failures are for the caller to retry, with the whole transaction. Once it is
    /// committed, [`Self::notify`] spares those who follow the store the wait until they look.
    pub async fn append_in(
        &self,
        connection: &mut PgConnection,
        events: &[NewEvent],
    ) -> Result<Vec<Appended>, AppendError> {
        validity::check(events)?;
        append::append_in_transaction(self.statements.append()?, connection, events).await
    }

    /// The uuids of these that are stored already.
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
        validity::check(events)?;
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let appended = append::append(self.statements.append()?, &self.pool, events).await?;
        self.notify();
        Ok(appended)
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
            .bind(event_types)
            .bind(limit.max(0));
        let rows = query.fetch(&self.pool);
        Ok(rows.and_then(async |row| row::event(&row)).try_collect().await?)
    }

    fn read_aggregate(
        &self,
        aggregate_id: Uuid,
        from: Version,
        to: Option<Version>,
    ) -> BoxStream<'_, Result<Event, ReadError>> {
        let query = sqlx::query(self.statements.read_aggregate.clone())
            .bind(aggregate_id)
            .bind(from)
            .bind(to.unwrap_or(Version::MAX));
        self.stream(query)
    }

    fn read_aggregate_until(
        &self,
        aggregate_id: Uuid,
        time: DateTime<Utc>,
    ) -> BoxStream<'_, Result<Event, ReadError>> {
        self.stream(sqlx::query(self.statements.read_aggregate_until.clone()).bind(aggregate_id).bind(time))
    }

    fn read_range(
        &self,
        from: Position,
        to: Position,
        event_types: Option<Vec<String>>,
    ) -> BoxStream<'_, Result<Event, ReadError>> {
        self.stream(sqlx::query(self.statements.read_range.clone()).bind(from).bind(to).bind(event_types))
    }

    async fn position_at(&self, time: DateTime<Utc>) -> Result<Position, ReadError> {
        let found = sqlx::query_scalar(self.statements.find_position_at.clone())
            .bind(time)
            .fetch_optional(&self.pool)
            .await?;
        Ok(found.unwrap_or_default())
    }

    async fn latest_id(&self, event_types: Option<&[String]>) -> Result<Position, ReadError> {
        let found = sqlx::query_scalar(self.statements.find_latest_id.clone())
            .bind(event_types)
            .fetch_optional(&self.pool)
            .await?;
        Ok(found.unwrap_or_default())
    }
}

impl PostgresEventStore {
    /// Rows are fetched as the consumer takes them, so memory stays flat however many there are.
    fn stream<'a>(
        &'a self,
        query: Query<'a, Postgres, PgArguments>,
    ) -> BoxStream<'a, Result<Event, ReadError>> {
        query.fetch(&self.pool).map(|row| Ok(row::event(&row?)?)).boxed()
    }
}

/// Appends to a store in transactions of others, also behind a pooler.
#[derive(Debug)]
pub(crate) struct TransactionAppender(append::Statements);

impl TransactionAppender {
    /// `None`: espd only reads a store of this layout.
    pub(crate) fn new(layout: &Layout) -> Option<Self> {
        let append = layout.append.as_ref()?;
        Some(Self(append::Statements::unprepared(layout, append)))
    }

    /// The uuids of these that are stored already.
    pub(crate) async fn find_stored(
        &self,
        connection: &mut PgConnection,
        uuids: &[Uuid],
    ) -> Result<Vec<Uuid>, sqlx::Error> {
        append::find_stored(&self.0, connection, uuids).await
    }

    /// As [`PostgresEventStore::append_in`].
    pub(crate) async fn append(
        &self,
        connection: &mut PgConnection,
        events: &[NewEvent],
    ) -> Result<Vec<Appended>, AppendError> {
        validity::check(events)?;
        append::append_in_transaction(&self.0, connection, events).await
    }
}

/// As [`EventStore::read_after`], on a connection that may lead through a pooler: nothing stays prepared.
pub(crate) async fn read_after_on(
    connection: &mut PgConnection,
    layout: &Layout,
    position: Position,
    upto: Position,
    event_types: Option<&[String]>,
    limit: i64,
) -> Result<Vec<Event>, sqlx::Error> {
    let query = sqlx::query(sql(read_after(layout))).persistent(false);
    let query = query.bind(position).bind(upto).bind(event_types).bind(limit.max(0));
    query.fetch(connection).and_then(async |row| row::event(&row)).try_collect().await
}

/// As [`EventStore::read_aggregate`] from the first version, on a connection that may lead through a pooler.
pub(crate) async fn read_aggregate_on(
    connection: &mut PgConnection,
    layout: &Layout,
    aggregate_id: Uuid,
    upto: Version,
) -> Result<Vec<Event>, sqlx::Error> {
    let query = sqlx::query(sql(read_aggregate(layout))).persistent(false);
    let query = query.bind(aggregate_id).bind(Version::FIRST).bind(upto);
    query.fetch(connection).and_then(async |row| row::event(&row)).try_collect().await
}

fn read_aggregate(layout: &Layout) -> String {
    format!(
        "-- read_aggregate
        select {} from {} as e
        where aggregate_id = $1 and version between $2 and $3
        order by version",
        row::COLUMNS,
        layout.source()
    )
}

fn read_after(layout: &Layout) -> String {
    let (columns, source) = (row::COLUMNS, layout.source());
    let wanted = "id > $1 and id <= $2 and ($3::text[] is null or type = any ($3)) order by id limit $4";
    if !layout.may_be_unreadable() {
        return format!("-- read_events_after\nselect {columns} from {source} as e where {wanted}");
    }
    // A plan may compute what is selected before it sorts and cuts off. So first come the ids: a body that cannot be read
    // must not be an error of those who want the events before it.
    format!(
        "-- read_events_after
        select {columns} from {source} as e
        where id = any (array(select id from {source} as e where {wanted}))
        order by id"
    )
}

/// The store's statements, with the layout's names filled in once.
#[derive(Debug)]
struct Statements {
    read_after: SqlStr,
    read_aggregate: SqlStr,
    read_aggregate_until: SqlStr,
    read_range: SqlStr,
    find_position_at: SqlStr,
    find_latest_id: SqlStr,
    /// None in a store that espd only reads.
    append: Option<append::Statements>,
}

impl Statements {
    fn new(layout: &Layout) -> Self {
        let (events, columns) = (format!("{} as e", layout.source()), row::COLUMNS);
        Self {
            read_after: sql(read_after(layout)),
            read_aggregate: sql(read_aggregate(layout)),
            read_aggregate_until: sql(format!(
                "-- read_aggregate_until
                select {columns} from {events}
                where aggregate_id = $1 and version <= (
                  select max(version) from {events} where aggregate_id = $1 and created_at <= $2)
                order by version"
            )),
            read_range: sql(format!(
                "-- read_event_range
                select {columns} from {events}
                where id between $1 and $2 and ($3::text[] is null or type = any ($3))
                order by id"
            )),
            find_position_at: sql(format!(
                "-- find_position_at
                select id from {events} where created_at <= $1 order by id desc limit 1"
            )),
            find_latest_id: sql(format!(
                "-- find_latest_id
                select id from {events}
                where $1::text[] is null or type = any ($1)
                order by id desc
                limit 1"
            )),
            append: layout.append.as_ref().map(|append| append::Statements::new(layout, append)),
        }
    }

    fn append(&self) -> Result<&append::Statements, AppendError> {
        self.append.as_ref().ok_or_else(|| {
            let reason =
                "espd only reads a store of this layout: append through its own application".to_owned();
            AppendError::Invalid { index: None, reason }
        })
    }
}

/// Statement text. The only foreign parts in it are names from a [`Layout`], checked and quoted.
fn sql(text: String) -> SqlStr {
    AssertSqlSafe(text).into_sql_str()
}
