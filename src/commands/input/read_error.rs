//! Why a value cannot be read, by code.

use std::fmt;

use serde::de::{self, Expected, Unexpected};

use crate::commands::CommandError;

/// Why a value cannot be read. It has nothing of the value itself, which may be a secret.
#[derive(Debug)]
pub(super) struct ReadError {
    /// The field of the value that it is about, if one is named.
    pub(super) field: Option<&'static str>,
    /// The name of a field that there should not be.
    pub(super) stranger: Option<String>,
    /// What would do instead, if there is a list.
    pub(super) choices: &'static [&'static str],
    pub(super) told: Box<CommandError>,
}

impl ReadError {
    pub(super) fn new(code: &str, message: impl Into<String>) -> Self {
        Self { field: None, stranger: None, choices: &[], told: Box::new(CommandError::new(code, message)) }
    }

    fn with_expected(code: &str, expected: &dyn Expected) -> Self {
        let expected = expected.to_string();
        let message = format!("must be {expected}");
        let told = Box::new(CommandError::new(code, message).with("expected", expected));
        Self { told, ..Self::new(code, "") }
    }
}

/// The code of a type that is asked for: those of the numbers are the same for all sizes.
fn code_of(expected: &dyn Expected) -> Option<(&'static str, &'static str)> {
    match expected.to_string().as_str() {
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" | "u8" | "u16" | "u32" | "u64" | "u128" | "usize" => {
            Some(("integer", "must be a whole number"))
        }
        "f32" | "f64" => Some(("number", "must be a number")),
        "a boolean" => Some(("boolean", "must be true or false")),
        "a string" => Some(("string", "must be a text")),
        _ => None,
    }
}

impl de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new("invalid", message.to_string())
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        match code_of(expected) {
            Some((code, message)) => Self::new(code, message),
            None => Self::with_expected("type", expected),
        }
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        match (unexpected, code_of(expected)) {
            (
                Unexpected::Signed(_) | Unexpected::Unsigned(_) | Unexpected::Other(_),
                Some(("integer", _)),
            ) => {
                let kind = expected.to_string();
                let error = Self::new("integer_range", format!("is too large or too small for {kind}"));
                Self { told: Box::new(error.told.with("expected", kind)), ..error }
            }
            _ => Self::with_expected("invalid", expected),
        }
    }

    fn invalid_length(_: usize, expected: &dyn Expected) -> Self {
        Self::with_expected("invalid", expected)
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        let message = format!("must be one of: {}", expected.join(", "));
        let told = CommandError::new("choice", message).with("expected", expected.to_vec());
        Self { choices: expected, told: Box::new(told), ..Self::new("", "") }
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let told =
            CommandError::new("unknown_field", "is no field of this").with("expected", expected.to_vec());
        Self { stranger: Some(field.to_owned()), told: Box::new(told), ..Self::new("", "") }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { field: Some(field), ..Self::new("missing", "is missing") }
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self { field: Some(field), ..Self::new("duplicate", "is there twice") }
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.told, f)
    }
}

impl std::error::Error for ReadError {}
