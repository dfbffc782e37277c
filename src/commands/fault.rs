//! What is wrong with one field of a command, in a form that can be translated.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use validator::{ValidationError, ValidationErrors, ValidationErrorsKind};

/// The name that validation gives to an error of a whole struct.
const OF_THE_WHOLE: &str = "__all__";

/// What is wrong: where, by a code with parameters, and in English.
///
/// The value that was sent is no part of it: it may be a secret, and whoever sent it has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CommandError {
    /// Which field: `address.street`, `items[0].name`; empty if it is about the whole command.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What is wrong, for programs: `missing`, `length`, `lent_to_another`.
    pub code: String,
    /// What belongs to the code: `min` and `max` of `length`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub params: Map<String, Value>,
    /// What is wrong, for people.
    pub message: String,
}

impl CommandError {
    /// An error about the whole command.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: String::new(), code: code.into(), params: Map::new(), message: message.into() }
    }

    /// The same error about a field.
    #[must_use]
    pub fn at(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// The same error with a parameter.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.params.insert(name.into(), value.into());
        self
    }

    /// The same error with another text, in which `{name}` stands for the parameter of that name.
    ///
    /// ```
    /// use espd::commands::CommandError;
    ///
    /// let error = CommandError::new("length", "must have at least 3 characters").with("min", 3);
    /// assert_eq!(error.in_words("braucht mindestens {min} Zeichen").message, "braucht mindestens 3 Zeichen");
    /// ```
    #[must_use]
    pub fn in_words(mut self, template: &str) -> Self {
        self.message = fill(template, &self.params);
        self
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => f.write_str(&self.message),
            path => write!(f, "{path}: {}", self.message),
        }
    }
}

impl std::error::Error for CommandError {}

/// Puts parameters into a text. A name without a parameter stays as it is written.
fn fill(template: &str, params: &Map<String, Value>) -> String {
    let mut filled = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        filled.push_str(before);
        match after.split_once('}').and_then(|(name, after)| Some((params.get(name)?, after))) {
            Some((value, after)) => {
                filled.push_str(&show(value));
                rest = after;
            }
            None => {
                filled.push('{');
                rest = after;
            }
        }
    }
    filled + rest
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(show).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// What validation has found, as a list that is sorted by path.
pub(super) fn found(errors: &ValidationErrors) -> Vec<CommandError> {
    let mut found = Vec::new();
    collect(errors, "", &mut found);
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

fn collect(errors: &ValidationErrors, path: &str, found: &mut Vec<CommandError>) {
    for (field, kind) in errors.errors() {
        let path = join(path, field);
        match kind {
            ValidationErrorsKind::Struct(inner) => collect(inner, &path, found),
            ValidationErrorsKind::List(items) => {
                items.iter().for_each(|(index, inner)| collect(inner, &format!("{path}[{index}]"), found));
            }
            ValidationErrorsKind::Field(errors) => found.extend(errors.iter().map(|one| convert(one, &path))),
        }
    }
}

/// The path of a field of what has a path.
fn join(path: &str, field: &str) -> String {
    match (path, field) {
        (path, OF_THE_WHOLE) => path.to_owned(),
        ("", field) => field.to_owned(),
        (path, field) => format!("{path}.{field}"),
    }
}

fn convert(error: &ValidationError, path: &str) -> CommandError {
    let mut params: Map<String, Value> =
        error.params.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
    params.remove("value");
    if error.code == "must_match" {
        // What was sent in the other field, such as a password.
        params.remove("other");
    }
    let message =
        error.message.as_ref().map_or_else(|| in_english(&error.code, &params), ToString::to_string);
    CommandError { path: path.to_owned(), code: error.code.to_string(), params, message }
}

/// What a rule of `validator` asks for.
fn in_english(code: &str, params: &Map<String, Value>) -> String {
    let has = |name: &str| params.contains_key(name);
    let template = match code {
        "length" if has("equal") => "must have a length of {equal}",
        "length" if has("min") && has("max") => "must have a length from {min} to {max}",
        "length" if has("min") => "must have a length of at least {min}",
        "length" => "must have a length of at most {max}",
        "range" if has("min") && has("max") => "must be from {min} to {max}",
        "range" if has("min") => "must be at least {min}",
        "range" if has("max") => "must be at most {max}",
        "range" if has("exclusive_min") && has("exclusive_max") => {
            "must be greater than {exclusive_min} and less than {exclusive_max}"
        }
        "range" if has("exclusive_min") => "must be greater than {exclusive_min}",
        "range" => "must be less than {exclusive_max}",
        "email" => "must be an e-mail address",
        "url" => "must be a URL",
        "contains" => "must contain {needle}",
        "does_not_contain" => "must not contain {needle}",
        "must_match" => "must be the same as the field that it repeats",
        "required" | "required_nested" => "is missing",
        "regex" => "has not the form that is asked for",
        "non_control_character" => "must not have control characters",
        _ => "is not valid",
    };
    fill(template, params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_filled_with_the_parameters_that_it_names() {
        let error = CommandError::new("range", "").with("min", 1).with("kinds", vec!["a", "b"]);
        for (template, filled) in [
            ("from {min}", "from 1"),
            ("{min}{min} of {kinds}", "11 of a, b"),
            ("{other} {min", "{other} {min"),
            ("{ {min} }", "{ 1 }"),
            ("", ""),
        ] {
            assert_eq!(error.clone().in_words(template).message, filled, "{template}");
        }
    }

    #[test]
    fn what_was_sent_in_another_field_is_in_no_error() {
        let mut error = ValidationError::new("must_match");
        error.add_param("value".into(), &"SECRET1");
        error.add_param("other".into(), &"SECRET2");
        let told = format!("{:?}", convert(&error, "again"));
        assert!(told.contains("must be the same as the field that it repeats"), "{told}");
        assert!(!told.contains("SECRET"), "{told}");
    }
}
