//! Recognises what somebody has made with the files under psql, which records nothing.
//!
//! The files are run in a schema of their own, in a transaction that is rolled back. After each file it is noted what there
//! is. A schema that has exactly what is there after one of them is at that version: what espd never makes does not count.

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use uuid::Uuid;

use super::SchemaError;
use super::files::MigrationSet;
use super::foreign::{Shapes, find_foreign, list_made, list_shapes};
use super::names::{EspdNames, Home};
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::server_mark;
use crate::postgres::sqlstate::is_missing_right;

/// Tables, columns, constraints, indexes, functions and triggers, each as one text.
type Inventory = BTreeSet<String>;

/// What was made in a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    /// What this version makes; 0: nothing, or as no version makes it.
    Version(i64),
    /// The role may not create the schema that the files are tried in.
    Unknown,
}

/// Finds what was made in the schema, whether recorded or not. `recorded` is the last version that is.
///
/// # Errors
/// Others have made something under a name of espd's, or something is missing that others have dropped or called otherwise.
pub(super) async fn find_made(
    set: &MigrationSet,
    connection: &mut PgConnection,
    home: &Home,
    recorded: i64,
) -> Result<Made, SchemaError> {
    let first = home.names.get(set.first_table);
    let exists: bool = sqlx::query_scalar(
        "-- find_first_table\nselect exists (select from pg_class where oid = to_regclass($1) and relkind in ('r', 'p'))",
    )
    .bind(format!("{}.{}", home.schema, quote_identifier(&first)))
    .fetch_one(&mut *connection)
    .await?;
    if !exists {
        refuse_others(set, connection, home, first, recorded).await?;
        if !has_any(connection, home, &list_made(&set.migrations(home), &home.schema)).await? {
            return Ok(Made::Version(0));
        }
    }
    let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
    let compared = compare(set, &mut transaction, home, recorded).await;
    transaction.rollback().await?;
    match compared {
        // A role that may not create a schema cannot try the files. Migrating goes on without the answer.
        Err(error) if is_missing_right(&error) => {
            tracing::debug!(%error, "could not compare the schema with the migrations");
            Ok(Made::Unknown)
        }
        compared => match compared? {
            Compared::Foreign(relation) => {
                let schema = home.schema.as_str().to_owned();
                Err(SchemaError::Foreign { set: set.name, schema, relation })
            }
            Compared::Version(version) => Ok(Made::Version(version)),
        },
    }
}

/// Whether there is a relation of one of these names in the schema.
async fn has_any(connection: &mut PgConnection, home: &Home, names: &[String]) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "-- has_any
         select exists (select from pg_class where relnamespace = to_regnamespace($1) and relname = any($2))",
    )
    .bind(home.schema.to_string())
    .bind(names)
    .fetch_one(connection)
    .await
}

/// Functions without the table that they work on were made by hand for a table of another name. Migrating would leave that
/// table, with all that is in it, and have them work on a new one. Where migrations are recorded, somebody has dropped it.
async fn refuse_others(
    set: &MigrationSet,
    connection: &mut PgConnection,
    home: &Home,
    table: String,
    recorded: i64,
) -> Result<(), SchemaError> {
    let was_made: bool = sqlx::query_scalar(
        "-- find_fixed_object
         select exists (select from pg_class where relnamespace = to_regnamespace($1) and relname = $2)
             or exists (select from pg_proc where pronamespace = to_regnamespace($1) and proname = $2)",
    )
    .bind(home.schema.to_string())
    .bind(set.fixed_object)
    .fetch_one(connection)
    .await?;
    let (set_name, schema) = (set.name, home.schema.as_str().to_owned());
    match (recorded, was_made) {
        (0, false) => Ok(()),
        (0, true) => Err(SchemaError::UnknownNames { set: set_name, schema, table }),
        _ => Err(SchemaError::Dropped { set: set_name, schema, table, recorded }),
    }
}

/// What comparing a schema with the versions has found.
enum Compared {
    Version(i64),
    /// Others have made this relation.
    Foreign(String),
}

async fn compare(
    set: &MigrationSet,
    transaction: &mut PgConnection,
    home: &Home,
    recorded: i64,
) -> Result<Compared, sqlx::Error> {
    let there = take_inventory(transaction, home.schema.as_str()).await?;
    let relations = list_shapes(transaction, home.schema.as_str()).await?;
    let (versions, shapes) = make_versions(set, transaction, &home.names).await?;
    if let Some(relation) = find_foreign(&relations, &shapes, recorded) {
        return Ok(Compared::Foreign(relation));
    }
    let ever_made: BTreeSet<&String> = versions.iter().flat_map(|(_, inventory)| inventory).collect();
    let there: BTreeSet<&String> = there.iter().filter(|one| ever_made.contains(one)).collect();
    // The first of several that look the same: a file that changes rows only is run rather than taken for done.
    let matching = versions.iter().find(|(_, inventory)| inventory.iter().collect::<BTreeSet<_>>() == there);
    Ok(Compared::Version(matching.map_or(0, |(version, _)| *version)))
}

/// What there is after each version, in full, and its tables and views.
type Versions = (Vec<(i64, Inventory)>, Vec<(i64, Shapes)>);

/// Runs the files in a schema of their own. Returns what there is after each.
async fn make_versions(
    set: &MigrationSet,
    transaction: &mut PgConnection,
    names: &EspdNames,
) -> Result<Versions, sqlx::Error> {
    let name = format!("espd_try_{}", Uuid::new_v4().simple());
    let Ok(home) = Home::new(&name, names) else { return Ok((Vec::new(), Vec::new())) };
    let create = format!(
        "-- open_trial\nset local client_min_messages = warning; set local check_function_bodies = off; create schema {}",
        home.schema
    );
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *transaction).await?;
    let (mut versions, mut shapes) = (Vec::new(), Vec::new());
    for migration in set.migrations(&home) {
        sqlx::raw_sql(migration.sql).execute(&mut *transaction).await?;
        versions.push((migration.version, take_inventory(transaction, &name).await?));
        shapes.push((migration.version, list_shapes(transaction, &name).await?));
    }
    Ok((versions, shapes))
}

/// Lists what is in a schema, without the schema's name. An ellipsis in a function may be one character or three periods: see
/// `in_ascii`.
async fn take_inventory(transaction: &mut PgConnection, schema: &str) -> Result<Inventory, sqlx::Error> {
    // Names in this schema are written without it where it is on the path; some texts always have it.
    let statement = format!(
        "-- list_objects
         with home as (
           select oid, quote_ident(nspname) || '.' as prefix, quote_ident(nspname) as name,
             chr(34) || nspname || chr(34) || '.' as in_bodies
           from pg_namespace where nspname = {name}
         ), relations as (
           select c.oid, c.relname, c.relkind, h.prefix from pg_class as c join home as h on c.relnamespace = h.oid
         )
         select format('relation %s %s', relkind, relname) from relations
         union all
         select format('column %s.%s %s %s %s %s', r.relname, a.attname, format_type(a.atttypid, a.atttypmod),
                       a.attnotnull, a.attidentity, pg_get_expr(d.adbin, d.adrelid))
         from relations as r join pg_attribute as a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
           left join pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
         where r.relkind in ('r', 'p')
         union all
         select format('constraint %s.%s %s', r.relname, c.conname, pg_get_constraintdef(c.oid))
         from relations as r join pg_constraint as c on c.conrelid = r.oid where c.contype <> 'n'
         union all
         select 'index ' || replace(pg_get_indexdef(i.indexrelid), r.prefix, '')
         from relations as r join pg_index as i on i.indrelid = r.oid where r.relkind in ('r', 'p')
         union all
         select 'trigger ' || replace(pg_get_triggerdef(t.oid), r.prefix, '')
         from relations as r join pg_trigger as t on t.tgrelid = r.oid where not t.tgisinternal
         union all
         select format('function %s(%s) returns %s %s %s %s %s', p.proname, pg_get_function_arguments(p.oid),
                       pg_get_function_result(p.oid), p.provolatile, p.prosecdef,
                       replace(p.proconfig::text, h.name, ''),
                       md5(regexp_replace(replace(p.prosrc, h.in_bodies, ''), '[^\\x01-\\x7f]|[.]', '', 'g')))
         from pg_proc as p join home as h on p.pronamespace = h.oid where p.prokind = 'f'",
        name = quote_literal(schema)
    );
    let path = format!("-- look_into_schema\nset local search_path = \"{schema}\", pg_temp");
    sqlx::raw_sql(AssertSqlSafe(path)).execute(&mut *transaction).await?;
    let listed =
        sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).fetch_all(transaction).await?;
    Ok(listed.into_iter().collect())
}
