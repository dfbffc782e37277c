//! A database of one test.

use futures_util::TryStreamExt as _;
use sqlx::postgres::{PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, FromRow, PgPool};

use super::failure::TestFailure;
use super::running::TestRunning;
use super::server;
use crate::aggregate::Repository;
use crate::config::Config;
use crate::daemon::program::Program;
use crate::event::{AggregateId, Appended, Event, EventSet, EventType, NewEvent, Position, Version};
use crate::store::{EventStore as _, Layout, PostgresEventStore};

/// How many connections a test has beside those of its processors.
const CONNECTIONS: u32 = 10;

/// A database of its own, with espd's tables in it, on a private PostgreSQL that the tests of one process share. The first call starts the
/// server, which takes half a second; a database takes some hundredths. The server ends with the process.
///
/// # Errors
/// There are no binaries of PostgreSQL, or the server does not start; the message says what to do.
pub async fn database() -> Result<TestDatabase, TestFailure> {
    let failed = |error: &(dyn std::error::Error + 'static)| TestFailure::new("a database for a test", error);
    let url = server::create_database().await.map_err(|error| failed(&*error))?;
    let settings = PgPoolOptions::new().max_connections(CONNECTIONS);
    let pool = settings.connect(&url).await.map_err(|error| failed(&error))?;
    let config = Config::for_database(&url).map_err(|error| failed(&error))?;
    let layout = Layout::espd(server::SCHEMA).map_err(|error| failed(&error))?;
    Ok(TestDatabase { store: PostgresEventStore::new(pool.clone(), layout), pool, url, config })
}

/// A database of one test. See [`database`].
#[derive(Debug)]
pub struct TestDatabase {
    pool: PgPool,
    url: String,
    store: PostgresEventStore,
    config: Config,
}

impl TestDatabase {
    /// The event store.
    pub fn store(&self) -> &PostgresEventStore {
        &self.store
    }

    /// The aggregates in it.
    pub fn repository(&self) -> Repository<PostgresEventStore> {
        Repository::new(self.store.clone())
    }

    /// Connections for the test, up to ten.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// The URL, for other programs.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The configuration that names the database, to be completed for [`Self::start_with`].
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Appends what has happened before: events of any aggregates.
    ///
    /// # Errors
    /// The store refuses one of them.
    pub async fn given(
        &self,
        events: impl IntoIterator<Item = NewEvent>,
    ) -> Result<Vec<Appended>, TestFailure> {
        let events: Vec<NewEvent> = events.into_iter().collect();
        let appended = self.store.append(&events).await;
        appended.map_err(|error| TestFailure::new("what is given cannot be appended", &error))
    }

    /// As [`Self::given`], events of one aggregate: `db.given_of(&book, espd::events![BookLent { to }])`.
    ///
    /// # Errors
    /// As for [`Self::given`].
    pub async fn given_of<E: EventSet>(
        &self,
        id: impl Into<AggregateId>,
        events: impl IntoIterator<Item = E>,
    ) -> Result<Vec<Appended>, TestFailure> {
        let id = id.into();
        let events: Result<Vec<_>, _> = events.into_iter().map(|event| event.to_new(id.clone())).collect();
        self.given(events.map_err(|error| TestFailure::new("what is given cannot be written", &error))?).await
    }

    /// Runs the processors of a program, the one of `main` for example, until the end of the [`TestRunning`]. They handle what is
    /// given from then on, and what was given before as they would in production: a projector does, and a reactor only if its
    /// registration has a `start`.
    ///
    /// # Errors
    /// They cannot be run as they are declared.
    pub async fn start(&self, program: Program) -> Result<TestRunning<'_>, TestFailure> {
        self.start_with(program, &self.config).await
    }

    /// As [`Self::start`], with a configuration that names this database: [`Self::config`] with more in it.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub async fn start_with(
        &self,
        program: Program,
        config: &Config,
    ) -> Result<TestRunning<'_>, TestFailure> {
        let running = program.start(config).await;
        let running =
            running.map_err(|error| TestFailure::new("the processors cannot be started", &error))?;
        Ok(TestRunning::new(&self.pool, running))
    }

    /// The events of type `E` of one aggregate, in order.
    ///
    /// # Errors
    /// The store cannot be read, or the body of one of them is no `E`.
    pub async fn events<E: EventType>(&self, id: impl Into<AggregateId>) -> Result<Vec<E>, TestFailure> {
        let read =
            self.store.read_aggregate(id.into(), Version::FIRST, None).try_collect::<Vec<Event>>().await;
        read_as(read.map_err(|error| TestFailure::new("the events cannot be read", &error))?)
    }

    /// The events of type `E` of all aggregates, in order.
    ///
    /// # Errors
    /// As for [`Self::events`].
    pub async fn all<E: EventType>(&self) -> Result<Vec<E>, TestFailure> {
        read_as(self.all_events().await?)
    }

    /// All events, in order.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn all_events(&self) -> Result<Vec<Event>, TestFailure> {
        let read = self.store.read_range(Position::START, Position::MAX, None).try_collect().await;
        read.map_err(|error| TestFailure::new("the events cannot be read", &error))
    }

    /// The rows of a query: `db.rows::<(String, i64)>("select title, copies from books order by title")`.
    ///
    /// # Errors
    /// What PostgreSQL says of the query, or the rows are not of this shape.
    pub async fn rows<T>(&self, query: &str) -> Result<Vec<T>, TestFailure>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let rows = sqlx::query_as(AssertSqlSafe(query)).fetch_all(&self.pool).await;
        rows.map_err(|error| TestFailure::new(query, &error))
    }

    /// Removes the database, which makes room. Without it, it is there until the process ends.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn remove(self) -> Result<(), TestFailure> {
        let failed = |error: sqlx::Error| TestFailure::new("the database cannot be removed", &error);
        let name: String = sqlx::query_scalar("-- find_name\nselect current_database()")
            .fetch_one(&self.pool)
            .await
            .map_err(failed)?;
        self.pool.close().await;
        server::drop_database(&name).await.map_err(failed)
    }
}

fn read_as<E: EventType>(events: Vec<Event>) -> Result<Vec<E>, TestFailure> {
    let mut read = Vec::new();
    for event in events {
        let what = format!("event {} is no {}", event.id, E::NAME);
        read.extend(event.read::<E>().map_err(|error| TestFailure::new(&what, &error))?);
    }
    Ok(read)
}
