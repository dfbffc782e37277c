//! Translates errors of the database into what they mean to an appender, by SQLSTATE and constraint only.

use serde::Deserialize;
use sqlx::postgres::PgDatabaseError;
use uuid::Uuid;

use crate::event::{AggregateId, NewEvent, Position, Tag, UniqueKey, Version};
use crate::store::{AppendError, ExcludingEvent, jsonb};

const CONFLICT: &str = "ES001";
const UUID_REUSED: &str = "ES002";
const INVALID: &str = "ES003";
const NOT_AS_DECLARED: &str = "ES007";
const CONDITION_FAILED: &str = "ES008";
const KEY_TAKEN: &str = "ES009";
const NOTHING_STORED: &str = "ES010";
const UNIQUE_VIOLATION: &str = "23505";
const CHECK_VIOLATION: &str = "23514";
const SERIALIZATION_FAILURE: &str = "40001";
const DEADLOCK_DETECTED: &str = "40P01";
const UNDEFINED_TABLE: &str = "42P01";
const UNDEFINED_COLUMN: &str = "42703";
const UNDEFINED_FUNCTION: &str = "42883";

/// Data exceptions: no such character in jsonb, number out of range, time out of range …
const DATA_EXCEPTION_CLASS: &str = "22";

/// Program limits: JSON nested too deeply, string too long for jsonb …
const PROGRAM_LIMIT_CLASS: &str = "54";

/// Translates an error of an append of `events`.
pub(super) fn translate(error: sqlx::Error, events: &[NewEvent]) -> AppendError {
    let Some(refusal) = find_refusal(&error) else { return AppendError::Database(error) };
    let translated = match refusal.code() {
        CONFLICT => detail(refusal).map(Conflict::into_error),
        UUID_REUSED => detail(refusal).map(|UuidReused { uuid }| AppendError::UuidReused { uuid }),
        CONDITION_FAILED => detail(refusal).and_then(ConditionFailed::into_error),
        KEY_TAKEN => detail(refusal).and_then(KeyTaken::into_error),
        INVALID | NOT_AS_DECLARED | CHECK_VIOLATION => Some(invalid(refusal, events)),
        code if code.starts_with(DATA_EXCEPTION_CLASS) || code.starts_with(PROGRAM_LIMIT_CLASS) => {
            Some(invalid(refusal, events))
        }
        _ => None,
    };
    translated.unwrap_or(AppendError::Database(error))
}

/// Whether one of the constraints `keys` is violated, because the version or the uuid of an event is taken; `append_events` finds
/// out why.
pub(super) fn is_taken(error: &sqlx::Error, keys: &[String]) -> bool {
    find_refusal(error).is_some_and(|refusal| {
        refusal.code() == UNIQUE_VIOLATION
            && refusal.constraint().is_some_and(|name| keys.iter().any(|key| key == name))
    })
}

/// Whether the store was migrated last before events could be declared; `append_events` does without.
pub(super) fn is_of_older_store(error: &sqlx::Error) -> bool {
    find_refusal(error).is_some_and(|refusal| refusal.code() == UNDEFINED_TABLE)
}

/// Whether a statement has stored nothing and left it to `append_tagged` to say why, or the store was migrated last before there was
/// what the statement needs.
pub(super) fn is_nothing_stored(error: &sqlx::Error) -> bool {
    let codes = [NOTHING_STORED, UNDEFINED_TABLE, UNDEFINED_COLUMN, UNDEFINED_FUNCTION];
    find_refusal(error).is_some_and(|refusal| codes.contains(&refusal.code()))
}

/// Whether the same append may well succeed when it is repeated at once.
pub(super) fn is_transient(error: &AppendError) -> bool {
    let AppendError::Database(error) = error else { return false };
    find_refusal(error)
        .is_some_and(|refusal| [SERIALIZATION_FAILURE, DEADLOCK_DETECTED].contains(&refusal.code()))
}

fn find_refusal(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error.as_database_error()?.try_downcast_ref()
}

/// The DETAIL of an `ES…` error: JSON, as migrations/event_store says.
fn detail<'a, T: Deserialize<'a>>(refusal: &'a PgDatabaseError) -> Option<T> {
    serde_json::from_str(refusal.detail()?).ok()
}

#[derive(Deserialize)]
struct Conflict {
    aggregate_id: AggregateId,
    expected: Version,
    actual: Version,
}

impl Conflict {
    fn into_error(self) -> AppendError {
        let Self { aggregate_id, expected, actual } = self;
        AppendError::Conflict { aggregate_id, expected, actual }
    }
}

#[derive(Deserialize)]
struct UuidReused {
    uuid: Uuid,
}

#[derive(Deserialize)]
struct ConditionFailed {
    item: usize,
    tag: Tag,
    id: Option<Position>,
    #[serde(rename = "type")]
    event_type: Option<String>,
    aggregate_id: Option<AggregateId>,
}

impl ConditionFailed {
    fn into_error(self) -> Option<AppendError> {
        let Self { item, tag, id, event_type, aggregate_id } = self;
        let came = id.zip(event_type).map(|(id, event_type)| ExcludingEvent { id, event_type, aggregate_id });
        Some(AppendError::ConditionFailed { item: item.checked_sub(1)?, tag, came })
    }
}

#[derive(Deserialize)]
struct KeyTaken {
    event: usize,
    owner: AggregateId,
    #[serde(flatten)]
    key: UniqueKey,
}

impl KeyTaken {
    fn into_error(self) -> Option<AppendError> {
        let Self { event, owner, key } = self;
        Some(AppendError::KeyTaken { index: event.checked_sub(1)?, key, owner })
    }
}

#[derive(Deserialize)]
struct Invalid {
    event: Option<usize>,
}

/// The event that the server could not take. The server does not say which of several it is, so this function looks for it.
fn invalid(refusal: &PgDatabaseError, events: &[NewEvent]) -> AppendError {
    let named = detail::<Invalid>(refusal).and_then(|invalid| invalid.event);
    if let Some(index) = named.and_then(|number| number.checked_sub(1)) {
        // The error says by itself which event it is about.
        let place = format!("event {}: ", index + 1);
        let reason = refusal.message().strip_prefix(&place).unwrap_or(refusal.message()).to_owned();
        return AppendError::Invalid { index: Some(index), reason };
    }
    let faults = events.iter().map(|event| {
        jsonb::normalize(event.body.get()).and_then(|_| jsonb::normalize(event.metadata.get())).err()
    });
    match faults.enumerate().find_map(|(index, fault)| Some((index, fault?))) {
        Some((index, fault)) => AppendError::Invalid { index: Some(index), reason: fault.to_owned() },
        None => AppendError::Invalid { index: None, reason: refusal.message().to_owned() },
    }
}
