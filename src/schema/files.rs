//! The embedded files of the two sets of migrations, and what they say about themselves.

use sqlx::migrate::{Migration, MigrationType};
use sqlx::{AssertSqlSafe, SqlSafeStr};

use super::names::{Home, Name};
use super::renaming::{SCHEMA_TOKEN, rename};
use crate::postgres::name::SchemaName;

/// How a file begins the line that says which programs may go on after it: those that know this version, or a later one.
/// A file without the line lets no program go on that does not know it.
const OLDEST_PROGRAM: &str = "-- Oldest program: ";

/// The files of `migrations/event_store`, in order. Never edit one that was released: add another.
pub(super) const EVENT_STORE: MigrationSet = MigrationSet {
    name: "event store",
    table: "_event_store_migrations",
    first_table: Name::EventsTable,
    fixed_object: "count_events",
    names: &[
        Name::EventsTable,
        Name::Sequence,
        Name::AppendEvents,
        Name::Append,
        Name::AppendAt,
        Name::AppendAfter,
        Name::CancelScheduled,
    ],
    files: &[
        (1, "events", include_str!("../../migrations/event_store/0001_events.sql")),
        (2, "append events", include_str!("../../migrations/event_store/0002_append_events.sql")),
        (3, "append", include_str!("../../migrations/event_store/0003_append.sql")),
        (4, "any session", include_str!("../../migrations/event_store/0004_any_session.sql")),
        (5, "correlations", include_str!("../../migrations/event_store/0005_correlations.sql")),
        (6, "scheduled events", include_str!("../../migrations/event_store/0006_scheduled_events.sql")),
        (7, "event schemas", include_str!("../../migrations/event_store/0007_event_schemas.sql")),
        (8, "due events", include_str!("../../migrations/event_store/0008_due_events.sql")),
        (9, "snapshots", include_str!("../../migrations/event_store/0009_snapshots.sql")),
        (10, "tags", include_str!("../../migrations/event_store/0010_tags.sql")),
        (11, "audit", include_str!("../../migrations/event_store/0011_audit.sql")),
        (12, "commands", include_str!("../../migrations/event_store/0012_commands.sql")),
        (13, "bell", include_str!("../../migrations/event_store/0013_bell.sql")),
        (14, "last of type", include_str!("../../migrations/event_store/0014_last_of_type.sql")),
        (15, "one event", include_str!("../../migrations/event_store/0015_one_event.sql")),
        (16, "lean append", include_str!("../../migrations/event_store/0016_lean_append.sql")),
        (
            17,
            "append prepares less",
            include_str!("../../migrations/event_store/0017_append_prepares_less.sql"),
        ),
        (18, "stricter appends", include_str!("../../migrations/event_store/0018_stricter_appends.sql")),
        (19, "no empty answers", include_str!("../../migrations/event_store/0019_no_empty_answers.sql")),
    ],
};

/// The files of `migrations/processing`, in order. Never edit one that was released: add another.
pub(super) const PROCESSING: MigrationSet = MigrationSet {
    name: "processing",
    table: "_processing_migrations",
    first_table: Name::TrackerTable,
    fixed_object: "projection_tables",
    names: &[Name::EventsTable, Name::TrackerTable, Name::AppendEvents],
    files: &[
        (1, "trackers", include_str!("../../migrations/processing/0001_trackers.sql")),
        (2, "workers", include_str!("../../migrations/processing/0002_workers.sql")),
        (3, "signs of life", include_str!("../../migrations/processing/0003_signs_of_life.sql")),
        (4, "reactors", include_str!("../../migrations/processing/0004_reactors.sql")),
        (5, "dead letters", include_str!("../../migrations/processing/0005_dead_letters.sql")),
        (6, "emissions", include_str!("../../migrations/processing/0006_emissions.sql")),
        (7, "webhook deliveries", include_str!("../../migrations/processing/0007_webhook_deliveries.sql")),
        (8, "processor keys", include_str!("../../migrations/processing/0008_processor_keys.sql")),
        (9, "tracker functions", include_str!("../../migrations/processing/0009_tracker_functions.sql")),
        (10, "aggregate ids", include_str!("../../migrations/processing/0010_aggregate_ids.sql")),
        (11, "witnesses", include_str!("../../migrations/processing/0011_witnesses.sql")),
        (12, "refused emissions", include_str!("../../migrations/processing/0012_refused_emissions.sql")),
        (13, "operators", include_str!("../../migrations/processing/0013_operators.sql")),
        (14, "durable commits", include_str!("../../migrations/processing/0014_durable_commits.sql")),
        (15, "row security", include_str!("../../migrations/processing/0015_row_security.sql")),
        (16, "dependents", include_str!("../../migrations/processing/0016_dependents.sql")),
        (17, "operator functions", include_str!("../../migrations/processing/0017_operator_functions.sql")),
        (18, "foreign writes", include_str!("../../migrations/processing/0018_foreign_writes.sql")),
        (19, "emission metadata", include_str!("../../migrations/processing/0019_emission_metadata.sql")),
        (20, "beginnings", include_str!("../../migrations/processing/0020_beginnings.sql")),
        (21, "wait for", include_str!("../../migrations/processing/0021_wait_for.sql")),
        (22, "effects", include_str!("../../migrations/processing/0022_effects.sql")),
        (23, "standing still", include_str!("../../migrations/processing/0023_standing_still.sql")),
        (24, "deleted events", include_str!("../../migrations/processing/0024_deleted_events.sql")),
        (25, "workflows", include_str!("../../migrations/processing/0025_workflows.sql")),
        (
            26,
            "synchronous projectors",
            include_str!("../../migrations/processing/0026_synchronous_projectors.sql"),
        ),
        (27, "rebuilds", include_str!("../../migrations/processing/0027_rebuilds.sql")),
        (28, "build progress", include_str!("../../migrations/processing/0028_build_progress.sql")),
        (29, "verifications", include_str!("../../migrations/processing/0029_verifications.sql")),
        (30, "versions beside", include_str!("../../migrations/processing/0030_versions_beside.sql")),
        (31, "alterations", include_str!("../../migrations/processing/0031_alterations.sql")),
        (
            32,
            "replaying projectors",
            include_str!("../../migrations/processing/0032_replaying_projectors.sql"),
        ),
        (33, "repeated effects", include_str!("../../migrations/processing/0033_repeated_effects.sql")),
        (34, "no negative delays", include_str!("../../migrations/processing/0034_no_negative_delays.sql")),
        (35, "failure times", include_str!("../../migrations/processing/0035_failure_times.sql")),
        (36, "unverified", include_str!("../../migrations/processing/0036_unverified.sql")),
        (37, "never handled", include_str!("../../migrations/processing/0037_never_handled.sql")),
        (38, "emissions say more", include_str!("../../migrations/processing/0038_emissions_say_more.sql")),
        (39, "workflows wait", include_str!("../../migrations/processing/0039_workflows_wait.sql")),
        (40, "unseen events", include_str!("../../migrations/processing/0040_unseen_events.sql")),
        (41, "ended claims", include_str!("../../migrations/processing/0041_ended_claims.sql")),
        (
            42,
            "no rows in differences",
            include_str!("../../migrations/processing/0042_no_rows_in_differences.sql"),
        ),
    ],
};

/// Migrations that are applied together and recorded in one table.
#[derive(Debug)]
pub(super) struct MigrationSet {
    pub(super) name: &'static str,
    /// The table that records them.
    pub(super) table: &'static str,
    /// A table that the first file creates.
    pub(super) first_table: Name,
    /// A table or a function that one of the first files makes, which never has another name.
    pub(super) fixed_object: &'static str,
    /// What the files name of all that can have another name.
    pub(super) names: &'static [Name],
    pub(super) files: &'static [(i64, &'static str, &'static str)],
}

impl MigrationSet {
    /// The files as migrations for this schema. A checksum is that of the file, before any name
    /// is filled in, so `sha384sum` of the file gives the same.
    pub(super) fn migrations(&self, home: &Home) -> Vec<Migration> {
        let quoted = home.schema.to_string();
        let migration = |&(version, description, text): &(i64, &'static str, &'static str)| {
            let as_in_the_file = text.into_sql_str();
            let mut migration =
                Migration::new(version, description.into(), MigrationType::Simple, as_in_the_file, false);
            let named = rename(&in_ascii(text), &home.names);
            migration.sql = AssertSqlSafe(named.replace(SCHEMA_TOKEN, &quoted)).into_sql_str();
            migration
        };
        self.files.iter().map(migration).collect()
    }

    /// The oldest program that may go on after a migration, as the version that it knows.
    pub(super) fn oldest_program(&self, version: i64) -> i64 {
        let file = self.files.iter().find(|file| file.0 == version);
        file.and_then(|file| declared_oldest_program(file.2)).unwrap_or(version)
    }

    pub(super) fn qualified_table(&self, schema: &SchemaName) -> String {
        format!("{schema}.\"{}\"", self.table)
    }

    pub(super) fn newest(&self) -> i64 {
        self.files.last().map_or(0, |&(version, ..)| version)
    }
}

/// The text of a migration in characters that every encoding of a database has. Early files have an ellipsis in comments and
/// in a hint, and a file that was released is never edited.
fn in_ascii(text: &str) -> String {
    text.replace('…', "...")
}

fn declared_oldest_program(text: &str) -> Option<i64> {
    text.lines().find_map(|line| line.strip_prefix(OLDEST_PROGRAM))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::names::EspdNames;
    use super::*;

    fn all_migrations() -> Vec<Migration> {
        let home = Home::new("shop", &EspdNames::default()).unwrap();
        [EVENT_STORE, PROCESSING].iter().flat_map(|set| set.migrations(&home)).collect()
    }

    #[test]
    fn migrations_are_numbered_without_holes() {
        for set in [EVENT_STORE, PROCESSING] {
            let numbers: Vec<i64> = set.files.iter().map(|file| file.0).collect();
            assert_eq!(numbers, (1..=set.newest()).collect::<Vec<_>>(), "{}", set.name);
        }
    }

    /// A database may have another encoding than UTF-8.
    #[test]
    fn every_migration_is_applied_in_ascii() {
        for migration in all_migrations() {
            assert!(migration.sql.as_str().is_ascii(), "{}", migration.description);
        }
        let later = |set: MigrationSet, released| set.files.iter().filter(move |file| file.0 > released);
        for (version, description, text) in later(EVENT_STORE, 3).chain(later(PROCESSING, 10)) {
            assert!(text.is_ascii(), "{version} {description}: write plain ASCII");
        }
    }

    #[test]
    fn no_migration_leaves_a_token_behind() {
        for migration in all_migrations() {
            assert!(!migration.sql.as_str().contains(SCHEMA_TOKEN));
        }
    }

    #[test]
    fn a_file_says_which_programs_may_go_on_or_lets_none_of_before() {
        assert_eq!(declared_oldest_program("-- A column.\n-- Oldest program: 12\nselect 1"), Some(12));
        assert_eq!(declared_oldest_program("-- A column.\nselect 1"), None);
        for set in [EVENT_STORE, PROCESSING] {
            for &(version, name, text) in set.files {
                let said = text.contains(OLDEST_PROGRAM.trim_end());
                let oldest = set.oldest_program(version);
                assert!((1..=version).contains(&oldest), "{name}");
                assert_eq!(said, declared_oldest_program(text).is_some(), "{name}");
            }
        }
    }
}
