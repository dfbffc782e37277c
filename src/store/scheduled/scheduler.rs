//! The scheduler appends scheduled events when they are due. Each daemon has one; they take turns.
//!
//! One SQL function does the work, in one transaction for each hundred events: an event is appended and its row removed
//! together or not at all. So each is appended once, however many daemons there are and whatever ends them.

use std::time::Duration;

use sqlx::{PgConnection, Row as _};
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::postgres::connector::Connector;
use crate::postgres::deadline::in_time;
use crate::postgres::literal::simple;
use crate::postgres::notify::{EVENTS, notify};
use crate::postgres::sqlstate::describe;
use crate::retry::{Retry, RetryPolicy};
use crate::shutdown::Shutdown;
use crate::store::PostgresEventStore;
use crate::store::layout::Layout;

/// Time between two looks at the table while nothing is known to be due. A known event is appended when it is due.
const INTERVAL: Duration = Duration::from_secs(1);

/// Least time between two looks.
const INTERVAL_MIN: Duration = Duration::from_millis(5);

/// How long a transaction may take.
const TRANSACTION_TIME: Duration = Duration::from_secs(60);

/// Appends what applications have scheduled in one store.
#[derive(Debug, Clone)]
pub(crate) struct Scheduler {
    database: Connector,
    /// The quoted schema.
    schema: String,
    /// The channel that subscriptions of the store listen on.
    channel: String,
    /// What is told of the events that are appended; `None`: nothing in this process.
    told: Option<PostgresEventStore>,
}

/// What one look has done.
struct Looked {
    appended: Vec<Uuid>,
    refused: i32,
    /// How long until the next event is due; `None`: there is none.
    left: Option<Duration>,
}

impl Scheduler {
    /// A scheduler of the store in `database`; `None`: espd appends nothing to a store of this layout.
    pub(crate) fn new(database: &Connector, layout: &Layout) -> Option<Self> {
        let channel = layout.append.as_ref()?.channel.clone();
        let database = database.named("espd: scheduler");
        Some(Self { database, schema: layout.quoted_schema(), channel, told: None })
    }

    /// The same scheduler, which calls what `on_appended` of this store names.
    pub(crate) fn telling(self, store: PostgresEventStore) -> Self {
        Self { told: Some(store), ..self }
    }

    /// Appends what is due until the stop is requested, and waits for the end of outages.
    pub(crate) async fn run(&self, mut stop: Shutdown) {
        let mut outages = Retry::new(RetryPolicy::infrastructure());
        while !stop.is_requested() {
            let Some(Err(error)) = stop.run_until_requested(Box::pin(self.serve(&mut outages))).await else {
                return;
            };
            let delay = outages.failed(());
            if outages.attempts() == 1 {
                let (error, retry_in_ms) = (describe(&error), delay.as_millis() as u64);
                warn!(error, retry_in_ms, "scheduled events wait: they cannot be appended now");
            }
            stop.run_until_requested(tokio::time::sleep(delay)).await;
        }
    }

    /// Appends what is due over one connection until the connection fails.
    async fn serve(&self, outages: &mut Retry<()>) -> Result<(), sqlx::Error> {
        let mut connection = in_time(TRANSACTION_TIME, self.database.connect()).await?.connection;
        loop {
            let looked = in_time(TRANSACTION_TIME, self.append_due(&mut connection)).await?;
            if outages.attempts() > 0 {
                info!("scheduled events are appended again");
                outages.succeeded();
            }
            if !looked.appended.is_empty() {
                debug!(events = looked.appended.len(), "appended scheduled events");
                let _ = notify(&mut connection, &self.channel, EVENTS).await;
                if let Some(store) = &self.told {
                    store.tell_stored(&looked.appended).await;
                }
            }
            if looked.refused > 0 {
                let remedy = "espctl emissions list - --refused";
                warn!(
                    events = looked.refused,
                    remedy, "the event store refuses scheduled events: they are put off"
                );
            }
            if looked.appended.is_empty() && looked.refused == 0 {
                let left = looked.left.unwrap_or(INTERVAL);
                tokio::time::sleep(left.clamp(INTERVAL_MIN, INTERVAL)).await;
            }
        }
    }

    async fn append_due(&self, connection: &mut PgConnection) -> Result<Looked, sqlx::Error> {
        let statement = format!("-- append_due\nselect * from {}.append_due_events()", self.schema);
        let row = simple(statement).fetch_one(connection).await?;
        let seconds: Option<f64> = row.try_get("seconds_left")?;
        let left = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok());
        Ok(Looked { appended: row.try_get("appended")?, refused: row.try_get("refused")?, left })
    }
}
