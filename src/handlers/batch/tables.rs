//! The tables of a processor: which rows a handler outside of the database may read, write and delete, and the statements
//! for that. `row_changes` decides which rows share a statement.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::postgres::quote::quote_identifier;
use crate::postgres::row::from_row;

/// What is known of a table that a processor owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableShape {
    /// The table's name in the schema of the projections.
    pub(crate) name: String,
    /// The columns of the primary key; none if the table has no such key.
    pub(crate) key: Vec<String>,
    /// All columns of the table.
    pub(crate) columns: Vec<String>,
    /// The types of the key's columns.
    key_types: Vec<String>,
    /// The columns that a new row needs a value for.
    required: Vec<String>,
    /// The columns whose values the database makes: a program reads them, and what it writes into them is left out.
    computed: Vec<String>,
    /// Whether a column of the key gets its values from the database unless a statement overrides that.
    overrides: bool,
    /// Whether rows of different keys may depend on one another: by further unique columns, foreign keys, triggers, rules.
    is_tied: bool,
}

from_row!(TableShape { name, key, columns, key_types, required, computed, overrides, is_tied });

/// The tables that a processor's rows may go into.
#[derive(Debug, Clone, Default)]
pub(crate) struct RowTables {
    /// The quoted schema.
    schema: String,
    shapes: Vec<TableShape>,
}

/// The members of a JSON object, by name, each as its text.
pub(crate) type Members<'a> = BTreeMap<String, &'a RawValue>;

/// A JSON object as a handler has written it.
struct Given<'a> {
    members: Members<'a>,
    /// A name that it has more than once.
    repeated: Option<String>,
}

impl<'de> Deserialize<'de> for Given<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Given<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Given<'de>, A::Error> {
                let mut given = Given { members: Members::new(), repeated: None };
                while let Some((name, value)) = object.next_entry::<String, &RawValue>()? {
                    match given.members.entry(name) {
                        Entry::Vacant(place) => drop(place.insert(value)),
                        Entry::Occupied(place) => given.repeated = Some(place.key().clone()),
                    }
                }
                Ok(given)
            }
        }

        deserializer.deserialize_map(Object)
    }
}

impl RowTables {
    /// Looks up the processor's tables.
    pub(crate) async fn read(
        connection: &mut PgConnection,
        schema: &str,
        names: &[String],
    ) -> Result<Self, sqlx::Error> {
        let statement = "-- find_table_shapes
             select c.relname::text as name, k.columns as key, k.types as key_types,
                    array(select a.attname::text from pg_attribute as a
                          where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum) as columns,
                    array(select a.attname::text from pg_attribute as a
                          where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                            and a.attnotnull and not a.atthasdef and a.attidentity = '') as required,
                    array(select a.attname::text from pg_attribute as a
                          where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                            and (a.attgenerated <> '' or a.attidentity = 'a' and a.attname <> all (k.columns))) as computed,
                    exists (select from pg_attribute as a
                            where a.attrelid = c.oid and a.attidentity = 'a' and a.attname = any (k.columns)) as overrides,
                    c.relhastriggers or c.relhasrules or exists (
                      select from pg_index as i
                      where i.indrelid = c.oid and not i.indisprimary and (i.indisunique or i.indisexclusion)) as is_tied
             from pg_class as c
             join pg_namespace as n on n.oid = c.relnamespace
             cross join lateral (
               select coalesce(array_agg(a.attname order by k.place), '{}')::text[] as columns,
                      coalesce(array_agg(case when co.collisdeterministic is false then '' else t.typname::text end
                                         order by k.place), '{}') as types
               from pg_index as i
               cross join unnest(i.indkey::int2[]) with ordinality as k (number, place)
               join pg_attribute as a on a.attrelid = c.oid and a.attnum = k.number
               join pg_type as t on t.oid = a.atttypid
               left join pg_collation as co on co.oid = a.attcollation
               where i.indrelid = c.oid and i.indisprimary and k.place <= i.indnkeyatts
             ) as k
             where n.nspname = $1 and c.relname = any ($2) and c.relkind in ('r', 'p') order by 1";
        let query = sqlx::query_as(statement).persistent(false).bind(schema).bind(names);
        Ok(Self { schema: quote_identifier(schema), shapes: query.fetch_all(connection).await? })
    }

    /// The tables, by name.
    pub(crate) fn shapes(&self) -> &[TableShape] {
        &self.shapes
    }

    pub(super) fn find(&self, table: &str) -> Result<&TableShape, String> {
        self.shapes.iter().find(|shape| shape.name == table).ok_or_else(|| {
            let known: Vec<_> = self.shapes.iter().map(|shape| shape.name.as_str()).collect();
            let known = if known.is_empty() { "it has none".into() } else { known.join(", ") };
            format!("{table:?} is not a table of the processor: {known}")
        })
    }

    /// Reads the members of a row or condition, if the table has such columns.
    pub(super) fn members<'a>(&self, shape: &TableShape, json: &'a RawValue) -> Result<Members<'a>, String> {
        let Given { members, repeated } = serde_json::from_str(json.get())
            .map_err(|_| format!("the columns of a row of {} are not a JSON object", shape.name))?;
        if let Some(column) = repeated {
            return Err(format!("a row of {} has {column:?} more than once", shape.name));
        }
        match members.keys().find(|column| !shape.columns.contains(column)) {
            Some(unknown) => Err(format!(
                "table {} has no column {unknown:?}: it has {}",
                shape.name,
                shape.columns.join(", ")
            )),
            None => Ok(members),
        }
    }

    /// The key of the one row that a row or condition is about. `None` if that cannot be told, or if rows depend on one
    /// another. A statement with such a key cannot fail.
    pub(super) fn row_of(&self, table: &str, row: &RawValue) -> Option<Vec<String>> {
        let shape = self.find(table).ok().filter(|shape| !shape.is_tied)?;
        shape.key_of(&self.members(shape, row).ok()?)
    }

    /// The statement that reads the row of a key as JSON text, and its parameter.
    pub(crate) fn find_row(&self, table: &str, key: &RawValue) -> Result<(String, String), String> {
        let shape = self.find(table)?;
        let members = self.members(shape, key)?;
        if shape.key.is_empty() || !members.keys().eq(sorted(&shape.key)) {
            return Err(format!("a row of {table} is read by its key: {}", shape.key.join(", ")));
        }
        let statement = format!(
            "-- find_row\nselect row_to_json({row}.*)::text from {table} as {row} join {given} on {equal}",
            row = shape.alias(ROW),
            table = self.qualified(shape),
            given = self.recordset(shape),
            equal = shape.equal(shape.key.iter())
        );
        Ok((statement, format!("[{}]", key.get())))
    }

    /// The statement that sets these columns, `$1` being the rows. Rows with a value for every required column are inserted,
    /// and updated on conflict. Other rows are inserted only if no row has their key, because PostgreSQL checks a new row for
    /// missing values before it looks for a conflict.
    pub(super) fn upsert_rows(&self, shape: &TableShape, columns: &[&String]) -> String {
        let quoted =
            |columns: &[&String]| columns.iter().map(|c| quote_identifier(c)).collect::<Vec<_>>().join(", ");
        let (row, new, added) = (shape.alias(ROW), shape.alias(GIVEN), shape.alias("added"));
        let columns: Vec<&String> =
            columns.iter().copied().filter(|column| !shape.computed.contains(column)).collect();
        let others: Vec<&String> =
            columns.iter().copied().filter(|column| !shape.key.contains(column)).collect();
        let set = |from: &str| {
            let set = others.iter().map(|c| quote_identifier(c)).map(|c| format!("{c} = {from}.{c}"));
            set.collect::<Vec<_>>().join(", ")
        };
        let (table, given, columns_of) = (self.qualified(shape), self.recordset(shape), quoted(&columns));
        let overriding = if shape.overrides { " overriding system value" } else { "" };
        let insert =
            format!("insert into {table} as {row} ({columns_of}){overriding} select {columns_of} from");
        let is_same = shape.equal(shape.key.iter());
        let is_new = format!("not exists (select from {table} as {row} where {is_same})");
        if shape.required.iter().all(|column| columns.contains(&column)) {
            let key = quoted(&shape.key.iter().collect::<Vec<_>>());
            let action =
                if others.is_empty() { "nothing".into() } else { format!("update set {}", set("excluded")) };
            return format!("-- upsert_rows\n{insert} {given} on conflict ({key}) do {action}");
        }
        if others.is_empty() {
            return format!("-- add_rows\n{insert} {given} where {is_new}");
        }
        format!(
            "-- update_or_add_rows
             with {new} as (select * from {given}), {added} as ({insert} {new} where {is_new})
             update {table} as {row} set {} from {new} where {is_same}",
            set(&new)
        )
    }

    /// The statement that deletes the rows that are equal to one of `$1` in these columns.
    pub(super) fn delete_rows(&self, shape: &TableShape, columns: &[&String]) -> String {
        format!(
            "-- delete_rows\ndelete from {} as {} using {} where {}",
            self.qualified(shape),
            shape.alias(ROW),
            self.recordset(shape),
            shape.equal(columns.iter().copied())
        )
    }

    fn qualified(&self, shape: &TableShape) -> String {
        format!("{}.{}", self.schema, quote_identifier(&shape.name))
    }

    /// The rows that are given as JSON, as rows of the table.
    fn recordset(&self, shape: &TableShape) -> String {
        let given = shape.alias(GIVEN);
        format!("json_populate_recordset(null::{}, $1::text::json) as {given}", self.qualified(shape))
    }
}

/// What a row of the table is called in statements, and a row that is given.
const ROW: &str = "held";
const GIVEN: &str = "given";

impl TableShape {
    /// A name for a part of a statement that no column and no table has, so that it never stands for one of them.
    fn alias(&self, wanted: &str) -> String {
        let mut alias = wanted.to_owned();
        while alias == self.name || self.columns.contains(&alias) {
            alias.push('_');
        }
        alias
    }

    /// The condition that a row of the table and a given one are equal in these columns.
    fn equal<'c>(&self, columns: impl Iterator<Item = &'c String>) -> String {
        let (row, given) = (self.alias(ROW), self.alias(GIVEN));
        let equal = |column: &String| {
            let column = quote_identifier(column);
            format!("{row}.{column} = {given}.{column}")
        };
        columns.map(equal).collect::<Vec<_>>().join(" and ")
    }

    /// Whether the order of changes matters also between rows of different keys.
    pub(super) fn is_tied(&self) -> bool {
        self.is_tied
    }

    /// The members of a row that is to be written.
    pub(super) fn upserted<'a>(&self, members: Members<'a>) -> Result<Members<'a>, String> {
        let name = &self.name;
        if self.key.is_empty() {
            return Err(format!("table {name} has no primary key, which an upsert needs"));
        }
        let is_given = |column: &&String| members.get(*column).is_some_and(|value| value.get() != "null");
        match self.key.iter().find(|column| !is_given(column)) {
            Some(missing) => Err(format!("a row of {name} lacks {missing:?}, which is in its primary key")),
            None => Ok(members),
        }
    }

    /// The members of the condition of a delete.
    pub(super) fn deleted<'a>(&self, members: Members<'a>) -> Result<Members<'a>, String> {
        let name = &self.name;
        if members.is_empty() {
            return Err(format!("a delete from {name} without a condition would delete all of it"));
        }
        match members.iter().find(|(_, value)| value.get() == "null") {
            Some((column, _)) => {
                Err(format!("a delete from {name} cannot ask for null, as it does for {column:?}"))
            }
            None => Ok(members),
        }
    }

    /// The key of a row in canonical form: two rows have the same key exactly if these are equal. `None` if that cannot be
    /// told from the text.
    pub(super) fn key_of(&self, members: &Members<'_>) -> Option<Vec<String>> {
        let values = self.key.iter().zip(&self.key_types);
        let key: Vec<String> =
            values.map(|(column, kind)| canonical(kind, members.get(column)?)).collect::<Option<_>>()?;
        (!key.is_empty()).then_some(key)
    }
}

/// The canonical form of a value of a type.
fn canonical(kind: &str, value: &RawValue) -> Option<String> {
    let text = match value.get().as_bytes().first()? {
        b'"' => serde_json::from_str::<String>(value.get()).ok()?,
        b'-' | b'0'..=b'9' => value.get().to_owned(),
        _ => return None,
    };
    match kind {
        "uuid" => text.parse::<Uuid>().ok().map(|id| id.to_string()),
        "int2" => text.parse::<i16>().ok().map(|number| number.to_string()),
        "int4" => text.parse::<i32>().ok().map(|number| number.to_string()),
        "int8" => text.parse::<i64>().ok().map(|number| number.to_string()),
        // A NUL is refused, and what is too long depends on the column.
        "text" | "varchar" => Some(text).filter(|text| !text.contains('\0')),
        _ => None,
    }
}

fn sorted(names: &[String]) -> Vec<&String> {
    let mut names: Vec<_> = names.iter().collect();
    names.sort();
    names
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn shape(name: &str, key: &[(&str, &str)], columns: &[&str], is_tied: bool) -> TableShape {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        TableShape {
            name: name.to_owned(),
            key: key.iter().map(|(column, _)| column.to_string()).collect(),
            key_types: key.iter().map(|(_, kind)| kind.to_string()).collect(),
            columns: owned(columns),
            required: owned(&["id", "title"]),
            computed: Vec::new(),
            overrides: false,
            is_tied,
        }
    }

    pub(in crate::handlers::batch) fn tables() -> RowTables {
        let shapes = vec![
            shape("todos", &[("id", "int8")], &["id", "title", "list"], false),
            shape("lists", &[("id", "uuid")], &["id", "title"], true),
            shape("notes", &[], &["id", "title"], false),
        ];
        RowTables { schema: "\"public\"".into(), shapes }
    }

    pub(in crate::handlers::batch) fn json(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn keys_are_compared_as_the_database_compares_them() {
        let canonical = |kind: &str, text: &str| canonical(kind, &json(text));
        let id = "c0ffee00-0000-4000-8000-000000000001";
        for written in [id.to_uppercase(), id.replace('-', ""), format!("{{{id}}}")] {
            assert_eq!(canonical("uuid", &format!("\"{written}\"")).as_deref(), Some(id));
        }
        for written in ["7", "\"7\"", "\"007\""] {
            assert_eq!(canonical("int4", written).as_deref(), Some("7"), "{written}");
        }
        assert_eq!(canonical("text", r#""\u0041""#).as_deref(), Some("A"));
        // Not knowing is no harm.
        for (kind, written) in [
            ("int4", "7.0"),
            ("int4", "2147483648"),
            ("text", r#""\u0000""#),
            ("int4", "1e3"),
            ("numeric", "7"),
            ("timestamptz", "\"now\""),
            ("text", "{}"),
        ] {
            assert_eq!(canonical(kind, written), None, "{kind} {written}");
        }
    }

    #[test]
    fn a_row_that_lacks_what_a_new_one_needs_is_tried_as_an_old_one() {
        let tables = tables();
        let statement = |columns: &[&str]| {
            let columns: Vec<String> = columns.iter().map(ToString::to_string).collect();
            tables.upsert_rows(&tables.shapes[0], &columns.iter().collect::<Vec<_>>())
        };
        assert!(
            statement(&["id", "title"])
                .ends_with("on conflict (\"id\") do update set \"title\" = excluded.\"title\"")
        );
        assert!(statement(&["id", "list"]).starts_with("-- update_or_add_rows"));
        assert!(statement(&["id"]).starts_with("-- add_rows"));
    }
}
