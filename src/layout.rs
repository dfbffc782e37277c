//! Where the event table is, and what its parts are called.
//!
//! Every name that reaches a statement as text passes through here: it is checked once and always
//! quoted, so the statements built from it are safe to send.

use std::fmt;

use thiserror::Error;

/// Longest schema name, in characters: leaves room for the suffixes of channels and indexes within
/// the 63 bytes that PostgreSQL keeps of an identifier.
const SCHEMA_NAME_LENGTH_MAX: usize = 48;

/// Names of the parts of an event store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    schema: SchemaName,
    events_table: String,
    sequence: String,
    append_function: String,
    channel: String,
}

impl Layout {
    /// The layout that `migrations/event_store` creates in `schema`.
    pub fn espd(schema: &str) -> Result<Self, InvalidName> {
        let schema = SchemaName::new(schema)?;
        Ok(Self {
            events_table: format!("{schema}.\"events\""),
            sequence: format!("{schema}.\"events_id_seq\""),
            append_function: format!("{schema}.\"append_events\""),
            channel: format!("{}_events", schema.as_str()),
            schema,
        })
    }

    /// Name of the schema, not quoted: `espd`.
    pub fn schema(&self) -> &str {
        self.schema.as_str()
    }

    /// Name of the schema, quoted: `"espd"`.
    pub fn quoted_schema(&self) -> String {
        self.schema.to_string()
    }

    /// The table of events, qualified and quoted: `"espd"."events"`.
    pub fn events_table(&self) -> &str {
        &self.events_table
    }

    /// The sequence that ids are drawn from, qualified and quoted: `"espd"."events_id_seq"`.
    pub fn sequence(&self) -> &str {
        &self.sequence
    }

    /// The function that appends, qualified and quoted: `"espd"."append_events"`.
    pub fn append_function(&self) -> &str {
        &self.append_function
    }

    /// The notification channel that writers ring after a commit, not quoted: `espd_events`.
    pub fn channel(&self) -> &str {
        &self.channel
    }
}

/// A checked name of a schema. Displays itself quoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SchemaName(String);

impl SchemaName {
    /// Accepts `[a-z_][a-z0-9_]{0,47}`, without the prefix that PostgreSQL keeps to itself.
    pub(crate) fn new(name: &str) -> Result<Self, InvalidName> {
        let mut characters = name.chars();
        let starts_well = characters.next().is_some_and(|c| c.is_ascii_lowercase() || c == '_');
        let goes_on_well = characters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        let fits = name.len() <= SCHEMA_NAME_LENGTH_MAX;
        if starts_well && goes_on_well && fits && !name.starts_with("pg_") {
            Ok(Self(name.to_owned()))
        } else {
            Err(InvalidName { name: name.to_owned() })
        }
    }

    /// The name, not quoted.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SchemaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

/// The name cannot be used for a schema.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "invalid schema name {name:?}: write up to 48 of a-z, 0-9 and _, starting with a letter or _, \
     and not with pg_"
)]
pub struct InvalidName {
    /// The name as given.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_qualified_and_quoted() {
        let layout = Layout::espd("shop_2").unwrap();
        assert_eq!(layout.schema(), "shop_2");
        assert_eq!(layout.quoted_schema(), r#""shop_2""#);
        assert_eq!(layout.events_table(), r#""shop_2"."events""#);
        assert_eq!(layout.sequence(), r#""shop_2"."events_id_seq""#);
        assert_eq!(layout.append_function(), r#""shop_2"."append_events""#);
        assert_eq!(layout.channel(), "shop_2_events");
    }

    #[test]
    fn a_name_that_would_need_escaping_is_refused() {
        for name in ["", "9a", "Espd", "a-b", "a\"b", "a.b", "a b", "ä", "pg_espd", "a\0"] {
            assert!(Layout::espd(name).is_err(), "{name:?}");
        }
        assert!(Layout::espd(&"a".repeat(48)).is_ok());
        assert!(Layout::espd(&"a".repeat(49)).is_err());
    }
}
