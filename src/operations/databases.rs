//! The databases that a command works on, as the configuration names them.

use std::path::Path;
use std::str::FromStr as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgPool};

use crate::config::{Config, DatabaseUrl};
use crate::embedded::{EmbeddedPostgres, Options};
use crate::postgres::notify::{CONTROL, notify};
use crate::process::exit_code::Exit;
use crate::processing::tracker::Trackers;
use crate::schema;
use crate::store::layout::{CreatedBy, Layout};
use crate::store::preconditions::{self, PreconditionError};

/// Where `espd` keeps its private PostgreSQL when the configuration names no database.
pub const PRIVATE_FOLDER: &str = ".espd/postgres";

/// The database on the private PostgreSQL.
pub const PRIVATE_DATABASE: &str = "espd";

/// How long a command waits for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The event store and the projections of one configuration.
#[derive(Debug)]
pub struct Databases {
    /// Where the events are.
    pub layout: Layout,
    /// The database of the events.
    pub events: PgPool,
    /// The database of the projections; the same pool where it is the same database.
    pub projections: PgPool,
    /// The schema of the projectors' tables.
    pub projections_schema: String,
}

impl Databases {
    /// Connects to what the configuration names.
    pub async fn connect(config: &Config, program: &str) -> anyhow::Result<Self> {
        let Some(url) = config.direct_event_store_url() else {
            bail!(
                "no database is named: set DATABASE_URL, or write url under [event_store] (a daemon with a private \
                 PostgreSQL prints the DATABASE_URL to use)"
            );
        };
        let events = connect(url, program).await.context("the event store")?;
        let projections = match config.direct_projections_url() {
            None => events.clone(),
            Some(url) => connect(url, program).await.context("the database of the projections")?,
        };
        let layout = Layout::new(&config.event_store.layout, &config.event_store.schema)?;
        Ok(Self { layout, events, projections, projections_schema: config.projections.schema.clone() })
    }

    /// As [`Self::connect`], without connecting now, and with few connections: for those who ask now and
    /// then, also while the database is down. `patience` is how long they wait for a connection.
    pub(crate) fn connect_lazily(
        config: &Config,
        program: &str,
        connections: u32,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let url = config.direct_event_store_url().context("no database is known yet")?;
        let pool = |url| Ok(pool(connections, patience).connect_lazy_with(options(url, program)?));
        let events: PgPool = pool(url)?;
        let elsewhere = config.direct_projections_url();
        let projections: anyhow::Result<PgPool> = elsewhere.map_or_else(|| Ok(events.clone()), pool);
        let layout = Layout::new(&config.event_store.layout, &config.event_store.schema)?;
        Ok(Self {
            layout,
            events,
            projections: projections?,
            projections_schema: config.projections.schema.clone(),
        })
    }

    /// Creates or completes espd's tables. Returns what was done, one line per set.
    pub async fn migrate(&self) -> anyhow::Result<Vec<String>> {
        let schema = self.layout.schema();
        let events = if self.layout.created_by == CreatedBy::Migrations {
            schema::migrate_event_store(&self.events, schema).await?.to_string()
        } else {
            format!("{} is not espd's own, left as it is", self.layout.events_table())
        };
        let processing = schema::migrate_processing(&self.projections, schema).await?;
        Ok(vec![format!("event store: {events}"), format!("processing: {processing}")])
    }

    /// Confirms that espd's tables are there, in the version that this program knows.
    pub async fn check_schema(&self) -> anyhow::Result<()> {
        if self.layout.created_by == CreatedBy::Migrations {
            schema::check_event_store(&self.events, self.layout.schema()).await?;
        }
        schema::check_processing(&self.projections, self.layout.schema()).await?;
        Ok(())
    }

    /// Confirms that the events can be followed safely, by those who have got as far as the trackers say.
    pub async fn check_store(&self) -> anyhow::Result<()> {
        let reached = Trackers::new(self.layout.schema()).largest_position(&self.projections).await?;
        let mut connection = self.events.acquire().await?;
        match preconditions::check(&mut connection, &self.layout, reached).await {
            Err(unmet @ PreconditionError::Unmet(_)) => Err(Exit::configuration(unmet).into()),
            outcome => Ok(outcome?),
        }
    }

    /// Tells the runners that a tracker has changed. Without the notification they notice it a second or two later.
    pub async fn notify_runners(&self) {
        if let Err(error) = notify(&self.events, &self.layout.control_channel(), CONTROL).await {
            tracing::debug!(%error, "could not notify the runners");
        }
    }

    /// Closes all connections.
    pub async fn close(self) {
        self.events.close().await;
        self.projections.close().await;
    }
}

async fn connect(url: &DatabaseUrl, program: &str) -> anyhow::Result<PgPool> {
    let options = options(url, program)?;
    reach(&options).await.with_context(|| format!("could not connect to {url}"))?;
    Ok(pool(4, CONNECT_TIMEOUT).connect_lazy_with(options))
}

fn options(url: &DatabaseUrl, program: &str) -> anyhow::Result<PgConnectOptions> {
    // The error must not repeat the URL, which holds a password.
    let options = PgConnectOptions::from_str(url.expose())
        .map_err(|_| anyhow::anyhow!("{url:?} is not a database URL"))?;
    Ok(options.application_name(program).disable_statement_logging())
}

fn pool(connections: u32, patience: Duration) -> PgPoolOptions {
    PgPoolOptions::new().max_connections(connections).acquire_timeout(patience)
}

/// Connects once. A pool would go on trying and then say no more than that the time is over.
async fn reach(options: &PgConnectOptions) -> anyhow::Result<()> {
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, options.connect()).await;
    let connection = connected.map_err(|_| anyhow::anyhow!("no answer within {CONNECT_TIMEOUT:?}"))??;
    Ok(connection.close().await?)
}

/// Starts the private PostgreSQL in `folder` and makes sure that its database exists.
pub async fn start_private(folder: &Path) -> anyhow::Result<(EmbeddedPostgres, DatabaseUrl)> {
    let server = EmbeddedPostgres::start_at(folder, Options::default()).await?;
    let url = private_database(&server).await?;
    Ok((server, url))
}

/// The URL of the private database on this server, which is created where it is missing.
pub async fn private_database(server: &EmbeddedPostgres) -> anyhow::Result<DatabaseUrl> {
    let admin = PgPoolOptions::new().max_connections(1).connect(&server.url("postgres")).await?;
    let exists: bool = sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
        .bind(PRIVATE_DATABASE)
        .fetch_one(&admin)
        .await?;
    if !exists {
        sqlx::query(AssertSqlSafe(format!("create database {PRIVATE_DATABASE}"))).execute(&admin).await?;
    }
    admin.close().await;
    Ok(DatabaseUrl::new(server.url(PRIVATE_DATABASE))?)
}
