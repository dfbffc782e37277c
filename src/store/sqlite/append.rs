//! Appending in a transaction of SQLite.

use std::collections::HashMap;

use sqlx::{Row as _, SqliteConnection};
use uuid::Uuid;

use super::row;
use crate::event::{AggregateId, Appended, Event, NewEvent, Version};
use crate::store::normalized::{Json, find_appended, normalize, now, place, refuse_repeated_uuids};
use crate::store::{AppendError, validity};

/// Appends events, all or none, in a transaction that began as the only one that writes.
pub(super) async fn append(
    connection: &mut SqliteConnection,
    events: &[NewEvent],
) -> Result<Vec<Appended>, AppendError> {
    validity::check(events)?;
    validity::refuse_tags(events, "a store in one file")?;
    let bodies = normalize(events)?;
    refuse_repeated_uuids(events)?;
    let stored = find_stored(connection, events).await?;
    if let Some(appended) = find_appended(events, |uuid| stored.get(&uuid))? {
        return Ok(appended);
    }
    let heads = find_heads(connection, events).await?;
    let versions = place(events, |id| heads.get(id).copied().unwrap_or(Version::NONE))?;
    let mut appended = Vec::with_capacity(events.len());
    for ((event, json), version) in events.iter().zip(bodies).zip(versions) {
        appended.push(insert(connection, event, json, version).await?);
    }
    Ok(appended)
}

/// As [`append`], without the events that are stored already.
pub(super) async fn append_missing(
    connection: &mut SqliteConnection,
    events: &[NewEvent],
) -> Result<(), AppendError> {
    let stored = find_stored(connection, events).await?;
    let missing: Vec<NewEvent> =
        events.iter().filter(|event| !stored.contains_key(&event.uuid)).cloned().collect();
    append(connection, &missing).await.map(drop)
}

async fn find_stored(
    connection: &mut SqliteConnection,
    events: &[NewEvent],
) -> Result<HashMap<Uuid, Event>, sqlx::Error> {
    let statement = concat!(
        "-- find_stored\nselect ",
        row::columns!(),
        " from events where uuid in (select value from json_each(?))"
    );
    let uuids: Vec<String> = events.iter().map(|event| event.uuid.to_string()).collect();
    let rows = sqlx::query(statement).bind(texts(&uuids)).fetch_all(connection).await?;
    rows.iter().map(|found| row::event(found).map(|event| (event.uuid, event))).collect()
}

/// The versions of the aggregates that there are.
async fn find_heads(
    connection: &mut SqliteConnection,
    events: &[NewEvent],
) -> Result<HashMap<AggregateId, Version>, sqlx::Error> {
    let statement = "-- find_heads
        select aggregate_id, max(version) as version from events
        where aggregate_id in (select value from json_each(?)) group by aggregate_id";
    let ids: HashMap<String, &AggregateId> =
        events.iter().map(|event| (event.aggregate_id.to_string(), &event.aggregate_id)).collect();
    let wanted: Vec<String> = ids.keys().cloned().collect();
    let rows = sqlx::query(statement).bind(texts(&wanted)).fetch_all(connection).await?;
    let mut heads = HashMap::with_capacity(rows.len());
    for found in rows {
        let id: String = found.try_get("aggregate_id")?;
        if let Some(id) = ids.get(&id) {
            heads.insert((*id).clone(), found.try_get::<i64, _>("version")?.into());
        }
    }
    Ok(heads)
}

async fn insert(
    connection: &mut SqliteConnection,
    event: &NewEvent,
    (body, metadata): (Json, Json),
    version: Version,
) -> Result<Appended, sqlx::Error> {
    let statement = "-- insert_event
        insert into events
          (uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at)
        values (?, ?, ?, ?, ?, ?, ?, ?, ?)";
    let created_at = event.kept_created_at().unwrap_or_else(now).timestamp_micros();
    let query = sqlx::query(statement)
        .bind(event.uuid.to_string())
        .bind(event.aggregate_id.to_string())
        .bind(&event.event_type)
        .bind(version.get())
        .bind(body.get())
        .bind(metadata.get())
        .bind(event.correlation_id.map(|id| id.to_string()))
        .bind(event.causation_id.map(|id| id.to_string()))
        .bind(created_at);
    let id = query.execute(connection).await?.last_insert_rowid();
    Ok(Appended { id: id.into(), uuid: event.uuid, version })
}

/// Texts as a JSON array, to be bound as one value.
pub(super) fn texts(texts: &[String]) -> String {
    serde_json::to_string(texts).unwrap_or_default()
}
