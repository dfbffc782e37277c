//! What the bodies of events look like by declaration: a JSON Schema for each type, in the configuration and in the store.
//!
//! The check of bodies is a function of the store (`find_departure`, its newest form in `0018_stricter_appends.sql`), so that it means
//! the same for every client. Here is what comes before: whether a schema has only keywords that the function checks
//! (`keywords.rs`), and the table that the function reads (`table.rs`).

mod keywords;
mod table;

use serde_json::Value;

use crate::postgres::source_text::SourceText;

pub(crate) use keywords::patterns;
pub(crate) use table::{EventSchemas, StoredSchema};

/// An `[[event]]` of the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct DeclaredEvent {
    /// The type of the events.
    pub event_type: String,
    /// A JSON Schema of their bodies, without a mistake.
    pub schema: Value,
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
    keywords::check(schema, schema, "").and_then(|()| keywords::check_references(schema)).err()
}
