//! The event store in one file, by SQLite.

mod answer;
mod append;
mod following;
mod opened_file;
mod opening;
pub(crate) mod row;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sqlx::sqlite::SqliteRow;
use sqlx::{Sqlite, SqliteConnection, SqlitePool};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use uuid::Uuid;

use super::appended_hook::AppendedHook;
use super::codec::{BodyCodec, Codec};
use super::{AppendError, EventStore, EventStream, ReadError};
use crate::event::{AggregateId, Appended, Event, NewEvent, Position, Version};

pub(super) use answer::is_final;
pub use opening::SqliteOpenError;

use opened_file::OpenedFile;

/// The most events of a page. A stream holds no connection between two of them.
const PAGE_EVENTS: i64 = 100;

/// An event store in one file, by SQLite: for tests, tools and applications that are one file. Clones are the same store.
///
/// It behaves as [`PostgresEventStore`](super::PostgresEventStore) does, and passes the same
/// [`conformance`](super::conformance) suite. There is one writer at a time: an append waits for the one before, also for those of
/// other programs, whose appends are noticed within a tenth of a second. So ids have no holes, and an event that can be read is settled.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use espd::prelude::*;
/// use espd::store::SqliteEventStore;
/// # #[derive(serde::Serialize, serde::Deserialize)] struct TodoAdded { title: String }
/// # espd::event_type!(TodoAdded);
/// # let folder = std::env::temp_dir().join(Uuid::new_v4().to_string());
/// # std::fs::create_dir(&folder)?;
///
/// let store = SqliteEventStore::open(folder.join("todos.db")).await?;
/// let todo = Uuid::new_v4();
/// let added = NewEvent::of(todo, &TodoAdded { title: "buy milk".into() })?.expecting(ExpectedVersion::Absent);
/// let appended = store.append(&[added]).await?;
/// assert_eq!((appended[0].id, appended[0].version), (1.into(), 1.into()));
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct SqliteEventStore {
    shared: Arc<Shared>,
    codec: Codec,
    on_appended: AppendedHook,
}

/// What the clones of a store share.
#[derive(Debug)]
struct Shared {
    pool: SqlitePool,
    /// A connection that nobody uses, which keeps a store in memory.
    _keeper: Option<SqliteConnection>,
    /// The file, as messages name it.
    file: String,
    /// Where the file is; `None`: the store is in memory.
    path: Option<PathBuf>,
    /// The file that was opened; `None`: the store is in memory.
    opened: Option<OpenedFile>,
    /// Held by the one who writes.
    writer: Arc<Mutex<()>>,
    /// Marked as changed by what this process has written: a reason to look.
    written: watch::Sender<()>,
}

/// A transaction that is the only one that writes.
pub(crate) struct WriteTransaction {
    pub(crate) transaction: sqlx::Transaction<'static, Sqlite>,
    shared: Arc<Shared>,
    _turn: OwnedMutexGuard<()>,
}

impl Shared {
    /// The connections, as long as the file is still under its name.
    fn connections(&self) -> Result<&SqlitePool, sqlx::Error> {
        if let Some(opened) = &self.opened {
            opened.require_there(&self.file)?;
        }
        Ok(&self.pool)
    }
}

impl SqliteEventStore {
    /// Opens a file, which is created if it is not there; `:memory:` is a new store that is gone with its last clone.
    ///
    /// # Errors
    /// The file cannot be opened, or belongs to somebody else.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, SqliteOpenError> {
        let path = path.as_ref();
        let opening::Opened { pool, keeper, file: opened } = opening::open(path).await?;
        let is_in_memory = keeper.is_some();
        let shared = Shared {
            pool,
            _keeper: keeper,
            file: path.display().to_string(),
            path: (!is_in_memory).then(|| path.to_owned()),
            opened,
            writer: Arc::default(),
            written: watch::Sender::default(),
        };
        Ok(Self { shared: Arc::new(shared), codec: Codec::default(), on_appended: AppendedHook::default() })
    }

    /// The same store, whose bodies are encoded when they are appended and decoded when they are read.
    #[must_use]
    pub fn with_codec(self, codec: impl BodyCodec) -> Self {
        Self { codec: Codec::new(codec), ..self }
    }

    /// The same store, which calls `hook` with the stored events after each append, as
    /// [`PostgresEventStore::on_appended`](super::PostgresEventStore::on_appended) says.
    #[must_use]
    pub fn on_appended(self, hook: impl Fn(&[Event]) + Send + Sync + 'static) -> Self {
        Self { on_appended: AppendedHook::new(hook), ..self }
    }

    /// The connections to the file, for tables of the application in the same file. A transaction that writes keeps appends
    /// waiting, and holds the only connection of a store in memory.
    pub fn pool(&self) -> &SqlitePool {
        &self.shared.pool
    }

    /// Follows the store, as [`PostgresEventStore::subscribe`](super::PostgresEventStore::subscribe) does.
    pub fn subscribe(&self, event_types: Option<&[String]>, after: Option<Position>) -> EventStream {
        let store = self.clone();
        EventStream::new(self.clone(), move || following::watch(&store), event_types, after)
    }

    /// Where the file is; `None`: the store is in memory.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.shared.path.as_deref()
    }

    /// The same store, whose bodies are those that are stored, and which calls no hook.
    pub(crate) fn as_stored(&self) -> Self {
        let shared = Arc::clone(&self.shared);
        Self { shared, codec: Codec::default(), on_appended: AppendedHook::default() }
    }

    /// Begins a transaction that writes, once nobody else does.
    pub(crate) async fn begin_writing(&self) -> Result<WriteTransaction, sqlx::Error> {
        let turn = Arc::clone(&self.shared.writer).lock_owned().await;
        let begun = self.shared.connections()?.begin_with("begin immediate").await;
        let transaction = begun.map_err(|error| self.explain(error))?;
        Ok(WriteTransaction { transaction, shared: Arc::clone(&self.shared), _turn: turn })
    }

    /// Tells those who follow the store that there is something new.
    pub(crate) fn notify(&self) {
        self.shared.written.send_replace(());
    }

    /// Appends those of the events, as they are stored, that are not stored yet.
    pub(crate) async fn append_missing(
        &self,
        writing: &mut WriteTransaction,
        events: &[NewEvent],
    ) -> Result<(), AppendError> {
        append::append_missing(&mut writing.transaction, events)
            .await
            .map_err(|error| self.explain_append(error))
    }

    fn explain(&self, error: sqlx::Error) -> sqlx::Error {
        answer::explain(&self.shared.file, error)
    }

    fn explain_append(&self, error: AppendError) -> AppendError {
        match error {
            AppendError::Database(error) => AppendError::Database(self.explain(error)),
            other => other,
        }
    }

    fn decode(&self, row: &SqliteRow) -> Result<Event, ReadError> {
        self.codec.decode(row::event(row)?)
    }

    /// Streams events page by page. `read` reads those after an event, or the first ones.
    fn pages<F, Reading>(
        &self,
        first: i64,
        after: fn(&Event) -> i64,
        read: F,
    ) -> BoxStream<'_, Result<Event, ReadError>>
    where
        F: Fn(i64) -> Reading + Send + Sync + 'static,
        Reading: Future<Output = Result<Vec<SqliteRow>, sqlx::Error>> + Send + 'static,
    {
        let read = Arc::new(read);
        let page = move |next: Option<i64>| {
            let read = Arc::clone(&read);
            async move {
                let Some(next) = next else { return Ok::<_, ReadError>(None) };
                self.shared.connections()?;
                let rows = read(next).await.map_err(|error| self.explain(error))?;
                let is_last = (rows.len() as i64) < PAGE_EVENTS;
                let last = rows.last().map(row::event).transpose()?;
                let next = last.filter(|_| !is_last).map(|last| after(&last));
                let events: Vec<_> = rows.iter().map(|row| self.decode(row)).collect();
                Ok(Some((stream::iter(events), next)))
            }
        };
        stream::try_unfold(Some(first), page).try_flatten().boxed()
    }

    async fn tell_appended(&self, appended: &[Appended]) {
        let (Some(first), Some(last)) = (appended.first(), appended.last()) else { return };
        if !self.on_appended.is_set() {
            return;
        }
        // A repeated append may be of events that lie apart.
        let ids = (first.id.min(last.id), first.id.max(last.id));
        let stored: Result<Vec<Event>, ReadError> = self.read_range(ids.0, ids.1, None).try_collect().await;
        match stored {
            Ok(mut events) => {
                events.retain(|event| appended.iter().any(|new| new.id == event.id));
                self.on_appended.call(&events);
            }
            Err(error) => {
                tracing::error!(%error, "on_appended is not called: the events could not be read again")
            }
        }
    }
}

/// A condition on the type, which is bound as JSON; null stands for all types.
macro_rules! of_type {
    ($parameter:literal) => {
        concat!("(", $parameter, " is null or type in (select value from json_each(", $parameter, ")))")
    };
}

/// What the condition on the type is bound to.
fn json_types(types: Option<&[String]>) -> Option<String> {
    types.map(append::texts)
}

#[async_trait]
impl EventStore for SqliteEventStore {
    async fn append(&self, events: &[NewEvent]) -> Result<Vec<Appended>, AppendError> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let events = &*self.codec.encode_all(events).await?;
        let mut writing = self.begin_writing().await?;
        let appended = append::append(&mut writing.transaction, events).await;
        let appended = appended.map_err(|error| self.explain_append(error))?;
        writing.commit().await.map_err(|error| self.explain(error))?;
        self.notify();
        self.tell_appended(&appended).await;
        Ok(appended)
    }

    async fn read_after(
        &self,
        position: Position,
        upto: Option<Position>,
        event_types: Option<&[String]>,
        limit: i64,
    ) -> Result<Vec<Event>, ReadError> {
        let statement = concat!(
            "-- read_after\nselect ",
            row::columns!(),
            " from events where id > ?1 and id <= ?2 and ",
            of_type!("?3"),
            " order by id limit ?4"
        );
        let query = sqlx::query(statement)
            .bind(position.get())
            .bind(upto.unwrap_or(Position::MAX).get())
            .bind(json_types(event_types))
            .bind(limit.max(0));
        let rows = query.fetch_all(self.shared.connections()?).await.map_err(|error| self.explain(error))?;
        rows.iter().map(|row| self.decode(row)).collect()
    }

    fn read_aggregate(
        &self,
        aggregate_id: AggregateId,
        from: Version,
        to: Option<Version>,
    ) -> BoxStream<'_, Result<Event, ReadError>> {
        let statement = concat!(
            "-- read_aggregate\nselect ",
            row::columns!(),
            " from events where aggregate_id = ? and version > ? and version <= ? order by version limit ?"
        );
        let (pool, id, to) =
            (self.shared.pool.clone(), aggregate_id.to_string(), to.unwrap_or(Version::MAX).get());
        self.pages(
            from.get().saturating_sub(1),
            |event| event.version.get(),
            move |after| {
                let query = sqlx::query(statement).bind(id.clone()).bind(after).bind(to).bind(PAGE_EVENTS);
                let pool = pool.clone();
                async move { query.fetch_all(&pool).await }
            },
        )
    }

    async fn read_uuids(&self, uuids: &[Uuid]) -> Result<Vec<Event>, ReadError> {
        let statement = concat!(
            "-- read_uuids\nselect ",
            row::columns!(),
            " from events where uuid in (select value from json_each(?)) order by id"
        );
        let texts: Vec<String> = uuids.iter().map(Uuid::to_string).collect();
        let query = sqlx::query(statement).bind(append::texts(&texts));
        let rows = query.fetch_all(self.shared.connections()?).await.map_err(|error| self.explain(error))?;
        rows.iter().map(|row| self.decode(row)).collect()
    }

    fn read_aggregate_until(
        &self,
        aggregate_id: AggregateId,
        time: DateTime<Utc>,
    ) -> BoxStream<'_, Result<Event, ReadError>> {
        let statement = "-- find_version_at
            select coalesce(max(version), 0) from events where aggregate_id = ? and created_at <= ?";
        let id = aggregate_id.to_string();
        let last = async move {
            let query = sqlx::query_scalar(statement).bind(id).bind(time.timestamp_micros());
            let last: i64 =
                query.fetch_one(self.shared.connections()?).await.map_err(|error| self.explain(error))?;
            Ok::<_, ReadError>(self.read_aggregate(aggregate_id, Version::FIRST, Some(last.into())))
        };
        stream::once(last).try_flatten().boxed()
    }

    fn read_correlation(&self, correlation_id: Uuid) -> BoxStream<'_, Result<Event, ReadError>> {
        let statement = concat!(
            "-- read_correlation\nselect ",
            row::columns!(),
            " from events where (correlation_id = ?1 or uuid = ?1) and id > ?2 order by id limit ?3"
        );
        let (pool, id) = (self.shared.pool.clone(), correlation_id.to_string());
        self.pages(
            0,
            |event| event.id.get(),
            move |after| {
                let query = sqlx::query(statement).bind(id.clone()).bind(after).bind(PAGE_EVENTS);
                let pool = pool.clone();
                async move { query.fetch_all(&pool).await }
            },
        )
    }

    fn read_range(
        &self,
        from: Position,
        to: Position,
        event_types: Option<Vec<String>>,
    ) -> BoxStream<'_, Result<Event, ReadError>> {
        let statement = concat!(
            "-- read_range\nselect ",
            row::columns!(),
            " from events where id > ?1 and id <= ?2 and ",
            of_type!("?3"),
            " order by id limit ?4"
        );
        let (pool, types) = (self.shared.pool.clone(), json_types(event_types.as_deref()));
        self.pages(
            from.previous().get(),
            |event| event.id.get(),
            move |after| {
                let query =
                    sqlx::query(statement).bind(after).bind(to.get()).bind(types.clone()).bind(PAGE_EVENTS);
                let pool = pool.clone();
                async move { query.fetch_all(&pool).await }
            },
        )
    }

    async fn position_at(&self, time: DateTime<Utc>) -> Result<Position, ReadError> {
        let statement = "-- find_position_at\nselect coalesce(max(id), 0) from events where created_at <= ?";
        let query = sqlx::query_scalar(statement).bind(time.timestamp_micros());
        let found: i64 =
            query.fetch_one(self.shared.connections()?).await.map_err(|error| self.explain(error))?;
        Ok(found.into())
    }

    async fn latest_id(&self, event_types: Option<&[String]>) -> Result<Position, ReadError> {
        let statement = concat!(
            "-- find_latest\nselect id from events where ",
            of_type!("?1"),
            " order by id desc limit 1"
        );
        let query = sqlx::query_scalar(statement).bind(json_types(event_types));
        let found: Option<i64> =
            query.fetch_optional(self.shared.connections()?).await.map_err(|error| self.explain(error))?;
        Ok(found.unwrap_or(0).into())
    }
}

impl WriteTransaction {
    /// # Errors
    /// The commit has failed, or the file has lost its name meanwhile, so that what was written is lost.
    pub(crate) async fn commit(self) -> Result<(), sqlx::Error> {
        self.transaction.commit().await?;
        self.shared.connections().map(drop)
    }
}
