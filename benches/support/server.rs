//! The PostgreSQL server of one benchmark.

use std::time::Duration;

use anyhow::Context as _;
use espd::embedded::{EmbeddedPostgres, Options};
use espd::event::{ExpectedVersion, NewEvent};
use espd::internals::todo_history::TodoHistory;
use espd::schema::{migrate_event_store, migrate_processing};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};

use super::SCHEMA;
use super::machine;
use super::processes::processor_time;

const DATABASE: &str = "bench";

/// Events that are loaded with one statement.
const CHUNK_EVENTS: usize = 2_000;

/// A private server with a migrated database. Commits reach the disk, as in production.
pub(crate) struct Server {
    postgres: EmbeddedPostgres,
    pub(crate) pool: PgPool,
    pub(crate) url: String,
    flush_time: Duration,
}

impl Server {
    /// Starts it with these settings besides `shared_buffers`; everything else is PostgreSQL's default.
    pub(crate) async fn start(settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let all = [("shared_buffers", "512MB")].iter().chain(settings);
        let settings = all.map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let postgres = EmbeddedPostgres::start_temporary(Options { settings, ..Options::default() }).await?;
        postgres.create_database(DATABASE, None).await?;
        let url = postgres.url(DATABASE);
        let pool = PgPoolOptions::new().max_connections(20).connect(&url).await?;
        migrate_event_store(&pool, SCHEMA).await?;
        migrate_processing(&pool, SCHEMA).await?;
        let flush_time = machine::look_at(&pool).await?;
        Ok(Self { postgres, pool, url, flush_time })
    }

    /// Makes another database, and returns its URL. Nothing is in it.
    pub(crate) async fn create_database(&self, name: &str) -> anyhow::Result<String> {
        self.postgres.create_database(name, None).await?;
        Ok(self.postgres.url(name))
    }

    /// Stops the server and removes its files.
    pub(crate) async fn stop(self) {
        self.pool.close().await;
        self.postgres.stop().await;
    }

    /// Runs statements that return nothing.
    pub(crate) async fn execute(&self, statements: &str) -> anyhow::Result<()> {
        let result = sqlx::raw_sql(AssertSqlSafe(statements)).execute(&self.pool).await;
        result.map(drop).with_context(|| statements.to_owned())
    }

    /// Writes what is dirty to the disk, so that no measurement pays for the one before.
    pub(crate) async fn settle(&self) -> anyhow::Result<()> {
        self.execute("checkpoint").await
    }

    /// The time of a commit of one row by the only connection: little more than the disk's flush.
    pub(crate) fn flush_time(&self) -> Duration {
        self.flush_time
    }

    /// Fills the store with the first events of a to-do history, in its order.
    pub(crate) async fn load_todo_history(&self, events: usize) -> anyhow::Result<()> {
        let mut history = TodoHistory::new(1);
        let mut left = events;
        while left > 0 {
            let chunk: Vec<_> = history.by_ref().take(left.min(CHUNK_EVENTS)).collect();
            self.insert(&chunk).await?;
            left -= chunk.len();
        }
        self.execute("vacuum analyze espd.events").await
    }

    /// Adds so many small events of the type `T`, each of an aggregate of its own.
    pub(crate) async fn load_small_events(&self, events: usize) -> anyhow::Result<()> {
        let insert = format!(
            "insert into espd.events (aggregate_id, type, version, body)
             select gen_random_uuid(), 'T', 1, jsonb_build_object('n', n) from generate_series(1, {events}) as n"
        );
        self.execute(&insert).await?;
        self.execute("vacuum analyze espd.events").await
    }

    /// Transactions that the database has finished so far.
    pub(crate) async fn transactions(&self) -> anyhow::Result<i64> {
        let statement =
            "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()";
        Ok(sqlx::query_scalar(statement).fetch_one(&self.pool).await?)
    }

    /// Processor time of the server's processes for the daemons that are connected now.
    pub(crate) async fn processor_time_for_daemons(&self) -> anyhow::Result<Duration> {
        let statement = "select pid from pg_stat_activity where application_name like 'espd: %'";
        let pids: Vec<i32> = sqlx::query_scalar(statement).fetch_all(&self.pool).await?;
        // One that has ended since counts no more.
        Ok(pids.iter().filter_map(|pid| processor_time(pid.unsigned_abs()).ok()).sum())
    }

    /// Connections of daemons.
    pub(crate) async fn connections(&self) -> anyhow::Result<i64> {
        let statement = "select count(*) from pg_stat_activity where application_name like 'espd: %'";
        Ok(sqlx::query_scalar(statement).fetch_one(&self.pool).await?)
    }

    /// Inserts events as they are; the history has counted the versions.
    async fn insert(&self, events: &[NewEvent]) -> anyhow::Result<()> {
        let version = |event: &NewEvent| match event.expected_version {
            ExpectedVersion::Exact(version) => version.get() + 1,
            ExpectedVersion::Absent | ExpectedVersion::Any => 1,
        };
        sqlx::query(
            "-- insert_events
             insert into espd.events (uuid, aggregate_id, type, version, body)
             select uuid, aggregate_id, type, version, body::jsonb
             from unnest($1::uuid[], $2::uuid[], $3::text[], $4::bigint[], $5::text[])
               with ordinality as e (uuid, aggregate_id, type, version, body, place)
             order by place",
        )
        .bind(events.iter().map(|event| event.uuid).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.aggregate_id.as_uuid()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.event_type.as_str()).collect::<Vec<_>>())
        .bind(events.iter().map(version).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.body.get()).collect::<Vec<_>>())
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
