//! Applies the migrations that are missing, and records them.

use std::time::Instant;

use sqlx::migrate::{Migrate as _, MigrateError, Migration};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};

use super::applied::{check, find_applied};
use super::by_hand::{self, Made};
use super::files::MigrationSet;
use super::names::Home;
use super::{Migrated, SchemaError};
use crate::postgres::server_mark;

/// Brings the set to the version of this program, if it is older.
pub(super) async fn migrate(set: &MigrationSet, pool: &PgPool, home: &Home) -> Result<Migrated, SchemaError> {
    // Looking first spares a role that may not create schemas an error where nothing is to do.
    match check(set, pool, home).await {
        Ok(found) => Ok(Migrated { from: found, to: found }),
        Err(SchemaError::NotMigrated { .. }) => {
            let found = apply_missing(set, pool, home).await?;
            Ok(Migrated { from: found, to: set.newest().max(found) })
        }
        Err(error) => Err(error),
    }
}

/// Returns the SQL that is to be run, as comments and statements.
#[cfg(feature = "daemon")]
pub(super) async fn plan(set: &MigrationSet, pool: &PgPool, home: &Home) -> Result<String, SchemaError> {
    let name = set.name;
    let found = match check(set, pool, home).await {
        Ok(found) => return Ok(format!("-- {name}: already at version {found}\n")),
        Err(SchemaError::NotMigrated { found, .. }) => found,
        Err(error) => return Err(error),
    };
    let mut connection = pool.acquire().await?;
    let mut text = format!("-- {name}: from version {found} to {}\n", set.newest());
    if !schema_exists(&mut connection, home).await? {
        text += &format!("create schema if not exists {};\n", home.schema);
    }
    let missing = missing(set, &mut connection, home).await?;
    for migration in &missing.by_hand {
        let Migration { version, description, .. } = migration;
        text +=
            &format!("\n-- {name} {version} ({description}): its tables are there; it is recorded only\n");
    }
    for migration in &missing.to_apply {
        let Migration { version, description, sql, .. } = migration;
        text += &format!("\n-- {name} {version} ({description})\n{}\n", sql.as_str().trim_end());
    }
    Ok(text)
}

/// Works on a connection of its own: its session lock ends with it, so it must never go back to the pool. Returns the version
/// that was found: another program may have migrated while this one waited for the lock.
async fn apply_missing(set: &MigrationSet, pool: &PgPool, home: &Home) -> Result<i64, SchemaError> {
    let mut connection = pool.acquire().await?.detach();
    let outcome = apply_locked(set, &mut connection, home).await;
    // The outcome is known by now, whether the connection closes well or not.
    let _ = connection.close().await;
    outcome.map_err(|error| match error {
        ApplyError::Migrate(source) => {
            SchemaError::Migrate { set: set.name, schema: home.schema.as_str().to_owned(), source }
        }
        ApplyError::Schema(error) => error,
    })
}

/// Takes the lock that every espd takes to migrate, then applies what is missing. Returns the version that was found.
async fn apply_locked(
    set: &MigrationSet,
    connection: &mut PgConnection,
    home: &Home,
) -> Result<i64, ApplyError> {
    connection.lock().await?;
    let found = find_applied(set, connection, home).await?.last().map_or(0, |migration| migration.version);
    // `create schema if not exists` wants the right to create one even where one exists.
    if !schema_exists(connection, home).await? {
        execute(connection, format!("-- create_schema\ncreate schema {}", home.schema)).await?;
    }
    let table = set.qualified_table(&home.schema);
    connection.ensure_migrations_table(&table).await?;
    let columns = format!(
        "-- complete_migrations_table
         set client_min_messages = warning;
         alter table {table} add column if not exists oldest_program bigint,
           add column if not exists applied_by text, add column if not exists names jsonb"
    );
    execute(connection, columns).await?;
    let missing = missing(set, connection, home).await?;
    for migration in &missing.by_hand {
        record(set, connection, home, migration, -1).await.map_err(MigrateError::Execute)?;
    }
    if missing.all_or_none {
        apply_together(set, connection, home, &missing.to_apply).await?;
        return Ok(found);
    }
    for migration in &missing.to_apply {
        apply(set, connection, home, migration)
            .await
            .map_err(|error| MigrateError::ExecuteMigration(error, migration.version))?;
    }
    Ok(found)
}

/// Runs all files and records them in one transaction.
async fn apply_together(
    set: &MigrationSet,
    connection: &mut PgConnection,
    home: &Home,
    migrations: &[Migration],
) -> Result<(), ApplyError> {
    let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
    for migration in migrations {
        run(set, &mut transaction, home, migration)
            .await
            .map_err(|error| MigrateError::ExecuteMigration(error, migration.version))?;
    }
    Ok(transaction.commit().await?)
}

/// The migrations that are not recorded.
struct Missing {
    /// What they make is there already, because somebody has run the files by hand.
    by_hand: Vec<Migration>,
    to_apply: Vec<Migration>,
    /// Whether they are applied in one transaction, because a table that is there may be somebody else's.
    all_or_none: bool,
}

async fn missing(
    set: &MigrationSet,
    connection: &mut PgConnection,
    home: &Home,
) -> Result<Missing, SchemaError> {
    let applied = find_applied(set, connection, home).await?;
    let recorded = |migration: &Migration| applied.iter().any(|one| one.version == migration.version);
    let missing: Vec<Migration> =
        set.migrations(home).into_iter().filter(|migration| !recorded(migration)).collect();
    let newest = applied.last().map_or(0, |one| one.version);
    let made = if missing.is_empty() {
        Made::Version(0)
    } else {
        by_hand::find_made(set, connection, home, newest).await?
    };
    let all_or_none = made == Made::Unknown && applied.is_empty();
    let made = if let Made::Version(version) = made { version } else { 0 };
    let (by_hand, to_apply) = missing.into_iter().partition(|migration| migration.version <= made);
    Ok(Missing { by_hand, to_apply, all_or_none })
}

/// Runs a file and records it, in one transaction.
async fn apply(
    set: &MigrationSet,
    connection: &mut PgConnection,
    home: &Home,
    migration: &Migration,
) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
    run(set, &mut transaction, home, migration).await?;
    transaction.commit().await
}

async fn run(
    set: &MigrationSet,
    transaction: &mut PgConnection,
    home: &Home,
    migration: &Migration,
) -> Result<(), sqlx::Error> {
    let begun = Instant::now();
    sqlx::raw_sql(migration.sql.clone()).execute(&mut *transaction).await?;
    let nanoseconds = i64::try_from(begun.elapsed().as_nanos()).unwrap_or(-1);
    record(set, transaction, home, migration, nanoseconds).await
}

async fn record(
    set: &MigrationSet,
    connection: &mut PgConnection,
    home: &Home,
    migration: &Migration,
    nanoseconds: i64,
) -> Result<(), sqlx::Error> {
    let statement = format!(
        "-- record_migration
         insert into {} (version, description, success, checksum, execution_time, oldest_program, applied_by,
           names)
         values ($1, $2, true, $3, $4, $5, $6, $7)",
        set.qualified_table(&home.schema)
    );
    sqlx::query(AssertSqlSafe(statement))
        .persistent(false)
        .bind(migration.version)
        .bind(&*migration.description)
        .bind(&*migration.checksum)
        .bind(nanoseconds)
        .bind(set.oldest_program(migration.version))
        .bind(env!("CARGO_PKG_VERSION"))
        .bind(home.names.to_record(set.names))
        .execute(connection)
        .await
        .map(drop)
}

async fn execute(connection: &mut PgConnection, statement: String) -> Result<(), MigrateError> {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await?;
    Ok(())
}

async fn schema_exists(connection: &mut PgConnection, home: &Home) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("-- find_schema\nselect to_regnamespace($1) is not null")
        .bind(home.schema.to_string())
        .fetch_one(connection)
        .await
}

/// Why nothing more was applied.
enum ApplyError {
    Migrate(MigrateError),
    Schema(SchemaError),
}

impl From<MigrateError> for ApplyError {
    fn from(error: MigrateError) -> Self {
        Self::Migrate(error)
    }
}

impl From<SchemaError> for ApplyError {
    fn from(error: SchemaError) -> Self {
        Self::Schema(error)
    }
}

impl From<sqlx::Error> for ApplyError {
    fn from(error: sqlx::Error) -> Self {
        Self::Schema(error.into())
    }
}
