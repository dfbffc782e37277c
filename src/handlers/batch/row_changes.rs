//! Which row changes share a statement.
//!
//! A handler names rows one by one. Written one by one, each would cost a round trip. Changes of different keys of a table
//! do not affect each other, so a change may share the statement of an earlier one of the same form, as long as no change
//! between them is about the same row. A row that is set again replaces what was to be set before, which no one would have
//! seen. If rows depend on one another beyond the key, or if it cannot be told whether two keys are the same, changes are
//! applied in the order in which they were named.

use std::collections::HashMap;

use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, PgConnection};

use super::tables::{Members, RowTables};

/// One row that is to be written or deleted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RowChange<'a> {
    /// Sets the given columns of the row with the given key, or inserts the row.
    Upsert { table: &'a str, row: &'a RawValue },
    /// Deletes the rows that are equal in all the given columns.
    Delete { table: &'a str, columns: &'a RawValue },
}

/// What changes have in common that share a statement.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Form {
    table: String,
    deletes: bool,
    columns: Vec<String>,
}

/// A row of a table, by its key.
type Row = (String, Vec<String>);

/// Changes that share one statement.
#[derive(Debug)]
struct Group<'a> {
    form: Form,
    statement: String,
    rows: Vec<&'a RawValue>,
}

/// The changes of many events, in few statements.
#[derive(Debug)]
pub(crate) struct RowChanges<'a> {
    tables: &'a RowTables,
    groups: Vec<Group<'a>>,
    /// The last group of each form.
    last_of_form: HashMap<Form, usize>,
    /// The last group that a row is in, and its place there.
    last_of_row: HashMap<Row, (usize, usize)>,
    /// The first group that changes of a table may go into: after the last change about unknown rows.
    floor: HashMap<String, usize>,
    /// The last group of tables whose rows depend on one another.
    last_tied: Option<usize>,
}

impl<'a> RowChanges<'a> {
    pub(crate) fn new(tables: &'a RowTables) -> Self {
        Self {
            tables,
            groups: Vec::new(),
            last_of_form: HashMap::new(),
            last_of_row: HashMap::new(),
            floor: HashMap::new(),
            last_tied: None,
        }
    }

    /// Adds a change, which takes effect after those before it.
    ///
    /// # Errors
    /// What is wrong with the change, in words.
    pub(crate) fn add(&mut self, change: RowChange<'a>) -> Result<(), String> {
        let (table, deletes, row) = match change {
            RowChange::Upsert { table, row } => (table, false, row),
            RowChange::Delete { table, columns } => (table, true, columns),
        };
        let shape = self.tables.find(table)?;
        let members = self.tables.members(shape, row)?;
        let members: Members<'a> = if deletes { shape.deleted(members) } else { shape.upserted(members) }?;
        let (is_tied, key) = (shape.is_tied(), shape.key_of(&members));
        let form = Form { table: table.to_owned(), deletes, columns: members.into_keys().collect() };
        let known = key.map(|key| (form.table.clone(), key));
        if let Some(earlier) = known.as_ref().and_then(|known| self.overwritten(&form, is_tied, known)) {
            *earlier = row;
            return Ok(());
        }
        let place = self.place(&form, is_tied, known.as_ref());
        if let Some(known) = known {
            self.last_of_row.insert(known, (place, self.groups[place].rows.len()));
        }
        self.groups[place].rows.push(row);
        Ok(())
    }

    /// The change that this one replaces: the last one of its row, if that sets the same columns.
    fn overwritten(&mut self, form: &Form, is_tied: bool, row: &Row) -> Option<&mut &'a RawValue> {
        let (group, place) = *self.last_of_row.get(row).filter(|_| !is_tied && !form.deletes)?;
        let is_behind_unknown = group < self.floor.get(&form.table).copied().unwrap_or(0);
        let group = self.groups.get_mut(group).filter(|group| group.form == *form && !is_behind_unknown)?;
        group.rows.get_mut(place)
    }

    /// The group that a change goes into, which may be a new one.
    fn place(&mut self, form: &Form, is_tied: bool, row: Option<&Row>) -> usize {
        let behind_row = row.and_then(|row| self.last_of_row.get(row)).map_or(0, |(group, _)| group + 1);
        let floor = self.floor.get(&form.table).copied().unwrap_or(0);
        let behind_tied = self.last_tied.filter(|_| is_tied).unwrap_or(0);
        let first = behind_row.max(floor).max(behind_tied);
        let known = self.last_of_form.get(form).copied();
        let place = match known {
            Some(place) if place >= first && row.is_some() => place,
            _ => self.open(form),
        };
        if is_tied {
            self.last_tied = Some(place);
        }
        if row.is_none() {
            self.floor.insert(form.table.clone(), place + 1);
        }
        place
    }

    fn open(&mut self, form: &Form) -> usize {
        let columns: Vec<&String> = form.columns.iter().collect();
        // The table was found before.
        let statement = self.tables.find(&form.table).map(|shape| match form.deletes {
            true => self.tables.delete_rows(shape, &columns),
            false => self.tables.upsert_rows(shape, &columns),
        });
        let statement = statement.unwrap_or_default();
        self.groups.push(Group { form: form.clone(), statement, rows: Vec::new() });
        self.last_of_form.insert(form.clone(), self.groups.len() - 1);
        self.groups.len() - 1
    }

    /// Applies all changes.
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
    use crate::handlers::batch::tables::tests::{json, tables};

    /// The rows of each group, for changes written as a table, `-` for a delete, and a row.
    fn groups(changes: &[(&str, &str)]) -> Vec<Vec<String>> {
        let tables = tables();
        let rows: Vec<_> = changes.iter().map(|(_, row)| json(row)).collect();
        let mut grouped = RowChanges::new(&tables);
        for ((table, _), row) in changes.iter().zip(&rows) {
            let change = match table.strip_prefix('-') {
                Some(table) => RowChange::Delete { table, columns: row },
                None => RowChange::Upsert { table, row },
            };
            grouped.add(change).unwrap();
        }
        let shown = |group: Group<'_>| group.rows.iter().map(|row| row.get().to_owned()).collect();
        grouped.groups.into_iter().map(shown).collect()
    }

    #[test]
    fn changes_of_different_rows_share_statements() {
        let (add, delete) = (r#"{"id":1,"title":"a"}"#, r#"{"id":1}"#);
        let (other, amend) = (r#"{"title":"b","id":2}"#, r#"{"id":1,"list":3}"#);
        let grouped = groups(&[
            ("todos", add),
            ("todos", amend),
            ("-todos", delete),
            ("todos", other),
            ("-todos", r#"{"id":"2"}"#),
            ("todos", r#"{"id":3,"title":"c"}"#),
        ]);
        let expected: [&[&str]; 3] =
            [&[add, other, r#"{"id":3,"title":"c"}"#], &[amend], &[delete, r#"{"id":"2"}"#]];
        assert_eq!(grouped, expected);
    }

    #[test]
    fn changes_of_one_row_keep_their_order() {
        let grouped = groups(&[
            ("todos", r#"{"id":1,"title":"a"}"#),
            ("todos", r#"{"id":"1","list":3}"#),
            ("-todos", r#"{"id":1}"#),
            ("todos", r#"{"id":1,"title":"c"}"#),
            ("-todos", r#"{"id":1,"title":"c"}"#),
        ]);
        assert_eq!(grouped.len(), 5, "{grouped:?}");
    }

    #[test]
    fn a_row_that_is_set_again_is_written_once() {
        let (first, second, third) =
            (r#"{"id":1,"title":"a"}"#, r#"{"id":1,"title":"b"}"#, r#"{"id":1,"title":"c"}"#);
        let other = r#"{"id":2,"title":"a"}"#;
        let grouped = groups(&[("todos", first), ("todos", other), ("todos", second)]);
        assert_eq!(grouped, [[second, other]]);
        // But not across anything that may have been about it.
        let gone = r#"{"list":3}"#;
        let grouped = groups(&[("todos", first), ("-todos", gone), ("todos", second), ("todos", third)]);
        assert_eq!(grouped, [[first], [gone], [third]]);
    }

    #[test]
    fn nothing_overtakes_a_change_of_rows_that_are_not_known() {
        let row = |id| format!(r#"{{"id":{id},"title":"a"}}"#);
        let (one, two, three) = (row("1"), row("2"), row("3.0"));
        let by_list = r#"{"list":3}"#;
        let grouped = groups(&[
            ("todos", &one),
            ("-todos", by_list),
            ("todos", &two),
            ("-todos", by_list),
            ("todos", &three),
            ("todos", &one),
        ]);
        let expected: [&[&str]; 6] = [&[&one], &[by_list], &[&two], &[by_list], &[&three], &[&one]];
        assert_eq!(grouped, expected);
    }

    #[test]
    fn where_rows_depend_on_one_another_nothing_overtakes_anything() {
        let list = |n: u32| format!(r#"{{"id":"c0ffee00-0000-4000-8000-00000000000{n}","title":"a"}}"#);
        let (first, second, third) = (list(1), list(2), list(3));
        let gone = r#"{"id":"c0ffee00-0000-4000-8000-000000000001"}"#;
        let grouped = groups(&[("lists", &first), ("lists", &second), ("-lists", gone), ("lists", &third)]);
        let expected: [&[&str]; 3] = [&[&first, &second], &[gone], &[&third]];
        assert_eq!(grouped, expected);
    }

    #[test]
    fn an_impossible_change_is_refused_with_a_reason() {
        let tables = tables();
        let refusal = |change: RowChange<'_>| RowChanges::new(&tables).add(change).unwrap_err();
        let upsert = |table: &str, row: &str| refusal(RowChange::Upsert { table, row: &json(row) });
        let delete = |columns: &str| refusal(RowChange::Delete { table: "todos", columns: &json(columns) });
        assert!(upsert("nothing", r#"{"id":1}"#).contains("todos, lists, notes"));
        assert!(upsert("notes", r#"{"id":1}"#).contains("no primary key"));
        assert!(upsert("todos", "[]").contains("not a JSON object"));
        assert!(upsert("todos", r#"{"id":1,"title":"a","id":2}"#).contains("\"id\" more than once"));
        assert!(upsert("todos", r#"{"id":1,"x":2}"#).contains("no column \"x\""));
        assert!(upsert("todos", r#"{"title":"a"}"#).contains("lacks \"id\""));
        assert!(upsert("todos", r#"{"id":null}"#).contains("lacks \"id\""));
        assert!(delete("{}").contains("all of it"));
        assert!(delete(r#"{"title":null}"#).contains("null"));
    }
}
