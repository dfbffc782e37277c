//! Reads `[event_store]` and `[projections]`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::reader::key::nearest;
use crate::config::reader::tree::{Section, Value};
use crate::postgres::database_url::DatabaseUrl;
use crate::postgres::sql_scope::{SqlScope, setting_name, setting_names};
use crate::store::layout::{EspdNames, EventSourceryNames, LayoutSettings};

/// `[event_store]`: where the events are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventStoreSettings {
    /// The database; `None`: espd runs a private PostgreSQL.
    pub url: Option<DatabaseUrl>,
    /// The same database past a transaction pooler that `url` leads through: for listening to notifications and for reading
    /// the store's state.
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
    /// The schemas in which SQL finds names after that.
    pub search_path: Vec<String>,
    /// The settings that SQL runs under, where they are not espd's, by PostgreSQL's names.
    pub settings: BTreeMap<String, String>,
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
        let SqlScope { schema, search_path, settings } = "public".into();
        Self { url: None, direct_url: None, schema, search_path, settings }
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

/// The names in `[event_store.espd]` and in `[event_store.event_sourcery]` are used with that layout only.
fn read_layout(section: &Section<'_>) -> LayoutSettings {
    let own = section.section("espd");
    let own = own.map_or_else(EspdNames::default, |names| read_espd(&names));
    let names = section.section("event_sourcery");
    let names = names.map_or_else(EventSourceryNames::default, |names| read_event_sourcery(&names));
    match section.choice("layout") {
        Some(LayoutName::EventSourcery) => LayoutSettings::EventSourcery(names),
        Some(LayoutName::Espd) | None => LayoutSettings::Espd(own),
    }
}

fn read_espd(section: &Section<'_>) -> EspdNames {
    let default = EspdNames::default();
    let name = |key| section.value(key).and_then(|name| name.text());
    let names = EspdNames {
        events_table: name("events_table").unwrap_or(default.events_table),
        sequence: name("sequence"),
        tracker_table: name("tracker_table").unwrap_or(default.tracker_table),
        append_events: name("append_events").unwrap_or(default.append_events),
        append: name("append").unwrap_or(default.append),
        append_at: name("append_at").unwrap_or(default.append_at),
        append_after: name("append_after").unwrap_or(default.append_after),
        cancel_scheduled: name("cancel_scheduled").unwrap_or(default.cancel_scheduled),
    };
    let faults = names.faults();
    for (key, reason) in &faults {
        if let Some(value) = section.value(key.key()) {
            let message = format!("{} cannot be the name for `{}`", value.as_written(), key.key());
            value.location.report(message, reason.clone());
        }
    }
    if faults.is_empty() { names } else { EspdNames::default() }
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
    /// Where the tables are, and what SQL means there.
    pub(crate) fn scope(&self) -> SqlScope {
        let Self { schema, search_path, settings, .. } = self.clone();
        SqlScope { schema, search_path, settings }
    }

    pub(crate) fn read(section: &Section<'_>) -> Self {
        let default = Self::default();
        Self {
            url: section.database_url("url"),
            direct_url: read_direct_url(section),
            schema: section.value("schema").and_then(|name| read_schema(&name)).unwrap_or(default.schema),
            search_path: section
                .value("search_path")
                .and_then(|path| read_search_path(&path))
                .unwrap_or(default.search_path),
            settings: section.value("settings").map(|settings| read_settings(&settings)).unwrap_or_default(),
        }
    }
}

/// The schemas behind that of the tables. Their names are not espd's to choose.
fn read_search_path(value: &Value<'_>) -> Option<Vec<String>> {
    let items = value.items("write a list of schemas: search_path = [\"public\", \"extensions\"]")?;
    let mut path = Vec::new();
    for item in items {
        let name = item.identifier_for("schema");
        if name.as_ref().is_some_and(|name| name.starts_with("pg_")) {
            let message = format!("{} cannot be in the search path", item.as_written());
            item.location.report(message, "remove it: pg_catalog is always first, and pg_temp always last");
        }
        path.extend(name);
    }
    Some(path)
}

/// Settings that change what SQL means, by PostgreSQL's names for them.
fn read_settings(value: &Value<'_>) -> BTreeMap<String, String> {
    let advice = "write settings = { TimeZone = \"Europe/Berlin\" }";
    let mut settings = BTreeMap::new();
    for (key, value) in value.entries(advice).unwrap_or_default() {
        let text = value.text();
        match setting_name(key.name) {
            Some(name) => settings.extend(text.map(|text| (name.to_owned(), text))),
            None => {
                let guess = nearest(key.name, setting_names()).map(|name| format!("did you mean `{name}`? "));
                let known = setting_names().collect::<Vec<_>>().join(", ");
                key.location.report(
                    format!("`{}` is no setting that changes what SQL means", key.name.escape_debug()),
                    format!("{}known: {known}", guess.unwrap_or_default()),
                );
            }
        }
    }
    settings
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
