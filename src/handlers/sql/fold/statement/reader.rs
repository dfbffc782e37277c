//! Reads statements along the grammar, and has the parser read what was understood.

use std::collections::BTreeSet;

use sqlparser::ast::Expr;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

use super::pieces::{
    MORE, Tokens, added, binds_closer_than_equals, binds_closer_than_plus, compared, field_of, is_own,
    kept_if_null, kept_unless, outside, single_name, split, split_word, text_of,
};
use super::{Change, Kind, Statement};
use crate::handlers::sql::fold::expression::{self, Used, examine, identifier};
use crate::postgres::lexer::Token;

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

/// The table that a statement writes.
struct Target {
    table: String,
    /// What expressions call it.
    name: String,
    written: String,
}

pub(super) struct Reader<'t, 'a> {
    source: &'t str,
    tokens: Tokens<'t, 'a>,
    at: usize,
    pub(super) used: Used,
    schema: &'t str,
}

impl<'t, 'a> Reader<'t, 'a> {
    /// Begins behind the first word.
    pub(super) fn new(source: &'t str, tokens: Tokens<'t, 'a>, schema: &'t str) -> Self {
        Self { source, tokens, at: 1, used: Used::default(), schema }
    }

    pub(super) fn insert(&mut self) -> Result<Statement, String> {
        self.word("into")?;
        let Target { table, name, written } = self.table()?;
        let named = if self.peek_text() == "(" { Some(self.names()?) } else { None };
        if !self.is("values") {
            return Err("it inserts something else than the values of one row".to_owned());
        }
        self.at += 1;
        let pieces: Vec<String> = split(self.parenthesised()?, ",")
            .into_iter()
            .map(|piece| self.expression(piece))
            .collect::<Result<_, _>>()?;
        let (columns, listed) = match named {
            Some((columns, written)) => (columns, format!(" ({written})")),
            None => (vec![String::new(); pieces.len()], String::new()),
        };
        if pieces.len() != columns.len() {
            return Err(MORE.to_owned());
        }
        let mut rebuilt = format!("insert into {written}{listed} values ({})", pieces.join(", "));
        let values: Vec<_> = columns.into_iter().zip(pieces).collect();
        let mut statement = Statement { values, ..Statement::of(Kind::Insert, table) };
        if !self.ended() {
            rebuilt += &self.conflict(&name, &mut statement)?;
        }
        self.finish(&rebuilt)?;
        Ok(statement)
    }

    /// What an insert does where the row is there; returns the same as a text that is put together from what has been understood.
    fn conflict(&mut self, name: &str, statement: &mut Statement) -> Result<String, String> {
        for word in ["on", "conflict"] {
            self.word(word)?;
        }
        let mut rebuilt = " on conflict ".to_owned();
        if self.peek_text() == "(" {
            let (key, written) = self.names()?;
            rebuilt += &format!("({written}) ");
            statement.key = key.into_iter().map(|column| (column, String::new())).collect();
        }
        self.word("do")?;
        if self.is("nothing") {
            self.at += 1;
            statement.kind = Kind::InsertNew;
            return Ok(rebuilt + "do nothing");
        }
        self.word("update")?;
        self.word("set")?;
        if statement.key.is_empty() {
            return Err(MORE.to_owned());
        }
        statement.kind = Kind::Upsert;
        let rest = self.rest();
        let (sets, text) = self.sets(name, rest, true)?;
        statement.sets = sets;
        Ok(rebuilt + &format!("do update set {text}"))
    }

    pub(super) fn update(&mut self) -> Result<Statement, String> {
        let Target { table, name, written } = self.table()?;
        self.word("set")?;
        let rest = self.rest();
        let parts = split_word(rest, "where");
        let [sets, selection] = parts.as_slice() else { return Err("it names no row by its key".to_owned()) };
        let (sets, text) = self.sets(&name, sets, false)?;
        let (key, conditions, selection) = self.selection(&name, selection)?;
        self.finish(&format!("update {written} set {text} where {selection}"))?;
        Ok(Statement { key, sets, conditions, ..Statement::of(Kind::Update, table) })
    }

    pub(super) fn delete(&mut self) -> Result<Statement, String> {
        self.word("from")?;
        let Target { table, name, written } = self.table()?;
        if !self.is("where") {
            return Err("it names no row by its key".to_owned());
        }
        self.at += 1;
        let rest = self.rest();
        let (key, conditions, selection) = self.selection(&name, rest)?;
        self.finish(&format!("delete from {written} where {selection}"))?;
        Ok(Statement { key, conditions, ..Statement::of(Kind::Delete, table) })
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

    /// The table that is written.
    fn table(&mut self) -> Result<Target, String> {
        let start = self.at;
        let mut table = self.name()?;
        if self.peek_text() == "." {
            let schema = table;
            self.at += 1;
            table = self.name()?;
            if schema != self.schema {
                return Err(format!("{schema}.{table} is no table of the projector"));
            }
        }
        let mut written: String = self.tokens[start..self.at].iter().map(|token| token.text).collect();
        let mut name = table.clone();
        if self.is("as") {
            self.at += 1;
            name = self.name()?;
            written += &format!(" as {}", self.tokens[self.at - 1].text);
            if ["event", "excluded"].contains(&name.as_str()) {
                return Err(format!("{table} is called {name}"));
            }
        }
        Ok(Target { table, name, written })
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
