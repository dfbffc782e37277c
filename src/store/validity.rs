//! Refuses events that no store can keep, as far as that is cheap to see before they are sent.

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;

use super::{AppendError, jsonb};
use crate::event::{AggregateId, NewEvent, StoredTime, Tag, UniqueKey};

/// Longest JSON text of a body or of metadata, in bytes: about what jsonb can hold.
const JSON_LENGTH_MAX: usize = 255 << 20;

/// Longest tag, scope or key, in bytes.
const NAME_LENGTH_MAX: usize = 1_000;

/// Refuses an append that cannot succeed, naming the first invalid event.
pub(super) fn check(events: &[NewEvent]) -> Result<(), AppendError> {
    for (index, event) in events.iter().enumerate() {
        if let Some(reason) = find_reason(event) {
            return Err(AppendError::Invalid { index: Some(index), reason: reason.to_owned() });
        }
    }
    Ok(())
}

/// Why no event store can keep an event.
pub(crate) fn find_reason(event: &NewEvent) -> Option<&'static str> {
    let reason = refuse_aggregate_id(&event.aggregate_id);
    reason.or_else(|| find_other_reason(event)).or_else(|| find_fault_of_names(event))
}

fn find_fault_of_names(event: &NewEvent) -> Option<&'static str> {
    let tag = event.tags.iter().find_map(find_fault_of_tag);
    tag.or_else(|| event.keys.iter().find_map(|change| find_fault_of_key(change.key())))
}

/// Why no store can keep such a tag.
pub(super) fn find_fault_of_tag(tag: &Tag) -> Option<&'static str> {
    (!is_storable(tag.as_str())).then_some("a tag is not a text of 1 to 1000 bytes without NUL")
}

fn find_fault_of_key(key: &UniqueKey) -> Option<&'static str> {
    let is_fine = is_storable(&key.scope) && is_storable(&key.key);
    (!is_fine).then_some("a key or its scope is not a text of 1 to 1000 bytes without NUL")
}

fn is_storable(name: &str) -> bool {
    (1..=NAME_LENGTH_MAX).contains(&name.len()) && !name.contains('\0')
}

/// Refuses tags and keys on behalf of what keeps none, so that none is lost.
pub(super) fn refuse_tags(events: &[NewEvent], keeper: &str) -> Result<(), AppendError> {
    match events.iter().position(|event| !event.is_plain()) {
        Some(index) => {
            let reason = format!("{keeper} keeps no tags and no unique keys");
            Err(AppendError::Invalid { index: Some(index), reason })
        }
        None => Ok(()),
    }
}

/// Why no event of such an aggregate can be stored: the layouts that espd writes to have a column of the type `uuid`. The id is not
/// quoted: whoever sent it has it, and others have no use for it.
fn refuse_aggregate_id(id: &AggregateId) -> Option<&'static str> {
    id.as_uuid().is_none().then_some(
        "the aggregate id is not a uuid in its usual form (lower case, with hyphens), but this event store keeps uuids only: \
         use a uuid, for example one of version 5, which is made from a text",
    )
}

fn find_other_reason(event: &NewEvent) -> Option<&'static str> {
    let too_long = |json: &str| json.len() > JSON_LENGTH_MAX;
    if event.event_type.is_empty() {
        Some("the type is empty")
    } else if event.event_type.contains('\0') {
        Some("the type contains a NUL character")
    } else if !event.metadata.get().trim_start().starts_with('{') {
        Some("the metadata is not a JSON object")
    } else if too_long(event.body.get()) || too_long(event.metadata.get()) {
        Some("the body or the metadata is longer than 255 MiB")
    } else if event.expected_version.version().is_some_and(|version| version.get() < 0) {
        Some("the expected version is negative")
    } else if event.created_at.is_some_and(is_too_early) {
        Some("created_at is before 4714 BC")
    } else {
        None
    }
}

/// Why no event store can keep the JSON of an event, which is dear to find out.
pub(crate) fn check_json(event: &NewEvent) -> Result<(), String> {
    [&event.body, &event.metadata].into_iter().try_for_each(|json| match jsonb::normalize(json.get()) {
        Ok(_) => Ok(()),
        Err(reason) => Err(format!("the store cannot keep it: {reason}")),
    })
}

/// What a JSON text contains that no text of a database can: a NUL character or half a surrogate pair.
pub(crate) fn find_bad_text(json: &RawValue) -> Option<&'static str> {
    let what = jsonb::normalize(json.get()).err()?.strip_prefix("it contains ")?;
    ["a NUL character", "a lone surrogate"].into_iter().find(|bad| *bad == what)
}

fn is_too_early(time: DateTime<Utc>) -> bool {
    StoredTime::no_earlier_than(time) == StoredTime::NEGATIVE_INFINITY
}
