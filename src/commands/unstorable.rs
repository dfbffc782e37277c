//! Which field of a command cannot be stored.

use serde_json::{Map, Value};

use super::CommandError;
use crate::event::AggregateId;

/// The code of what cannot be stored.
pub(super) const CODE: &str = "not_storable";

/// The first text of a command, or of what it was sent with, that no record and no event can keep.
pub(super) fn find_in(body: &Value, metadata: &Map<String, Value>) -> Option<CommandError> {
    let of_metadata = || {
        let error = metadata.iter().find_map(|(name, value)| {
            let named = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
            find_text(&named)
        })?;
        let path =
            if error.path.is_empty() { "metadata".to_owned() } else { format!("metadata.{}", error.path) };
        Some(error.at(path))
    };
    find_text(body).or_else(of_metadata)
}

/// The first text that no record and no event can keep.
pub(super) fn find_text(body: &Value) -> Option<CommandError> {
    let path = find(body, String::new(), &|text| text.contains('\0'))?;
    Some(CommandError::new(CODE, "has a zero character, which cannot be stored").at(path))
}

/// The same errors; those of the store say which field of the command they are about, where that can be found out.
pub(super) fn locate(errors: Vec<CommandError>, body: &Value, id: &AggregateId) -> Vec<CommandError> {
    let is_of_store = |error: &CommandError| error.code == CODE && error.path.is_empty();
    let located = |error: CommandError| match is_of_store(&error) {
        true => find_id(body, id).or_else(|| find_text(body)).unwrap_or(error),
        false => error,
    };
    errors.into_iter().map(located).collect()
}

/// An id of an aggregate that is not a uuid. The store has refused the event on its account.
fn find_id(body: &Value, id: &AggregateId) -> Option<CommandError> {
    let text = id.as_uuid().is_none().then(|| id.to_string())?;
    let path = find(body, String::new(), &|value| value == text)?;
    Some(CommandError::new(CODE, "is not a uuid: the event store names aggregates by nothing else").at(path))
}

/// The path of the first text, also of a key, that is meant.
fn find(value: &Value, path: String, is_meant: &dyn Fn(&str) -> bool) -> Option<String> {
    match value {
        Value::String(text) => is_meant(text).then_some(path),
        Value::Array(values) => {
            values.iter().enumerate().find_map(|(n, value)| find(value, format!("{path}[{n}]"), is_meant))
        }
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            let dot = if path.is_empty() { "" } else { "." };
            match is_meant(name) {
                true => Some(path.clone()),
                false => find(value, format!("{path}{dot}{name}"), is_meant),
            }
        }),
        _ => None,
    }
}
