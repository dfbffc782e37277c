//! Tables and columns that one version has and another does not: what others have made on them stays with them.

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, PgConnection};

use crate::postgres::row::from_row;
use crate::processing::processor::{Dependent, list_dependents_on};

/// What the tables of one version have, and those of another do not.
#[derive(Debug, Default)]
pub(super) struct Unmatched {
    tables: Vec<String>,
    columns: Vec<Column>,
}

/// A column of a table that both have. The table is qualified, and names are quoted where they have to be.
#[derive(Debug)]
struct Column {
    table: String,
    name: String,
}

/// A table, or a column of one, as in [`Column`].
#[derive(Debug)]
struct Found {
    table_name: String,
    qualified: String,
    column_name: Option<String>,
}

from_row!(Found { table_name, qualified, column_name });

impl Unmatched {
    /// What the tables of the tracker `of` have, and those of `other` do not. `own` is the quoted schema of the trackers. `schema` is the
    /// one that the tables are in when their items are listed.
    pub(super) async fn find(
        connection: &mut PgConnection,
        own: &str,
        (of, other): (&str, &str),
        schema: &str,
    ) -> Result<Self, sqlx::Error> {
        let statement = format!(
            "-- find_unmatched
             with tables as (
               select p.processor, p.table_name, c.oid from {own}.projection_tables as p
                 join pg_namespace as n on n.nspname = p.table_schema
                 join pg_class as c on c.relnamespace = n.oid and c.relname = p.table_name
               where p.processor in ($1, $2)
             ), columns as (
               select t.processor, t.table_name, a.attname from tables as t
                 join pg_attribute as a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
             )
             select t.table_name::text, format('%I.%I', $3::text, t.table_name) as qualified, null as column_name from tables as t
             where t.processor = $1
               and not exists (select from tables as o where o.processor = $2 and o.table_name = t.table_name)
             union all
             select c.table_name::text, format('%I.%I', $3::text, c.table_name), quote_ident(c.attname) from columns as c
               join tables as o on o.processor = $2 and o.table_name = c.table_name
             where c.processor = $1 and not exists (select from columns as b
               where b.processor = $2 and b.table_name = c.table_name and b.attname = c.attname)
             order by 1, 2"
        );
        let found: Vec<Found> = sqlx::query_as(AssertSqlSafe(statement))
            .persistent(false)
            .bind(of)
            .bind(other)
            .bind(schema)
            .fetch_all(connection)
            .await?;
        let mut unmatched = Self::default();
        for Found { table_name, qualified: table, column_name } in found {
            match column_name {
                None => unmatched.tables.push(table_name),
                Some(name) => unmatched.columns.push(Column { table, name }),
            }
        }
        Ok(unmatched)
    }

    /// The items of `all` that are on it. Its tables are those of `processor`. The rest of the transaction has an empty search path.
    pub(super) async fn items(
        &self,
        connection: &mut PgConnection,
        of: (&str, &str),
        all: &[Dependent],
    ) -> Result<BTreeSet<String>, sqlx::Error> {
        let mut items = BTreeSet::new();
        if !self.tables.is_empty() {
            let on_tables = list_dependents_on(connection, of, &self.tables).await?;
            items.extend(on_tables.into_iter().map(|dependent| dependent.item));
        }
        let on_columns = all
            .iter()
            .filter(|dependent| self.columns.iter().any(|column| column.is_subject_of(&dependent.item)));
        items.extend(on_columns.map(|dependent| dependent.item.clone()));
        Ok(items)
    }
}

/// The constraints and indexes of the tables of `live`, in the words of the list of dependents, that the tables of `next` have as well:
/// they are declared, although others may have made them, as on tables that were made before espd came. The primary key is among them where
/// espd has made none of the tables: there is one at most, and handlers find rows by it, so it is the table's own.
pub(super) async fn find_declared_alike(
    connection: &mut PgConnection,
    own: &str,
    (live, next): (&str, &str),
    building_in: &str,
) -> Result<Vec<String>, sqlx::Error> {
    let statement = format!(
        "-- find_declared_alike
         with pairs as (
           select l.oid as live, n.oid as next
           from {own}.projection_tables as p join pg_namespace as s on s.nspname = p.table_schema
             join pg_class as l on l.relnamespace = s.oid and l.relname = p.table_name
             join pg_namespace as b on b.nspname = $3
             join pg_class as n on n.relnamespace = b.oid and n.relname = p.table_name
           where p.processor = $1
         ), adopted as (
           select bool_and(made is null) as is_so from {own}.declarations where processor = $1
         ), next_made as (
           select m.item from {own}.declarations as d cross join lateral unnest(d.made) as m (item) where d.processor = $2
         ), indexes as (
           select t.live, t.next, i.indrelid, i.indisunique, c.relname, i.indexrelid,
             -- Behind its name, and that of its table.
             substring(pg_get_indexdef(i.indexrelid) from ' USING .*') as definition
           from pairs as t join pg_index as i on i.indrelid in (t.live, t.next)
             join pg_class as c on c.oid = i.indexrelid
         )
         select 'constraint ' || o.identity
         from pairs as t join pg_constraint as c on c.conrelid = t.live
           cross join lateral pg_identify_object('pg_constraint'::regclass, c.oid, 0) as o
         where c.contype = 'p' and (select is_so from adopted)
           or exists (select from pg_constraint as d
             where d.conrelid = t.next and d.contype = c.contype and pg_get_constraintdef(d.oid) = pg_get_constraintdef(c.oid))
         union all
         select 'index ' || o.identity
         from indexes as i cross join lateral pg_identify_object('pg_class'::regclass, i.indexrelid, 0) as o
         where i.indrelid = i.live
           and (exists (select from indexes as j
                  where j.indrelid = j.next and j.live = i.live and j.indisunique = i.indisunique and j.definition = i.definition)
             -- It may be made after the rows only.
             or format('index %I.%I', $3::text, i.relname) in (select item from next_made))"
    );
    let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
    query.bind(live).bind(next).bind(building_in).fetch_all(connection).await
}

impl Column {
    /// Whether an item of the list of dependents is about this column.
    fn is_subject_of(&self, item: &str) -> bool {
        let Self { table, name: column } = self;
        let named = format!("column {table}.{column}");
        item.ends_with(&named)
            || item.contains(&format!("{named} for "))
            || item.contains(&format!(" ({column}) on {table} for "))
    }
}
