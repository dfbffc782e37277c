//! The statements on what was done beyond the position (`migrations/processing/0007_webhook_deliveries.sql`). All but the
//! first run in the batch transaction, which holds the tracker locked.

use std::time::{Duration, Instant};

use sqlx::types::Json;
use sqlx::{FromRow as _, PgConnection};

use crate::event::Position;
use crate::postgres::literal::{interval, json_literal, simple};
use crate::postgres::quote::quote_identifier;
use crate::postgres::row::from_row;
use crate::processing::failure::Failure;
use crate::processing::processor::ProcessorBase;
use crate::processing::progress::PendingRetry;
use crate::processing::tracker::{Claim, ProcessorKey};

/// An event beyond the position that is done, or has been tried.
#[derive(Debug)]
pub(crate) struct Delivered {
    pub(crate) event_id: Position,
    pub(crate) is_done: bool,
    pub(crate) attempts: i32,
    failure: Option<Json<Failure>>,
    retry_in_seconds: Option<f64>,
}

from_row!(Delivered { event_id, is_done, attempts, failure, retry_in_seconds });

impl Delivered {
    /// What waits for another try; `None` for one that is done.
    pub(crate) fn pending_retry(self) -> Option<PendingRetry> {
        let Json(failure) = self.failure.filter(|_| !self.is_done)?;
        let wait = self.retry_in_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let until = Instant::now() + wait.unwrap_or_default();
        Some(PendingRetry { failure, attempts: self.attempts.unsigned_abs(), until: Some(until) })
    }
}

/// The deliveries of one processor.
pub(crate) struct Deliveries {
    /// The quoted schema.
    schema: String,
    /// The tracker that they belong to.
    key: ProcessorKey,
}

impl Deliveries {
    pub(crate) fn of(base: &ProcessorBase, claim: &Claim) -> Self {
        Self { schema: quote_identifier(&base.schema), key: claim.key.clone() }
    }

    /// Everything beyond the position, by event.
    pub(crate) async fn list(
        &self,
        connection: &mut PgConnection,
        position: Position,
    ) -> Result<Vec<Delivered>, sqlx::Error> {
        let statement = format!(
            "-- list_deliveries
             select event_id, is_done, attempts, failure,
                    extract(epoch from retry_at - clock_timestamp())::float8 as retry_in_seconds
             from {}.deliveries where {} and event_id > {position} order by event_id",
            self.schema,
            self.key.is_processor()
        );
        let rows = simple(statement).fetch_all(connection).await?;
        rows.iter().map(Delivered::from_row).collect()
    }

    /// Forgets what the position has passed.
    pub(crate) async fn pass(
        &self,
        connection: &mut PgConnection,
        position: Position,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- forget_deliveries\ndelete from {}.deliveries where {} and event_id <= {position}",
            self.schema,
            self.key.is_processor()
        );
        simple(statement).execute(connection).await.map(drop)
    }

    /// These are done.
    pub(crate) async fn record_done(
        &self,
        connection: &mut PgConnection,
        ids: impl Iterator<Item = Position>,
    ) -> Result<(), sqlx::Error> {
        let ids: Vec<String> = ids.map(|id| id.to_string()).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let source = format!("unnest(array[{}]::bigint[]) as done (event_id)", ids.join(", "));
        self.insert_done(connection, &source).await
    }

    /// The dead letters in this range are done: where they are retried or discarded, they are not met again.
    pub(crate) async fn record_dead_letters(
        &self,
        connection: &mut PgConnection,
        after: Position,
        upto: Position,
    ) -> Result<(), sqlx::Error> {
        let source = format!(
            "{}.dead_letters where {} and event_id > {after} and event_id <= {upto}",
            self.schema,
            self.key.is_processor()
        );
        self.insert_done(connection, &source).await
    }

    async fn insert_done(&self, connection: &mut PgConnection, source: &str) -> Result<(), sqlx::Error> {
        let (schema, key) = (&self.schema, self.key.arguments());
        let statement = format!(
            "-- record_deliveries
             insert into {schema}.deliveries (processor, version, partition, event_id, is_done)
             select {key}, event_id, true from {source}
             on conflict (processor, version, partition, event_id) do update
               set is_done = true, attempts = 0, failure = null, retry_at = null"
        );
        simple(statement).execute(connection).await.map(drop)
    }

    /// This one has failed and is tried again.
    pub(crate) async fn record_pending_retry(
        &self,
        connection: &mut PgConnection,
        id: Position,
        pending_retry: &PendingRetry,
    ) -> Result<(), sqlx::Error> {
        let wait = pending_retry.until.map(|until| until.saturating_duration_since(Instant::now()));
        let statement = format!(
            "-- record_failed_delivery
             insert into {schema}.deliveries
               (processor, version, partition, event_id, is_done, attempts, failure, retry_at)
             values ({key}, {id}, false, {attempts}, {failure}, clock_timestamp() + {wait})
             on conflict (processor, version, partition, event_id) do update
               set attempts = excluded.attempts, failure = excluded.failure, retry_at = excluded.retry_at
               where not deliveries.is_done",
            schema = self.schema,
            key = self.key.arguments(),
            attempts = pending_retry.attempts,
            failure = json_literal(&pending_retry.failure)?,
            wait = interval(wait.unwrap_or_default()),
        );
        simple(statement).execute(connection).await.map(drop)
    }
}
