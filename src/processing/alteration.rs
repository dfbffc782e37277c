//! Which changes of declared tables need no replay: a pure rule over the texts of two declarations.
//!
//! A replay of the same handlers would give a column that no handler sees its default in every row, which is what `alter table`
//! does at once; and an index that is not unique decides about no row. Everything else has to be as it was. Where any of that is
//! in doubt, a replay is needed. What only a database knows is asked for elsewhere: functions that handlers call, triggers, types.

mod columns;
mod indexes;
mod sight;

use std::collections::BTreeSet;
use std::fmt;

pub(crate) use columns::{AddedColumn, constant_columns, own_columns, primary_key};
pub(crate) use indexes::PlainIndex;

use crate::postgres::lexer::{self, Token, TokenKind};
use crate::processing::declaration::{Handling, ProcessorDeclaration, SourceText};
use crate::retry::OnFailure;

/// What makes the tables of one declaration those of another one. Empty: they are the same, written otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Alteration {
    /// The columns that tables gain, in the order of the declaration.
    pub(crate) columns: Vec<AddedColumn>,
    /// The indexes that are made.
    pub(crate) made: Vec<PlainIndex>,
    /// The indexes that are dropped.
    pub(crate) dropped: Vec<PlainIndex>,
    /// The statements of `ddl` that stay.
    kept: Vec<String>,
}

impl Alteration {
    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.columns.is_empty() && self.made.is_empty() && self.dropped.is_empty()
    }

    /// The names of the tables that gain columns.
    pub(crate) fn widened(&self) -> BTreeSet<&str> {
        self.columns.iter().map(|column| column.table.as_str()).collect()
    }

    /// The part to begin with, with what it makes of the tables. What keeps readers out is short and comes first; to make an index
    /// may take long, and keeps out those who write.
    pub(crate) fn first_step(&self, present: &ProcessorDeclaration) -> (Self, ProcessorDeclaration) {
        let is_short = !self.columns.is_empty() || !self.dropped.is_empty();
        let mut declared = present.clone();
        if self.made.is_empty() || !is_short {
            return (self.clone(), declared);
        }
        declared.ddl = self.kept.iter().map(|text| SourceText::unplaced(text)).collect();
        (Self { made: Vec::new(), ..self.clone() }, declared)
    }
}

/// As `espctl plan` tells it: `alters orders: adds column note text, makes index orders_note; alters …`.
impl fmt::Display for Alteration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.in_words(["adds", "drops", "makes", "alters"]))
    }
}

impl Alteration {
    /// What was done, behind `it`.
    pub(crate) fn in_the_past(&self) -> String {
        self.in_words(["added", "dropped", "made", "altered"])
    }

    fn in_words(&self, [adds, drops, makes, alters]: [&str; 4]) -> String {
        if self.is_empty() {
            return "the tables are the same, written otherwise".to_owned();
        }
        let all = self.columns.iter().map(|column| &column.table);
        let tables: BTreeSet<&String> =
            all.chain(self.made.iter().chain(&self.dropped).map(|index| &index.table)).collect();
        let of_table = |table: &String| {
            let columns = self.columns.iter().filter(|column| column.table == *table);
            let dropped = self.dropped.iter().filter(|index| index.table == *table);
            let made = self.made.iter().filter(|index| index.table == *table);
            let acts = columns
                .map(|column| format!("{adds} column {}", column.in_a_line()))
                .chain(dropped.map(|index| format!("{drops} index {}", index.name)))
                .chain(made.map(|index| format!("{makes} index {}", index.name)));
            format!("{alters} {table}: {}", acts.collect::<Vec<_>>().join(", "))
        };
        tables.into_iter().map(of_table).collect::<Vec<_>>().join("; ")
    }
}

/// What makes the tables of `former` those of `present` without a replay, where the handlers of `handled_by` have handled all events
/// and go on to. An error says why a replay is needed. Whether these handlers are those of before, the caller has to know.
pub(crate) fn compare(
    former: &ProcessorDeclaration,
    present: &ProcessorDeclaration,
    handled_by: &ProcessorDeclaration,
) -> Result<Alteration, String> {
    let Handling::Sql(handlers) = &handled_by.handling else {
        return Err("only handlers in SQL show what they see of a table".to_owned());
    };
    if former.table_names() != present.table_names() {
        return Err("the declared tables are other ones".to_owned());
    }
    let mut alteration = indexes::compare(former, present)?;
    for (before, after) in former.tables.iter().zip(&present.tables) {
        alteration.columns.extend(columns::compare(before, after)?);
    }
    require(&alteration, former, present)?;
    for table in alteration.widened() {
        let seen = sight::Widened::new(table, present, &alteration.columns);
        for handler in handlers {
            seen.require_unseen_by(&handler.sql.text)?;
        }
    }
    Ok(alteration)
}

/// Refuses what would not be as if the tables had been made so.
fn require(
    alteration: &Alteration,
    former: &ProcessorDeclaration,
    present: &ProcessorDeclaration,
) -> Result<(), String> {
    if !alteration.is_empty() && (former.synchronous.is_some() || present.synchronous.is_some()) {
        return Err("the projector is synchronous, and whoever appends would wait".to_owned());
    }
    let sets_aside =
        |one: &ProcessorDeclaration| matches!(one.retry.on_failure, OnFailure::Park | OnFailure::Skip);
    let has_indexes = !alteration.made.is_empty() || !alteration.dropped.is_empty();
    if has_indexes && (sets_aside(former) || sets_aside(present)) {
        return Err("on_failure sets aside events with values that an index refuses".to_owned());
    }
    if has_indexes && (catches_errors(former) || catches_errors(present)) {
        return Err("a handler catches errors, also that of an index which refuses a value".to_owned());
    }
    if !alteration.columns.is_empty() && !indexes::are_all_indexes(present) {
        return Err("`ddl` makes more than indexes, which may depend on the columns".to_owned());
    }
    let widened = alteration.widened();
    if let Some(of) = indexes::find_row_of(present, &widened) {
        return Err(format!("an index of `ddl` may be over whole rows of {of}, which get another shape"));
    }
    match present.tables.iter().find_map(|table| columns::find_row_of(table, &widened)) {
        Some(of) => Err(format!("the declaration of a table names {of}, whose rows get another shape")),
        None => Ok(()),
    }
}

/// Whether a handler goes on after an error.
fn catches_errors(declaration: &ProcessorDeclaration) -> bool {
    declaration.handlers().iter().any(|handler| {
        let tokens = lexer::tokens(&handler.sql.text).unwrap_or_default();
        // A block with that word may be in a text.
        tokens.iter().any(|token| token.text.to_lowercase().contains("exception"))
    })
}

/// The names by which handlers may call functions.
pub(crate) fn called_names(declaration: &ProcessorDeclaration) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for handler in declaration.handlers() {
        let tokens = lexer::tokens(&handler.sql.text).unwrap_or_default();
        names.extend(tokens.windows(2).filter(|two| two[1].text == "(").filter_map(|two| two[0].name()));
    }
    names
}

/// All names in handlers.
pub(crate) fn names(declaration: &ProcessorDeclaration) -> BTreeSet<String> {
    let texts =
        declaration.handlers().iter().map(|handler| lexer::tokens(&handler.sql.text).unwrap_or_default());
    texts.flatten().filter_map(|token| token.name()).collect()
}

/// Tokens in a form in which they are equal where they mean the same: without white space, unless it changes what stands around
/// it, and in one case.
fn spelled(tokens: &[Token<'_>]) -> Vec<String> {
    let is_apart = |token: &Token<'_>| ["(", ")", ",", ";", "[", "]"].contains(&token.text);
    let mut end = None;
    let mut spelled = Vec::new();
    for token in tokens {
        let is_glued = end == Some(token.start) && !is_apart(token);
        end = (!is_apart(token)).then_some(token.end);
        let text =
            if token.kind == TokenKind::Word { token.text.to_lowercase() } else { token.text.to_owned() };
        spelled.push(if is_glued { format!("\u{1}{text}") } else { text });
    }
    spelled
}

#[cfg(test)]
mod tests;
