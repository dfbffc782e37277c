//! Recognises statements whose effect on a table is known from the event alone: one row, by its key.
//!
//! The text is cut by the lexer along a strict grammar. Then the parser has to see the same: what it makes of the author's text
//! and of a text that is put together from the pieces must be equal, whatever clauses SQL has besides.

mod pieces;

use std::collections::BTreeSet;

use sqlparser::ast::Expr;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

use self::pieces::{
    MORE, Tokens, added, binds_closer_than_equals, binds_closer_than_plus, compared, field_of, is_own,
    kept_if_null, kept_unless, outside, single_name, split, split_word, text_of,
};
use super::expression::{self, Used, examine, identifier};
use crate::postgres::lexer::Token;

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
    /// The columns of an insert with the author's expressions.
    pub(super) values: Vec<(String, String)>,
    /// What the statement names as the key: the columns of the conflict, or those that `where` compares, with the expressions.
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

/// Reads a statement; says why it is not folded.
pub(super) fn recognise(source: &str, tokens: Tokens<'_, '_>, schema: &str) -> Result<Statement, String> {
    let first = tokens.first().map(|token| token.text.to_lowercase()).unwrap_or_default();
    let mut reader = Reader { source, tokens, at: 1, used: Used::default(), schema };
    let statement = match first.as_str() {
        "insert" => reader.insert()?,
        "update" => reader.update()?,
        "delete" => reader.delete()?,
        _ => return Err(format!("it is no plain insert, update or delete, but begins with {first}")),
    };
    let (Some(first), Some(last)) = (tokens.first(), tokens.last()) else { return Err(MORE.to_owned()) };
    Ok(Statement { used: reader.used, text: source[first.start..last.end].to_owned(), ..statement })
}

/// Whether the parser sees the same in both texts.
fn same(written: &str, rebuilt: &str) -> bool {
    let parse = |text: &str| Parser::parse_sql(&PostgreSqlDialect {}, text).ok();
    match (parse(written), parse(rebuilt)) {
        (Some(written), Some(rebuilt)) => {
            written.len() == 1 && rebuilt.len() == 1 && written[0].to_string() == rebuilt[0].to_string()
        }
        _ => false,
    }
}

struct Reader<'t, 'a> {
    source: &'t str,
    tokens: Tokens<'t, 'a>,
    at: usize,
    used: Used,
    schema: &'t str,
}

impl<'t, 'a> Reader<'t, 'a> {
    fn insert(&mut self) -> Result<Statement, String> {
        self.word("into")?;
        let (table, written) = self.table()?;
        let (columns, written_columns) = match self.peek_text() {
            "(" => self.names()?,
            _ => return Err("the columns of the insert are not named".to_owned()),
        };
        if !self.is("values") {
            return Err("it inserts something else than the values of one row".to_owned());
        }
        self.at += 1;
        let pieces: Vec<String> = split(self.parenthesised()?, ",")
            .into_iter()
            .map(|piece| self.expression(piece))
            .collect::<Result<_, _>>()?;
        if pieces.len() != columns.len() {
            return Err(MORE.to_owned());
        }
        let values: Vec<_> = columns.iter().cloned().zip(pieces.iter().cloned()).collect();
        let mut rebuilt = format!("insert into {written} ({written_columns}) values ({})", pieces.join(", "));
        let mut statement = Statement {
            kind: Kind::Insert,
            table,
            values,
            key: Vec::new(),
            sets: Vec::new(),
            conditions: Vec::new(),
            used: Used::default(),
            text: String::new(),
        };
        if !self.ended() {
            for word in ["on", "conflict"] {
                self.word(word)?;
            }
            let (key, written) = self.names()?;
            rebuilt += &format!(" on conflict ({written}) do ");
            statement.key = key.into_iter().map(|column| (column, String::new())).collect();
            self.word("do")?;
            if self.is("nothing") {
                self.at += 1;
                statement.kind = Kind::InsertNew;
                rebuilt += "nothing";
            } else {
                self.word("update")?;
                self.word("set")?;
                statement.kind = Kind::Upsert;
                let rest = self.rest();
                let (sets, text) = self.sets(&statement.table, rest, true)?;
                statement.sets = sets;
                rebuilt += &format!("update set {text}");
            }
        }
        self.finish(&rebuilt)?;
        Ok(statement)
    }

    fn update(&mut self) -> Result<Statement, String> {
        let (table, written) = self.table()?;
        self.word("set")?;
        let rest = self.rest();
        let parts = split_word(rest, "where");
        let [sets, selection] = parts.as_slice() else { return Err("it names no row by its key".to_owned()) };
        let (sets, text) = self.sets(&table, sets, false)?;
        let (key, conditions, selection) = self.selection(&table, selection)?;
        self.finish(&format!("update {written} set {text} where {selection}"))?;
        Ok(Statement {
            kind: Kind::Update,
            table,
            values: Vec::new(),
            key,
            sets,
            conditions,
            used: Used::default(),
            text: String::new(),
        })
    }

    fn delete(&mut self) -> Result<Statement, String> {
        self.word("from")?;
        let (table, written) = self.table()?;
        if !self.is("where") {
            return Err("it names no row by its key".to_owned());
        }
        self.at += 1;
        let rest = self.rest();
        let (key, conditions, selection) = self.selection(&table, rest)?;
        self.finish(&format!("delete from {written} where {selection}"))?;
        Ok(Statement {
            kind: Kind::Delete,
            table,
            values: Vec::new(),
            key,
            sets: Vec::new(),
            conditions,
            used: Used::default(),
            text: String::new(),
        })
    }

    /// The end of the text; the parser has to see the same in what has been understood.
    fn finish(&self, rebuilt: &str) -> Result<(), String> {
        let (Some(first), Some(last)) = (self.tokens.first(), self.tokens.last()) else {
            return Err(MORE.to_owned());
        };
        if self.ended() && same(&self.source[first.start..last.end], rebuilt) {
            Ok(())
        } else {
            Err(MORE.to_owned())
        }
    }

    fn peek_text(&self) -> &'a str {
        self.tokens.get(self.at).map_or("", |token| token.text)
    }

    fn is(&self, word: &str) -> bool {
        self.tokens.get(self.at).is_some_and(|token| token.is_word(word))
    }

    fn ended(&self) -> bool {
        self.at >= self.tokens.len()
    }

    fn word(&mut self, word: &str) -> Result<(), String> {
        if !self.is(word) {
            return Err(MORE.to_owned());
        }
        self.at += 1;
        Ok(())
    }

    /// All tokens from here on.
    fn rest(&mut self) -> Tokens<'t, 'a> {
        let rest = &self.tokens[self.at.min(self.tokens.len())..];
        self.at = self.tokens.len();
        rest
    }

    fn name(&mut self) -> Result<String, String> {
        let name = self.tokens.get(self.at).and_then(Token::name).ok_or(MORE)?;
        self.at += 1;
        Ok(name)
    }

    /// The table's name, and how it is written.
    fn table(&mut self) -> Result<(String, String), String> {
        let first = self.name()?;
        if self.peek_text() != "." {
            return Ok((first, self.tokens[self.at - 1].text.to_owned()));
        }
        self.at += 1;
        let table = self.name()?;
        if first != self.schema {
            return Err(format!("{first}.{table} is no table of the projector"));
        }
        let written = self.tokens[self.at - 3..self.at].iter().map(|token| token.text).collect();
        Ok((table, written))
    }

    /// Names in parentheses.
    fn names(&mut self) -> Result<(Vec<String>, String), String> {
        let inner = self.parenthesised()?;
        let parts = split(inner, ",");
        let names: Option<Vec<String>> = parts.into_iter().map(single_name).collect();
        let names = names.ok_or(MORE)?;
        let distinct: BTreeSet<&String> = names.iter().collect();
        let written = inner.iter().map(|token| token.text).collect();
        if distinct.len() == names.len() { Ok((names, written)) } else { Err(MORE.to_owned()) }
    }

    /// What stands between this parenthesis and its other half.
    fn parenthesised(&mut self) -> Result<Tokens<'t, 'a>, String> {
        if self.peek_text() != "(" {
            return Err(MORE.to_owned());
        }
        let start = self.at + 1;
        let mut depth = 0_usize;
        while let Some(token) = self.tokens.get(self.at) {
            match token.text {
                "(" => depth += 1,
                ")" => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Ok(&self.tokens[start..self.at - 1]);
            }
        }
        Err(MORE.to_owned())
    }

    /// An expression over the event, as it is written.
    fn expression(&mut self, tokens: Tokens<'_, '_>) -> Result<String, String> {
        let text = text_of(self.source, tokens)?;
        let tree =
            expression::parse(&text).ok_or_else(|| format!("the expression {text} is not understood"))?;
        examine(&tree, &mut self.used)?;
        Ok(text)
    }

    fn sets(
        &mut self,
        table: &str,
        tokens: Tokens<'t, 'a>,
        excluded: bool,
    ) -> Result<(Vec<(String, Change)>, String), String> {
        let (mut sets, mut rebuilt) = (Vec::<(String, Change)>::new(), Vec::new());
        for part in split(tokens, ",") {
            let column = part.first().and_then(Token::name).ok_or(MORE)?;
            if part.get(1).map(|token| token.text) != Some("=") || part.len() < 3 {
                return Err(MORE.to_owned());
            }
            let (change, text) = self.change(table, &column, &part[2..], excluded)?;
            if sets.iter().any(|(other, _)| *other == column) {
                return Err(MORE.to_owned());
            }
            rebuilt.push(format!("{} = {text}", part[0].text));
            sets.push((column, change));
        }
        Ok((sets, rebuilt.join(", ")))
    }

    /// What a column is set to, and the same as a text that is put together from what has been understood.
    fn change(
        &mut self,
        table: &str,
        column: &str,
        tokens: Tokens<'t, 'a>,
        excluded: bool,
    ) -> Result<(Change, String), String> {
        let written = text_of(self.source, tokens)?;
        if excluded && field_of(tokens, "excluded").as_deref() == Some(column) {
            return Ok((Change::Excluded, written));
        }
        // The old value: the column, after the table's name or not.
        let own = |tokens: Tokens<'_, '_>| is_own(tokens, table, column);
        let change = if let Some((condition, value, kept)) =
            kept_unless(tokens).filter(|(_, _, kept)| own(kept))
        {
            let condition = self.expression(condition)?;
            let value = self.expression(value)?;
            let kept = text_of(self.source, kept)?;
            let rebuilt = format!("case when {condition} then {value} else {kept} end");
            (Change::When { condition, value }, rebuilt)
        } else if let Some((value, kept)) = kept_if_null(tokens).filter(|(_, kept)| own(kept)) {
            self.used.operators.insert("=".to_owned());
            let value = self.expression(value)?;
            let rebuilt = format!("coalesce({value}, {})", text_of(self.source, kept)?);
            (Change::Present(value), rebuilt)
        } else if let Some((negative, before, added)) = added(tokens).filter(|(_, before, _)| own(before)) {
            self.used.operators.extend(["+", "-"].map(str::to_owned));
            let sign = if negative { "-" } else { "+" };
            let before = text_of(self.source, before)?;
            if excluded && field_of(added, "excluded").as_deref() == Some(column) {
                let rebuilt = format!("{before} {sign} {}", text_of(self.source, added)?);
                (Change::AddExcluded { negative }, rebuilt)
            } else {
                binds_closer_than_plus(added)?;
                let value = self.expression(added)?;
                let rebuilt = format!("{before} {sign} {value}");
                (Change::Add { value, negative }, rebuilt)
            }
        } else {
            let value = self.expression(tokens)?;
            (Change::To(value.clone()), value)
        };
        let (Some(first), Some(second)) = (expression::parse(&written), expression::parse(&change.1)) else {
            return Err(MORE.to_owned());
        };
        let splits_as_read = match (&change.0, &first) {
            (Change::Add { .. } | Change::AddExcluded { .. }, Expr::BinaryOp { left, .. }) => {
                matches!(left.as_ref(), Expr::Identifier(name) if identifier(name) == column)
                    || matches!(left.as_ref(), Expr::CompoundIdentifier(_))
            }
            (Change::Add { .. } | Change::AddExcluded { .. }, _) => false,
            _ => true,
        };
        if splits_as_read && first.to_string() == second.to_string() {
            Ok((change.0, written))
        } else {
            Err(MORE.to_owned())
        }
    }

    /// The key, the conditions on the event, and all of it as a text.
    #[expect(clippy::type_complexity, reason = "it is taken apart at once")]
    fn selection(
        &mut self,
        table: &str,
        tokens: Tokens<'t, 'a>,
    ) -> Result<(Vec<(String, String)>, Vec<String>, String), String> {
        let (mut key, mut conditions, mut rebuilt) = (Vec::new(), Vec::new(), Vec::new());
        for part in split_word(tokens, "and") {
            let outside = outside(part);
            if outside.iter().any(|token| ["or", "between"].iter().any(|word| token.is_word(word))) {
                return Err("its condition is more than a key and conditions on the event".to_owned());
            }
            let compared = compared(part, table);
            rebuilt.push(text_of(self.source, part)?);
            match compared {
                Some((column, value)) => {
                    binds_closer_than_equals(value)?;
                    key.push((column, self.expression(value)?));
                    self.used.operators.insert("=".to_owned());
                }
                None => conditions.push(self.expression(part)?),
            }
        }
        Ok((key, conditions, rebuilt.join(" and ")))
    }
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
    fn anything_more_is_refused() {
        for text in [
            "insert into t values (event.id)",
            "insert into t (a) values (1), (2)",
            "insert into t (a) values (1) returning a",
            "insert into t (a) select 1",
            "insert into t (a) overriding system value values (1)",
            "insert into t as x (a) values (1)",
            "insert into t (a) values (1) on conflict do nothing",
            "insert into t (a) values (1) on conflict on constraint x do nothing",
            "insert into t (a, n) values (1, 2) on conflict (a) do update set n = excluded.n where t.n < excluded.n",
            "insert into t (a) values (default)",
            "insert into other.t (a) values (1)",
            "update t as x set a = 1 where id = 1",
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
