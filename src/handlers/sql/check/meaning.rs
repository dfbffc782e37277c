//! Finds SQL that means something else here than it means to somebody who is connected to the database.
//!
//! espd looks names up in a path of its own. An extension in a schema that is not in it has its operators overlooked without
//! an error: `=` of two `citext` then compares as text does.

use std::collections::BTreeSet;

use sqlx::AssertSqlSafe;

use crate::diagnostic::Diagnostic;
use crate::handlers::scratch::{EVENT_TABLE, Scratch};
use crate::postgres::quote::quote_identifier;
use crate::postgres::sql_scope::SqlScope;
use crate::processing::declaration::{ProcessorDeclaration, SourceText};

/// Columns of the declared tables whose type has operators that espd does not find.
pub(super) async fn find_foreign_operators(
    scratch: &mut Scratch<'_>,
    declaration: &ProcessorDeclaration,
) -> Result<Vec<Diagnostic>, sqlx::Error> {
    let statement = "-- find_foreign_operators
        select c.relname::text, a.attname::text, format_type(a.atttypid, null), n.nspname::text
        from pg_class as c
        join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        join pg_type as t on t.oid = a.atttypid
        join pg_namespace as n on n.oid = t.typnamespace
        where c.relnamespace = $1::regnamespace and c.relname = any ($2)
          and n.nspname <> all (current_schemas(true))
          and exists (select from pg_operator as o
                      where o.oprnamespace = n.oid and t.oid in (o.oprleft, o.oprright))
        order by a.attrelid, a.attnum";
    let query = sqlx::query_as(statement).persistent(false);
    let query = query.bind(scratch.schema.clone()).bind(declaration.table_names());
    let columns: Vec<(String, String, String, String)> = query.fetch_all(scratch.connection()).await?;
    let mut found = Vec::new();
    for (table, column, kind, schema) in columns {
        let Some(table) = declaration.tables.iter().find(|declared| declared.name == table) else { continue };
        let message =
            format!("operators of {kind}, which {column} is, are overlooked: they are in schema {schema}");
        let offset = table.columns.text.find(&column).unwrap_or(0);
        let warning = Diagnostic::in_source(&table.columns, offset, message)
            .with_advice(advice(&scratch.scope, &schema));
        found.push(warning.into_warning());
    }
    Ok(found)
}

/// What is used only by the `search_path` of the database, or only by espd's, in plain statements that are correct.
///
/// PostgreSQL tells what a function depends on if its body is parsed when it is made; versions before 14 do not do that.
pub(super) async fn find_other_meaning(
    scratch: &mut Scratch<'_>,
    source: &SourceText,
    statements: &str,
) -> Result<Option<Diagnostic>, sqlx::Error> {
    let here = scratch.scope.search_path();
    let Some(there) = read_own_path(scratch).await? else { return Ok(None) };
    let theirs = find_used(scratch, statements, &there, &here).await?;
    let ours = find_used(scratch, statements, &here, &here).await?;
    let (Some(ours), Some(theirs)) = (ours, theirs) else { return Ok(None) };
    let Some(other) = theirs.difference(&ours).next() else { return Ok(None) };
    let used = ours.difference(&theirs).next().map_or("PostgreSQL's own", String::as_str);
    let message = format!("by the search_path of the database this means {other}, for espd {used}");
    let advice = "write the schema that you mean, or set search_path under [projections]";
    Ok(Some(Diagnostic::in_source(source, 0, message).with_advice(advice).into_warning()))
}

/// The search path that a session has by the defaults of the database and the role, with the tables of the declaration before
/// it and those of others behind.
async fn read_own_path(scratch: &mut Scratch<'_>) -> Result<Option<String>, sqlx::Error> {
    let statement = "-- read_search_path\nselect reset_val from pg_settings where name = 'search_path' and reset_val <> ''
        and current_setting('server_version_num')::int >= 140000";
    let path: Option<String> =
        sqlx::query_scalar(statement).persistent(false).fetch_optional(scratch.connection()).await?;
    let projections = scratch.scope.search_path.first().map_or("public", String::as_str);
    Ok(path.map(|path| format!("{}, {path}, {}", scratch.schema, quote_identifier(projections))))
}

/// What these statements use, where names are looked up by this path; `None` if they are not understood. `here` is the path
/// to go back to, and the one that names are told for.
async fn find_used(
    scratch: &mut Scratch<'_>,
    statements: &str,
    path: &str,
    here: &str,
) -> Result<Option<BTreeSet<String>>, sqlx::Error> {
    let (schema, function) = (scratch.schema.clone(), scratch.name_function());
    let create = format!(
        "-- parse_handler
         set local search_path = {path};
         create function {function}(event {schema}.{EVENT_TABLE}) returns void language sql
         begin atomic\n{}\n; end;
         set local search_path = {here}",
        statements.trim_end().trim_end_matches(';')
    );
    if scratch.attempt(&create).await?.is_some() {
        return Ok(None);
    }
    let statement = format!(
        "-- list_used
         select pg_describe_object(refclassid, refobjid, 0) from pg_depend
         where classid = 'pg_proc'::regclass and refclassid <> 'pg_namespace'::regclass
           and objid = '{function}'::regproc and deptype = 'n'"
    );
    let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
    let used: Vec<String> = query.fetch_all(scratch.connection()).await?;
    Ok(Some(used.into_iter().collect()))
}

/// How to have a schema looked into.
fn advice(scope: &SqlScope, schema: &str) -> String {
    // The first ones are the schemas of the check and of the projections.
    let path = scope.search_path.iter().skip(1).map(String::as_str).chain([schema]);
    let path: Vec<String> = path.map(|schema| format!("{schema:?}")).collect();
    format!("write search_path = [{}] under [projections]", path.join(", "))
}
