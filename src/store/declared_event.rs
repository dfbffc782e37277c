//! What the bodies of events look like by declaration: a JSON Schema for each type, in the configuration and in the store.
//!
//! The check of bodies is a function of the store (`find_departure`, its newest form in `0018_stricter_appends.sql`), so that it means
//! the same for every client. Here is what comes before: whether a schema has only keywords that the function checks
//! (`keywords.rs`), and the table that the function reads (`table.rs`).

mod keywords;
mod table;

use serde_json::Value;

use super::jsonb;
use crate::postgres::source_text::SourceText;

pub(crate) use keywords::patterns;
pub(crate) use table::{EventSchemas, StoredSchema};

/// An `[[event]]` of the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct DeclaredEvent {
    /// The type of the events.
    pub event_type: String,
    /// A JSON Schema of their bodies, without a mistake. Its numbers may be rounded here.
    pub schema: Value,
    /// The same, as the store writes it: no number is rounded.
    pub text: String,
    /// Whether an append is refused that departs from the schema.
    pub is_checked: bool,
    /// Where the schema is written.
    pub place: SourceText,
}

/// What is wrong with a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SchemaMistake {
    /// Where in the schema, as a JSON pointer.
    pub(crate) path: String,
    pub(crate) message: String,
    pub(crate) advice: &'static str,
}

/// The first mistake in a schema, if it has one.
pub(crate) fn find_mistake(schema: &Value) -> Option<SchemaMistake> {
    let found = keywords::check(schema, schema, "").and_then(|()| keywords::check_references(schema));
    found.and_then(|()| keywords::check_texts(schema, "")).err()
}

/// A schema as the store writes it. `written` is JSON.
///
/// # Errors
/// The store cannot keep it.
pub(crate) fn as_stored(written: &str) -> Result<String, SchemaMistake> {
    jsonb::normalize(written).map_err(|reason| SchemaMistake {
        path: String::new(),
        message: format!("PostgreSQL cannot keep it: {reason}"),
        advice: "write what jsonb can hold: a number has at most 131072 digits before the point and 16383 behind it",
    })
}

/// Whether the store takes two texts of schemas for the same.
pub(crate) fn are_same(one: &str, other: &str) -> bool {
    jsonb::are_equal(one, other)
}
