//! Creates the database objects that espd needs, and checks that they are there.
//!
//! There are two sets of migrations, each with a table that records what was applied, because
//! projections may live in another database than the events. That database gets the processing set only.
//! The files are embedded in the program. They also run under psql; `migrations/README.md` says how.

use std::fmt;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, SqlSafeStr};
use thiserror::Error;

use crate::postgres::name::{InvalidName, SchemaName};

/// What the migration files write in place of the schema's name; psql replaces the same text.
const SCHEMA_TOKEN: &str = ":\"schema\"";

/// The files of `migrations/event_store`, in order. Never edit one that was released: add another.
const EVENT_STORE: MigrationSet = MigrationSet {
    name: "event store",
    table: "_event_store_migrations",
    files: &[
        (1, "events", include_str!("../migrations/event_store/0001_events.sql")),
        (2, "append events", include_str!("../migrations/event_store/0002_append_events.sql")),
        (3, "append", include_str!("../migrations/event_store/0003_append.sql")),
    ],
};

/// The files of `migrations/processing`, in order. Never edit one that was released: add another.
const PROCESSING: MigrationSet = MigrationSet {
    name: "processing",
    table: "_processing_migrations",
    files: &[
        (1, "trackers", include_str!("../migrations/processing/0001_trackers.sql")),
        (2, "workers", include_str!("../migrations/processing/0002_workers.sql")),
        (3, "signs of life", include_str!("../migrations/processing/0003_signs_of_life.sql")),
        (4, "reactors", include_str!("../migrations/processing/0004_reactors.sql")),
        (5, "dead letters", include_str!("../migrations/processing/0005_dead_letters.sql")),
        (6, "emissions", include_str!("../migrations/processing/0006_emissions.sql")),
        (7, "webhook deliveries", include_str!("../migrations/processing/0007_webhook_deliveries.sql")),
        (8, "processor keys", include_str!("../migrations/processing/0008_processor_keys.sql")),
        (9, "tracker functions", include_str!("../migrations/processing/0009_tracker_functions.sql")),
        (10, "aggregate ids", include_str!("../migrations/processing/0010_aggregate_ids.sql")),
        (11, "witnesses", include_str!("../migrations/processing/0011_witnesses.sql")),
    ],
};

/// Creates the event store in `schema`, or brings it to the version that this program knows.
///
/// This is harmless where nothing is to be done, and when several programs do it at once. It needs a direct
/// connection, not one through a pooler, because it holds a session lock.
pub async fn migrate_event_store(pool: &PgPool, schema: &str) -> Result<Migrated, SchemaError> {
    EVENT_STORE.migrate(pool, &SchemaName::new(schema)?).await
}

/// Creates what processors need in `schema`, as [`migrate_event_store`] does for events.
pub async fn migrate_processing(pool: &PgPool, schema: &str) -> Result<Migrated, SchemaError> {
    PROCESSING.migrate(pool, &SchemaName::new(schema)?).await
}

/// Confirms that the event store in `schema` is at the version that this program knows.
///
/// The check only reads: it needs no right to create anything, and works on a standby.
pub async fn check_event_store(pool: &PgPool, schema: &str) -> Result<(), SchemaError> {
    EVENT_STORE.check(pool, &SchemaName::new(schema)?).await
}

/// Confirms that `schema` has what processors need, as [`check_event_store`] does for events.
pub async fn check_processing(pool: &PgPool, schema: &str) -> Result<(), SchemaError> {
    PROCESSING.check(pool, &SchemaName::new(schema)?).await
}

/// What a migration did: the versions of a set before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    /// Version found; 0 where the set had never been applied.
    pub from: i64,
    /// Version now.
    pub to: i64,
}

/// Why a database cannot be used as it is, or could not be migrated.
#[derive(Debug, Error)]
pub enum SchemaError {
    /// The schema cannot have this name.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    /// Some migrations are missing.
    #[error(
        "the {set} schema \"{schema}\" is at version {found}, this program needs {needed}: \
         run `espctl migrate`"
    )]
    NotMigrated {
        /// Which set: `event store` or `processing`.
        set: &'static str,
        /// The schema looked into.
        schema: String,
        /// Version found; 0 where the set has never been applied.
        found: i64,
        /// Version that this program knows.
        needed: i64,
    },
    /// A newer program has migrated the database.
    #[error(
        "the {set} schema \"{schema}\" is at version {found}, newer than this program, which knows \
         {known}: run a newer espd"
    )]
    Newer {
        /// Which set: `event store` or `processing`.
        set: &'static str,
        /// The schema looked into.
        schema: String,
        /// Version found.
        found: i64,
        /// Version that this program knows.
        known: i64,
    },
    /// An applied migration is not the one that this program has under the same number.
    #[error("migration {version} of the {set} schema \"{schema}\" was applied with other content")]
    Changed {
        /// Which set: `event store` or `processing`.
        set: &'static str,
        /// The schema looked into.
        schema: String,
        /// Number of the migration.
        version: i64,
    },
    /// A migration failed; what it had done is rolled back.
    #[error("failed to migrate the {set} schema \"{schema}\"")]
    Migrate {
        /// Which set: `event store` or `processing`.
        set: &'static str,
        /// The schema being migrated.
        schema: String,
        /// What went wrong.
        source: MigrateError,
    },
    /// The database did not answer, or refused.
    #[error("failed to read the version of the database schema")]
    Database(#[from] sqlx::Error),
}

/// Migrations that are applied together and recorded in one table.
struct MigrationSet {
    name: &'static str,
    table: &'static str,
    files: &'static [(i64, &'static str, &'static str)],
}

impl MigrationSet {
    async fn migrate(&self, pool: &PgPool, schema: &SchemaName) -> Result<Migrated, SchemaError> {
        // Looking first spares a role that may not create schemas an error where nothing is to do.
        match self.check(pool, schema).await {
            Ok(()) => Ok(Migrated { from: self.newest(), to: self.newest() }),
            Err(SchemaError::NotMigrated { found, .. }) => {
                self.apply_missing(pool, schema).await?;
                Ok(Migrated { from: found, to: self.newest() })
            }
            Err(error) => Err(error),
        }
    }

    /// Runs the migrator on a connection of its own. The migrator keeps its session lock when a
    /// migration fails, so that connection must never go back to the pool.
    async fn apply_missing(&self, pool: &PgPool, schema: &SchemaName) -> Result<(), SchemaError> {
        let mut connection = pool.acquire().await?.detach();
        let mut migrator = Migrator::with_migrations(self.migrations(schema));
        migrator.dangerous_set_table_name(self.qualified_table(schema));
        // `create schema if not exists` wants the right to create one even where one exists.
        if !schema_exists(&mut connection, schema).await? {
            migrator.create_schema(schema.to_string());
        }
        let outcome = migrator.run_direct(None, &mut connection, false).await;
        // The outcome is known by now, whether the connection closes well or not.
        let _ = connection.close().await;
        outcome.map_err(|source| SchemaError::Migrate {
            set: self.name,
            schema: schema.as_str().to_owned(),
            source,
        })
    }

    /// The files as migrations for this schema. A checksum is that of the file, before the name of
    /// the schema is filled in, so `sha384sum` of the file gives the same.
    fn migrations(&self, schema: &SchemaName) -> Vec<Migration> {
        let quoted = schema.to_string();
        let migration = |&(version, description, text): &(i64, &'static str, &'static str)| {
            let as_in_the_file = text.into_sql_str();
            let mut migration =
                Migration::new(version, description.into(), MigrationType::Simple, as_in_the_file, false);
            migration.sql = AssertSqlSafe(text.replace(SCHEMA_TOKEN, &quoted)).into_sql_str();
            migration
        };
        self.files.iter().map(migration).collect()
    }

    async fn check(&self, pool: &PgPool, schema: &SchemaName) -> Result<(), SchemaError> {
        let mut connection = pool.acquire().await?;
        let applied = self.find_applied(&mut connection, schema).await?;
        let found = applied.last().map_or(0, |&(version, _)| version);
        let (set, known) = (self.name, self.newest());
        let schema_name = schema.as_str().to_owned();
        if found > known {
            return Err(SchemaError::Newer { set, schema: schema_name, found, known });
        }
        for migration in self.migrations(schema) {
            match applied.iter().find(|(version, _)| *version == migration.version) {
                Some((_, checksum)) if checksum[..] == migration.checksum[..] => {}
                Some(_) => {
                    let version = migration.version;
                    return Err(SchemaError::Changed { set, schema: schema_name, version });
                }
                None => {
                    return Err(SchemaError::NotMigrated { set, schema: schema_name, found, needed: known });
                }
            }
        }
        Ok(())
    }

    /// Number and checksum of the recorded migrations, by number; none where nothing was ever
    /// recorded.
    async fn find_applied(
        &self,
        connection: &mut PgConnection,
        schema: &SchemaName,
    ) -> Result<Vec<(i64, Vec<u8>)>, sqlx::Error> {
        let table = self.qualified_table(schema);
        let exists: bool = sqlx::query_scalar("-- find_migrations_table\nselect to_regclass($1) is not null")
            .bind(&table)
            .fetch_one(&mut *connection)
            .await?;
        if !exists {
            return Ok(Vec::new());
        }
        let sql = format!(
            "-- list_migrations\nselect version, checksum from {table} where success order by version"
        );
        sqlx::query_as(AssertSqlSafe(sql)).fetch_all(connection).await
    }

    fn qualified_table(&self, schema: &SchemaName) -> String {
        format!("{schema}.\"{}\"", self.table)
    }

    fn newest(&self) -> i64 {
        self.files.last().map_or(0, |&(version, ..)| version)
    }
}

async fn schema_exists(connection: &mut PgConnection, schema: &SchemaName) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("-- find_schema\nselect to_regnamespace($1) is not null")
        .bind(schema.to_string())
        .fetch_one(connection)
        .await
}

impl fmt::Display for Migrated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.from == self.to {
            write!(f, "already at version {}", self.to)
        } else {
            write!(f, "from version {} to {}", self.from, self.to)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_numbered_without_holes() {
        for set in [EVENT_STORE, PROCESSING] {
            let numbers: Vec<i64> = set.files.iter().map(|file| file.0).collect();
            assert_eq!(numbers, (1..=set.newest()).collect::<Vec<_>>(), "{}", set.name);
        }
    }

    #[test]
    fn no_migration_leaves_a_token_behind() {
        let schema = SchemaName::new("shop").unwrap();
        for migration in EVENT_STORE.migrations(&schema).iter().chain(&PROCESSING.migrations(&schema)) {
            assert!(!migration.sql.as_str().contains(SCHEMA_TOKEN));
        }
    }
}
