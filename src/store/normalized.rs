//! Events as PostgreSQL would keep them, and what it would say of an append: for the stores that are not PostgreSQL.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{AppendError, jsonb};
use crate::event::{AggregateId, Appended, Event, NewEvent, Version};

pub(super) type Json = Box<RawValue>;

/// Body and metadata of each event as the store keeps them.
pub(super) fn normalize(events: &[NewEvent]) -> Result<Vec<(Json, Json)>, AppendError> {
    let json = |index, raw: &RawValue| {
        let invalid = |reason: String| AppendError::Invalid { index: Some(index), reason };
        let text = jsonb::normalize(raw.get()).map_err(|reason| invalid(reason.to_owned()))?;
        RawValue::from_string(text).map_err(|error| invalid(error.to_string()))
    };
    let both =
        |(index, event): (usize, &NewEvent)| Ok((json(index, &event.body)?, json(index, &event.metadata)?));
    events.iter().enumerate().map(both).collect()
}

pub(super) fn refuse_repeated_uuids(events: &[NewEvent]) -> Result<(), AppendError> {
    if events.len() < 2 {
        return Ok(());
    }
    let mut indexes = HashMap::with_capacity(events.len());
    for (index, event) in events.iter().enumerate() {
        if indexes.insert(event.uuid, index).is_some() {
            let reason = format!("uuid {} is given twice", event.uuid);
            return Err(AppendError::Invalid { index: None, reason });
        }
    }
    Ok(())
}

/// The places of the events if they are stored already; `None` if none of them is. `find` is what is stored under a uuid.
pub(super) fn find_appended<'s>(
    events: &[NewEvent],
    find: impl Fn(Uuid) -> Option<&'s Event>,
) -> Result<Option<Vec<Appended>>, AppendError> {
    let stored: Vec<&Event> = events.iter().filter_map(|event| find(event.uuid)).collect();
    let Some(first) = stored.first() else { return Ok(None) };
    if stored.len() < events.len() {
        return Err(AppendError::UuidReused { uuid: first.uuid });
    }
    if let Some((_, event)) = stored.iter().zip(events).find(|(stored, event)| !is_same(stored, event)) {
        return Err(AppendError::UuidReused { uuid: event.uuid });
    }
    let place = |event: &&Event| Appended { id: event.id, uuid: event.uuid, version: event.version };
    Ok(Some(stored.iter().map(place).collect()))
}

/// The version that each event gets. `head` is the version of an aggregate before.
pub(super) fn place(
    events: &[NewEvent],
    head: impl Fn(&AggregateId) -> Version,
) -> Result<Vec<Version>, AppendError> {
    let mut heads = HashMap::new();
    let mut versions = Vec::with_capacity(events.len());
    for event in events {
        let aggregate_id = event.aggregate_id.clone();
        let head = heads.entry(aggregate_id.clone()).or_insert_with(|| head(&aggregate_id));
        match event.expected_version.version() {
            Some(expected) if expected != *head => {
                return Err(AppendError::Conflict { aggregate_id, expected, actual: *head });
            }
            _ => *head = head.next(),
        }
        versions.push(*head);
    }
    Ok(versions)
}

fn is_same(stored: &Event, event: &NewEvent) -> bool {
    stored.aggregate_id == event.aggregate_id
        && stored.event_type == event.event_type
        && jsonb::are_equal(stored.body.get(), event.body.get())
        && jsonb::are_equal(stored.metadata.get(), event.metadata.get())
        && stored.correlation_id == event.correlation_id
        && stored.causation_id == event.causation_id
        && event.kept_created_at().is_none_or(|time| stored.created_at == time)
}

/// The clock, to the microsecond.
pub(super) fn now() -> DateTime<Utc> {
    let now = Utc::now();
    DateTime::from_timestamp_micros(now.timestamp_micros()).unwrap_or(now)
}
