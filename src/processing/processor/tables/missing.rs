//! Tables that somebody else has dropped or renamed: the handlers would fail at the next event that needs them.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, PgConnection};

/// The query for the tables that are recorded as processors' and are not there, as a processor and the tables' names. `schema` is
/// quoted.
fn list(schema: &str) -> String {
    format!(
        "select t.processor, format('%I.%I', t.table_schema, t.table_name) as missing
         from {schema}.projection_tables as t
         where not exists (select from pg_catalog.pg_class as c
                           join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
                           where n.nspname = t.table_schema and c.relname = t.table_name)"
    )
}

/// The tables of each processor that are not there. `schema` is quoted.
pub(crate) async fn list_missing(
    connection: &mut PgConnection,
    schema: &str,
) -> Result<BTreeMap<String, Vec<String>>, sqlx::Error> {
    let statement = format!("-- list_missing_tables\n{} order by 1, 2", list(schema));
    let query = sqlx::query_as(AssertSqlSafe(statement)).persistent(false);
    let found: Vec<(String, String)> = query.fetch_all(connection).await?;
    let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (processor, table) in found {
        missing.entry(processor).or_default().push(table);
    }
    Ok(missing)
}

/// The tables of one processor that are not there, separated by commas; `None`: all are. `schema` is quoted.
pub(crate) async fn find_missing(
    connection: &mut PgConnection,
    schema: &str,
    processor: &str,
) -> Result<Option<String>, sqlx::Error> {
    let statement = format!(
        "-- find_missing_tables
         select string_agg(missing, ', ' order by missing) from ({}) as t where processor = $1",
        list(schema)
    );
    sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(processor).fetch_one(connection).await
}

/// What it means for a processor that these tables are missing, and what to do.
pub(crate) fn describe_missing(name: &str, tables: &str) -> String {
    format!(
        "somebody has dropped or renamed {tables}, which {name} needs: `espctl reset {name} --in-place` makes its tables again and \
         handles all events anew"
    )
}
