//! Creates the database objects that espd needs, and checks that they are there.
//!
//! There are two sets of migrations, each with a table that records what was applied, because
//! projections may live in another database than the events. That database gets the processing set only.
//! The files are embedded in the program. They also run under psql; `migrations/README.md` says how.
//!
//! A migration says which programs may go on with the tables that it leaves, so a newer schema does not stop every
//! program of before.

mod applied;
mod apply;
mod by_hand;
mod error;
#[cfg(feature = "processors")]
pub(crate) mod exclusion;
mod files;
mod fixed_names;
mod foreign;
pub(crate) mod names;
pub(crate) mod renaming;

use std::fmt;

use sqlx::PgPool;

pub use error::SchemaError;
use names::Home;
pub use names::{EspdNames, OtherName};

use files::{EVENT_STORE, PROCESSING};

/// Creates the event store in `schema`, or brings it to the version that this program knows.
///
/// This is harmless where nothing is to be done, and when several programs do it at once. It needs a direct
/// connection, not one through a pooler, because it holds a session lock.
pub async fn migrate_event_store(pool: &PgPool, schema: &str) -> Result<Migrated, SchemaError> {
    migrate_event_store_named(pool, schema, &EspdNames::default()).await
}

/// As [`migrate_event_store`], with other names of tables and functions, which are chosen before the first migration.
pub async fn migrate_event_store_named(
    pool: &PgPool,
    schema: &str,
    names: &EspdNames,
) -> Result<Migrated, SchemaError> {
    apply::migrate(&EVENT_STORE, pool, &Home::new(schema, names)?).await
}

/// Creates what processors need in `schema`, as [`migrate_event_store`] does for events.
pub async fn migrate_processing(pool: &PgPool, schema: &str) -> Result<Migrated, SchemaError> {
    migrate_processing_named(pool, schema, &EspdNames::default()).await
}

/// As [`migrate_processing`], with other names. They are those of [`migrate_event_store_named`].
pub async fn migrate_processing_named(
    pool: &PgPool,
    schema: &str,
    names: &EspdNames,
) -> Result<Migrated, SchemaError> {
    apply::migrate(&PROCESSING, pool, &Home::new(schema, names)?).await
}

/// Confirms that the event store in `schema` is at the version that this program knows, or at a newer one that lets
/// this program go on.
///
/// The check only reads: it needs no right to create anything, and works on a standby.
pub async fn check_event_store(pool: &PgPool, schema: &str) -> Result<(), SchemaError> {
    check_event_store_named(pool, schema, &EspdNames::default()).await
}

/// As [`check_event_store`], and that its tables and functions have these names.
pub async fn check_event_store_named(
    pool: &PgPool,
    schema: &str,
    names: &EspdNames,
) -> Result<(), SchemaError> {
    applied::check(&EVENT_STORE, pool, &Home::new(schema, names)?).await.map(drop)
}

/// Confirms that `schema` has what processors need, as [`check_event_store`] does for events.
pub async fn check_processing(pool: &PgPool, schema: &str) -> Result<(), SchemaError> {
    check_processing_named(pool, schema, &EspdNames::default()).await
}

/// As [`check_processing`], and that its tables and functions have these names.
pub async fn check_processing_named(
    pool: &PgPool,
    schema: &str,
    names: &EspdNames,
) -> Result<(), SchemaError> {
    applied::check(&PROCESSING, pool, &Home::new(schema, names)?).await.map(drop)
}

/// Returns the SQL that [`migrate_event_store_named`] would run now.
#[cfg(feature = "daemon")]
pub(crate) async fn plan_event_store(
    pool: &PgPool,
    schema: &str,
    names: &EspdNames,
) -> Result<String, SchemaError> {
    apply::plan(&EVENT_STORE, pool, &Home::new(schema, names)?).await
}

/// Returns the SQL that [`migrate_processing_named`] would run now.
#[cfg(feature = "daemon")]
pub(crate) async fn plan_processing(
    pool: &PgPool,
    schema: &str,
    names: &EspdNames,
) -> Result<String, SchemaError> {
    apply::plan(&PROCESSING, pool, &Home::new(schema, names)?).await
}

/// Says which version the event store has, after [`check_event_store_named`].
#[cfg(feature = "daemon")]
pub(crate) async fn describe_event_store(
    pool: &PgPool,
    schema: &str,
    names: &EspdNames,
) -> Result<String, SchemaError> {
    let found = applied::check(&EVENT_STORE, pool, &Home::new(schema, names)?).await?;
    Ok(applied::describe(&EVENT_STORE, found))
}

/// Says which version the tables of processors have, after [`check_processing_named`].
#[cfg(feature = "daemon")]
pub(crate) async fn describe_processing(
    pool: &PgPool,
    schema: &str,
    names: &EspdNames,
) -> Result<String, SchemaError> {
    let found = applied::check(&PROCESSING, pool, &Home::new(schema, names)?).await?;
    Ok(applied::describe(&PROCESSING, found))
}

/// What a migration did: the versions of a set before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    /// Version found; 0 where the set had never been applied.
    pub from: i64,
    /// Version now.
    pub to: i64,
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
