//! Where the event table is, and what its parts are called.
//!
//! Every name that reaches a statement as text passes through here: it is checked once and always
//! quoted, so the statements built from it are safe to send.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::store::upcast::Upcast;

/// Longest schema name, in characters: leaves room for the suffixes of channels and indexes within
/// the 63 bytes that PostgreSQL keeps of an identifier.
const SCHEMA_NAME_LENGTH_MAX: usize = 48;

/// Which layout a store has, with the names in it that are not ours to choose.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayoutSettings {
    /// The own one, as `migrations/event_store` creates it.
    #[default]
    Espd,
    /// The one of event_sourcery-postgres. espd reads it and changes nothing in it.
    EventSourcery(EventSourceryNames),
}

/// The names in a database of event_sourcery-postgres. The defaults are the framework's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventSourceryNames {
    /// The schema of its tables. Default: `public`.
    pub schema: String,
    /// The table of events. Default: `events`.
    pub events_table: String,
    /// The sequence that ids are drawn from; `None`: the table's name with `_id_seq`.
    pub sequence: Option<String>,
    /// The channel that `writeEvents` notifies. Default: `new_event`.
    pub channel: String,
    /// The table of its processors' positions, in the database of the projections. Default: `projector_tracker`.
    pub tracker_table: String,
}

impl Default for EventSourceryNames {
    fn default() -> Self {
        Self {
            schema: "public".into(),
            events_table: "events".into(),
            sequence: None,
            channel: "new_event".into(),
            tracker_table: "projector_tracker".into(),
        }
    }
}

/// Names of the parts of an event store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    schema: SchemaName,
    events_table: String,
    sequence: String,
    source: String,
    append_function: Option<String>,
    channel: String,
    control_channel: String,
    upcasts: Vec<Upcast>,
}

impl Layout {
    /// The layout that the settings describe, with espd's own tables in `schema`.
    pub fn new(settings: &LayoutSettings, schema: &str) -> Result<Self, InvalidName> {
        match settings {
            LayoutSettings::Espd => Self::espd(schema),
            LayoutSettings::EventSourcery(names) => Self::event_sourcery(schema, names),
        }
    }

    /// The layout that `migrations/event_store` creates in `schema`.
    pub fn espd(schema: &str) -> Result<Self, InvalidName> {
        let schema = SchemaName::new(schema)?;
        let events_table = format!("{schema}.\"events\"");
        Ok(Self {
            source: events_table.clone(),
            events_table,
            sequence: format!("{schema}.\"events_id_seq\""),
            append_function: Some(format!("{schema}.\"append_events\"")),
            channel: own_channel(&schema),
            control_channel: own_channel(&schema),
            upcasts: Vec::new(),
            schema,
        })
    }

    /// The layout of event_sourcery-postgres, with espd's own tables in `schema`.
    pub fn event_sourcery(schema: &str, names: &EventSourceryNames) -> Result<Self, InvalidName> {
        let schema = SchemaName::new(schema)?;
        let sequence = names.sequence.clone().unwrap_or_else(|| format!("{}_id_seq", names.events_table));
        let events_table = qualify(&names.schema, &names.events_table)?;
        Ok(Self {
            source: event_sourcery_source(&events_table),
            sequence: qualify(&names.schema, &sequence)?,
            events_table,
            append_function: None,
            channel: identifier(&names.channel)?.to_owned(),
            control_channel: own_channel(&schema),
            upcasts: Vec::new(),
            schema,
        })
    }

    /// The same layout, in which old events are read as new ones.
    #[must_use]
    pub fn with_upcasts(mut self, upcasts: &[Upcast]) -> Self {
        self.source = upcasts.iter().fold(self.source, |source, upcast| upcast.over(&source));
        self.upcasts.extend_from_slice(upcasts);
        self
    }

    /// The layers that old events are read through, from the event table up.
    pub fn upcasts(&self) -> &[Upcast] {
        &self.upcasts
    }

    /// Whether an event may be there that cannot be read: JSON that `jsonb` refuses, or an upcast that does not go with it.
    pub(crate) fn may_be_unreadable(&self) -> bool {
        !self.is_own() || !self.upcasts.is_empty()
    }

    /// Name of the schema of espd's own tables, not quoted: `espd`.
    pub fn schema(&self) -> &str {
        self.schema.as_str()
    }

    /// Name of the schema of espd's own tables, quoted: `"espd"`.
    pub fn quoted_schema(&self) -> String {
        self.schema.to_string()
    }

    /// The table of events, qualified and quoted: `"espd"."events"`.
    pub fn events_table(&self) -> &str {
        &self.events_table
    }

    /// What stands behind `from` where events are read, with all columns of an event in espd's own types. It wants
    /// an alias. The server sees through it: conditions and order reach the table's indexes.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the store is espd's own: it is created by espd's migrations and appended to by espd.
    ///
    /// In a foreign one bodies may be JSON that cannot be read as `jsonb`.
    pub fn is_own(&self) -> bool {
        self.append_function.is_some()
    }

    /// The sequence that ids are drawn from, qualified and quoted: `"espd"."events_id_seq"`.
    pub fn sequence(&self) -> &str {
        &self.sequence
    }

    /// The function that appends, qualified and quoted: `"espd"."append_events"`; none in a store that espd only
    /// reads.
    pub fn append_function(&self) -> Option<&str> {
        self.append_function.as_deref()
    }

    /// The channel that writers notify after a commit, not quoted: `espd_events`.
    pub fn channel(&self) -> &str {
        &self.channel
    }

    /// The notification channel on which operators ask runners to read their trackers again, not quoted. In espd's
    /// own layout it is [`Self::channel`]; on a foreign store's channel espd says nothing.
    pub fn control_channel(&self) -> &str {
        &self.control_channel
    }
}

fn own_channel(schema: &SchemaName) -> String {
    format!("{}_events", schema.as_str())
}

/// The events of event_sourcery-postgres with the columns that espd's own table has.
///
/// Older versions of the framework have no `correlation_id` or `causation_id`, none has `metadata`. A name that the
/// inner query does not find in the table means the column of the same name beside it, which holds the default;
/// so nobody has to ask first which columns there are.
fn event_sourcery_source(table: &str) -> String {
    format!(
        "(select of_table.* \
          from (select null::uuid as correlation_id, null::uuid as causation_id, '{{}}'::jsonb as metadata) as absent \
          cross join lateral (\
            select id, uuid, aggregate_id, type::text as type, version::bigint as version, body::jsonb as body, metadata::jsonb as metadata, \
              correlation_id, causation_id, created_at at time zone 'UTC' as created_at \
            from {table}) as of_table)"
    )
}

/// A qualified and quoted name.
pub(crate) fn qualify(schema: &str, name: &str) -> Result<String, InvalidName> {
    Ok(format!("\"{}\".\"{}\"", identifier(schema)?, identifier(name)?))
}

/// Longest name that PostgreSQL keeps whole, in bytes.
const IDENTIFIER_LENGTH_MAX: usize = 63;

/// Accepts `[A-Za-z_][A-Za-z0-9_]{0,62}`: what others have named, in the case that they wrote.
pub(crate) fn identifier(name: &str) -> Result<&str, InvalidName> {
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let goes_on_well = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if starts_well && goes_on_well && name.len() <= IDENTIFIER_LENGTH_MAX {
        Ok(name)
    } else {
        Err(InvalidName { name: name.to_owned() })
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

/// The name cannot be used for a schema, a table or a channel.
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
        assert_eq!(layout.append_function(), Some(r#""shop_2"."append_events""#));
        assert_eq!(layout.channel(), "shop_2_events");
    }

    #[test]
    fn the_names_of_others_keep_their_case() {
        let names = EventSourceryNames { events_table: "myEvents".into(), ..EventSourceryNames::default() };
        let layout = Layout::event_sourcery("espd", &names).unwrap();
        assert_eq!(layout.events_table(), r#""public"."myEvents""#);
        assert_eq!(layout.sequence(), r#""public"."myEvents_id_seq""#);
        assert_eq!((layout.channel(), layout.control_channel()), ("new_event", "espd_events"));
        assert!(!layout.is_own());
        for name in ["", "1a", "a\"b", "a'b", "a b", &"a".repeat(64)] {
            let names = EventSourceryNames { events_table: name.into(), ..EventSourceryNames::default() };
            assert!(Layout::event_sourcery("espd", &names).is_err(), "{name:?}");
        }
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
