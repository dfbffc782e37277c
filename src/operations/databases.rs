//! The databases that a command works on, as the configuration names them: connects, migrates and checks them.

pub(crate) mod usable;
pub(crate) mod ways;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection as _, PgPool};

use crate::config::{Config, DatabaseUrl};
use crate::embedded::{EmbeddedPostgres, Options};
use crate::postgres::connector::{Connected, Connector};
use crate::postgres::notify::{CONTROL, notify};
use crate::postgres::sql_scope::SqlScope;
use crate::postgres::sqlstate::describe;
use crate::process::exit_code::Exit;
use crate::processing::rebuild::SHARES_MAX;
use crate::schema::exclusion::{Tables, find_exclusion};
use crate::schema::{self, SchemaError};
use crate::store::PostgresEventStore;
use crate::store::layout::{CreatedBy, Layout};
use crate::store::preconditions::{self, PreconditionError};
use crate::store::upcast::Upcast;

/// The folder of the private PostgreSQL that `espd` starts if the configuration names no database.
pub(crate) const PRIVATE_FOLDER: &str = ".espd/postgres";

/// The name of the database on the private PostgreSQL.
pub(crate) const PRIVATE_DATABASE: &str = "espd";

/// How long a command waits for a connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A session begins with this whose user only looks: a lock is waited for ten seconds.
const LOOK_BRIEFLY: &str = "-- look_briefly\nset lock_timeout = '10s'";

/// The most connections of a command to a database: five, and one for each of the workers of a rebuild. Each is opened when it is
/// needed.
const CONNECTIONS_MAX: u32 = 5 + SHARES_MAX.unsigned_abs();

/// After how long a connection that nobody uses is closed: what looks once a minute keeps none in between.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The event store and the projections of one configuration.
#[derive(Debug, Clone)]
pub(crate) struct Databases {
    /// Schema, tables and columns of the events.
    pub layout: Layout,
    /// The database of the events.
    pub events: PgPool,
    /// The database of the projections: the same pool if it is the same database.
    pub projections: PgPool,
    /// Where the projectors' tables are, and what SQL means there.
    pub scope: SqlScope,
    /// Whether the projections are in another database than the events.
    pub elsewhere: bool,
    /// How the configuration has old events read as new ones. The layout does so only where that is asked for.
    pub upcasts: Vec<Upcast>,
    /// Whether daemons with this configuration build raised versions.
    pub daemons_build: bool,
}

/// What is needed of the sessions.
#[derive(Debug, Clone, Copy)]
struct Sessions {
    /// What each begins with; empty: nothing.
    statement: &'static str,
    /// Whether a pooler that mixes them is refused; otherwise somebody else has looked at the ways, or will tell of them.
    must_last: bool,
}

impl Databases {
    /// The same databases, in which old events are read as new ones: for whoever handles events.
    pub(crate) fn with_upcasts(&self, upcasts: &[Upcast]) -> Self {
        Self { layout: self.layout.clone().with_upcasts(upcasts), ..self.clone() }
    }

    /// The events as they are stored, for people who look at them: also those that no handler could read.
    pub(crate) fn stored_events(&self) -> PostgresEventStore {
        PostgresEventStore::new(self.events.clone(), self.layout.clone().reading_as_stored())
    }

    /// Connects to the databases that the configuration names. `program` is the `application_name` of the sessions.
    ///
    /// # Errors
    /// No database is named, one does not answer within ten seconds, or `url` leads to another database than `direct_url`.
    pub(crate) async fn connect(config: &Config, program: &str) -> anyhow::Result<Self> {
        ways::require_same(config, program, CONNECT_TIMEOUT).await?;
        Self::connect_prepared(config, program, CONNECT_TIMEOUT, Sessions { statement: "", must_last: true })
            .await
    }

    /// As [`Self::connect`], for whoever only looks: he does not wait long for a lock.
    pub(crate) async fn connect_to_look(config: &Config, program: &str) -> anyhow::Result<Self> {
        ways::require_same(config, program, CONNECT_TIMEOUT).await?;
        let sessions = Sessions { statement: LOOK_BRIEFLY, must_last: true };
        Self::connect_prepared(config, program, CONNECT_TIMEOUT, sessions).await
    }

    /// As [`Self::connect_directly`], for whoever only looks.
    pub(crate) async fn connect_directly_to_look(
        config: &Config,
        program: &str,
        limit: Duration,
    ) -> anyhow::Result<Self> {
        let sessions = Sessions { statement: LOOK_BRIEFLY, must_last: false };
        Self::connect_prepared(config, program, limit, sessions).await
    }

    /// As [`Self::connect`], with another limit for each connection, and without comparing the ways to a database.
    pub(crate) async fn connect_directly(
        config: &Config,
        program: &str,
        limit: Duration,
    ) -> anyhow::Result<Self> {
        Self::connect_prepared(config, program, limit, Sessions { statement: "", must_last: false }).await
    }

    async fn connect_prepared(
        config: &Config,
        program: &str,
        limit: Duration,
        sessions: Sessions,
    ) -> anyhow::Result<Self> {
        let Some(url) = config.direct_event_store_url() else {
            bail!(
                "no database is named: set DATABASE_URL, or write url under [event_store] (a daemon with a private \
                 PostgreSQL prints the DATABASE_URL to use, and needs none of that in the folder that it runs in)"
            );
        };
        let one = async |section, direct_url: &Option<DatabaseUrl>, url: &DatabaseUrl| {
            let key = if direct_url.is_some() { "direct_url" } else { "url" };
            connect((section, key), url, program, limit, sessions).await
        };
        let events = one("[event_store]", &config.event_store.direct_url, url).await;
        let events = events.context("the event store")?;
        let projections = match config.direct_projections_url() {
            None => events.clone(),
            Some(url) => one("[projections]", &config.projections.direct_url, url)
                .await
                .context("the database of the projections")?,
        };
        let layout = Layout::new(&config.event_store.layout, &config.event_store.schema)?;
        Ok(Self {
            layout,
            events,
            projections,
            scope: config.projections.scope(),
            elsewhere: config.direct_projections_url().is_some(),
            upcasts: config.upcasts.clone(),
            daemons_build: config.rebuild.parallelism > 0,
        })
    }

    /// As [`Self::connect`], but connects when a connection is first needed, also after the database was down. `patience`
    /// is how long a query waits for one of the `connections`. Sessions begin with `statement`, if it is not empty.
    pub(crate) fn connect_lazily(
        config: &Config,
        program: &str,
        connections: u32,
        patience: Duration,
        statement: &'static str,
    ) -> anyhow::Result<Self> {
        let url = config.direct_event_store_url().context("no database is known yet")?;
        let pool = |url: &DatabaseUrl| {
            let connector = url.connector()?.named(program);
            Ok(connector.prepared_searching_pool(pool(connections, patience), statement))
        };
        let events: PgPool = pool(url)?;
        let elsewhere = config.direct_projections_url();
        let projections: anyhow::Result<PgPool> = elsewhere.map_or_else(|| Ok(events.clone()), pool);
        let layout = Layout::new(&config.event_store.layout, &config.event_store.schema)?;
        let (scope, elsewhere) = (config.projections.scope(), elsewhere.is_some());
        let upcasts = config.upcasts.clone();
        let daemons_build = config.rebuild.parallelism > 0;
        Ok(Self { layout, events, projections: projections?, scope, elsewhere, upcasts, daemons_build })
    }

    /// Creates espd's tables or migrates them. Returns what was done, one line for each set of migrations.
    pub(crate) async fn migrate(&self) -> anyhow::Result<Vec<String>> {
        let (schema, names) = (self.layout.schema(), self.layout.names());
        let events = if self.layout.created_by == CreatedBy::Migrations {
            schema::migrate_event_store_named(&self.events, schema, names).await?.to_string()
        } else {
            format!("{} does not belong to espd and was not changed", self.layout.events_table())
        };
        let processing = schema::migrate_processing_named(&self.projections, schema, names).await?;
        Ok(vec![format!("event store: {events}"), format!("processing: {processing}")])
    }

    /// The SQL that [`Self::migrate`] would run now, as comments and statements.
    pub(crate) async fn plan_migration(&self) -> anyhow::Result<String> {
        let (schema, names) = (self.layout.schema(), self.layout.names());
        let events = if self.layout.created_by == CreatedBy::Migrations {
            schema::plan_event_store(&self.events, schema, names).await?
        } else {
            format!(
                "-- event store: {} does not belong to espd and is not changed\n",
                self.layout.events_table()
            )
        };
        Ok(format!("{events}\n{}", schema::plan_processing(&self.projections, schema, names).await?))
    }

    /// Checks that espd's tables exist in a version that this program works with.
    pub(crate) async fn check_schema(&self) -> Result<(), SchemaError> {
        let (schema, names) = (self.layout.schema(), self.layout.names());
        if self.layout.created_by == CreatedBy::Migrations {
            schema::check_event_store_named(&self.events, schema, names).await?;
        }
        schema::check_processing_named(&self.projections, schema, names).await?;
        Ok(())
    }

    /// Whether a newer espd has declared the tables to be not for this program, as far as the databases answer.
    pub(crate) async fn is_for_newer_programs(&self) -> bool {
        let is_migrated = self.layout.created_by == CreatedBy::Migrations;
        let of_events = is_migrated.then_some((&self.events, Tables::EventStore));
        for (pool, tables) in of_events.into_iter().chain([(&self.projections, Tables::Processing)]) {
            let Ok(mut connection) = pool.acquire().await else { continue };
            let found = find_exclusion(&mut connection, &[tables], self.layout.schema()).await;
            if found.is_ok_and(|found| found.is_some()) {
                return true;
            }
        }
        false
    }

    /// Checks that no processor would miss events. A processor whose position is not one of this store stops by itself, as
    /// `diverged`, and keeps no other one from running.
    pub(crate) async fn check_store(&self) -> anyhow::Result<()> {
        let mut connection = self.events.acquire().await?;
        match preconditions::check(&mut connection, &self.layout).await {
            Err(unmet @ PreconditionError::Unmet(_)) => Err(Exit::configuration(unmet).into()),
            outcome => Ok(outcome?),
        }
    }

    /// Tells the runners that a tracker has changed. Without the notification they notice it a second or two later.
    pub(crate) async fn notify_runners(&self) {
        if let Err(error) = notify(&self.events, &self.layout.control_channel(), CONTROL).await {
            tracing::debug!(error = describe(&error), "could not notify the runners");
        }
    }

    /// Closes all connections.
    pub(crate) async fn close(self) {
        self.events.close().await;
        self.projections.close().await;
    }
}

/// Connects to what a key of the configuration, with its section, names.
async fn connect(
    place: (&'static str, &'static str),
    url: &DatabaseUrl,
    program: &str,
    limit: Duration,
    sessions: Sessions,
) -> anyhow::Result<PgPool> {
    let connector = url.connector()?.named(program);
    // A pool would keep trying and then report nothing but a timeout.
    let mut connected =
        reach(&connector, limit).await.with_context(|| format!("could not connect to {url}"))?;
    if sessions.must_last {
        ways::refuse_pooled(place, &mut connected, &connector).await?;
    }
    let options = connected.options;
    connected.connection.close().await?;
    Ok(connector.make_pool(pool(CONNECTIONS_MAX, limit), options, sessions.statement))
}

fn pool(connections: u32, patience: Duration) -> PgPoolOptions {
    PgPoolOptions::new().max_connections(connections).acquire_timeout(patience).idle_timeout(IDLE_TIMEOUT)
}

async fn reach(connector: &Connector, limit: Duration) -> anyhow::Result<Connected> {
    let connected = tokio::time::timeout(limit, connector.connect()).await;
    Ok(connected.map_err(|_| anyhow::anyhow!("no answer within {limit:?}"))??)
}

/// Starts the private PostgreSQL in `folder` and creates its database if it does not exist.
pub(crate) async fn start_private(folder: &Path) -> anyhow::Result<(EmbeddedPostgres, DatabaseUrl)> {
    let server = EmbeddedPostgres::start_at(folder, Options::default()).await?;
    let url = private_database(&server).await?;
    Ok((server, url))
}

/// The URL of the private database that a daemon, started in this folder, runs; `None`: none does.
pub(crate) fn running_private_database() -> Option<DatabaseUrl> {
    let url = EmbeddedPostgres::url_of_running(Path::new(PRIVATE_FOLDER), PRIVATE_DATABASE)?;
    DatabaseUrl::new(url).ok()
}

/// The URL of the private database on this server. Creates the database if it does not exist.
pub(crate) async fn private_database(server: &EmbeddedPostgres) -> anyhow::Result<DatabaseUrl> {
    let admin = PgPoolOptions::new().max_connections(1).connect(&server.url("postgres")).await?;
    let exists: bool = sqlx::query_scalar(
        "-- find_private_database\nselect exists (select from pg_database where datname = $1)",
    )
    .bind(PRIVATE_DATABASE)
    .fetch_one(&admin)
    .await?;
    if !exists {
        let statement = format!("-- create_private_database\ncreate database {PRIVATE_DATABASE}");
        sqlx::query(AssertSqlSafe(statement)).execute(&admin).await?;
    }
    admin.close().await;
    Ok(DatabaseUrl::new(server.url(PRIVATE_DATABASE))?)
}
