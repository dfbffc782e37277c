//! Moves emissions that are due into the event store: all of them together, or, where one of them is refused, each by itself.

use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::Relay;
use super::refusal::Refusal;
use crate::event::{AggregateId, NewEvent};
use crate::postgres::deadline::in_time;
use crate::postgres::literal::interval;
use crate::postgres::quote::quote_identifier;
use crate::postgres::row::from_row;
use crate::processing::processor::Events;
use crate::retry::{RetryPolicy, Strategy};
use crate::store::{AppendError, EventStore as _, TransactionAppender};

/// How long a store in another database may take for one append.
const STORE_TIME: Duration = Duration::from_secs(15);

/// How long emissions are moved one by one before the transaction is committed.
const ONE_BY_ONE_TIME: Duration = Duration::from_secs(15);

/// A row of `emissions` that is due.
#[derive(Debug)]
pub(super) struct DueEmission {
    pub(super) id: i64,
    pub(super) reactor: String,
    uuid: Uuid,
    aggregate_id: AggregateId,
    event_type: String,
    body: String,
    metadata: String,
    correlation_id: Option<Uuid>,
    causation_id: Option<Uuid>,
    attempts: i32,
}

from_row!(DueEmission {
    id,
    reactor,
    uuid,
    aggregate_id,
    event_type,
    body,
    metadata,
    correlation_id,
    causation_id,
    attempts
});

/// What became of the emissions of one transaction.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// How many are in the event store.
    pub(super) moved: usize,
    /// How many the event store has refused, with the first of them: its reactor, its number and the reason.
    pub(super) refused: usize,
    pub(super) first_refused: Option<(String, i64, Refusal)>,
}

/// Why emissions could not be appended.
enum MoveError {
    Refused(Refusal),
    /// Nothing can be moved now.
    Outage(sqlx::Error),
}

impl From<sqlx::Error> for MoveError {
    fn from(error: sqlx::Error) -> Self {
        Self::Outage(error)
    }
}

impl From<AppendError> for MoveError {
    fn from(error: AppendError) -> Self {
        Refusal::of_append(error).map_or_else(Self::Outage, Self::Refused)
    }
}

impl Relay {
    /// Moves these emissions, whose rows are locked in the transaction of `connection`.
    ///
    /// # Errors
    /// Nothing can be moved now. The transaction has to be rolled back.
    pub(super) async fn move_locked(
        &self,
        connection: &mut PgConnection,
        due: &[DueEmission],
    ) -> Result<Tally, sqlx::Error> {
        match self.move_some(connection, due).await {
            Ok(()) => Ok(Tally { moved: due.len(), ..Tally::default() }),
            Err(MoveError::Outage(error)) => Err(error),
            Err(MoveError::Refused(_)) => self.move_each(connection, due).await,
        }
    }

    /// Moves one emission after the other. Those that are refused are put off, each by itself.
    async fn move_each(
        &self,
        connection: &mut PgConnection,
        due: &[DueEmission],
    ) -> Result<Tally, sqlx::Error> {
        let (begun, mut tally) = (Instant::now(), Tally::default());
        for emission in due {
            match self.move_some(connection, std::slice::from_ref(emission)).await {
                Ok(()) => tally.moved += 1,
                Err(MoveError::Outage(error)) => return Err(error),
                Err(MoveError::Refused(refusal)) => {
                    self.put_off(connection, emission, &refusal).await?;
                    tally.refused += 1;
                    tally.first_refused.get_or_insert((emission.reactor.clone(), emission.id, refusal));
                }
            }
            if begun.elapsed() > ONE_BY_ONE_TIME {
                break;
            }
        }
        Ok(tally)
    }

    /// Appends the events of these emissions and removes their rows; does nothing if one of them is refused.
    async fn move_some(&self, connection: &mut PgConnection, due: &[DueEmission]) -> Result<(), MoveError> {
        execute(connection, "savepoint espd_emissions".to_owned()).await?;
        match self.append(connection, due).await {
            Ok(()) => self.remove(connection, due).await?,
            Err(MoveError::Refused(refusal)) => {
                execute(connection, "rollback to savepoint espd_emissions".to_owned()).await?;
                return Err(MoveError::Refused(refusal));
            }
            Err(outage) => return Err(outage),
        }
        Ok(execute(connection, "release savepoint espd_emissions".to_owned()).await?)
    }

    /// Appends the events that are not stored already: an earlier attempt may have stored some of them.
    async fn append(&self, connection: &mut PgConnection, due: &[DueEmission]) -> Result<(), MoveError> {
        let events = due.iter().map(event).collect::<Result<Vec<_>, _>>().map_err(MoveError::Refused)?;
        let uuids: Vec<Uuid> = events.iter().map(|event| event.uuid).collect();
        match &self.events {
            Events::SameDatabase(layout) => {
                let Some(appender) = TransactionAppender::new(layout) else {
                    return Err(MoveError::Refused(Refusal::new("espd only reads a store of this layout")));
                };
                let stored = appender.find_stored(connection, &uuids).await.or_else(refuse)?;
                appender.append(connection, &without(events, &stored)).await?;
                // A deferred constraint would fail at the commit, where no emission can be named any more.
                execute(connection, "set constraints all immediate".to_owned()).await.or_else(refuse)
            }
            Events::Elsewhere(store) => {
                let work = async {
                    let stored = store.find_stored(&uuids).await?;
                    store.append(&without(events, &stored)).await.map(drop)
                };
                // The error of the append keeps its kind; only the silence of the store is the driver's error.
                in_time(STORE_TIME, async { Ok(work.await) }).await?.map_err(Into::into)
            }
        }
    }

    async fn remove(&self, connection: &mut PgConnection, due: &[DueEmission]) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- remove_emissions\ndelete from {}.emissions where id = any ($1)",
            quote_identifier(&self.schema)
        );
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(ids(due));
        query.execute(connection).await.map(drop)
    }

    /// Puts an emission off, and records why. Other emissions are not held back.
    async fn put_off(
        &self,
        connection: &mut PgConnection,
        emission: &DueEmission,
        refusal: &Refusal,
    ) -> Result<(), sqlx::Error> {
        let delay = delay_after(emission.attempts.unsigned_abs().saturating_add(1));
        let statement = format!(
            "-- put_off_emission
             update {}.emissions
             set attempts = attempts + 1, last_error = $2, sqlstate = $3, tried_at = clock_timestamp(),
                 next_try_at = clock_timestamp() + {}
             where id = $1",
            quote_identifier(&self.schema),
            interval(delay)
        );
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
        let query = query.bind(emission.id).bind(&refusal.message).bind(&refusal.sqlstate);
        query.execute(connection).await.map(drop)
    }

    /// Records what these emissions wait for, while nothing can be moved.
    pub(super) async fn record_outage(
        &self,
        connection: &mut PgConnection,
        due: &[DueEmission],
        error: &str,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- record_outage_of_emissions
             update {}.emissions set last_error = $2 where id = any ($1) and attempts = 0",
            quote_identifier(&self.schema)
        );
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(ids(due)).bind(error);
        query.execute(connection).await.map(drop)
    }
}

/// How long to wait after an emission was refused for the `attempts`th time: a second, doubling to five minutes.
fn delay_after(attempts: u32) -> Duration {
    let policy = RetryPolicy {
        strategy: Strategy::Exponential,
        initial: Duration::from_secs(1),
        max: Duration::from_secs(300),
        ..RetryPolicy::infrastructure()
    };
    policy.delay_after(attempts.min(20))
}

/// The error of a statement that runs for these emissions.
fn refuse<T>(error: sqlx::Error) -> Result<T, MoveError> {
    Err(Refusal::of_database(error).map_or_else(MoveError::Outage, MoveError::Refused))
}

fn ids(due: &[DueEmission]) -> Vec<i64> {
    due.iter().map(|emission| emission.id).collect()
}

fn event(due: &DueEmission) -> Result<NewEvent, Refusal> {
    let json =
        |text: &str| RawValue::from_string(text.to_owned()).map_err(|error| Refusal::new(&error.to_string()));
    let mut event = NewEvent::new(&due.aggregate_id, due.event_type.clone(), json(&due.body)?);
    event.uuid = due.uuid;
    event.metadata = json(&due.metadata)?;
    event.correlation_id = due.correlation_id;
    event.causation_id = due.causation_id;
    Ok(event)
}

fn without(events: Vec<NewEvent>, stored: &[Uuid]) -> Vec<NewEvent> {
    events.into_iter().filter(|event| !stored.contains(&event.uuid)).collect()
}

async fn execute(connection: &mut PgConnection, statement: String) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
}
