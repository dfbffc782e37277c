//! Reads `[event_store]` and `[projections]`.

use serde::{Deserialize, Serialize};

use crate::config::reader::tree::{Section, Value};
use crate::postgres::database_url::DatabaseUrl;
use crate::store::layout::{EventSourceryNames, LayoutSettings};

/// `[event_store]`: where the events are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventStoreSettings {
    /// The database; `None`: espd runs a private PostgreSQL.
    pub url: Option<DatabaseUrl>,
    /// The same database past a transaction pooler that `url` leads through: for listening to notifications and for reading the store's state.
    pub direct_url: Option<DatabaseUrl>,
    /// The shape of the event table, with its names where they are not espd's.
    pub layout: LayoutSettings,
    /// The schema of espd's own tables: the trackers, and in the layout `espd` also the events.
    pub schema: String,
}

/// `[projections]`: where the projectors' tables are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectionsSettings {
    /// The database; `None`: the one of the events.
    pub url: Option<DatabaseUrl>,
    /// The same database past a transaction pooler that `url` leads through.
    pub direct_url: Option<DatabaseUrl>,
    /// The schema of the tables.
    pub schema: String,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum LayoutName {
    Espd,
    EventSourcery,
}

impl Default for EventStoreSettings {
    fn default() -> Self {
        Self { url: None, direct_url: None, layout: LayoutSettings::default(), schema: "espd".into() }
    }
}

impl Default for ProjectionsSettings {
    fn default() -> Self {
        Self { url: None, direct_url: None, schema: "public".into() }
    }
}

impl EventStoreSettings {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let default = Self::default();
        Self {
            url: section.database_url("url"),
            direct_url: read_direct_url(section),
            layout: read_layout(section),
            schema: section.value("schema").and_then(|name| read_schema(&name)).unwrap_or(default.schema),
        }
    }
}

/// The names in `[event_store.event_sourcery]` are used with that layout only.
fn read_layout(section: &Section<'_>) -> LayoutSettings {
    let names = section.section("event_sourcery");
    let names = names.map_or_else(EventSourceryNames::default, |names| read_event_sourcery(&names));
    match section.choice("layout") {
        Some(LayoutName::EventSourcery) => LayoutSettings::EventSourcery(names),
        Some(LayoutName::Espd) | None => LayoutSettings::Espd,
    }
}

fn read_event_sourcery(section: &Section<'_>) -> EventSourceryNames {
    let default = EventSourceryNames::default();
    let name = |key, kind| section.value(key).and_then(|name| name.identifier_for(kind));
    EventSourceryNames {
        schema: name("schema", "schema").unwrap_or(default.schema),
        events_table: name("events_table", "table").unwrap_or(default.events_table),
        sequence: name("sequence", "sequence"),
        channel: name("channel", "channel").unwrap_or(default.channel),
        tracker_table: name("tracker_table", "table").unwrap_or(default.tracker_table),
    }
}

impl ProjectionsSettings {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let default = Self::default();
        Self {
            url: section.database_url("url"),
            direct_url: read_direct_url(section),
            schema: section.value("schema").and_then(|name| read_schema(&name)).unwrap_or(default.schema),
        }
    }
}

/// The URL past a pooler, which makes sense only together with the URL through the pooler.
fn read_direct_url(section: &Section<'_>) -> Option<DatabaseUrl> {
    let value = section.value("direct_url")?;
    if section.value("url").is_none() {
        value.location.report(
            "`direct_url` cannot be used without `url`",
            "write `url`, which leads through the pooler",
        );
    }
    section.database_url("direct_url")
}

fn read_schema(value: &Value<'_>) -> Option<String> {
    let name = value.name_for("schema")?;
    if name.starts_with("pg_") || name == "information_schema" {
        value.location.report(format!("the schema `{name}` belongs to PostgreSQL"), "choose another name");
        return None;
    }
    Some(name)
}
