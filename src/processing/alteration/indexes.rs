//! The indexes in `ddl` that are made or dropped.

use std::collections::BTreeSet;

use super::{Alteration, spelled};
use crate::postgres::lexer::{self, Token};
use crate::processing::declaration::ProcessorDeclaration;

/// An index that decides about no row: it is not unique, and has a name by which it can be dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlainIndex {
    pub(crate) name: String,
    pub(crate) table: String,
    /// The statement that makes it, as it is declared.
    pub(crate) statement: String,
    /// Whether it may be there already.
    pub(crate) may_exist: bool,
}

/// A statement of `ddl`.
struct Statement {
    text: String,
    spelled: Vec<String>,
    names: Vec<String>,
    /// The table of the index that it makes.
    on: Option<String>,
    /// What it makes, if that is a plain index of a declared table.
    index: Option<PlainIndex>,
}

/// The indexes that are made and dropped; an error says why `ddl` has changed in more than that.
pub(super) fn compare(
    former: &ProcessorDeclaration,
    present: &ProcessorDeclaration,
) -> Result<Alteration, String> {
    let (old, new) = (statements(former)?, statements(present)?);
    let others = |all: &[Statement]| {
        let others = all.iter().filter(|statement| statement.index.is_none());
        others.map(|statement| statement.spelled.clone()).collect::<Vec<_>>()
    };
    if others(&old) != others(&new) {
        return Err("`ddl` has changed in more than plain indexes".to_owned());
    }
    let beyond = |these: &[Statement], those: &[Statement]| {
        let is_beyond =
            |statement: &&Statement| !those.iter().any(|other| other.spelled == statement.spelled);
        these.iter().filter(is_beyond).filter_map(|statement| statement.index.clone()).collect::<Vec<_>>()
    };
    let (made, dropped) = (beyond(&new, &old), beyond(&old, &new));
    let is_named = |index: &&PlainIndex| {
        new.iter().any(|other| other.index.is_none() && other.names.contains(&index.name))
    };
    if let Some(index) = dropped.iter().chain(&made).find(is_named) {
        return Err(format!("`ddl` does more with index {} than to make it", index.name));
    }
    let kept =
        old.iter().filter(|statement| !statement.index.as_ref().is_some_and(|index| dropped.contains(index)));
    let kept = kept.map(|statement| statement.text.clone()).collect();
    Ok(Alteration { columns: Vec::new(), made, dropped, kept })
}

/// Whether `ddl` makes nothing but indexes.
pub(super) fn are_all_indexes(declaration: &ProcessorDeclaration) -> bool {
    declaration.ddl.iter().all(|ddl| {
        let tokens = lexer::tokens(&ddl.text).unwrap_or_default();
        lexer::statements(&tokens).all(|statement| {
            let is = |at: usize, word: &str| statement.get(at).is_some_and(|token| token.is_word(word));
            is(0, "create") && (is(1, "index") || is(1, "unique") && is(2, "index"))
        })
    })
}

/// The first of these tables that an index names beside the place where it says what it is on: it may be about whole rows.
pub(super) fn find_row_of<'t>(
    declaration: &ProcessorDeclaration,
    widened: &BTreeSet<&'t str>,
) -> Option<&'t str> {
    let statements = statements(declaration).unwrap_or_default();
    widened.iter().copied().find(|table| {
        let is_named_twice = |statement: &Statement| {
            let names = statement.names.iter().filter(|name| name == table).count();
            names > usize::from(statement.on.as_deref() == Some(*table))
        };
        statements.iter().any(is_named_twice)
    })
}

fn statements(declaration: &ProcessorDeclaration) -> Result<Vec<Statement>, String> {
    let mut statements = Vec::new();
    for ddl in &declaration.ddl {
        let tokens = lexer::tokens(&ddl.text).map_err(|unclosed| unclosed.to_string())?;
        for tokens in lexer::statements(&tokens) {
            let (Some(first), Some(last)) = (tokens.first(), tokens.last()) else { continue };
            let text = ddl.text[first.start..last.end].to_owned();
            let index = plain_index(tokens, &text, declaration);
            let names = tokens.iter().filter_map(Token::name).collect();
            let on = table_of_index(tokens);
            statements.push(Statement { text, spelled: spelled(tokens), names, on, index });
        }
    }
    Ok(statements)
}

/// The table that `create [unique] index … on [only] table` names.
fn table_of_index(tokens: &[Token<'_>]) -> Option<String> {
    let on = tokens.iter().position(|token| token.is_word("on"))?;
    let rest = &tokens[on + 1..];
    behind(rest, &["only"]).unwrap_or(rest).first()?.name()
}

/// What `create index [if not exists] name on [only] table …` makes, if the table is a declared one.
fn plain_index(tokens: &[Token<'_>], text: &str, declaration: &ProcessorDeclaration) -> Option<PlainIndex> {
    let rest = behind(tokens, &["create", "index"])?;
    let (rest, may_exist) = match behind(rest, &["if", "not", "exists"]) {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let (name, rest) = rest.split_first()?;
    if name.is_word("on") || name.is_word("concurrently") {
        return None;
    }
    let rest = behind(rest, &["on"])?;
    let rest = behind(rest, &["only"]).unwrap_or(rest);
    let (table, rest) = rest.split_first()?;
    let (name, table) = (name.name()?, table.name()?);
    let is_own = declaration.tables.iter().any(|declared| declared.name == table);
    let is_plain = rest.first().is_some_and(|next| next.text == "(" || next.is_word("using"));
    let index = PlainIndex { name, table, statement: text.to_owned(), may_exist };
    (is_own && is_plain).then_some(index)
}

/// What follows these words, if the tokens begin with them.
fn behind<'t, 'a>(tokens: &'t [Token<'a>], words: &[&str]) -> Option<&'t [Token<'a>]> {
    let begins =
        tokens.len() >= words.len() && tokens.iter().zip(words).all(|(token, word)| token.is_word(word));
    begins.then(|| &tokens[words.len()..])
}
