//! Recognises statements whose effect on a table is known from the event alone: one row, by its key.
//!
//! The text is cut by the lexer along a strict grammar. Then the parser has to see the same: what it makes of the author's text
//! and of a text that is put together from the pieces must be equal, whatever clauses SQL has besides.

mod pieces;
mod reader;

use self::pieces::{MORE, Tokens};
use self::reader::Reader;
use super::expression::Used;
use super::table::Table;

/// What a statement does with the row of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Insert,
    /// `on conflict … do nothing`
    InsertNew,
    /// `on conflict … do update`
    Upsert,
    Update,
    Delete,
}

/// A statement that may be folded, if its table has nothing that could see the difference.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Statement {
    pub(super) kind: Kind,
    pub(super) table: String,
    /// The columns of an insert with the author's expressions. The columns have no names yet if the author does not list them.
    pub(super) values: Vec<(String, String)>,
    /// What the statement names as the key: the columns of the conflict, or those that `where` compares, with the expressions. None
    /// yet if any conflict is meant.
    pub(super) key: Vec<(String, String)>,
    /// The columns that are set, by an update or after a conflict.
    pub(super) sets: Vec<(String, Change)>,
    /// Conditions on the event alone.
    pub(super) conditions: Vec<String>,
    pub(super) used: Used,
    /// All of it, as the author has written it.
    pub(super) text: String,
}

/// What happens to a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// It is set to the value of an expression.
    To(String),
    /// It is set if the condition is true, and keeps its value otherwise.
    When { condition: String, value: String },
    /// It is set unless the value is null.
    Present(String),
    /// The value is added to it.
    Add { value: String, negative: bool },
    /// It is set to what would have been inserted.
    Excluded,
    /// What would have been inserted is added to it.
    AddExcluded { negative: bool },
}

impl Statement {
    /// One that does nothing yet.
    fn of(kind: Kind, table: String) -> Self {
        let (used, text) = Default::default();
        Self {
            kind,
            table,
            values: Vec::new(),
            key: Vec::new(),
            sets: Vec::new(),
            conditions: Vec::new(),
            used,
            text,
        }
    }

    /// Has everything that the author leaves to the table named: its columns in their order, and its key.
    pub(super) fn resolve(&mut self, table: &Table) -> Result<(), String> {
        if self.values.len() > table.columns.len() {
            return Err(format!("{} has fewer columns than there are values", table.name));
        }
        for ((name, _), column) in self.values.iter_mut().zip(&table.columns) {
            if name.is_empty() {
                name.clone_from(&column.name);
            }
        }
        if self.kind == Kind::InsertNew && self.key.is_empty() {
            self.key = table.key().map(|column| (column.name.clone(), String::new())).collect();
        }
        Ok(())
    }
}

/// Reads a statement; says why it is not folded.
pub(super) fn recognise(source: &str, tokens: Tokens<'_, '_>, schema: &str) -> Result<Statement, String> {
    let first = tokens.first().map(|token| token.text.to_lowercase()).unwrap_or_default();
    let mut reader = Reader::new(source, tokens, schema);
    let statement = match first.as_str() {
        "insert" => reader.insert()?,
        "update" => reader.update()?,
        "delete" => reader.delete()?,
        _ => return Err(format!("it is no plain insert, update or delete, but begins with {first}")),
    };
    let (Some(first), Some(last)) = (tokens.first(), tokens.last()) else { return Err(MORE.to_owned()) };
    Ok(Statement { used: reader.used, text: source[first.start..last.end].to_owned(), ..statement })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::lexer;

    fn read(text: &str) -> Result<Statement, String> {
        recognise(text, &lexer::tokens(text).unwrap(), "app")
    }

    #[test]
    fn plain_statements_on_one_row_are_recognised() {
        let insert = read("insert into t (a, B) values (event.id, lower(event.body->>'b'))").unwrap();
        assert_eq!((insert.kind, insert.table.as_str()), (Kind::Insert, "t"));
        assert_eq!(insert.values[1], ("b".to_owned(), "lower(event.body->>'b')".to_owned()));
        let upsert = read(
            "insert into app.t (a, n) values (event.id, 1) on conflict (a) do update set n = t.n + excluded.n, m = excluded.m",
        );
        let upsert = upsert.unwrap();
        assert_eq!(upsert.kind, Kind::Upsert);
        assert_eq!(upsert.sets[0].1, Change::AddExcluded { negative: false });
        assert_eq!(upsert.sets[1].1, Change::Excluded);
        let new = read("insert into t (a) values (1) on conflict (a) do nothing").unwrap();
        assert_eq!(new.kind, Kind::InsertNew);
        let update = read(
            "update t set a = case when event.body ? 'a' then event.body->>'a' else t.a end, n = n - (event.body->>'n')::int,
               c = coalesce(event.body->>'c', c), d = event.body->>'d'
             where event.aggregate_id = id and event.version > 3",
        );
        let update = update.unwrap();
        assert_eq!(update.key, [("id".to_owned(), "event.aggregate_id".to_owned())]);
        assert_eq!(update.conditions, ["event.version > 3"]);
        let changes: Vec<&Change> = update.sets.iter().map(|(_, change)| change).collect();
        assert!(matches!(
            changes.as_slice(),
            [Change::When { .. }, Change::Add { negative: true, .. }, Change::Present(_), Change::To(_)]
        ));
        assert_eq!(read("delete from t where t.a = event.id").unwrap().kind, Kind::Delete);
    }

    #[test]
    fn a_table_may_have_another_name_and_its_columns_none() {
        let upsert = read(
            "insert into t as x values (event.id, 1) on conflict (a) do update set n = x.n + excluded.n",
        );
        let upsert = upsert.unwrap();
        assert_eq!((upsert.kind, upsert.table.as_str()), (Kind::Upsert, "t"));
        assert_eq!(upsert.values, [(String::new(), "event.id".to_owned()), (String::new(), "1".to_owned())]);
        let new = read("insert into app.t values (event.id) on conflict do nothing").unwrap();
        assert_eq!((new.kind, new.key.len()), (Kind::InsertNew, 0));
        let update =
            read("update t as x set n = x.n - 1, m = 2 where x.id = event.id and event.version > 1").unwrap();
        assert_eq!(update.key, [("id".to_owned(), "event.id".to_owned())]);
        assert_eq!(read("delete from t as x where x.id = event.id").unwrap().kind, Kind::Delete);
    }

    #[test]
    fn anything_more_is_refused() {
        for text in [
            "insert into t (a) values (1), (2)",
            "insert into t values (1), (2)",
            "insert into t () values (1)",
            "insert into t as event (a) values (1)",
            "insert into t as excluded (a) values (1)",
            "insert into t x (a) values (1)",
            "insert into t as x (a) values (1) on conflict (a) do update set n = t.n + 1",
            "insert into t (a) values (1) on conflict do update set n = 1",
            "update t x set a = 1 where id = 1",
            "update t as x set n = t.n + 1 where id = 1",
            "update t as x (a) set n = 1 where id = 1",
            "delete from t as x where t.id = 1",
            "insert into t (a) values (1) returning a",
            "insert into t (a) select 1",
            "insert into t (a) overriding system value values (1)",
            "insert into t (a) values (1) on conflict on constraint x do nothing",
            "insert into t (a, n) values (1, 2) on conflict (a) do update set n = excluded.n where t.n < excluded.n",
            "insert into t (a) values (default)",
            "insert into other.t (a) values (1)",
            "update only t set a = 1 where id = 1",
            "update t set a = 1",
            "update t set a = b where id = 1",
            "update t set n = n * 2 where id = 1",
            "update t set n = n + m where id = 1",
            "update t set n = event.version + n where id = 1 or id = 2",
            "update t set n = n + event.body->>'n' where id = 1",
            "update t set (a, b) = (1, 2) where id = 1",
            "update t set a[1] = 1 where id = 1",
            "update t set a = 1 from u where id = 1",
            "delete from t using u where id = 1",
            "delete from t where id = 1 and owner is null",
            "delete from t where id = event.id = true",
            "delete from t where id in (1, 2)",
            "delete from t where id > event.id",
            "delete from t",
            "with x as (select 1) delete from t where id = 1",
            "perform 1",
            "update t set a = 1 /* all of */ + 1 where id = 1",
        ] {
            assert!(read(text).is_err(), "{text}: {:?}", read(text));
        }
    }
}
