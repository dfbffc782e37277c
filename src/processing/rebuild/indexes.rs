//! Indexes that are made once the rows are there: to make an index of rows takes less than to keep it with each of them.
//!
//! Which ones are missing is in the comment on the schema that the version is built in, from the transaction that drops them to
//! the one that makes the last of them. So whoever goes on after a kill knows, and when the schema goes, nothing is left.

use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::row::from_row;
use crate::postgres::server_mark;
use crate::postgres::sql_scope::SqlScope;

/// The indexes that no handler needs and no constraint is kept by, of the kinds that are what their definition says: a comment,
/// another tablespace or a mark on one would be lost.
const LIST: &str = "-- list_plain_indexes
    select x.relname::text as name, pg_get_indexdef(i.indexrelid) as definition
    from pg_index as i join pg_class as x on x.oid = i.indexrelid join pg_class as t on t.oid = i.indrelid
    where t.relnamespace = to_regnamespace($1) and t.relkind = 'r' and not t.relispartition and x.relkind = 'i'
      and i.indisvalid and not (i.indisprimary or i.indisunique or i.indisexclusion or i.indisclustered or i.indisreplident)
      and x.reltablespace = 0 and obj_description(x.oid, 'pg_class') is null
      and not exists (select from pg_depend as d where d.refclassid = 'pg_class'::regclass and d.refobjid = x.oid)
      and not exists (select from pg_depend as d
        where d.classid = 'pg_class'::regclass and d.objid = x.oid and d.deptype in ('e', 'x', 'i'))
      and not exists (select from pg_attribute as a where a.attrelid = x.oid
        and (coalesce(a.attstattarget, -1) >= 0 or $2 and a.attlen < 0))
    order by x.relname";

/// An index that is to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeferredIndex {
    pub(crate) name: String,
    /// The statement that makes it, in which every name has its schema.
    pub(crate) definition: String,
}

from_row!(DeferredIndex { name, definition });

/// What the comment on the schema says.
#[derive(Debug, Serialize, Deserialize)]
struct Comment {
    #[serde(rename = "espd: indexes to be made once the rows are there")]
    indexes: Vec<DeferredIndex>,
}

/// Drops the plain indexes of the tables in a schema, to be made later. `only_fixed`: none that could refuse a long value.
pub(crate) async fn defer_indexes(
    connection: &mut PgConnection,
    schema: &str,
    only_fixed: bool,
) -> Result<usize, sqlx::Error> {
    let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
    // On this path every name in a definition is written with its schema.
    let settings =
        "-- list_with_schemas\nset local search_path = pg_catalog, pg_temp; set local lock_timeout = '5s'";
    sqlx::raw_sql(settings).execute(&mut *transaction).await?;
    let query = sqlx::query_as(LIST).persistent(false).bind(quote_identifier(schema)).bind(only_fixed);
    let indexes: Vec<DeferredIndex> = query.fetch_all(&mut *transaction).await?;
    if !indexes.is_empty() {
        for index in &indexes {
            let name = format!("{}.{}", quote_identifier(schema), quote_identifier(&index.name));
            let statement = format!("-- drop_deferred_index\ndrop index {name}");
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
        }
        note_deferred(&mut transaction, schema, &indexes).await?;
    }
    transaction.commit().await?;
    Ok(indexes.len())
}

/// The indexes that have yet to be made.
pub(crate) async fn list_deferred_indexes(
    connection: &mut PgConnection,
    schema: &str,
) -> Result<Vec<DeferredIndex>, sqlx::Error> {
    let statement = "-- read_deferred_indexes\nselect obj_description(to_regnamespace($1), 'pg_namespace')";
    let query = sqlx::query_scalar(statement).persistent(false).bind(quote_identifier(schema));
    let comment: Option<String> = query.fetch_one(connection).await?;
    let comment = comment.and_then(|text| serde_json::from_str::<Comment>(&text).ok());
    Ok(comment.map_or_else(Vec::new, |comment| comment.indexes))
}

/// Makes the first of the indexes that are missing. `scope`: what SQL means for the tables.
pub(crate) async fn make_first_index(
    connection: &mut PgConnection,
    scope: &SqlScope,
    missing: &[DeferredIndex],
) -> Result<(), sqlx::Error> {
    let Some((first, rest)) = missing.split_first() else { return Ok(()) };
    let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
    let settings = format!(
        "-- enter_scope\nset local default_tablespace = ''; set local lock_timeout = '5s'; select {}",
        scope.set_local()
    );
    sqlx::raw_sql(AssertSqlSafe(settings)).execute(&mut *transaction).await?;
    let statement = format!("-- make_deferred_index\n{}", first.definition);
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
    note_deferred(&mut transaction, &scope.schema, rest).await?;
    transaction.commit().await
}

async fn note_deferred(
    connection: &mut PgConnection,
    schema: &str,
    indexes: &[DeferredIndex],
) -> Result<(), sqlx::Error> {
    let comment = if indexes.is_empty() {
        "null".to_owned()
    } else {
        let comment = Comment { indexes: indexes.to_vec() };
        let text = serde_json::to_string(&comment).map_err(|error| sqlx::Error::Encode(error.into()))?;
        quote_literal(&text)
    };
    let statement =
        format!("-- note_deferred_indexes\ncomment on schema {} is {comment}", quote_identifier(schema));
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
}
