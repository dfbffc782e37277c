//! Recognises relations that have the names of espd's own, and were made by others: `create table if not exists` takes them for
//! its own, and what comes then fails, or works on them.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;
use sqlx::migrate::Migration;

use crate::postgres::name::SchemaName;

/// What a relation is, and the columns that it has, each with its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    is_table: bool,
    columns: BTreeSet<String>,
}

/// The tables and views of a schema.
pub(super) type Shapes = BTreeMap<String, Shape>;

/// The names of the tables and views that files make, as they are applied in `schema`.
pub(super) fn list_made(migrations: &[Migration], schema: &SchemaName) -> Vec<String> {
    const MAKE: [&str; 4] =
        ["create table ", "create unlogged table ", "create view ", "create or replace view "];
    let qualifier = format!("{schema}.");
    let name = |line: &str| {
        let made = MAKE.iter().find_map(|make| line.strip_prefix(make))?;
        let name = made.strip_prefix("if not exists ").unwrap_or(made).strip_prefix(&qualifier)?;
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        Some(match name.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next().unwrap_or_default().to_owned(),
            None => name.chars().take_while(|&c| is_part(c)).collect(),
        })
    };
    migrations.iter().flat_map(|migration| migration.sql.as_str().lines().filter_map(name)).collect()
}

/// Lists the tables and views of a schema, which is on the path.
pub(super) async fn list_shapes(connection: &mut PgConnection, schema: &str) -> Result<Shapes, sqlx::Error> {
    let listed: Vec<(String, bool, Vec<String>)> = sqlx::query_as(
        "-- list_shapes
         select c.relname::text, c.relkind in ('r', 'p'),
           array(select format('%s %s', a.attname, format_type(a.atttypid, a.atttypmod)) from pg_attribute as a
                 where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped)
         from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
         where n.nspname = $1 and c.relkind in ('r', 'p', 'v', 'm', 'f')",
    )
    .persistent(false)
    .bind(schema)
    .fetch_all(connection)
    .await?;
    let shape = |(name, is_table, columns): (String, bool, Vec<String>)| {
        (name, Shape { is_table, columns: columns.into_iter().collect() })
    };
    Ok(listed.into_iter().map(shape).collect())
}

/// The first relation that is `there` and that a version after `recorded` makes, but none of the `versions` as it is: one that espd
/// has made has all columns of one of them, whatever was added.
pub(super) fn find_foreign(there: &Shapes, versions: &[(i64, Shapes)], recorded: i64) -> Option<String> {
    let is_foreign = |(name, present): &(&String, &Shape)| {
        let mut made = versions.iter().filter_map(|(version, shapes)| Some((*version, shapes.get(*name)?)));
        let Some((first, _)) = made.clone().next() else { return false };
        let is_as_in = |(_, shape): (i64, &Shape)| {
            shape.is_table == present.is_table && shape.columns.is_subset(&present.columns)
        };
        first > recorded && !made.any(is_as_in)
    };
    there.iter().find(is_foreign).map(|(name, _)| name.clone())
}

#[cfg(test)]
mod tests {
    use super::super::files::{EVENT_STORE, PROCESSING};
    use super::super::names::{EspdNames, Home};
    use super::*;

    fn shapes(all: &[(&str, bool, &[&str])]) -> Shapes {
        let shape = |&(name, is_table, columns): &(&str, bool, &[&str])| {
            let columns = columns.iter().map(|&column| column.to_owned()).collect();
            (name.to_owned(), Shape { is_table, columns })
        };
        all.iter().map(shape).collect()
    }

    #[test]
    fn the_tables_that_files_make_are_known() {
        let names = EspdNames { events_table: "Facts".to_owned(), ..EspdNames::default() };
        let home = Home::new("shop", &names).unwrap();
        let made = list_made(&EVENT_STORE.migrations(&home), &home.schema);
        for name in ["Facts", "commands", "snapshots", "scheduled_events", "tag_events"] {
            assert!(made.iter().any(|made| made == name), "{name} {made:?}");
        }
        let made = list_made(&PROCESSING.migrations(&home), &home.schema);
        for name in ["trackers", "workers", "dead_letters", "rebuilds"] {
            assert!(made.iter().any(|made| made == name), "{name} {made:?}");
        }
        assert!(!made.iter().any(|made| made == "Facts"), "{made:?}");
    }

    #[test]
    fn a_table_is_espds_if_it_has_all_that_some_version_gives_it() {
        let versions = [
            (1, shapes(&[("a", true, &["id bigint"])])),
            (2, shapes(&[("a", true, &["id bigint", "n integer"]), ("b", true, &["id bigint"])])),
        ];
        let find = |there, recorded| find_foreign(&shapes(there), &versions, recorded);
        assert_eq!(find(&[("a", true, &["id bigint", "added text"]), ("other", true, &[])], 0), None);
        assert_eq!(find(&[("a", true, &["id integer"])], 0).as_deref(), Some("a"));
        assert_eq!(find(&[("a", false, &["id bigint"])], 0).as_deref(), Some("a"));
        assert_eq!(find(&[("a", true, &["id bigint"]), ("b", true, &["x text"])], 1).as_deref(), Some("b"));
        // What has become of a table since it was made is not asked.
        assert_eq!(find(&[("a", true, &[])], 1), None);
    }
}
