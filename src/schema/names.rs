//! The names of tables and functions that an installation can choose, instead of those that the migration files write.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::fixed_names::{FUNCTIONS, RELATIONS};
use crate::postgres::name::{IDENTIFIER_LENGTH_MAX, InvalidName, SchemaName};

/// The names of tables and functions in espd's own layout. The defaults are those of the documentation. They are
/// chosen once: before the first migration of a database.
///
/// Each is up to 63 ASCII letters, digits, `_`, `-` and spaces, in the case that the database is to have. It begins with a letter
/// or `_`, does not end with a space, and is not the name of anything else that espd makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EspdNames {
    /// The table of events. Default: `events`.
    pub events_table: String,
    /// The sequence that ids are drawn from; `None`: the table's name with `_id_seq`.
    pub sequence: Option<String>,
    /// The table of positions. Default: `trackers`.
    pub tracker_table: String,
    /// The function that appends from arrays. Default: `append_events`.
    pub append_events: String,
    /// The function that appends from JSON. Default: `append`.
    pub append: String,
    /// The function that appends at a later time. Default: `append_at`.
    pub append_at: String,
    /// The function that appends some time from now. Default: `append_after`.
    pub append_after: String,
    /// The function that cancels what is to be appended later. Default: `cancel_scheduled`.
    pub cancel_scheduled: String,
}

impl Default for EspdNames {
    fn default() -> Self {
        let default = |name: Name| name.default_name().to_owned();
        Self {
            events_table: default(Name::EventsTable),
            sequence: None,
            tracker_table: default(Name::TrackerTable),
            append_events: default(Name::AppendEvents),
            append: default(Name::Append),
            append_at: default(Name::AppendAt),
            append_after: default(Name::AppendAfter),
            cancel_scheduled: default(Name::CancelScheduled),
        }
    }
}

/// Where the migrations make their tables, and what they are called there.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) schema: SchemaName,
    pub(super) names: EspdNames,
}

impl Home {
    pub(super) fn new(schema: &str, names: &EspdNames) -> Result<Self, InvalidName> {
        names.validate()?;
        Ok(Self { schema: SchemaName::new(schema)?, names: names.clone() })
    }
}

/// What can have another name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Name {
    EventsTable,
    Sequence,
    TrackerTable,
    AppendEvents,
    Append,
    AppendAt,
    AppendAfter,
    CancelScheduled,
}

impl Name {
    pub(crate) const ALL: [Self; 8] = [
        Self::EventsTable,
        Self::Sequence,
        Self::TrackerTable,
        Self::AppendEvents,
        Self::Append,
        Self::AppendAt,
        Self::AppendAfter,
        Self::CancelScheduled,
    ];

    /// Its key in the configuration.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::EventsTable => "events_table",
            Self::Sequence => "sequence",
            Self::TrackerTable => "tracker_table",
            function => function.default_name(),
        }
    }

    /// The name in the migration files.
    pub(super) fn default_name(self) -> &'static str {
        match self {
            Self::EventsTable => "events",
            Self::Sequence => "events_id_seq",
            Self::TrackerTable => "trackers",
            Self::AppendEvents => "append_events",
            Self::Append => "append",
            Self::AppendAt => "append_at",
            Self::AppendAfter => "append_after",
            Self::CancelScheduled => "cancel_scheduled",
        }
    }

    pub(super) fn is_function(self) -> bool {
        !matches!(self, Self::EventsTable | Self::Sequence | Self::TrackerTable)
    }
}

/// What is named after a table and is written in the migration files: the end of its name, for the table that it is of.
const DERIVED: [(Name, &str); 5] = [
    (Name::EventsTable, "_uuid_key"),
    (Name::EventsTable, "_aggregate_id_version_key"),
    (Name::EventsTable, "_correlation_id_idx"),
    (Name::EventsTable, "_pkey"),
    (Name::TrackerTable, "_pkey"),
];

impl EspdNames {
    pub(crate) fn get(&self, name: Name) -> String {
        let chosen = match name {
            Name::EventsTable => &self.events_table,
            Name::Sequence => match &self.sequence {
                Some(sequence) => sequence,
                None => return derive(&self.events_table, "_id_seq"),
            },
            Name::TrackerTable => &self.tracker_table,
            Name::AppendEvents => &self.append_events,
            Name::Append => &self.append,
            Name::AppendAt => &self.append_at,
            Name::AppendAfter => &self.append_after,
            Name::CancelScheduled => &self.cancel_scheduled,
        };
        chosen.clone()
    }

    /// The constraints that keep an event from being stored twice, or in a place that is taken.
    pub(crate) fn event_keys(&self) -> [String; 2] {
        [derive(&self.events_table, "_uuid_key"), derive(&self.events_table, "_aggregate_id_version_key")]
    }

    /// The constraints and indexes that the migration files name, each as they write it and as it is called here.
    pub(super) fn derived(&self) -> [(String, String); 5] {
        DERIVED.map(|(of, end)| (derive(of.default_name(), end), derive(&self.get(of), end)))
    }

    /// The names with that of the sequence written out.
    pub(crate) fn resolved(&self) -> Self {
        Self { sequence: Some(self.get(Name::Sequence)), ..self.clone() }
    }

    /// Returns what is wrong with the names, each with the key to change.
    pub(crate) fn faults(&self) -> Vec<(Name, String)> {
        let chosen = Name::ALL.into_iter().filter(|name| *name != Name::Sequence || self.sequence.is_some());
        let alone = chosen.filter_map(|name| Some((name, fault_of(name, &self.get(name))?)));
        let mut faults: Vec<(Name, String)> = alone.collect();
        if faults.is_empty() {
            faults = self.duplicates();
        }
        faults
    }

    /// Returns the names that something else has as well. A function may be called like a table.
    fn duplicates(&self) -> Vec<(Name, String)> {
        let derived = DERIVED.iter().zip(self.derived()).map(|((of, _), (_, derived))| (*of, derived));
        let chosen = Name::ALL.into_iter().map(|name| (name, self.get(name)));
        let mut taken: Vec<(Name, String)> = Vec::new();
        let mut faults = Vec::new();
        for (name, one) in derived.chain(chosen) {
            let is_same =
                |(other, its): &&(Name, String)| *its == one && other.is_function() == name.is_function();
            if let Some((other, _)) = taken.iter().find(is_same) {
                // One of the two was chosen. The other may have its default name.
                let culprit = if self.get(name) == name.default_name() { *other } else { name };
                faults.push((self.chosen(culprit), format!("{one} is the name of something else as well")));
            }
            if !name.is_function() && RELATIONS.contains(&one.as_str()) {
                faults.push((self.chosen(name), format!("espd makes something else of the name {one}")));
            }
            taken.push((name, one));
        }
        // What belongs to a table collides where the table does.
        faults.sort_by_key(|(name, _)| name.key());
        faults.dedup_by_key(|(name, _)| name.key());
        faults
    }

    /// The name that was chosen, where this one may be made of it.
    fn chosen(&self, name: Name) -> Name {
        if name == Name::Sequence && self.sequence.is_none() { Name::EventsTable } else { name }
    }

    /// Refuses names that cannot be.
    pub(crate) fn validate(&self) -> Result<(), InvalidName> {
        match self.faults().into_iter().next() {
            Some((name, reason)) => {
                Err(InvalidName::Chosen { key: name.key(), name: self.get(name), reason })
            }
            None => Ok(()),
        }
    }

    /// What is recorded of these names in the database; `None`: they are the defaults.
    pub(super) fn to_record(&self, names: &[Name]) -> Option<Value> {
        let is_other = |name: &Name| self.get(*name) != name.default_name();
        names.iter().any(is_other).then(|| {
            let entry = |name: &Name| (name.key().to_owned(), Value::String(self.get(*name)));
            Value::Object(names.iter().map(entry).collect::<Map<_, _>>())
        })
    }

    /// Compares with what is recorded in a database. Returns the names that are others there, by their keys.
    pub(super) fn differing(&self, names: &[Name], recorded: Option<&Value>) -> Vec<OtherName> {
        let of_database = |name: Name| {
            let recorded = recorded.and_then(|recorded| recorded.get(name.key())?.as_str());
            recorded.unwrap_or(name.default_name()).to_owned()
        };
        names
            .iter()
            .map(|name| OtherName {
                key: name.key(),
                database: of_database(*name),
                configured: self.get(*name),
            })
            .filter(|other| other.database != other.configured)
            .collect()
    }
}

/// A name that is another one in the database than in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherName {
    /// The key of the configuration.
    pub key: &'static str,
    /// The name in the database.
    pub database: String,
    /// The name in the configuration.
    pub configured: String,
}

/// The name of something that belongs to a table, as PostgreSQL makes it: so much of the table's name as there is room for.
fn derive(table: &str, end: &str) -> String {
    let room = table.floor_char_boundary(IDENTIFIER_LENGTH_MAX - end.len());
    format!("{}{end}", &table[..room])
}

/// What is wrong with a name, whatever the others are.
fn fault_of(name: Name, chosen: &str) -> Option<String> {
    let others: &[&str] = if name.is_function() { FUNCTIONS } else { RELATIONS };
    if !is_writable(chosen) {
        let advice = "write up to 63 ASCII letters, digits, _, - and spaces, beginning with a letter or _ and not ending with a space";
        return Some(advice.to_owned());
    }
    if chosen.starts_with("pg_") {
        return Some("names with pg_ belong to PostgreSQL".to_owned());
    }
    if name.is_function() && GENERATED.iter().any(|prefix| chosen.starts_with(prefix)) {
        return Some(
            "names with fold_, handle_ and project_ belong to the functions of processors".to_owned(),
        );
    }
    others.contains(&chosen).then(|| "espd makes something else of this name".to_owned())
}

/// Whether a name can be written between double quotes in every place where one is: also in a string, in a format, and in the body
/// of a function.
fn is_writable(name: &str) -> bool {
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let goes_on_well = name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-' | b' '));
    begins_well && goes_on_well && !name.ends_with(' ') && name.len() <= IDENTIFIER_LENGTH_MAX
}

/// How the names of generated functions begin.
const GENERATED: [&str; 3] = ["fold_", "handle_", "project_"];

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys that are blamed.
    fn blamed(change: impl FnOnce(&mut EspdNames)) -> Vec<&'static str> {
        let mut names = EspdNames::default();
        change(&mut names);
        names.faults().into_iter().map(|(name, _)| name.key()).collect()
    }

    #[test]
    fn odd_names_are_names() {
        for name in ["My Events", "select", "e", "_", "domain-events", &"x".repeat(63), "Events"] {
            assert!(blamed(|names| names.events_table = name.to_owned()).is_empty(), "{name}");
            assert!(blamed(|names| names.append = name.to_owned()).is_empty(), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_written_everywhere_is_refused() {
        for name in [
            "",
            " events",
            "events ",
            "1a",
            "a\0",
            "a\"b",
            "it's",
            "a$$",
            "a%",
            "a.b",
            "\u{e4}",
            "pg_events",
            &"x".repeat(64),
        ] {
            assert_eq!(blamed(|names| names.events_table = name.to_owned()), ["events_table"], "{name:?}");
            assert_eq!(blamed(|names| names.sequence = Some(name.to_owned())), ["sequence"], "{name:?}");
            assert_eq!(blamed(|names| names.append_at = name.to_owned()), ["append_at"], "{name:?}");
        }
        for generated in ["handle_todos_v1", "fold_todos_v1"] {
            assert_eq!(blamed(|names| names.append = generated.to_owned()), ["append"]);
        }
    }

    #[test]
    fn a_name_that_something_else_has_is_refused_and_the_chosen_one_is_blamed() {
        assert_eq!(blamed(|names| names.events_table = "trackers".to_owned()), ["events_table"]);
        assert_eq!(blamed(|names| names.tracker_table = "events".to_owned()), ["tracker_table"]);
        assert_eq!(blamed(|names| names.tracker_table = "events_uuid_key".to_owned()), ["tracker_table"]);
        assert_eq!(blamed(|names| names.sequence = Some("trackers_pkey".to_owned())), ["sequence"]);
        assert_eq!(blamed(|names| names.append_events = "append".to_owned()), ["append_events"]);
        assert_eq!(blamed(|names| names.append = "append_events".to_owned()), ["append"]);
        assert_eq!(blamed(|names| names.tracker_table = "dead_letters".to_owned()), ["tracker_table"]);
        assert_eq!(blamed(|names| names.append = "emit".to_owned()), ["append"]);
        // A table and a function are never taken for one another.
        assert!(blamed(|names| names.append = "events".to_owned()).is_empty());
    }

    #[test]
    fn what_belongs_to_a_table_is_called_after_it_as_far_as_there_is_room() {
        let names = EspdNames { events_table: "x".repeat(60), ..EspdNames::default() };
        assert_eq!(names.get(Name::Sequence), format!("{}_id_seq", "x".repeat(56)));
        assert!(names.event_keys().iter().all(|key| key.len() == 63));
    }

    #[test]
    fn names_are_recorded_where_one_is_another_and_compared_with_what_is_recorded() {
        let all = Name::ALL;
        let default = EspdNames::default();
        assert_eq!(default.to_record(&all), None);
        assert!(default.differing(&all, None).is_empty());
        let chosen = EspdNames { events_table: "facts".into(), ..EspdNames::default() };
        let record = chosen.to_record(&all);
        assert!(chosen.differing(&all, record.as_ref()).is_empty());
        let keys: Vec<_> =
            default.differing(&all, record.as_ref()).into_iter().map(|other| other.key).collect();
        assert_eq!(keys, ["events_table", "sequence"]);
    }
}
