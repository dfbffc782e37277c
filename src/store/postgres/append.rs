//! Appends events.
//!
//! `append_events` (migrations/event_store) holds the rule. Calling it costs the server half as much
//! again as a plain insert. So where the events are of one aggregate whose expected version is known,
//! one INSERT is tried first, which stores all events or none. If it stores none (a version or a uuid
//! is taken, a version is not as expected), the function is called and finds out why.
//!
//! Events with tags or keys, and appends under a condition, have a function of their own (`append/tagged.rs`).

mod insert;
mod stray;
mod tagged;
mod tagged_event;

use std::collections::HashSet;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgBindIterExt};
use sqlx::query::QueryAs;
use sqlx::{PgConnection, PgPool, Postgres, SqlStr};
use uuid::Uuid;

use super::parameter::Jsonb;
use super::sql_text::sql;
use super::{connection, refusal};
use crate::event::{Appended, NewEvent, Position, Version};
use crate::postgres::error::chain;
use crate::postgres::transaction;
use crate::store::layout::{Append, Layout};
use crate::store::normalized::refuse_repeated_uuids;
use crate::store::{AppendCondition, AppendError, Kept};
use stray::{MAY_BE_WITHIN, Stored};

/// Most events sent in one statement.
const BATCH_LENGTH_MAX: usize = 1_000;

/// Most bytes of JSON sent in one statement, unless a single event has more.
const BATCH_BYTES_MAX: usize = 16 << 20;

/// How often an append is tried that deadlocks or cannot be serialized.
const ATTEMPTS_MAX: u32 = 10;

/// The statements of an append, with the layout's names filled in once.
#[derive(Debug)]
pub(super) struct Statements {
    insert: insert::Statements,
    call_function: SqlStr,
    append_tagged: SqlStr,
    tagged_event: tagged_event::Statements,
    find_uuids: SqlStr,
    refuse_departing: SqlStr,
    /// The names of what appends.
    pub(super) append: Append,
    /// Whether statements stay prepared in the session.
    prepared: bool,
}

impl Statements {
    pub(super) fn new(layout: &Layout, append: &Append) -> Self {
        let (events, append_events) = (layout.events_table(), &append.function);
        let [find, refuse] = &append.departing;
        Self {
            insert: insert::Statements::new(events, append),
            call_function: sql(format!(
                "-- append_events
                select id, uuid, version, {MAY_BE_WITHIN}
                from {append_events}($1::uuid[], $2::text[], $3::jsonb[], $4::bigint[], $5::uuid[], $6::jsonb[],
                  $7::uuid[], $8::uuid[], $9::timestamptz[])"
            )),
            append_tagged: tagged::statement(layout),
            tagged_event: tagged_event::Statements::new(layout, &append.event_schemas),
            find_uuids: sql(format!(
                "-- find_uuids
                select uuid from {events} where uuid = any ($1)"
            )),
            refuse_departing: sql(format!(
                "-- refuse_departing
                select {refuse}(departure) from {find}($1::text[], $2::jsonb[], array(
                  select exists (select from {events} as e where e.uuid = given.uuid)
                  from unnest($3::uuid[]) with ordinality as given (uuid, place) order by place)) as departure
                where departure is not null"
            )),
            append: append.clone(),
            prepared: true,
        }
    }

    /// The same statements for sessions that others use as well: nothing stays prepared.
    pub(super) fn unprepared(layout: &Layout, append: &Append) -> Self {
        Self { prepared: false, ..Self::new(layout, append) }
    }
}

/// Appends `events`, at least one where there is no condition, in a transaction of their own.
pub(super) async fn append(
    statements: &Statements,
    pool: &PgPool,
    kept: &mut Kept,
    events: &[NewEvent],
    condition: Option<&AppendCondition>,
) -> Result<Vec<Appended>, AppendError> {
    refuse_repeated_uuids(events)?;
    let mut attempt = 1;
    loop {
        match try_append(statements, pool, kept, events, condition).await {
            Ok(appended) => return Ok(appended),
            Err(error) if attempt < ATTEMPTS_MAX && stray::is_in_failed_transaction(&error) => {
                stray::close(kept);
            }
            Err(error) if attempt < ATTEMPTS_MAX && refusal::is_transient(&error) => {
                tracing::debug!(attempt, error = chain(&error), "append failed for now, trying again");
                kept.release();
                tokio::time::sleep(delay_after(attempt)).await;
            }
            Err(error) => return Err(error),
        }
        attempt += 1;
    }
}

async fn try_append(
    statements: &Statements,
    pool: &PgPool,
    kept: &mut Kept,
    events: &[NewEvent],
    condition: Option<&AppendCondition>,
) -> Result<Vec<Appended>, AppendError> {
    let is_plain = condition.is_none() && are_plain(events);
    if is_plain && split_into_batches(events).len() > 1 {
        kept.release();
        let mut transaction = transaction::begin(pool, "begin").await?;
        let appended = append_in_transaction(statements, &mut transaction, events).await?;
        transaction.commit().await?;
        return Ok(appended);
    }
    let connection = connection::acquire(pool, kept).await?;
    let stored = match is_plain {
        true => store_plain(statements, connection, events).await?,
        false => store_tagged(statements, connection, events, condition).await?,
    };
    stored.for_good(connection).await
}

/// Stores events of one batch that have neither tags nor keys.
async fn store_plain(
    statements: &Statements,
    connection: &mut PgConnection,
    events: &[NewEvent],
) -> Result<Stored, AppendError> {
    match insert::insert_where_expected(&statements.insert, connection, events).await? {
        Some(stored) => Ok(stored),
        None => call_function(statements, connection, events).await,
    }
}

/// Stores events with tags and keys, unless the condition excludes it.
async fn store_tagged(
    statements: &Statements,
    connection: &mut PgConnection,
    events: &[NewEvent],
    condition: Option<&AppendCondition>,
) -> Result<Stored, AppendError> {
    if tagged_event::is_for(events, condition) {
        let (statements, prepared) = (&statements.tagged_event, statements.prepared);
        let stored = tagged_event::append(statements, prepared, connection, &events[0], condition).await?;
        if let Some(stored) = stored {
            return Ok(stored);
        }
    }
    let statement = (&statements.append_tagged, statements.prepared);
    tagged::append(statement, connection, events, condition).await
}

/// Appends `events`, any number, in the transaction that `connection` is in. It tries no
/// statement that may well fail, because an error would end the caller's transaction.
pub(super) async fn append_in_transaction(
    statements: &Statements,
    connection: &mut PgConnection,
    events: &[NewEvent],
) -> Result<Vec<Appended>, AppendError> {
    refuse_repeated_uuids(events)?;
    if !are_plain(events) {
        return append_tagged(statements, connection, events, None).await;
    }
    let batches = split_into_batches(events);
    if batches.len() > 1 {
        refuse_known_uuids(statements, connection, events).await?;
    }
    let mut appended = Vec::with_capacity(events.len());
    for batch in batches {
        let stored = call_function(statements, connection, batch).await;
        appended.extend(stored.map_err(|error| error.counting_from(appended.len()))?.appended);
    }
    Ok(appended)
}

/// Appends `events`, any number, with their tags and keys, unless the condition excludes it.
pub(super) async fn append_tagged(
    statements: &Statements,
    connection: &mut PgConnection,
    events: &[NewEvent],
    condition: Option<&AppendCondition>,
) -> Result<Vec<Appended>, AppendError> {
    let statement = (&statements.append_tagged, statements.prepared);
    Ok(tagged::append(statement, connection, events, condition).await?.appended)
}

fn are_plain(events: &[NewEvent]) -> bool {
    events.iter().all(NewEvent::is_plain)
}

fn split_into_batches(events: &[NewEvent]) -> Vec<&[NewEvent]> {
    let mut bytes = 0;
    let mut length = 0;
    events
        .chunk_by(|event, _| {
            length += 1;
            bytes += event.body.get().len() + event.metadata.get().len();
            let goes_on = length < BATCH_LENGTH_MAX && bytes < BATCH_BYTES_MAX;
            if !goes_on {
                (bytes, length) = (0, 0);
            }
            goes_on
        })
        .collect()
}

/// Refuses what no single batch can see: a uuid that is in two of them, or stored without the others.
async fn refuse_known_uuids(
    statements: &Statements,
    connection: &mut PgConnection,
    events: &[NewEvent],
) -> Result<(), AppendError> {
    let uuids: Vec<Uuid> = events.iter().map(|event| event.uuid).collect();
    let stored = find_stored(statements, connection, &uuids).await?;
    if stored.is_empty() || stored.len() == events.len() {
        return Ok(());
    }
    let stored: HashSet<Uuid> = stored.into_iter().collect();
    match events.iter().find(|event| stored.contains(&event.uuid)) {
        Some(NewEvent { uuid, .. }) => Err(AppendError::UuidReused { uuid: *uuid }),
        None => Ok(()),
    }
}

/// The uuids of these that are stored.
pub(super) async fn find_stored(
    statements: &Statements,
    connection: &mut PgConnection,
    uuids: &[Uuid],
) -> Result<Vec<Uuid>, sqlx::Error> {
    let query = sqlx::query_scalar(statements.find_uuids.clone()).persistent(statements.prepared);
    query.bind(uuids).fetch_all(connection).await
}

/// Refuses events that are to be appended later and have a body that is not as declared, except those that are stored.
pub(super) async fn refuse_departing(
    statements: &Statements,
    connection: &mut PgConnection,
    events: &[NewEvent],
) -> Result<(), AppendError> {
    let query = sqlx::query(statements.refuse_departing.clone()).persistent(statements.prepared);
    let query = query
        .bind(events.iter().map(|event| &event.event_type).bind_iter())
        .bind(events.iter().map(|event| Jsonb(&event.body)).bind_iter())
        .bind(events.iter().map(|event| event.uuid).bind_iter());
    let refused = query.execute(connection).await;
    refused.map(drop).map_err(|error| refusal::translate(error, events))
}

async fn call_function(
    statements: &Statements,
    connection: &mut PgConnection,
    events: &[NewEvent],
) -> Result<Stored, AppendError> {
    let query = sqlx::query_as(statements.call_function.clone()).persistent(statements.prepared);
    let rows: Vec<Row> = bind_events(query, events)
        .fetch_all(connection)
        .await
        .map_err(|error| refusal::translate(error, events))?;
    Ok(stored(rows))
}

/// Where an event was stored, as the functions that append return it, and what [`MAY_BE_WITHIN`] says.
type Row = (Position, Uuid, Version, bool);

fn stored(rows: Vec<Row>) -> Stored {
    let may_be_within = rows.iter().any(|(.., may_be_within)| *may_be_within);
    let appended = rows.into_iter().map(|(id, uuid, version, _)| Appended { id, uuid, version });
    Stored { appended: appended.collect(), may_be_within }
}

/// Binds what describes the events: the first nine parameters of the functions that append.
fn bind_events<'q>(
    query: QueryAs<'q, Postgres, Row, PgArguments>,
    events: &'q [NewEvent],
) -> QueryAs<'q, Postgres, Row, PgArguments> {
    query
        .bind(events.iter().map(|event| event.aggregate_id.as_uuid()).bind_iter())
        .bind(events.iter().map(|event| &event.event_type).bind_iter())
        .bind(events.iter().map(|event| Jsonb(&event.body)).bind_iter())
        .bind(events.iter().map(|event| event.expected_version.version()).bind_iter())
        .bind(events.iter().map(|event| event.uuid).bind_iter())
        .bind(events.iter().map(|event| Jsonb(&event.metadata)).bind_iter())
        .bind(events.iter().map(|event| event.correlation_id).bind_iter())
        .bind(events.iter().map(|event| event.causation_id).bind_iter())
        .bind(events.iter().map(|event| event.kept_created_at()).bind_iter())
}

/// How long to wait after an attempt: two writers that collided should not meet again. The random part
/// comes from the only source of randomness at hand.
fn delay_after(attempt: u32) -> Duration {
    let random = u64::from(Uuid::new_v4().as_bytes()[0]);
    Duration::from_micros(random * 20 * u64::from(attempt))
}
