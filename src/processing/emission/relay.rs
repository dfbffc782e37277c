//! The relay moves pending emissions into the event store when they are due.
//!
//! Each worker that runs reactors has one relay, on a connection of its own. The relay locks the rows that it moves, and the
//! uuid of an event is fixed, so each event is emitted once, however many daemons there are. A reactor that is paused or
//! retrying does not hold back what it has decided to emit.

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, Row as _};
use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::{debug, warn};
use uuid::Uuid;

use crate::event::{AggregateId, NewEvent};
use crate::postgres::deadline::in_time;
use crate::postgres::notify::{EVENTS, notify};
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::row::from_row;
use crate::postgres::sqlstate::{describe, shorten};
use crate::processing::processor::Events;
use crate::retry::{Retry, RetryPolicy};
use crate::shutdown::Shutdown;
use crate::store::{AppendError, EventStore as _, TransactionAppender};

/// Time between two looks at the table while nothing is known to be due. A known emission is moved when it is due.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long to wait while another relay is moving emissions.
const OTHERS_TURN: Duration = Duration::from_millis(100);

/// Most emissions that are moved in one transaction.
const BATCH_SIZE: i64 = 100;

/// How long a batch may take.
const BATCH_TIME: Duration = Duration::from_secs(30);

/// How long to wait before an emission that the store has refused is tried again.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);

/// Moves what the reactors of one worker have emitted for a later time, or for a store in another database.
pub(crate) struct Relay {
    /// The database that has the trackers and the table `emissions`.
    pub(crate) database: PgConnectOptions,
    /// The schema of espd's own tables.
    pub(crate) schema: String,
    /// The names of the reactors whose emissions are moved.
    pub(crate) reactors: Vec<String>,
    /// The event store.
    pub(crate) events: Events,
    /// Wakes the relay when a reactor may have emitted something.
    pub(crate) wake_relay: Arc<Notify>,
    /// The channel that subscriptions of the store listen on.
    pub(crate) channel: String,
}

/// A row of `emissions`.
#[derive(Debug)]
struct PendingEmission {
    id: i64,
    uuid: Uuid,
    aggregate_id: AggregateId,
    event_type: String,
    body: String,
    metadata: String,
    correlation_id: Option<Uuid>,
    causation_id: Option<Uuid>,
}

from_row!(PendingEmission {
    id,
    uuid,
    aggregate_id,
    event_type,
    body,
    metadata,
    correlation_id,
    causation_id
});

/// What the relay has found in the table.
enum Looked {
    /// More emissions may be due.
    Moved,
    /// Nothing is due before this time has passed.
    Idle(Duration),
}

impl Relay {
    /// Moves emissions until the stop is requested, and waits for the end of outages.
    pub(crate) async fn run(self, mut stop: Shutdown) {
        let mut outages = Retry::new(RetryPolicy::infrastructure());
        while !stop.is_requested() {
            let Some(Err(error)) = stop.run_until_requested(self.serve(&mut outages)).await else { return };
            let delay = outages.failed(());
            let retry_in_ms = delay.as_millis() as u64;
            debug!(error = describe(&error), retry_in_ms, "could not look for emissions that are due");
            stop.run_until_requested(tokio::time::sleep(delay)).await;
        }
    }

    /// Moves emissions over one connection until the connection fails.
    async fn serve(&self, outages: &mut Retry<()>) -> Result<(), sqlx::Error> {
        let options = self.database.clone().application_name("espd: relay").disable_statement_logging();
        let mut connection = in_time(BATCH_TIME, options.connect()).await?;
        loop {
            let looked = in_time(BATCH_TIME, self.move_due(&mut connection)).await?;
            outages.succeeded();
            if let Looked::Idle(time) = looked {
                let _ = timeout(time.min(INTERVAL), self.wake_relay.notified()).await;
            }
        }
    }

    /// Moves some of the emissions that are due, in order for each reactor.
    async fn move_due(&self, connection: &mut PgConnection) -> Result<Looked, sqlx::Error> {
        let mut transaction = connection.begin().await?;
        if !self.take_turn(&mut transaction).await? {
            transaction.rollback().await?;
            return Ok(Looked::Idle(OTHERS_TURN));
        }
        let kept = self.lock_due(&mut transaction).await?;
        if kept.is_empty() {
            let idle = self.time_until_due(&mut transaction).await?;
            transaction.rollback().await?;
            return Ok(Looked::Idle(idle));
        }
        let ids: Vec<i64> = kept.iter().map(|kept| kept.id).collect();
        match self.append(&mut transaction, kept).await {
            Ok(()) => {}
            Err(AppendError::Database(error)) => return Err(error),
            Err(error) => {
                transaction.rollback().await?;
                return self.refuse(connection, &ids, &error).await;
            }
        }
        self.remove(&mut transaction, &ids).await?;
        transaction.commit().await?;
        self.notify(connection).await;
        debug!(events = ids.len(), "moved emissions into the event store");
        Ok(Looked::Moved)
    }

    /// Takes the lock that lets one relay work at a time, so that what a reactor emits keeps its order. The server ends the
    /// session of a relay that is frozen under the lock.
    async fn take_turn(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let statement = format!(
            "-- take_turn
             set local idle_in_transaction_session_timeout = '60s';
             select pg_try_advisory_xact_lock(hashtextextended({}, 0)) as ours",
            quote_literal(&format!("espd: emissions of {}", self.schema))
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).fetch_one(connection).await?.try_get("ours")
    }

    async fn lock_due(&self, connection: &mut PgConnection) -> Result<Vec<PendingEmission>, sqlx::Error> {
        let statement = format!(
            "-- lock_due_emissions
             select id, uuid, aggregate_id, type as event_type, body::text, metadata::text, correlation_id, causation_id
             from {}.emissions where {} and due_at <= clock_timestamp()
             order by due_at, id limit {BATCH_SIZE} for update skip locked",
            quote_identifier(&self.schema),
            self.of_ours()
        );
        sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
    }

    async fn time_until_due(&self, connection: &mut PgConnection) -> Result<Duration, sqlx::Error> {
        let statement = format!(
            "-- find_next_emission
             select extract(epoch from min(due_at) - clock_timestamp())::float8 as seconds from {}.emissions where {}",
            quote_identifier(&self.schema),
            self.of_ours()
        );
        let row = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_one(connection).await?;
        let seconds: Option<f64> = row.try_get("seconds")?;
        // Another relay has locked an emission that is due and could not be read.
        let shortest = Duration::from_millis(5);
        let left = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok());
        Ok(left.unwrap_or(INTERVAL).max(shortest))
    }

    fn of_ours(&self) -> String {
        let names: Vec<String> = self.reactors.iter().map(|name| quote_literal(name)).collect();
        format!("reactor in ({})", names.join(", "))
    }

    /// Appends the events that are not stored already: an earlier attempt may have stored some of them.
    async fn append(
        &self,
        connection: &mut PgConnection,
        kept: Vec<PendingEmission>,
    ) -> Result<(), AppendError> {
        let events = kept.into_iter().map(event).collect::<Result<Vec<_>, _>>()?;
        let uuids: Vec<Uuid> = events.iter().map(|event| event.uuid).collect();
        match &self.events {
            Events::SameDatabase(layout) => {
                let Some(appender) = TransactionAppender::new(layout) else { return Ok(()) };
                let stored = appender.find_stored(connection, &uuids).await?;
                appender.append(connection, &without(events, &stored)).await?;
            }
            Events::Elsewhere(store) => {
                let stored = store.find_stored(&uuids).await?;
                store.append(&without(events, &stored)).await?;
            }
        }
        Ok(())
    }

    /// Notifies the subscriptions of the store. A store in another database does so itself.
    async fn notify(&self, connection: &mut PgConnection) {
        if let Events::SameDatabase(_) = self.events {
            // Without the notification, watchers find the events when they look next.
            let _ = notify(connection, &self.channel, EVENTS).await;
        }
    }

    async fn remove(&self, connection: &mut PgConnection, ids: &[i64]) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- remove_emissions\ndelete from {}.emissions where id = any ($1)",
            quote_identifier(&self.schema)
        );
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(ids);
        query.execute(connection).await.map(drop)
    }

    /// Postpones the emissions that the store has refused, and records the reason in their rows. Other emissions are not held
    /// back for long.
    async fn refuse(
        &self,
        connection: &mut PgConnection,
        ids: &[i64],
        error: &AppendError,
    ) -> Result<Looked, sqlx::Error> {
        warn!(%error, "the event store refuses an emission");
        let at = match error {
            AppendError::Invalid { index: Some(index), .. } => ids.get(*index).map(std::slice::from_ref),
            _ => None,
        };
        let statement = format!(
            "-- postpone_emissions
             update {}.emissions set last_error = $2, due_at = clock_timestamp() + $3 * interval '1 second'
             where id = any ($1)",
            quote_identifier(&self.schema)
        );
        let message = shorten(&error.to_string());
        sqlx::query(AssertSqlSafe(statement))
            .persistent(false)
            .bind(at.unwrap_or(ids))
            .bind(message)
            .bind(REFUSED_PAUSE.as_secs_f64())
            .execute(connection)
            .await?;
        Ok(Looked::Moved)
    }
}

fn event(kept: PendingEmission) -> Result<NewEvent, sqlx::Error> {
    let json = |text| RawValue::from_string(text).map_err(|error| sqlx::Error::Decode(error.into()));
    let mut event = NewEvent::new(kept.aggregate_id, kept.event_type, json(kept.body)?);
    event.uuid = kept.uuid;
    event.metadata = json(kept.metadata)?;
    event.correlation_id = kept.correlation_id;
    event.causation_id = kept.causation_id;
    Ok(event)
}

fn without(events: Vec<NewEvent>, stored: &[Uuid]) -> Vec<NewEvent> {
    events.into_iter().filter(|event| !stored.contains(&event.uuid)).collect()
}
