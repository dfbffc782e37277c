//! Events set aside for one processor: the statements on them.
//!
//! An event becomes a dead letter in the transaction that moves the position over it, so it is never forgotten. Where
//! later events of its aggregate have to wait behind it, whoever handles a batch sets them aside as well, in order. An
//! operator asks for a retry; the processor's owner hears of that and handles the events, in order of their ids,
//! under its claim and with the handlers of now.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, FromRow as _, PgConnection, PgExecutor, Row as _};
use uuid::Uuid;

use crate::event::Position;
use crate::failure::Failure;
use crate::row::from_row;
use crate::sql_quote::{quote_identifier, quote_literal};
use crate::tracker::{Claim, is_claimed, json_literal};

/// A dead letter as people see it. The field names are an interface: `espctl dead-letters list --json` prints them.
#[derive(Debug, Clone, Serialize)]
pub struct DeadLetter {
    /// The processor that it was set aside for.
    pub processor: String,
    /// Its partition.
    pub partition: i32,
    /// The event.
    pub event_id: Position,
    /// Its identity.
    pub event_uuid: Uuid,
    /// Its type, as the processor saw it.
    pub event_type: String,
    /// Its aggregate.
    pub aggregate_id: Uuid,
    /// `failed`, or `waiting` behind an earlier one of its aggregate.
    pub reason: String,
    /// Whether later events of the aggregate wait behind it.
    pub blocks: bool,
    /// Why it could not be handled the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Json<Failure>>,
    /// How often it was tried.
    pub attempts: i32,
    /// When it was set aside.
    pub set_aside_at: DateTime<Utc>,
    /// When it was tried last, if it was since.
    pub tried_at: Option<DateTime<Utc>>,
    /// When an operator asked for a retry that has not happened yet.
    pub retry_requested_at: Option<DateTime<Utc>>,
}

from_row!(DeadLetter {
    processor,
    partition,
    event_id,
    event_uuid,
    event_type,
    aggregate_id,
    reason,
    blocks,
    failure,
    attempts,
    set_aside_at,
    tried_at,
    retry_requested_at
});

/// Which dead letters are meant; what is `None` does not matter.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Of this processor.
    pub processor: Option<String>,
    /// Of this event.
    pub event_id: Option<Position>,
    /// Of events of this type.
    pub event_type: Option<String>,
    /// Of events of this aggregate.
    pub aggregate_id: Option<Uuid>,
    /// Whose failure's message or SQLSTATE has this in it, in whatever case.
    pub error: Option<String>,
    /// Set aside before this time.
    pub before: Option<DateTime<Utc>>,
}

/// The dead letters of one database.
#[derive(Debug, Clone)]
pub(crate) struct DeadLetters {
    /// The quoted schema.
    schema: String,
}

impl DeadLetters {
    /// The dead letters in this schema, made by `migrations/processing`.
    pub(crate) fn new(schema: &str) -> Self {
        Self { schema: quote_identifier(schema) }
    }

    /// Sets the failing event aside and moves the position over it, if the claim is still valid. `blocks`: later
    /// events of its aggregate have to wait. Returns whether it did.
    pub(crate) async fn set_aside(
        &self,
        connection: impl PgExecutor<'_>,
        name: &str,
        claim: &Claim,
        failure: &Failure,
        attempts: u32,
        blocks: bool,
    ) -> Result<bool, sqlx::Error> {
        let Failure { event_id: Some(id), event_uuid, event_type, aggregate_id, .. } = failure else {
            return Ok(false);
        };
        let statement = format!(
            "-- set_aside
             with moved as (
               update {schema}.trackers
               set position = {id}, handled = handled + 1, attempts = 0, last_error = null, next_retry_at = null,
                   updated_at = clock_timestamp()
               where {is_claimed} and position = {position} and position < {id}
               returning name, partition
             )
             insert into {schema}.dead_letters
               (processor, partition, event_id, event_uuid, event_type, aggregate_id, reason, blocks, failure, attempts)
             select name, partition, {id}, '{uuid}', {event_type}, '{aggregate_id}', 'failed', {blocks}, {failure}, {attempts}
             from moved
             on conflict (processor, partition, event_id) do update
               set reason = 'failed', blocks = excluded.blocks, failure = excluded.failure, attempts = excluded.attempts
             returning 1",
            schema = self.schema,
            is_claimed = is_claimed(name, claim),
            position = claim.position,
            uuid = event_uuid.unwrap_or_default(),
            event_type = quote_literal(event_type.as_deref().unwrap_or_default()),
            aggregate_id = aggregate_id.unwrap_or_default(),
            failure = json_literal(&Failure { at: Some(Utc::now()), ..failure.clone() })?,
        );
        Ok(sqlx::raw_sql(AssertSqlSafe(statement)).fetch_optional(connection).await?.is_some())
    }

    /// The next event that an operator wants handled again; `None`: there is none.
    pub(crate) async fn next_requested(
        &self,
        connection: impl PgExecutor<'_>,
        name: &str,
        claim: &Claim,
    ) -> Result<Option<Position>, sqlx::Error> {
        let statement = format!(
            "-- find_requested_dead_letter
             select event_id from {}.dead_letters as d
             where processor = {} and partition = {} and retry_requested_at is not null
             order by event_id limit 1",
            self.schema,
            quote_literal(name),
            claim.partition
        );
        let row = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_optional(connection).await?;
        row.map(|row| row.try_get(0)).transpose()
    }

    /// Records that the event has failed again: it stays, and so do those behind it.
    pub(crate) async fn failed_again(
        &self,
        connection: impl PgExecutor<'_>,
        name: &str,
        claim: &Claim,
        event_id: Position,
        failure: &Failure,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- record_dead_letter_failure
             with failed as (
               update {schema}.dead_letters
               set reason = 'failed', failure = {failure}, attempts = attempts + 1, tried_at = clock_timestamp(),
                   retry_requested_at = null
               where processor = {name} and partition = {partition} and event_id = {event_id}
                 and exists (select from {schema}.trackers where {is_claimed})
               returning aggregate_id, blocks
             )
             update {schema}.dead_letters as d set retry_requested_at = null from failed
             where d.processor = {name} and d.partition = {partition} and d.aggregate_id = failed.aggregate_id
               and d.event_id > {event_id} and failed.blocks",
            schema = self.schema,
            failure = json_literal(&Failure { at: Some(Utc::now()), ..failure.clone() })?,
            name = quote_literal(name),
            partition = claim.partition,
            is_claimed = is_claimed(name, claim),
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
    }

    /// The dead letters that are meant, by processor and event, `limit` at most.
    pub(crate) async fn list(
        &self,
        connection: impl PgExecutor<'_>,
        selection: &Selection,
        limit: i64,
    ) -> Result<Vec<DeadLetter>, sqlx::Error> {
        let statement = format!(
            "-- list_dead_letters
             select {LETTER_COLUMNS} from {}.dead_letters as d where {} order by processor, partition, event_id limit {limit}",
            self.schema,
            selection.condition()
        );
        let rows = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_all(connection).await?;
        rows.iter().map(|row: &PgRow| DeadLetter::from_row(row)).collect()
    }

    /// Asks the owner to handle these again, and with each that blocks all that wait behind it. Returns how many were
    /// asked for.
    pub(crate) async fn request_retry(
        &self,
        connection: &mut PgConnection,
        selection: &Selection,
        operator: &str,
    ) -> Result<u64, sqlx::Error> {
        let statement = format!(
            "-- request_retry_of_dead_letters
             with meant as (select * from {schema}.dead_letters as d where {condition}),
             requested as (
               update {schema}.dead_letters as d set retry_requested_at = clock_timestamp()
               where exists (
                 select from meant as m
                 where m.processor = d.processor and m.partition = d.partition
                   and (m.event_id = d.event_id or m.blocks and m.aggregate_id = d.aggregate_id and m.event_id < d.event_id))
               -- What has to wait behind an earlier one waits for that one's retry.
               and not exists (
                 select from {schema}.dead_letters as b
                 where b.processor = d.processor and b.partition = d.partition and b.aggregate_id = d.aggregate_id
                   and b.event_id < d.event_id and b.blocks
                   and not exists (
                     select from meant as m
                     where m.processor = b.processor and m.partition = b.partition and m.aggregate_id = b.aggregate_id
                       and (m.event_id = b.event_id or m.blocks and m.event_id < b.event_id)))
               returning processor, partition, event_id
             ),
             logged as (
               insert into {schema}.operator_log (operator, action, processor, partition, from_position, to_position)
               select {operator}, 'retry_dead_letters', processor, partition, min(event_id), max(event_id)
               from requested group by processor, partition
             )
             select count(*) from requested",
            schema = self.schema,
            condition = selection.condition(),
            operator = quote_literal(operator),
        );
        count(connection, statement).await
    }

    /// Removes these for good. Returns how many there were.
    pub(crate) async fn discard(
        &self,
        connection: &mut PgConnection,
        selection: &Selection,
        operator: &str,
    ) -> Result<u64, sqlx::Error> {
        let statement = format!(
            "-- discard_dead_letters
             with discarded as (
               delete from {schema}.dead_letters as d where {} returning processor, partition, event_id
             ),
             logged as (
               insert into {schema}.operator_log (operator, action, processor, partition, from_position, to_position)
               select {}, 'discard_dead_letters', processor, partition, min(event_id), max(event_id)
               from discarded group by processor, partition
             )
             select count(*) from discarded",
            selection.condition(),
            quote_literal(operator),
            schema = self.schema,
        );
        count(connection, statement).await
    }
}

/// The columns of a [`DeadLetter`].
const LETTER_COLUMNS: &str = "processor, partition, event_id, event_uuid, event_type, aggregate_id, reason, blocks, \
     failure, attempts, set_aside_at, tried_at, retry_requested_at";

impl Selection {
    /// The condition on a row `d`.
    fn condition(&self) -> String {
        let mut conditions = vec!["true".to_owned()];
        let mut add = |condition: Option<String>| conditions.extend(condition);
        add(self.processor.as_ref().map(|name| format!("d.processor = {}", quote_literal(name))));
        add(self.event_id.map(|id| format!("d.event_id = {id}")));
        add(self.event_type.as_ref().map(|name| format!("d.event_type = {}", quote_literal(name))));
        add(self.aggregate_id.map(|id| format!("d.aggregate_id = '{id}'")));
        add(self.before.map(|time| format!("d.set_aside_at < {}", quote_literal(&time.to_rfc3339()))));
        add(self.error.as_ref().map(|error| {
            let error = quote_literal(&error.to_lowercase());
            format!(
                "(position({error} in lower(d.failure->>'message')) > 0 or lower(d.failure->>'sqlstate') = {error})"
            )
        }));
        conditions.join(" and ")
    }
}

async fn count(connection: &mut PgConnection, statement: String) -> Result<u64, sqlx::Error> {
    let row = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_one(connection).await?;
    Ok(row.try_get::<i64, _>(0)?.unsigned_abs())
}
