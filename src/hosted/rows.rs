//! Rows that a handler outside of the database wants written: what may be said about them, and how many at a time.
//!
//! A handler names rows one by one. Written one by one, each would cost a round trip, so consecutive rows of one table
//! and one shape go in one statement. A row whose key was given before starts a new statement: its order matters.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::row::from_row;
use crate::sql_quote::quote_identifier;

/// What is known of a table that a processor owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableShape {
    /// Its name in the schema of the projections.
    pub(crate) name: String,
    /// The columns of its primary key; none where it has no such key.
    pub(crate) key: Vec<String>,
    /// All of its columns.
    pub(crate) columns: Vec<String>,
}

from_row!(TableShape { name, key, columns });

/// The tables that a processor's rows may go into.
#[derive(Debug, Clone, Default)]
pub(crate) struct RowTables {
    /// The quoted schema.
    schema: String,
    shapes: Vec<TableShape>,
}

/// The members of a JSON object, by name, as the text that they are.
pub(crate) type Members<'a> = BTreeMap<String, &'a RawValue>;

/// One row that is to be written or deleted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RowChange<'a> {
    /// Sets the given columns of the row with the given key, or makes it.
    Upsert { table: &'a str, row: &'a RawValue },
    /// Deletes the rows that are equal in all the given columns.
    Delete { table: &'a str, columns: &'a RawValue },
}

impl RowTables {
    /// Looks up the processor's tables.
    pub(crate) async fn read(
        connection: &mut PgConnection,
        schema: &str,
        names: &[String],
    ) -> Result<Self, sqlx::Error> {
        let statement = "-- find_table_shapes
             select c.relname::text as name,
                    array(select a.attname::text from pg_index as i
                          cross join unnest(i.indkey::int2[]) with ordinality as k (number, place)
                          join pg_attribute as a on a.attrelid = c.oid and a.attnum = k.number
                          where i.indrelid = c.oid and i.indisprimary order by k.place) as key,
                    array(select a.attname::text from pg_attribute as a
                          where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum) as columns
             from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
             where n.nspname = $1 and c.relname = any ($2) and c.relkind in ('r', 'p') order by 1";
        let query = sqlx::query_as(statement).persistent(false).bind(schema).bind(names);
        Ok(Self { schema: quote_identifier(schema), shapes: query.fetch_all(connection).await? })
    }

    /// The tables, by name.
    pub(crate) fn shapes(&self) -> &[TableShape] {
        &self.shapes
    }

    fn find(&self, table: &str) -> Result<&TableShape, String> {
        self.shapes.iter().find(|shape| shape.name == table).ok_or_else(|| {
            let known: Vec<_> = self.shapes.iter().map(|shape| shape.name.as_str()).collect();
            let known = if known.is_empty() { "it has none".into() } else { known.join(", ") };
            format!("{table:?} is not a table of the processor: {known}")
        })
    }

    /// Reads the members of a row or condition, if the table has such columns.
    fn members<'a>(&self, shape: &TableShape, json: &'a RawValue) -> Result<Members<'a>, String> {
        let members: Members<'a> = serde_json::from_str(json.get())
            .map_err(|_| format!("what is said of a row of {} is not a JSON object", shape.name))?;
        match members.keys().find(|column| !shape.columns.contains(column)) {
            Some(unknown) => Err(format!(
                "table {} has no column {unknown:?}: it has {}",
                shape.name,
                shape.columns.join(", ")
            )),
            None => Ok(members),
        }
    }

    /// The statement that reads the row of a key as JSON text, and its parameter.
    pub(crate) fn find_row(&self, table: &str, key: &RawValue) -> Result<(String, String), String> {
        let shape = self.find(table)?;
        let members = self.members(shape, key)?;
        if shape.key.is_empty() || !members.keys().eq(sorted(&shape.key)) {
            return Err(format!("a row of {table} is read by its key: {}", shape.key.join(", ")));
        }
        let statement = format!(
            "-- find_row\nselect row_to_json(t)::text from {table} as t join {given} on {equal}",
            table = self.qualified(shape),
            given = self.recordset(shape),
            equal = equal(shape.key.iter())
        );
        Ok((statement, format!("[{}]", key.get())))
    }

    fn qualified(&self, shape: &TableShape) -> String {
        format!("{}.{}", self.schema, quote_identifier(&shape.name))
    }

    /// The rows given as JSON, as rows of the table.
    fn recordset(&self, shape: &TableShape) -> String {
        format!("json_populate_recordset(null::{}, $1::text::json) as g", self.qualified(shape))
    }
}

/// Rows that one statement writes or deletes.
#[derive(Debug)]
pub(crate) struct Group<'a> {
    table: &'a str,
    statement: String,
    rows: Vec<&'a RawValue>,
    /// The keys of the rows, where two of the same would be an error.
    keys: BTreeSet<String>,
}

impl<'a> RowTables {
    /// The statement for one row.
    fn group(&self, change: RowChange<'a>) -> Result<Group<'a>, String> {
        match change {
            RowChange::Upsert { table, row } => self.upsert(table, row),
            RowChange::Delete { table, columns } => self.delete(table, columns),
        }
    }

    fn upsert(&self, table: &'a str, row: &'a RawValue) -> Result<Group<'a>, String> {
        let shape = self.find(table)?;
        let members = self.members(shape, row)?;
        if shape.key.is_empty() {
            return Err(format!("table {table} has no primary key, which an upsert needs"));
        }
        let of_key = |column: &String| members.get(column).filter(|value| value.get() != "null");
        if let Some(missing) = shape.key.iter().find(|column| of_key(column).is_none()) {
            return Err(format!("a row of {table} lacks {missing:?}, which is in its primary key"));
        }
        let key = shape.key.iter().filter_map(of_key).map(|value| value.get()).collect::<Vec<_>>().join(",");
        let columns: Vec<String> = members.keys().map(|column| quote_identifier(column)).collect();
        let others = members.keys().filter(|column| !shape.key.contains(column)).map(|c| quote_identifier(c));
        let set: Vec<String> = others.map(|column| format!("{column} = excluded.{column}")).collect();
        let action =
            if set.is_empty() { "nothing".to_owned() } else { format!("update set {}", set.join(", ")) };
        let statement = format!(
            "-- upsert_rows\ninsert into {} ({columns}) select {columns} from {} on conflict ({}) do {action}",
            self.qualified(shape),
            self.recordset(shape),
            shape.key.iter().map(|column| quote_identifier(column)).collect::<Vec<_>>().join(", "),
            columns = columns.join(", "),
        );
        Ok(Group { table, statement, rows: vec![row], keys: BTreeSet::from([key]) })
    }

    fn delete(&self, table: &'a str, columns: &'a RawValue) -> Result<Group<'a>, String> {
        let shape = self.find(table)?;
        let members = self.members(shape, columns)?;
        if members.is_empty() {
            return Err(format!("a delete from {table} without a condition would delete all of it"));
        }
        if let Some((column, _)) = members.iter().find(|(_, value)| value.get() == "null") {
            return Err(format!("a delete from {table} cannot ask for null, as it does for {column:?}"));
        }
        let statement = format!(
            "-- delete_rows\ndelete from {} as t using {} where {}",
            self.qualified(shape),
            self.recordset(shape),
            equal(members.keys())
        );
        Ok(Group { table, statement, rows: vec![columns], keys: BTreeSet::new() })
    }
}

fn equal<'c>(columns: impl Iterator<Item = &'c String>) -> String {
    let equal =
        columns.map(|column| quote_identifier(column)).map(|column| format!("t.{column} = g.{column}"));
    equal.collect::<Vec<_>>().join(" and ")
}

fn sorted(names: &[String]) -> Vec<&String> {
    let mut names: Vec<_> = names.iter().collect();
    names.sort();
    names
}

/// The changes of many events, in few statements.
#[derive(Debug)]
pub(crate) struct RowChanges<'a> {
    tables: &'a RowTables,
    groups: Vec<Group<'a>>,
    /// The group that rows of a table may still join: the last one of that table.
    open: BTreeMap<&'a str, usize>,
}

impl<'a> RowChanges<'a> {
    pub(crate) fn new(tables: &'a RowTables) -> Self {
        Self { tables, groups: Vec::new(), open: BTreeMap::new() }
    }

    /// Adds a change, which takes effect after those before it of the same table.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn add(&mut self, change: RowChange<'a>) -> Result<(), String> {
        let one = self.tables.group(change)?;
        if let Some(last) = self.open.get(one.table).and_then(|index| self.groups.get_mut(*index))
            && last.statement == one.statement
            && one.keys.is_disjoint(&last.keys)
        {
            last.rows.extend(one.rows);
            last.keys.extend(one.keys);
            return Ok(());
        }
        self.open.insert(one.table, self.groups.len());
        self.groups.push(one);
        Ok(())
    }

    /// Carries all of them out.
    pub(crate) async fn apply(self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        for Group { statement, rows, .. } in self.groups {
            let rows = rows.iter().map(|row| row.get()).collect::<Vec<_>>().join(",");
            let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
            query.bind(format!("[{rows}]")).execute(&mut *connection).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables() -> RowTables {
        let table = |name: &str, key: &[&str]| TableShape {
            name: name.to_owned(),
            key: key.iter().map(ToString::to_string).collect(),
            columns: vec!["id".to_owned(), "title".to_owned()],
        };
        RowTables { schema: "\"public\"".into(), shapes: vec![table("todos", &["id"]), table("notes", &[])] }
    }

    fn json(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn rows_of_one_shape_share_a_statement_until_a_key_comes_again() {
        let tables = tables();
        let rows: Vec<_> = [r#"{"id":1,"title":"a"}"#, r#"{"title":"b","id":2}"#, r#"{"id":1,"title":"c"}"#]
            .map(json)
            .into_iter()
            .collect();
        let mut changes = RowChanges::new(&tables);
        for row in &rows {
            changes.add(RowChange::Upsert { table: "todos", row }).unwrap();
        }
        let sizes: Vec<usize> = changes.groups.iter().map(|group| group.rows.len()).collect();
        assert_eq!(sizes, [2, 1]);
        assert!(
            changes.groups[0]
                .statement
                .ends_with("on conflict (\"id\") do update set \"title\" = excluded.\"title\"")
        );
    }

    #[test]
    fn what_cannot_be_is_refused_in_words() {
        let tables = tables();
        let refusal = |change: RowChange<'_>| RowChanges::new(&tables).add(change).unwrap_err();
        for (table, row, words) in [
            ("nothing", r#"{"id":1}"#, "todos, notes"),
            ("notes", r#"{"id":1}"#, "no primary key"),
            ("todos", "[]", "not a JSON object"),
            ("todos", r#"{"id":1,"x":2}"#, "no column \"x\""),
            ("todos", r#"{"title":"a"}"#, "lacks \"id\""),
            ("todos", r#"{"id":null}"#, "lacks \"id\""),
        ] {
            assert!(refusal(RowChange::Upsert { table, row: &json(row) }).contains(words), "{row}");
        }
        for (columns, words) in [("{}", "all of it"), (r#"{"title":null}"#, "null")] {
            let change = RowChange::Delete { table: "todos", columns: &json(columns) };
            assert!(refusal(change).contains(words), "{columns}");
        }
    }
}
