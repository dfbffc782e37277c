//! Appends at a later time, on behalf of applications. `migrations/event_store/0006_scheduled_events.sql` has the rules.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use sqlx::PgConnection;
use uuid::Uuid;

use super::parameter::Jsonb;
use super::sql_text::sql;
use super::{PostgresEventStore, connection, refusal};
use crate::event::{AggregateId, NewEvent, StoredTime, Version};
use crate::postgres::literal::{INTERVAL_MAX, interval};
use crate::postgres::quote::quote_literal;
use crate::store::normalized::refuse_repeated_uuids;
use crate::store::{AppendError, validity};

/// When events are to be appended, by the clock of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendTime {
    /// At this time.
    At(DateTime<Utc>),
    /// This long after they are scheduled. No other clock than that of the database counts it. At most a thousand years.
    After(Duration),
}

impl From<DateTime<Utc>> for AppendTime {
    fn from(time: DateTime<Utc>) -> Self {
        Self::At(time)
    }
}

impl From<Duration> for AppendTime {
    fn from(delay: Duration) -> Self {
        Self::After(delay)
    }
}

/// An event as the function `append_at` takes it.
#[derive(Serialize)]
struct Scheduled<'e> {
    uuid: Uuid,
    aggregate_id: &'e AggregateId,
    #[serde(rename = "type")]
    event_type: &'e str,
    body: &'e RawValue,
    metadata: &'e RawValue,
    expected_version: Option<Version>,
    correlation_id: Option<Uuid>,
    causation_id: Option<Uuid>,
    created_at: Option<DateTime<Utc>>,
}

impl<'e> From<&'e NewEvent> for Scheduled<'e> {
    fn from(event: &'e NewEvent) -> Self {
        Self {
            uuid: event.uuid,
            aggregate_id: &event.aggregate_id,
            event_type: &event.event_type,
            body: &event.body,
            metadata: &event.metadata,
            expected_version: event.expected_version.version(),
            correlation_id: event.correlation_id,
            causation_id: event.causation_id,
            created_at: event.kept_created_at(),
        }
    }
}

impl PostgresEventStore {
    /// Appends events at a later time: `store.append_at(Duration::from_secs(3600), Some("todo-7"), &[reminder])`.
    ///
    /// espd's daemon appends them when they are due, each once, by its uuid; [`Self::append_due`] does the same without a
    /// daemon. With a key, which has 1 to 1,000 bytes, they take the place of those that were scheduled under it and are not
    /// appended yet, and [`Self::cancel_scheduled`] cancels them. Scheduling a uuid again moves it to the new time; where the
    /// event is appended already, nothing happens.
    ///
    /// # Errors
    /// As for [`append`](crate::store::EventStore::append). An event that expects a version is invalid: nobody knows the version
    /// of that time. So is a delay of more than a thousand years, and a time that PostgreSQL does not have.
    pub async fn append_at(
        &self,
        time: impl Into<AppendTime> + Send,
        key: Option<&str>,
        events: &[NewEvent],
    ) -> Result<(), AppendError> {
        self.schedule(&mut *self.pool.acquire().await?, time.into(), key, events).await
    }

    /// Appends events at a later time, as [`Self::append_at`] does, as part of the caller's own transaction on `connection`.
    ///
    /// # Errors
    /// As for [`Self::append_at`]. No transaction is open: see [`Self::append_in`].
    pub async fn append_at_in(
        &self,
        connection: &mut PgConnection,
        time: impl Into<AppendTime> + Send,
        key: Option<&str>,
        events: &[NewEvent],
    ) -> Result<(), AppendError> {
        let time = time.into();
        connection::require_transaction(connection).await?;
        self.schedule(connection, time, key, events).await
    }

    async fn schedule(
        &self,
        connection: &mut PgConnection,
        time: AppendTime,
        key: Option<&str>,
        events: &[NewEvent],
    ) -> Result<(), AppendError> {
        let function = &self.statements.append()?.append.append_at;
        let events = &*self.codec.encode_all(events).await?;
        validity::check(events)?;
        refuse_repeated_uuids(events)?;
        validity::refuse_tags(events, "what is appended later")?;
        let time = match time {
            AppendTime::At(time) => {
                format!("{}::timestamptz", quote_literal(&StoredTime::from(time).to_string()))
            }
            AppendTime::After(delay) if delay > INTERVAL_MAX => {
                let reason = "the delay is longer than a thousand years".to_owned();
                return Err(AppendError::Invalid { index: None, reason });
            }
            AppendTime::After(delay) => format!("clock_timestamp() + {}", interval(delay)),
        };
        let described: Vec<Scheduled<'_>> = events.iter().map(Scheduled::from).collect();
        let invalid =
            |error: serde_json::Error| AppendError::Invalid { index: None, reason: error.to_string() };
        let described = to_raw_value(&described).map_err(invalid)?;
        let statement = format!("-- append_at\nselect from {function}({time}, $1, $2)");
        let query = sqlx::query(sql(statement)).persistent(false).bind(Jsonb(&described)).bind(key);
        query.execute(connection).await.map(drop).map_err(|error| refusal::translate(error, events))
    }

    /// Cancels what was scheduled under a key and is not appended yet. Returns whether there was anything.
    ///
    /// # Errors
    /// The database refused, or could not be reached.
    pub async fn cancel_scheduled(&self, key: &str) -> Result<bool, AppendError> {
        self.cancel(&mut *self.pool.acquire().await?, key).await
    }

    /// Cancels as [`Self::cancel_scheduled`] does, as part of the caller's own transaction on `connection`.
    ///
    /// # Errors
    /// As for [`Self::cancel_scheduled`]. No transaction is open: see [`Self::append_in`].
    pub async fn cancel_scheduled_in(
        &self,
        connection: &mut PgConnection,
        key: &str,
    ) -> Result<bool, AppendError> {
        connection::require_transaction(connection).await?;
        self.cancel(connection, key).await
    }

    async fn cancel(&self, connection: &mut PgConnection, key: &str) -> Result<bool, AppendError> {
        let statement =
            format!("-- cancel_scheduled\nselect {}($1)", self.statements.append()?.append.cancel_scheduled);
        let query = sqlx::query_scalar(sql(statement)).persistent(false).bind(key);
        query.fetch_one(connection).await.map_err(|error| refusal::translate(error, &[]))
    }

    /// Appends scheduled events that are due, a hundred at most, and returns how many. A program without espd's daemon calls
    /// it again and again. What [`Self::on_appended`] names is called with them.
    ///
    /// # Errors
    /// The database could not do it now, and nothing has changed.
    pub async fn append_due(&self) -> Result<u32, AppendError> {
        self.statements.append()?;
        let statement = format!(
            "-- append_due\nselect appended from {}.append_due_events()",
            self.layout.quoted_schema()
        );
        let appended: Vec<Uuid> =
            sqlx::query_scalar(sql(statement)).persistent(false).fetch_one(&self.pool).await?;
        if !appended.is_empty() {
            self.notify();
            self.tell_stored(&appended).await;
        }
        Ok(u32::try_from(appended.len()).unwrap_or(u32::MAX))
    }
}
