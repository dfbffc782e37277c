//! Other event stores in the database: each has tables of espd's own in a schema of its own, and knows which tables its projectors write.

use sqlx::PgConnection;

/// The quoted schemas of the stores besides the one in the schema of this name, and whether what they know may be read.
pub(crate) async fn list_other_stores(
    connection: &mut PgConnection,
    own: &str,
) -> Result<Vec<(String, bool)>, sqlx::Error> {
    let statement = "-- list_other_stores
        select quote_ident(n.nspname) as store,
               has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select') as is_readable
        from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
        where c.relname = 'projection_tables' and c.relkind = 'r' and n.nspname <> $1
          and exists (select from pg_catalog.pg_attribute as a where a.attrelid = c.oid and a.attname = 'table_schema')
        order by 1";
    sqlx::query_as(statement).persistent(false).bind(own).fetch_all(connection).await
}
