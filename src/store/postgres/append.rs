//! How events are appended.
//!
//! `append_events` (migrations/event_store) holds the rule. Calling it costs the server half as much
//! again as a plain insert, so where the events are of one aggregate whose expected version is known,
//! one INSERT is tried first, which stores all events or none. What stops it (a version or a uuid that
//! is taken, a version that is not as expected), the function finds out.

use std::collections::HashSet;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgBindIterExt};
use sqlx::query::Query;
use sqlx::{PgConnection, PgPool, Postgres, Row, SqlStr};
use uuid::Uuid;

use super::parameter::Jsonb;
use super::{refusal, sql};
use crate::event::{Appended, NewEvent, Position, Version};
use crate::store::AppendError;
use crate::store::layout::{Append, Layout};

/// Most events sent in one statement.
const BATCH_LENGTH_MAX: usize = 1_000;

/// Most bytes of JSON sent in one statement, unless a single event has more.
const BATCH_BYTES_MAX: usize = 16 << 20;

/// How often an append is tried that deadlocks or cannot be serialized.
const ATTEMPTS_MAX: u32 = 10;

/// The statements of an append, with the layout's names filled in once.
#[derive(Debug)]
pub(super) struct Statements {
    insert_one: SqlStr,
    insert_several: SqlStr,
    call_function: SqlStr,
    find_uuids: SqlStr,
    /// Whether statements stay prepared in the session.
    prepared: bool,
}

impl Statements {
    pub(super) fn new(layout: &Layout, append: &Append) -> Self {
        let (events, append_events) = (layout.events_table(), &append.function);
        Self {
            insert_one: sql(format!(
                "-- insert_event
                insert into {events}
                  (uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at)
                select $3, $1, $4, $2 + 1, $5, $6, $7, $8, coalesce($9, clock_timestamp())
                where $2 = coalesce(
                  (select version from {events} where aggregate_id = $1 order by version desc limit 1), 0)
                returning id"
            )),
            insert_several: sql(format!(
                "-- insert_events
                insert into {events}
                  (uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at)
                select new.uuid, $1, new.type, $2 + new.place, new.body, new.metadata, new.correlation_id,
                  new.causation_id, coalesce(new.created_at, clock_timestamp())
                from unnest($3::uuid[], $4::text[], $5::jsonb[], $6::jsonb[], $7::uuid[], $8::uuid[],
                    $9::timestamptz[])
                  with ordinality as new
                    (uuid, type, body, metadata, correlation_id, causation_id, created_at, place)
                where $2 = coalesce(
                  (select version from {events} where aggregate_id = $1 order by version desc limit 1), 0)
                order by new.place
                returning id"
            )),
            call_function: sql(format!(
                "-- append_events
                select id, uuid, version
                from {append_events}($1::uuid[], $2::text[], $3::jsonb[], $4::bigint[], $5::uuid[], $6::jsonb[],
                  $7::uuid[], $8::uuid[], $9::timestamptz[])"
            )),
            find_uuids: sql(format!(
                "-- find_uuids
                select uuid from {events} where uuid = any ($1)"
            )),
            prepared: true,
        }
    }

    /// For sessions that others use as well: nothing stays prepared.
    pub(super) fn unprepared(layout: &Layout, append: &Append) -> Self {
        Self { prepared: false, ..Self::new(layout, append) }
    }
}

/// Appends `events`, at least one, in a transaction of their own.
pub(super) async fn append(
    statements: &Statements,
    pool: &PgPool,
    events: &[NewEvent],
) -> Result<Vec<Appended>, AppendError> {
    let mut attempt = 1;
    loop {
        match try_append(statements, pool, events).await {
            Err(error) if attempt < ATTEMPTS_MAX && refusal::is_transient(&error) => {
                tracing::debug!(attempt, error = %error, "append did not get through, trying again");
                tokio::time::sleep(delay_after(attempt)).await;
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

async fn try_append(
    statements: &Statements,
    pool: &PgPool,
    events: &[NewEvent],
) -> Result<Vec<Appended>, AppendError> {
    if split_into_batches(events).len() > 1 {
        let mut transaction = pool.begin().await?;
        let appended = append_in_transaction(statements, &mut transaction, events).await?;
        transaction.commit().await?;
        return Ok(appended);
    }
    let mut connection = pool.acquire().await?;
    if let Some(appended) = insert_where_expected(statements, &mut connection, events).await? {
        return Ok(appended);
    }
    call_function(statements, &mut connection, events).await
}

/// Appends `events`, any number, in the transaction that `connection` is in. Does not try anything
/// that may fail before it is known to: an error would end the caller's transaction.
pub(super) async fn append_in_transaction(
    statements: &Statements,
    connection: &mut PgConnection,
    events: &[NewEvent],
) -> Result<Vec<Appended>, AppendError> {
    let batches = split_into_batches(events);
    if batches.len() > 1 {
        refuse_known_uuids(statements, connection, events).await?;
    }
    let mut appended = Vec::with_capacity(events.len());
    for batch in batches {
        let stored = call_function(statements, connection, batch).await;
        appended.extend(stored.map_err(|error| error.counting_from(appended.len()))?);
    }
    Ok(appended)
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

/// Sees to what no single batch can see: a uuid that is in two of them, or stored without the others.
async fn refuse_known_uuids(
    statements: &Statements,
    connection: &mut PgConnection,
    events: &[NewEvent],
) -> Result<(), AppendError> {
    let mut given = HashSet::with_capacity(events.len());
    if let Some(index) = events.iter().position(|event| !given.insert(event.uuid)) {
        let reason = format!("uuid {} is given twice", events[index].uuid);
        return Err(AppendError::Invalid { index: Some(index), reason });
    }
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

/// Stores the events if they are of one aggregate, and it is at the version that they expect; `None`
/// if nothing was stored, for whatever reason.
async fn insert_where_expected(
    statements: &Statements,
    connection: &mut PgConnection,
    events: &[NewEvent],
) -> Result<Option<Vec<Appended>>, AppendError> {
    let Some(head) = find_expected_head(events) else { return Ok(None) };
    let query = match events {
        [event] => bind_one(statements, event, head),
        _ => bind_several(statements, events, head),
    };
    let mut ids: Vec<Position> = match query.fetch_all(connection).await {
        Ok(rows) => rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?,
        Err(error) if refusal::is_taken(&error) => return Ok(None),
        Err(error) => return Err(refusal::translate(error, events)),
    };
    if ids.is_empty() {
        return Ok(None);
    }
    // Ids were drawn in the order of the events, whatever order the rows came back in.
    ids.sort_unstable();
    let places = ids.into_iter().zip(events).zip(head.get() + 1..);
    Ok(Some(
        places
            .map(|((id, event), version)| Appended { id, uuid: event.uuid, version: version.into() })
            .collect(),
    ))
}

/// The version that the aggregate must be at; `None` if there are several aggregates, or if the events
/// expect nothing or contradict each other. One expectation is enough: it fixes all versions.
fn find_expected_head(events: &[NewEvent]) -> Option<Version> {
    let aggregate_id = events.first()?.aggregate_id;
    let mut head = None;
    for (place, event) in (0..).zip(events) {
        if event.aggregate_id != aggregate_id {
            return None;
        }
        let Some(expected) = event.expected_version.version() else { continue };
        let before = expected.get() - place;
        if before < 0 || *head.get_or_insert(before) != before {
            return None;
        }
    }
    let length = i64::try_from(events.len()).ok()?;
    head.filter(|head: &i64| head.checked_add(length).is_some()).map(Version::new)
}

type Bound<'q> = Query<'q, Postgres, PgArguments>;

fn bind_one<'q>(statements: &Statements, event: &NewEvent, head: Version) -> Bound<'q> {
    sqlx::query(statements.insert_one.clone())
        .bind(event.aggregate_id)
        .bind(head)
        .bind(event.uuid)
        .bind(&event.event_type)
        .bind(Jsonb(&event.body))
        .bind(Jsonb(&event.metadata))
        .bind(event.correlation_id)
        .bind(event.causation_id)
        .bind(event.kept_created_at())
}

fn bind_several<'q>(statements: &Statements, events: &[NewEvent], head: Version) -> Bound<'q> {
    sqlx::query(statements.insert_several.clone())
        .bind(events[0].aggregate_id)
        .bind(head)
        .bind(events.iter().map(|event| event.uuid).bind_iter())
        .bind(events.iter().map(|event| &event.event_type).bind_iter())
        .bind(events.iter().map(|event| Jsonb(&event.body)).bind_iter())
        .bind(events.iter().map(|event| Jsonb(&event.metadata)).bind_iter())
        .bind(events.iter().map(|event| event.correlation_id).bind_iter())
        .bind(events.iter().map(|event| event.causation_id).bind_iter())
        .bind(events.iter().map(|event| event.kept_created_at()).bind_iter())
}

async fn call_function(
    statements: &Statements,
    connection: &mut PgConnection,
    events: &[NewEvent],
) -> Result<Vec<Appended>, AppendError> {
    let rows: Vec<(Position, Uuid, Version)> = sqlx::query_as(statements.call_function.clone())
        .persistent(statements.prepared)
        .bind(events.iter().map(|event| event.aggregate_id).bind_iter())
        .bind(events.iter().map(|event| &event.event_type).bind_iter())
        .bind(events.iter().map(|event| Jsonb(&event.body)).bind_iter())
        .bind(events.iter().map(|event| event.expected_version.version()).bind_iter())
        .bind(events.iter().map(|event| event.uuid).bind_iter())
        .bind(events.iter().map(|event| Jsonb(&event.metadata)).bind_iter())
        .bind(events.iter().map(|event| event.correlation_id).bind_iter())
        .bind(events.iter().map(|event| event.causation_id).bind_iter())
        .bind(events.iter().map(|event| event.kept_created_at()).bind_iter())
        .fetch_all(connection)
        .await
        .map_err(|error| refusal::translate(error, events))?;
    Ok(rows.into_iter().map(|(id, uuid, version)| Appended { id, uuid, version }).collect())
}

/// How long to wait after an attempt: two writers that collided should not meet again. The random part
/// comes from the only source of randomness at hand.
fn delay_after(attempt: u32) -> Duration {
    let random = u64::from(Uuid::new_v4().as_bytes()[0]);
    Duration::from_micros(random * 20 * u64::from(attempt))
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::event::ExpectedVersion::{self, Absent, Any, Exact};

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);

    fn head_of(events: &[(Uuid, ExpectedVersion)]) -> Option<Version> {
        let body = RawValue::from_string("{}".to_owned()).unwrap();
        let event = |&(aggregate_id, expected): &(Uuid, ExpectedVersion)| {
            NewEvent::new(aggregate_id, "Happened", body.clone()).expecting(expected)
        };
        find_expected_head(&events.iter().map(event).collect::<Vec<_>>())
    }

    #[test]
    fn one_expectation_fixes_all_versions_of_an_aggregate() {
        assert_eq!(head_of(&[(A, Absent)]), Some(0.into()));
        assert_eq!(head_of(&[(A, Exact(99.into())), (A, Any)]), Some(99.into()));
        assert_eq!(
            head_of(&[(A, Any), (A, Any), (A, Exact(9.into())), (A, Exact(10.into()))]),
            Some(7.into())
        );
    }

    #[test]
    fn what_is_open_or_cannot_be_is_left_to_the_function() {
        assert_eq!(head_of(&[(A, Any)]), None);
        assert_eq!(head_of(&[(A, Absent), (B, Absent)]), None);
        assert_eq!(head_of(&[(A, Absent), (A, Absent)]), None);
        assert_eq!(head_of(&[(A, Any), (A, Absent)]), None);
        assert_eq!(head_of(&[(A, Exact(Version::MAX))]), None);
        assert_eq!(head_of(&[(A, Exact((i64::MAX - 1).into())), (A, Any)]), None);
    }
}
