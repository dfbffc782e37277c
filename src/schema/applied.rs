//! What the tables of migrations record, and whether this program can work with it.

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};

use super::SchemaError;
use super::files::MigrationSet;
use super::names::Home;

/// The columns of [`AppliedMigration`], in its order.
type Row = (i64, Vec<u8>, Option<i64>, Option<String>, Option<Value>);

/// A migration that was applied.
#[derive(Debug)]
pub(super) struct AppliedMigration {
    pub(super) version: i64,
    checksum: Vec<u8>,
    /// The oldest program that may go on, as the version that it knows; `None`: not recorded.
    oldest_program: Option<i64>,
    /// The version of the espd that has applied it; `None`: not recorded.
    applied_by: Option<String>,
    /// The names that were chosen; `None`: the defaults.
    names: Option<Value>,
}

/// Returns the version that was found, with which this program can work.
pub(super) async fn check(set: &MigrationSet, pool: &PgPool, home: &Home) -> Result<i64, SchemaError> {
    let mut connection = pool.acquire().await?;
    judge(set, home, &find_applied(set, &mut connection, home).await?)
}

/// Decides whether this program can work with what was applied. Returns the version found.
pub(super) fn judge(
    set: &MigrationSet,
    home: &Home,
    applied: &[AppliedMigration],
) -> Result<i64, SchemaError> {
    let found = applied.last().map_or(0, |migration| migration.version);
    refuse_excluding(set, home, applied)?;
    refuse_other_names(set, home, applied)?;
    for migration in set.migrations(home) {
        let (set_name, schema_name) = (set.name, home.schema.as_str().to_owned());
        match applied.iter().find(|applied| applied.version == migration.version) {
            Some(applied) if applied.checksum[..] == migration.checksum[..] => {}
            Some(_) => {
                let version = migration.version;
                return Err(SchemaError::Changed { set: set_name, schema: schema_name, version });
            }
            None => {
                let needed = set.newest();
                return Err(SchemaError::NotMigrated { set: set_name, schema: schema_name, found, needed });
            }
        }
    }
    Ok(found)
}

/// Refuses migrations that this program does not know and that exclude it. One that does not say excludes every program
/// that does not know it.
fn refuse_excluding(
    set: &MigrationSet,
    home: &Home,
    applied: &[AppliedMigration],
) -> Result<(), SchemaError> {
    let known = set.newest();
    let excludes = |migration: &&AppliedMigration| {
        migration.version > known && migration.oldest_program.unwrap_or(migration.version) > known
    };
    let Some(excluding) = applied.iter().rfind(excludes) else { return Ok(()) };
    Err(SchemaError::Newer {
        set: set.name,
        schema: home.schema.as_str().to_owned(),
        found: applied.last().map_or(excluding.version, |migration| migration.version),
        known,
        applied_by: excluding.applied_by.clone(),
    })
}

/// Refuses a schema whose tables have other names. The first migration decides: an espd that knew no names may have applied a
/// later one.
fn refuse_other_names(
    set: &MigrationSet,
    home: &Home,
    applied: &[AppliedMigration],
) -> Result<(), SchemaError> {
    let Some(first) = applied.first() else { return Ok(()) };
    let others = home.names.differing(set.names, first.names.as_ref());
    if others.is_empty() {
        return Ok(());
    }
    Err(SchemaError::OtherNames { set: set.name, schema: home.schema.as_str().to_owned(), others })
}

/// The recorded migrations by number; none where nothing was ever recorded.
pub(super) async fn find_applied(
    set: &MigrationSet,
    connection: &mut PgConnection,
    home: &Home,
) -> Result<Vec<AppliedMigration>, sqlx::Error> {
    let table = set.qualified_table(&home.schema);
    let exists: bool = sqlx::query_scalar("-- find_migrations_table\nselect to_regclass($1) is not null")
        .persistent(false)
        .bind(&table)
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(Vec::new());
    }
    // Programs of before have recorded less, and their tables lack the columns.
    let sql = format!(
        "-- list_migrations
         select version, checksum, (to_jsonb(m)->>'oldest_program')::bigint as oldest_program,
           to_jsonb(m)->>'applied_by' as applied_by, nullif(to_jsonb(m)->'names', 'null') as names
         from {table} as m where success order by version"
    );
    let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(sql)).persistent(false).fetch_all(connection).await?;
    let migration = |(version, checksum, oldest_program, applied_by, names)| AppliedMigration {
        version,
        checksum,
        oldest_program,
        applied_by,
        names,
    };
    Ok(rows.into_iter().map(migration).collect())
}

/// Says in words which version was found.
#[cfg(feature = "daemon")]
pub(super) fn describe(set: &MigrationSet, found: i64) -> String {
    let known = set.newest();
    if found > known {
        format!("at version {found}, newer than this program, which knows {known} and may go on")
    } else {
        "at the version of this program".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::PROCESSING;
    use super::super::names::EspdNames;
    use super::*;

    fn with_newer(newer: &[(i64, Option<i64>)]) -> Result<i64, SchemaError> {
        let home = Home::new("espd", &EspdNames::default()).unwrap();
        let known = PROCESSING.migrations(&home).into_iter().map(|migration| AppliedMigration {
            version: migration.version,
            checksum: migration.checksum.to_vec(),
            oldest_program: None,
            applied_by: None,
            names: None,
        });
        let newer = newer.iter().map(|&(version, oldest_program)| AppliedMigration {
            version,
            checksum: Vec::new(),
            oldest_program,
            applied_by: Some("9.9.9".to_owned()),
            names: None,
        });
        judge(&PROCESSING, &home, &known.chain(newer).collect::<Vec<_>>())
    }

    #[test]
    fn a_newer_migration_lets_this_program_go_on_if_it_says_so() {
        let known = PROCESSING.newest();
        assert_eq!(with_newer(&[]).unwrap(), known);
        assert_eq!(with_newer(&[(998, Some(known)), (999, Some(1))]).unwrap(), 999);
        for excluding in [
            vec![(999, Some(known + 1))],
            vec![(999, None)],
            // A later one that would let it go on does not undo an earlier one that does not.
            vec![(998, Some(998)), (999, Some(known))],
        ] {
            let error = with_newer(&excluding).unwrap_err();
            assert!(matches!(error, SchemaError::Newer { found: 999, .. }), "{error:?}");
            assert!(error.to_string().contains("run espd 9.9.9"), "{error}");
        }
    }
}
