//! Why a schema cannot be used, and what to do about it.

use sqlx::migrate::MigrateError;
use thiserror::Error;

use super::names::OtherName;
use crate::postgres::name::InvalidName;

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
    /// A newer program has migrated the database, and its migrations do not let this program go on.
    #[error(
        "the {set} schema \"{schema}\" is at version {found}, which this program (espd {}, which knows version \
         {known}) cannot work with: run {}",
        env!("CARGO_PKG_VERSION"), newer_program(applied_by.as_deref())
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
        /// The version of espd that has migrated the schema, if it is recorded.
        applied_by: Option<String>,
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
    /// The tables and functions were made with other names.
    #[error("the {set} schema \"{schema}\" was made with other names: {}", advise(others))]
    OtherNames {
        /// Which set: `event store` or `processing`.
        set: &'static str,
        /// The schema looked into.
        schema: String,
        /// What is called otherwise.
        others: Vec<OtherName>,
    },
    /// The functions are there, made by hand, but not the table that they would work on.
    #[error(
        "the {set} schema \"{schema}\" was made by hand with other names, because it has no table {table:?}: write its names \
         under [event_store.espd], or name another schema"
    )]
    UnknownNames {
        /// Which set: `event store` or `processing`.
        set: &'static str,
        /// The schema looked into.
        schema: String,
        /// The table that the configuration names.
        table: String,
    },
    /// Others have made something under a name that espd would use.
    #[error(
        "the {set} schema \"{schema}\" has a relation {relation:?} that no espd has made: rename or move it, or name another schema; \
         nothing was changed"
    )]
    Foreign {
        /// Which set: `event store` or `processing`.
        set: &'static str,
        /// The schema looked into.
        schema: String,
        /// The table or view.
        relation: String,
    },
    /// A table that a recorded migration has made is gone.
    #[error(
        "the {set} schema \"{schema}\" has no table {table:?}, although its migrations are recorded up to {recorded}: restore it, or drop \
         the schema if nothing in it is needed, and run `espctl migrate`"
    )]
    Dropped {
        /// Which set: `event store` or `processing`.
        set: &'static str,
        /// The schema looked into.
        schema: String,
        /// The table that the configuration names.
        table: String,
        /// The last migration that is recorded.
        recorded: i64,
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

impl SchemaError {
    /// Says what to do, in a few words.
    #[cfg(feature = "daemon")]
    pub(crate) fn remedy(&self) -> String {
        match self {
            Self::NotMigrated { .. } => "run `espctl migrate`".to_owned(),
            Self::Newer { applied_by, .. } => {
                format!("replace this program by {}", newer_program(applied_by.as_deref()))
            }
            Self::Changed { .. } => "run the espd that has applied it, or restore the file".to_owned(),
            Self::InvalidName(_) => "choose another schema".to_owned(),
            Self::OtherNames { others, .. } => advise(others),
            Self::UnknownNames { .. } => {
                "write the names of its tables under [event_store.espd], or name another schema".to_owned()
            }
            Self::Foreign { .. } => {
                "rename or move it, or name another schema under [event_store]".to_owned()
            }
            Self::Dropped { .. } => "restore it, or drop the schema if nothing in it is needed".to_owned(),
            Self::Migrate { .. } => "fix what the database says, then run `espctl migrate` again".to_owned(),
            Self::Database(_) => "check that the server runs and lets this role read the schema".to_owned(),
        }
    }
}

/// What to write, so that the names are those of the database.
fn advise(others: &[OtherName]) -> String {
    let one = |OtherName { key, database, configured }: &OtherName| {
        format!("{key} = {database:?} (it is {configured:?} now)")
    };
    let all = others.iter().map(one).collect::<Vec<_>>().join(", ");
    format!("write {all} under [event_store.espd], or name another schema")
}

/// The program that works with a schema of which this one is too old.
fn newer_program(applied_by: Option<&str>) -> String {
    match applied_by {
        Some(version) => format!("espd {version}, which has migrated it, or a newer one"),
        None => "the espd that has migrated it, or a newer one".to_owned(),
    }
}
