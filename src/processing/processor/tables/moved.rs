//! Tables that are in another schema than the configured one, which was changed: what is built beside them, or put in their place, would be
//! looked for where they are not.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, PgConnection};

/// The schema of the tables of each processor that are elsewhere. `schema` is that of the trackers, quoted; `configured`, that of the
/// projections.
pub(crate) async fn list_moved(
    connection: &mut PgConnection,
    schema: &str,
    configured: &str,
) -> Result<BTreeMap<String, String>, sqlx::Error> {
    let statement = format!(
        "-- list_moved_tables
         select processor, min(table_schema) from {schema}.projection_tables where table_schema <> $1 group by 1"
    );
    let query = sqlx::query_as(AssertSqlSafe(statement)).persistent(false).bind(configured);
    let found: Vec<(String, String)> = query.fetch_all(connection).await?;
    Ok(found.into_iter().collect())
}

/// The schema of the tables of one processor, if they are elsewhere; as [`list_moved`].
pub(crate) async fn find_moved(
    connection: &mut PgConnection,
    schema: &str,
    processor: &str,
    configured: &str,
) -> Result<Option<String>, sqlx::Error> {
    let statement = format!(
        "-- find_moved_tables
         select min(table_schema) from {schema}.projection_tables where processor = $1 and table_schema <> $2"
    );
    let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
    query.bind(processor).bind(configured).fetch_one(connection).await
}

/// What that means for a processor, and what to do.
pub(crate) fn describe_moved(name: &str, is_in: &str, configured: &str) -> String {
    format!(
        "the tables of {name} are in schema {is_in}, and `schema` in [projections] is {configured}: write {is_in} again, or let \
         `espctl reset {name} --in-place` drop them there, make them in {configured}, and handle all events anew"
    )
}
