//! A layout describes an event store: where its events are, what orders them, who may append.
//!
//! One file per layout says all that espd knows of it, and each user of a layout asks the field that it means. Every name
//! in a layout is checked and quoted when the layout is made, so the statements built from it are safe to send.

mod espd;
mod event_sourcery;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use self::event_sourcery::EventSourceryNames;
use crate::event::Event;
pub use crate::postgres::name::InvalidName;
use crate::postgres::name::SchemaName;
pub use crate::schema::EspdNames;
#[cfg(feature = "daemon")]
use crate::schema::renaming::rename;
use crate::store::jsonb;
use crate::store::upcast::{Upcast, finish};

/// Which layout a store has, with the names in it that espd does not choose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayoutSettings {
    /// espd's own layout, as `migrations/event_store` creates it.
    Espd(EspdNames),
    /// The layout of event_sourcery-postgres. espd reads such a store and changes nothing in it.
    EventSourcery(EventSourceryNames),
}

impl Default for LayoutSettings {
    fn default() -> Self {
        Self::Espd(EspdNames::default())
    }
}

/// The description of one event store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The schema of espd's own tables, which exist beside a framework's store as well.
    schema: SchemaName,
    /// The names in that schema.
    names: EspdNames,
    pub(crate) events: Source,
    pub(crate) order: Order,
    pub(crate) bodies: Bodies,
    /// How espd appends; `None`: espd only reads the store.
    pub(crate) append: Option<Append>,
    /// The channel that the store's writers notify after a commit, not quoted; `None`: they notify none, and watchers
    /// look at intervals only.
    pub(crate) channel: Option<String>,
    pub(crate) created_by: CreatedBy,
    /// Where the framework keeps the positions of its own processors; `None`: it has none that could be imported.
    pub(crate) positions: Option<Positions>,
}

/// The events of a store, as readers see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// The table of events, qualified and quoted: `"espd"."events"`.
    pub(crate) table: String,
    /// What stands behind `from`, with the ten columns of an event in espd's own types, upcasts applied.
    sql: String,
    /// The same without upcasts.
    plain: String,
    /// The same without upcasts and with JSON as it is stored, which reading cannot fail at.
    as_stored: String,
    /// The columns that the table must have, each with the types that it may have, joined by ` or `.
    pub(crate) columns: &'static [(&'static str, &'static str)],
    /// The layers that old events are read through, from the table up.
    upcasts: Vec<Upcast>,
    /// Whether all events of the table are read.
    is_whole: bool,
}

/// What guarantees the order of ids, which decides how the settled horizon is observed and what is checked before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    /// An id is drawn from a sequence in the transaction that inserts the event, after that transaction has locked one
    /// of the tables. So the horizon follows from the locks on them.
    DrawnInTransaction {
        /// The sequence, qualified and quoted.
        sequence: String,
        /// The tables, qualified and quoted. Their partitions count as well.
        tables: Vec<String>,
    },
}

impl Order {
    /// An SQL expression for the last id drawn.
    ///
    /// It reads the sequence itself, so that a role without the right to do that gets an error. The function alone returns null
    /// to such a role from PostgreSQL 17 on, as it does for a sequence that nobody has used yet.
    pub(crate) fn head_expression(&self) -> String {
        let Self::DrawnInTransaction { sequence, .. } = self;
        format!("(select {LAST_VALUE} from {sequence})")
    }
}

/// The last id drawn, as an expression for a query from the sequence itself.
///
/// The function reads under the lock that `nextval` takes. A plain select does not: while `nextval` writes its
/// log record, a select shows the value that the log jumps to, up to 32 ids that are not drawn yet, and a
/// horizon there passes over the events that will have them. Before the sequence's first use the function
/// returns null, and `last_value` is the id that will be given out next.
pub(crate) const LAST_VALUE: &str = "coalesce(pg_sequence_last_value(tableoid), last_value - 1)";

/// How the bodies of events are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bodies {
    /// As `jsonb`.
    Jsonb,
    /// As `json`, or as either. `jsonb` may refuse such a text, for example one with a zero character.
    Json,
    /// As `Json`, and read as that: see [`Layout::reading_as_stored`].
    JsonAsStored,
}

/// How espd appends to a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Append {
    /// The function that appends, qualified and quoted: `"espd"."append_events"`.
    pub(crate) function: String,
    /// The function that appends at a later time, qualified and quoted: `"espd"."append_at"`.
    pub(crate) append_at: String,
    /// The functions that find and refuse a body that is not as declared, qualified and quoted.
    pub(crate) departing: [String; 2],
    /// The function that cancels what is to be appended later, qualified and quoted: `"espd"."cancel_scheduled"`.
    pub(crate) cancel_scheduled: String,
    /// The constraints that keep an event from being stored twice, or in a place that is taken, not quoted.
    pub(crate) keys: [String; 2],
    /// The function by which who waits asks to be woken, qualified and quoted.
    pub(crate) set_bell: String,
    /// The channel that espd notifies after an append, not quoted.
    pub(crate) channel: String,
    /// The table of what is declared of events, qualified and quoted.
    pub(crate) event_schemas: String,
    /// The table of snapshots.
    pub(crate) snapshots: String,
    /// The table of commands.
    pub(crate) commands: String,
}

/// Who creates the tables of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CreatedBy {
    /// espd's migrations do.
    Migrations,
    /// A framework does; espd changes nothing in them.
    Framework(Framework),
}

/// The framework that a store belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Framework {
    /// Its name, for people.
    pub(crate) name: &'static str,
    /// The schema of its tables, not quoted.
    pub(crate) schema: String,
    /// The section of the configuration that has the names of its tables.
    pub(crate) section: &'static str,
}

/// The positions of a framework's own processors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Positions {
    /// Name of the table that has them, for people.
    pub(crate) table: String,
    /// The same table, qualified and quoted.
    pub(crate) qualified: String,
    /// A query that yields, for each processor, `name` (text), `position` (bigint, the last event that it has handled; null if
    /// the table does not say) and `pid` (integer, the session in which it runs at this moment; null if it does not).
    pub(crate) query: String,
}

impl Layout {
    /// The layout that the settings describe, with espd's own tables in `schema`.
    pub fn new(settings: &LayoutSettings, schema: &str) -> Result<Self, InvalidName> {
        match settings {
            LayoutSettings::Espd(names) => Self::espd_named(schema, names),
            LayoutSettings::EventSourcery(names) => Self::event_sourcery(schema, names),
        }
    }

    /// The same layout, in which old events are read as new ones.
    #[must_use]
    pub fn with_upcasts(mut self, upcasts: &[Upcast]) -> Self {
        let events = &mut self.events;
        for upcast in upcasts {
            events.sql = upcast.over(&events.sql, events.upcasts.len());
            events.upcasts.push(upcast.clone());
        }
        self
    }

    /// The same layout, in which old events are read through these upcasts alone.
    #[cfg(feature = "daemon")]
    #[must_use]
    pub(crate) fn reading_through(mut self, upcasts: &[Upcast]) -> Self {
        self.events.sql.clone_from(&self.events.plain);
        self.events.upcasts.clear();
        self.with_upcasts(upcasts)
    }

    /// The same layout, in which readers see only the events that a condition on `e` holds for. The table of events is the same
    /// one, so what the store was remembered by still stands.
    #[cfg(feature = "daemon")]
    #[must_use]
    pub(crate) fn only(mut self, condition: &str) -> Self {
        let events = &mut self.events;
        for source in [&mut events.sql, &mut events.plain, &mut events.as_stored] {
            *source = format!("(select e.* from {source} as e where {condition})");
        }
        events.is_whole = false;
        self
    }

    /// The same layout without upcasts, in which every event can be read, also one that `jsonb` cannot hold: for people who look at
    /// what is stored. An event that `jsonb` can hold is read as in the layout itself.
    #[must_use]
    pub(crate) fn reading_as_stored(mut self) -> Self {
        self.events.sql.clone_from(&self.events.as_stored);
        self.events.upcasts.clear();
        if self.bodies == Bodies::Json {
            self.bodies = Bodies::JsonAsStored;
        }
        self
    }

    /// The layers that old events are read through, from the event table up.
    pub fn upcasts(&self) -> &[Upcast] {
        &self.events.upcasts
    }

    /// An event as it is read, with the bodies of upcasts that are made in Rust.
    pub(crate) fn finish(&self, event: Event) -> Result<Event, sqlx::Error> {
        if self.bodies == Bodies::JsonAsStored {
            let (body, metadata) = (in_one_form(&event.body)?, in_one_form(&event.metadata)?);
            return Ok(Event { body, metadata, ..event });
        }
        finish(event, self.upcasts())
    }

    /// Whether the store may have an event that cannot be read: one with JSON that `jsonb` refuses, or one for which an
    /// upcast fails.
    pub(crate) fn may_be_unreadable(&self) -> bool {
        self.bodies == Bodies::Json || !self.upcasts().is_empty()
    }

    /// Name of the schema of espd's own tables, not quoted: `espd`.
    pub fn schema(&self) -> &str {
        self.schema.as_str()
    }

    /// Name of the schema of espd's own tables, quoted: `"espd"`.
    pub fn quoted_schema(&self) -> String {
        self.schema.to_string()
    }

    /// The names of tables and functions in that schema.
    pub fn names(&self) -> &EspdNames {
        &self.names
    }

    /// A script that is written like a migration, with the names of this layout in it.
    #[cfg(feature = "daemon")]
    pub(crate) fn name_in(&self, script: &str) -> String {
        rename(script, &self.names)
    }

    /// The table of events, qualified and quoted: `"espd"."events"`.
    pub fn events_table(&self) -> &str {
        &self.events.table
    }

    /// What stands behind `from` where events are read, with all columns of an event in espd's own types. It needs
    /// an alias. PostgreSQL sees through it: conditions and order reach the table's indexes.
    pub fn source(&self) -> &str {
        &self.events.sql
    }

    /// As [`Self::source`], without upcasts and with JSON as it is stored, so that no event fails to be read.
    pub(crate) fn stored_source(&self) -> &str {
        &self.events.as_stored
    }

    /// Whether all events of the table are read.
    pub(crate) fn is_whole(&self) -> bool {
        self.events.is_whole
    }

    /// The channel that the store's writers notify after a commit, not quoted: `espd_events`.
    pub fn channel(&self) -> Option<&str> {
        self.channel.as_deref()
    }

    /// Whether events have tags here.
    pub(crate) fn has_tags(&self) -> bool {
        self.append.is_some()
    }

    /// The channel on which operators ask runners to read their trackers again, not quoted. In espd's
    /// own layout it is [`Self::channel`]; espd never notifies the channel of a framework's store.
    pub fn control_channel(&self) -> String {
        own_channel(&self.schema)
    }
}

/// JSON as `jsonb` gives it back, and what that cannot hold as it is stored, on one line.
fn in_one_form(json: &RawValue) -> Result<Box<RawValue>, sqlx::Error> {
    let text = jsonb::normalize(json.get()).unwrap_or_else(|_| jsonb::without_white_space(json.get()));
    RawValue::from_string(text).map_err(|source| sqlx::Error::Decode(source.into()))
}

/// espd's channel, for new events and changed trackers.
fn own_channel(schema: &SchemaName) -> String {
    format!("{}_events", schema.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_need_escaping_is_refused() {
        for name in ["", "9a", "Espd", "a-b", "a\"b", "a.b", "a b", "ä", "pg_espd", "a\0"] {
            assert!(Layout::espd(name).is_err(), "{name:?}");
        }
        assert!(Layout::espd(&"a".repeat(48)).is_ok());
        assert!(Layout::espd(&"a".repeat(49)).is_err());
    }
}
