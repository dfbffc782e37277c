//! The columns of a table in two versions, and what they have in common.

use sqlx::PgConnection;

use crate::postgres::row::from_row;

/// A column of a table as the catalog has it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Column {
    pub(super) name: String,
    data_type: String,
    /// Its place in the primary key.
    pub(super) key: Option<i32>,
    /// Whether a replay cannot make it again.
    volatile: bool,
    /// Whether it is made from others.
    pub(super) generated: bool,
    collation: Option<String>,
    required: bool,
}

from_row!(Column { name, data_type, key, volatile, generated, collation, required });

/// The column of this name and type among those of another version.
pub(super) fn twin<'c>(column: &Column, among: &'c [Column]) -> Option<&'c Column> {
    among.iter().find(|other| other.name == column.name && other.data_type == column.data_type)
}

pub(super) fn names<'c>(columns: impl IntoIterator<Item = &'c Column>) -> Vec<String> {
    columns.into_iter().map(|column| column.name.clone()).collect()
}

/// Whether no replay makes the same values of a column again.
pub(super) fn is_volatile(column: &Column, after: &[Column]) -> bool {
    column.volatile || twin(column, after).is_some_and(|other| other.volatile)
}

/// The columns of a primary key, in its order.
pub(super) fn key_of(columns: &[Column]) -> Vec<String> {
    let mut key: Vec<&Column> = columns.iter().filter(|column| column.key.is_some()).collect();
    key.sort_by_key(|column| column.key);
    names(key)
}

/// The primary key, if both versions have the same and rows can be told apart by it; otherwise nothing.
pub(super) fn shared_key(before: &[Column], after: &[Column]) -> Vec<String> {
    let key = key_of(before);
    let mut of_key = before.iter().filter(|column| column.key.is_some());
    let tells_apart = of_key.all(|column| twin(column, after).is_some() && !is_volatile(column, after));
    if key == key_of(after) && tells_apart { key } else { Vec::new() }
}

/// The columns that these have alone.
pub(super) fn lone(these: &[Column], those: &[Column]) -> Vec<String> {
    names(these.iter().filter(|column| twin(column, those).is_none()))
}

/// The columns of a table, in their order.
pub(super) async fn list_columns(
    connection: &mut PgConnection,
    table: &str,
) -> Result<Vec<Column>, sqlx::Error> {
    let statement = "-- list_columns
        select a.attname::text as name, format_type(a.atttypid, a.atttypmod) as data_type, k.place::integer as key,
               a.attidentity <> '' or a.attgenerated = '' and coalesce(pg_get_expr(d.adbin, d.adrelid)
                 ~* '(nextval|now|random|clock_timestamp|transaction_timestamp|statement_timestamp|timeofday|gen_random_uuid|uuid_generate_v.*|uuidv.) *[(]|current_(date|time)|localtime', false) as volatile,
               a.attgenerated <> '' as generated, nullif(a.attcollation, 0)::regcollation::text as collation,
               a.attnotnull as required
        from pg_attribute as a
        left join pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
        left join pg_index as i on i.indrelid = a.attrelid and i.indisprimary
        left join lateral (
          -- Columns that the index only includes are not of the key.
          select place from unnest(i.indkey::smallint[]) with ordinality as k (number, place)
          where k.number = a.attnum and place <= i.indnkeyatts
        ) as k on true
        where a.attrelid = $1::regclass and a.attnum > 0 and not a.attisdropped order by a.attnum";
    sqlx::query_as(statement).persistent(false).bind(table).fetch_all(connection).await
}
