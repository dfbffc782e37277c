//! Reads a whole command, and finds all that is wrong with it.
//!
//! A reader of serde stops at the first error. So what cannot be read is replaced by something that can, and reading begins anew, until
//! nothing else is found. What is read then is never used, but for the rules that it breaks elsewhere.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use validator::Validate;

use super::Place;
use super::conversion::Reader;
use super::read_error::ReadError;
use crate::commands::CommandError;

/// The most fields that are replaced.
const ERRORS_MAX: usize = 100;

pub(super) fn read<T: DeserializeOwned + Validate>(
    mut value: Value,
    is_text: bool,
) -> Result<T, Vec<CommandError>> {
    let mut errors: Vec<CommandError> = Vec::new();
    for _ in 0..ERRORS_MAX {
        let (place, error) = match attempt::<T>(&value, is_text) {
            Ok(command) => return finish(command, errors),
            Err(found) => found,
        };
        let path = place.to_string();
        // What a replacement lacks is not what the sender has left out.
        if !errors.iter().any(|earlier| is_below(&path, &earlier.path)) {
            errors.push(error.told.clone().at(path));
        }
        if !replace::<T>(&mut value, is_text, &place, &error) {
            break;
        }
    }
    Err(errors)
}

/// Adds what the rules say, but for what was replaced.
fn finish<T: Validate>(command: T, mut errors: Vec<CommandError>) -> Result<T, Vec<CommandError>> {
    let Err(broken) = super::validate(&command) else {
        return if errors.is_empty() { Ok(command) } else { Err(errors) };
    };
    let replaced: Vec<String> = errors.iter().map(|error| error.path.clone()).collect();
    let is_of_replaced = |error: &CommandError| replaced.iter().any(|path| is_about(&error.path, path));
    errors.extend(broken.into_iter().filter(|error| !is_of_replaced(error)));
    Err(errors)
}

/// Whether what is said of `path` may be due to what stands at `replaced`.
fn is_about(path: &str, replaced: &str) -> bool {
    path == replaced
        || path.is_empty()
        || is_below(path, replaced)
        || replaced.starts_with(&format!("{path}."))
}

fn is_below(path: &str, upper: &str) -> bool {
    path.strip_prefix(upper).is_some_and(|rest| rest.starts_with(['.', '[']))
}

fn attempt<T: DeserializeOwned>(value: &Value, is_text: bool) -> Result<T, (Place, ReadError)> {
    serde_path_to_error::deserialize(Reader { value, is_text }).map_err(|error| {
        let place = Place::of(error.path());
        let error = error.into_inner();
        let place = match (error.field, &error.stranger) {
            (Some(field), _) => place.field(field),
            (None, Some(stranger)) => place.field(stranger),
            (None, None) => place,
        };
        (place, error)
    })
}

/// Replaces what cannot be read, so that reading comes further. Returns whether it does.
fn replace<T: DeserializeOwned>(value: &mut Value, is_text: bool, place: &Place, error: &ReadError) -> bool {
    if error.stranger.is_some() {
        return place.remove(value);
    }
    let told = match error.choices {
        [] => choices::<T>(value, is_text, place),
        choices => choices,
    };
    let mut candidate = value.clone();
    let found = replacements(told).into_iter().any(|replacement| {
        place.put(&mut candidate, replacement)
            && !attempt::<T>(&candidate, is_text).is_err_and(|(next, _)| next == *place)
    });
    if found {
        *value = candidate;
    }
    found && !place.is_root()
}

/// The variants that there are, if something is missing that is one of a few.
fn choices<T: DeserializeOwned>(value: &Value, is_text: bool, place: &Place) -> &'static [&'static str] {
    let mut candidate = value.clone();
    match place.put(&mut candidate, json!("")).then(|| attempt::<T>(&candidate, is_text)) {
        Some(Err((next, error))) if next == *place => error.choices,
        _ => &[],
    }
}

/// What some type or other can be read from.
fn replacements(choices: &'static [&'static str]) -> Vec<Value> {
    let of_types = [
        json!(null),
        json!(0),
        json!(""),
        json!(false),
        json!([]),
        json!({}),
        json!("0"),
        json!("2000-01-01"),
        json!("2000-01-01T00:00:00Z"),
        json!("2000-01-01T00:00:00"),
        json!("00:00:00"),
        json!("00000000-0000-0000-0000-000000000000"),
        json!(1),
    ];
    choices.first().map(|choice| json!(choice)).into_iter().chain(of_types).collect()
}
