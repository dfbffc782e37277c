//! This module has the statements on dead letters: events that were set aside for one processor.
//!
//! An event becomes a dead letter in the transaction that moves the position over it, so it is never forgotten. If later
//! events of its aggregate have to wait behind it, the batch that meets them sets them aside as well, in order. When an
//! operator asks for a retry, the owner of the processor learns of it at its next renewal of the lease. It then handles the
//! dead letters in order of their ids, under its claim and with its current handlers.

mod announcement;
mod operator;
mod selection;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor, Row as _};
use uuid::Uuid;

pub(crate) use announcement::announce_set_aside;
pub(crate) use operator::{AggregateQueue, Remaining, RetryRequest};
pub(crate) use selection::Selection;

use crate::event::{AggregateId, Event, Position};
use crate::postgres::literal::{fetch_optional, interval, json_literal, simple};
use crate::postgres::row::from_row;
use crate::processing::failure::{FailedEvent, Failure};
use crate::processing::tracker::{Claim, ProcessorKey, Trackers, is_claimed, witness_parameters};
use crate::store::witness::Witness;

/// A dead letter as it is shown to people. The field names are an interface: `espctl dead-letters list --json` prints them.
#[derive(Debug, Clone, Serialize)]
pub struct DeadLetter {
    /// The processor that the event was set aside for.
    pub processor: String,
    /// Version of the processor's tables. Not shown, because operators address a processor by its name alone.
    #[serde(skip)]
    pub version: i32,
    /// Partition of the processor.
    pub partition: i32,
    /// The event's position.
    pub event_id: Position,
    /// The event's identity.
    pub event_uuid: Uuid,
    /// The event's type, as the processor saw it.
    pub event_type: String,
    /// The aggregate that the event belongs to.
    pub aggregate_id: AggregateId,
    /// The instance of a workflow that the event belongs to, if that is known: then its later events wait behind this one, and not
    /// those of the aggregate.
    pub instance: Option<String>,
    /// `failed`, or `waiting` behind an earlier dead letter of the same aggregate.
    pub reason: String,
    /// Whether later events of the aggregate wait behind this one.
    pub blocks: bool,
    /// Why the event could not be handled at the last attempt; `None` if it only waits.
    pub failure: Option<Json<Failure>>,
    /// How often the event was tried.
    pub attempts: i32,
    /// When the event was set aside.
    pub set_aside_at: DateTime<Utc>,
    /// When the event was last tried as a dead letter, if it was.
    pub tried_at: Option<DateTime<Utc>>,
    /// When an operator asked for a retry that has not happened yet.
    pub retry_requested_at: Option<DateTime<Utc>>,
    /// Whether a reactor had handled the event before a reset, so that a retry repeats no effects.
    pub replaying: bool,
}

from_row!(DeadLetter {
    processor,
    version,
    partition,
    event_id,
    event_uuid,
    event_type,
    aggregate_id,
    instance,
    reason,
    blocks,
    failure,
    attempts,
    set_aside_at,
    tried_at,
    retry_requested_at,
    replaying
});

/// An event to set aside.
#[derive(Debug)]
pub(crate) struct NewDeadLetter {
    /// Why the event could not be handled. The failure names the event.
    pub(crate) failure: Failure,
    /// How often the event was tried.
    pub(crate) attempts: u32,
    /// Whether later events of the aggregate have to wait behind it.
    pub(crate) blocks: bool,
}

/// The table of dead letters in one schema.
#[derive(Debug, Clone)]
pub(crate) struct DeadLetters {
    /// The quoted schema.
    schema: String,
    /// The table of trackers, qualified and quoted.
    trackers: String,
}

impl DeadLetter {
    /// Returns the key of the tracker that the dead letter belongs to.
    pub(crate) fn key(&self) -> ProcessorKey {
        ProcessorKey { name: self.processor.clone(), version: self.version, partition: self.partition }
    }

    /// What later events wait behind.
    fn line(&self) -> String {
        self.instance.clone().unwrap_or_else(|| self.aggregate_id.to_string())
    }
}

impl DeadLetters {
    /// The dead letters beside these trackers.
    pub(crate) fn new(trackers: &Trackers) -> Self {
        Self { schema: trackers.schema().to_owned(), trackers: trackers.table().to_owned() }
    }

    /// Sets the failing event aside and moves the position over it, if the claim is still valid. Renews the lease for `lease`
    /// from now. With `blocks`, later events of the aggregate wait. Returns whether the event was set aside.
    pub(crate) async fn pass_over(
        &self,
        connection: impl PgExecutor<'_>,
        claim: &Claim,
        dead_letter: &NewDeadLetter,
        lease: Duration,
    ) -> Result<bool, sqlx::Error> {
        let event = dead_letter.failure.event.as_ref();
        let Some(id) = dead_letter.failure.event_id() else { return Ok(false) };
        let statement = format!(
            "-- pass_over
             select {}, moved from {}.advance_tracker({}, epoch => {}, from_position => {}, to_position => {id}, handled => 1,
               lease => {}{}) as moved
             where moved",
            self.set_aside_call(&claim.key, dead_letter)?,
            self.schema,
            claim.key.arguments(),
            claim.epoch,
            claim.position,
            interval(lease),
            witness_parameters(event.map(|event| Witness { at: event.id, id: event.id, uuid: event.uuid }))
        );
        Ok(simple(statement).fetch_optional(connection).await?.is_some())
    }

    /// How often an event was tried that is set aside already, and whether later events of its aggregate wait behind it; `None`: it is not
    /// set aside.
    pub(crate) async fn find_set_aside(
        &self,
        connection: impl PgExecutor<'_>,
        key: &ProcessorKey,
        event_id: Position,
    ) -> Result<Option<(u32, bool)>, sqlx::Error> {
        let statement = format!(
            "-- find_set_aside
             select attempts, blocks from {}.dead_letters as d
             where (d.processor, d.version, d.partition) = ({}) and event_id = {event_id} and reason = 'failed'",
            self.schema,
            key.arguments()
        );
        let Some(row) = simple(statement).fetch_optional(connection).await? else { return Ok(None) };
        Ok(Some((row.try_get::<i32, _>("attempts")?.unsigned_abs(), row.try_get("blocks")?)))
    }

    /// Whether later events of its aggregate wait behind an event that is set aside, for whatever reason; `None`: it is not.
    pub(crate) async fn find_blocking(
        &self,
        connection: impl PgExecutor<'_>,
        key: &ProcessorKey,
        event_id: Position,
    ) -> Result<Option<bool>, sqlx::Error> {
        let statement = format!(
            "-- find_blocking
             select blocks from {}.dead_letters as d
             where (d.processor, d.version, d.partition) = ({}) and event_id = {event_id}",
            self.schema,
            key.arguments()
        );
        let row = simple(statement).fetch_optional(connection).await?;
        row.map(|row| row.try_get("blocks")).transpose()
    }

    /// Lets the dead letters of a `coming` version be as old as those of the same events that the one has which it replaces.
    pub(crate) async fn keep_ages(
        &self,
        connection: &mut PgConnection,
        former: &ProcessorKey,
        coming: &ProcessorKey,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- keep_ages_of_dead_letters
             update {schema}.dead_letters as d set set_aside_at = f.set_aside_at
             from (select event_id, set_aside_at from {schema}.dead_letters where {former}) as f
             where {coming} and d.event_id = f.event_id and f.set_aside_at < d.set_aside_at",
            schema = self.schema,
            former = former.is_processor(),
            coming = coming.is_processor(),
        );
        simple(statement).execute(connection).await.map(drop)
    }

    /// Why an event beyond the position has failed that is tried again; `None`: it has not, or is done.
    pub(crate) async fn find_failed_beyond(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        id: Position,
    ) -> Result<Option<Failure>, sqlx::Error> {
        let statement = format!(
            "-- find_failed_delivery
             select failure from {}.deliveries where {} and event_id = {id} and not is_done and failure is not null",
            self.schema,
            key.is_processor()
        );
        let row: Option<(Json<Failure>,)> = fetch_optional(connection, statement).await?;
        Ok(row.map(|(Json(failure),)| failure))
    }

    /// Sets an event aside in the caller's transaction, which has locked the tracker and moves the position itself.
    pub(crate) async fn set_aside(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        dead_letter: &NewDeadLetter,
    ) -> Result<(), sqlx::Error> {
        let statement = format!("-- set_aside\nselect {}", self.set_aside_call(key, dead_letter)?);
        simple(statement).execute(connection).await.map(drop)
    }

    fn set_aside_call(
        &self,
        key: &ProcessorKey,
        NewDeadLetter { failure, attempts, blocks }: &NewDeadLetter,
    ) -> Result<String, sqlx::Error> {
        let (schema, key, failure) = (&self.schema, key.arguments(), json_literal(failure)?);
        Ok(format!(
            "{schema}.set_aside({key}, failure => {failure}, attempts => {attempts}, blocks => {blocks})"
        ))
    }

    /// Sets those of the `events` aside that are dead letters already or that must not overtake a dead letter of their
    /// aggregate, in the caller's transaction, which has locked the tracker. Returns their ids, in order.
    pub(crate) async fn set_aside_waiting(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        events: &[Event],
    ) -> Result<Vec<Position>, sqlx::Error> {
        let statement = format!(
            "-- set_aside_behind
             select e.id from unnest($1::bigint[], $2::uuid[], $3::text[], $4::text[]) as e (id, uuid, type, aggregate_id)
             where {}.set_aside_behind({}, e.id, e.uuid, e.type, e.aggregate_id)",
            self.schema,
            key.arguments()
        );
        sqlx::query_scalar(AssertSqlSafe(statement))
            .persistent(false)
            .bind(events.iter().map(|event| event.id).collect::<Vec<_>>())
            .bind(events.iter().map(|event| event.uuid).collect::<Vec<_>>())
            .bind(events.iter().map(|event| event.event_type.clone()).collect::<Vec<_>>())
            .bind(events.iter().map(|event| event.aggregate_id.to_string()).collect::<Vec<_>>())
            .fetch_all(connection)
            .await
    }

    /// Those of the `events` that are dead letters already, in order.
    pub(crate) async fn find_among(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        events: &[Event],
    ) -> Result<Vec<Position>, sqlx::Error> {
        let statement = format!(
            "-- find_dead_letters_among
             select event_id from {}.dead_letters as d where {} and event_id = any ($1) order by 1",
            self.schema,
            key.is_processor()
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
        query.bind(events.iter().map(|event| event.id).collect::<Vec<_>>()).fetch_all(connection).await
    }

    /// Sets an event aside that must not overtake a dead letter of its `instance`, in the caller's transaction, which has locked the
    /// tracker. Returns whether there is one.
    pub(crate) async fn set_aside_behind_instance(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        event: &Event,
        instance: &str,
    ) -> Result<bool, sqlx::Error> {
        let statement = format!(
            "-- set_aside_behind_instance
             select {}.set_aside_behind_instance({}, $1, $2, $3, $4, $5)",
            self.schema,
            key.arguments()
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
        let query = query.bind(event.id).bind(event.uuid).bind(&event.event_type);
        query.bind(event.aggregate_id.to_string()).bind(instance).fetch_one(connection).await
    }

    /// Removes a dead letter whose event has been handled, in the caller's transaction, which has locked the tracker.
    pub(crate) async fn remove(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        event_id: Position,
    ) -> Result<(), sqlx::Error> {
        let (schema, key) = (&self.schema, key.arguments());
        let statement =
            format!("-- remove_dead_letter\nselect {schema}.remove_dead_letter({key}, {event_id})");
        simple(statement).execute(connection).await.map(drop)
    }

    /// Returns the next event that an operator wants handled again, as it was set aside; `None`: there is none.
    pub(crate) async fn next_requested(
        &self,
        connection: impl PgExecutor<'_>,
        claim: &Claim,
    ) -> Result<Option<FailedEvent>, sqlx::Error> {
        let statement = format!(
            "-- find_requested_dead_letter
             select event_id as id, event_uuid as uuid, event_type, aggregate_id from {}.dead_letters as d
             where {} and retry_requested_at is not null
             order by event_id limit 1",
            self.schema,
            claim.key.is_processor()
        );
        fetch_optional(connection, statement).await
    }

    /// Takes note that a requested retry begins. `false`: it has begun before, and whoever has begun it has not come to an end.
    pub(crate) async fn begin_try(
        &self,
        connection: impl PgExecutor<'_>,
        claim: &Claim,
        event_id: Position,
    ) -> Result<bool, sqlx::Error> {
        let statement = format!(
            "-- begin_try_of_dead_letter
             update {}.dead_letters as d set tried_at = clock_timestamp()
             where {} and event_id = {event_id} and (tried_at is null or tried_at < retry_requested_at)
             returning event_id",
            self.schema,
            claim.key.is_processor()
        );
        Ok(simple(statement).fetch_optional(connection).await?.is_some())
    }

    /// Records that the event has failed again. It stays a dead letter, and so do the events that wait behind it.
    pub(crate) async fn failed_again(
        &self,
        connection: impl PgExecutor<'_>,
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
               where {is_processor} and event_id = {event_id}
                 and exists (select from {trackers} where {is_claimed})
               returning coalesce(instance, aggregate_id) as of_line, blocks as holds_back
             )
             update {schema}.dead_letters set retry_requested_at = null from failed
             where {is_processor} and coalesce(instance, aggregate_id) = of_line and event_id > {event_id} and holds_back",
            schema = self.schema,
            trackers = self.trackers,
            failure = json_literal(&Failure { at: Some(Utc::now()), ..failure.clone() })?,
            is_processor = claim.key.is_processor(),
            is_claimed = is_claimed(claim),
        );
        simple(statement).execute(connection).await.map(drop)
    }
}
