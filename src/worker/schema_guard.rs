//! Keeps a program of before from working on tables that a newer espd has declared to be not for it. A worker of a daemon asks when
//! it starts, and the daemon looks from then on; who has no daemon looks here.

use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::WorkerSettings;
use crate::postgres::connector::Connector;
use crate::schema::SchemaError;
use crate::schema::exclusion::{Tables, find_exclusion};
use crate::store::layout::{CreatedBy, Layout};

/// How long a database may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Time between two looks of a program without a daemon.
const INTERVAL: Duration = Duration::from_secs(5);

/// Looks whether this program may work on the databases of some settings.
pub(super) struct SchemaGuard {
    schema: String,
    places: Vec<Place>,
}

/// A database, with the tables in it that migrations have made.
struct Place {
    database: Connector,
    tables: Vec<Tables>,
    /// Opened when it is needed, dropped when it fails.
    connection: Option<PgConnection>,
}

impl SchemaGuard {
    pub(super) fn new(settings: &WorkerSettings) -> anyhow::Result<Self> {
        let layout = Layout::new(&settings.layout, &settings.event_store_schema)?;
        let of_events = (layout.created_by == CreatedBy::Migrations).then_some(Tables::EventStore);
        let events = settings.event_store_url.connector()?;
        let places = if settings.projections_url.is_some() {
            let batches = settings.direct_batches_url.as_ref().unwrap_or(&settings.batches_url);
            let elsewhere = of_events.map(|tables| Place::new(&events, vec![tables]));
            elsewhere
                .into_iter()
                .chain([Place::new(&batches.connector()?, vec![Tables::Processing])])
                .collect()
        } else {
            let tables = of_events.into_iter().chain([Tables::Processing]).collect();
            vec![Place::new(&events, tables)]
        };
        Ok(Self { schema: settings.event_store_schema.clone(), places })
    }

    /// A guard of no database.
    pub(super) fn of_nothing() -> Self {
        Self { schema: String::new(), places: Vec::new() }
    }

    /// What excludes this program now; `None`: nothing, as far as the databases answer.
    pub(super) async fn find(&mut self) -> Option<SchemaError> {
        for place in &mut self.places {
            match timeout(ANSWER_TIMEOUT, place.find(&self.schema)).await {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(excluded))) => return Some(excluded),
                // Whoever runs on it waits for the end of the outage.
                Ok(Err(error)) => debug!(%error, "could not ask whether the schema is for this program"),
                Err(_elapsed) => debug!("could not ask in time whether the schema is for this program"),
            }
        }
        None
    }

    /// Closes its connections until the next look.
    pub(super) fn close(&mut self) {
        self.places.iter_mut().for_each(|place| place.connection = None);
    }

    /// Returns once something excludes this program.
    pub(super) async fn excluded(&mut self) -> SchemaError {
        loop {
            if let Some(excluded) = self.find().await {
                return excluded;
            }
            sleep(INTERVAL).await;
        }
    }
}

impl Place {
    fn new(database: &Connector, tables: Vec<Tables>) -> Self {
        Self { database: database.named("espd: schema"), tables, connection: None }
    }

    async fn find(&mut self, schema: &str) -> Result<Option<SchemaError>, sqlx::Error> {
        // A look that is cut off or fails leaves no connection behind.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.database.connect().await?.connection,
        };
        let found = find_exclusion(&mut connection, &self.tables, schema).await?;
        self.connection = Some(connection);
        Ok(found)
    }
}
