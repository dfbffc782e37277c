//! Finds handlers that use a table of another processor, as far as their text shows it. What it does not show is found at run
//! time: `refuse_foreign_writes` in `migrations/processing`.

use crate::diagnostic::Diagnostic;
use crate::postgres::lexer::{self, Token, TokenKind};
use crate::processing::declaration::{Handler, ProcessorDeclaration};

/// A table that a text mentions.
#[derive(Debug, PartialEq, Eq)]
struct Mention {
    name: String,
    /// The name as it stands in the text.
    written: String,
    /// Byte offset in the text of the handler.
    offset: usize,
    /// Whether it is changed, and not only read.
    is_written: bool,
}

/// Mentions of tables that another processor of `all` owns: those that are written, and those that are read and not declared.
pub(crate) fn find_foreign_tables(
    declaration: &ProcessorDeclaration,
    all: &[ProcessorDeclaration],
) -> Vec<Diagnostic> {
    let in_handler = |handler| find_in_handler(declaration, handler, all);
    declaration.handlers().iter().flat_map(in_handler).collect()
}

/// The processor of `all` that owns a table, unless it is the declared one.
fn owner_of<'a>(
    declaration: &ProcessorDeclaration,
    table: &str,
    all: &'a [ProcessorDeclaration],
) -> Option<&'a ProcessorDeclaration> {
    let owns = |other: &&ProcessorDeclaration| other.tables.iter().any(|own| own.name == table);
    all.iter().filter(|other| other.name != declaration.name).find(owns)
}

fn find_in_handler(
    declaration: &ProcessorDeclaration,
    handler: &Handler,
    all: &[ProcessorDeclaration],
) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for Mention { name, written, offset, is_written } in mentions(&handler.sql.text) {
        let Some(owner) = owner_of(declaration, &name, all) else { continue };
        if !is_written && declaration.reads(&name) {
            continue;
        }
        let message = format!("table {written} belongs to {} {}", owner.kind().as_str(), owner.name);
        let advice = if is_written {
            format!("declare a table of {}'s own: nobody else may change that one", declaration.name)
        } else {
            format!("if {} is meant to read it, declare that: reads = [{name:?}]", declaration.name)
        };
        found.push(Diagnostic::in_source(&handler.sql, offset, message).with_advice(advice));
    }
    found
}

/// The tables that a handler mentions, also in texts that it executes.
fn mentions(text: &str) -> Vec<Mention> {
    let tokens = lexer::tokens(text).unwrap_or_default();
    let mut found = mentioned(&tokens);
    for statement in lexer::statements(&tokens) {
        let executes = statement.iter().skip_while(|token| !token.is_word("execute"));
        for literal in executes {
            let executed = literal.content().map(|content| lexer::tokens(content).unwrap_or_default());
            let mentioned = mentioned(&executed.unwrap_or_default());
            found.extend(mentioned.into_iter().map(|mention| Mention { offset: literal.start, ..mention }));
        }
    }
    found
}

/// The last part of each name that stands where SQL names a table.
fn mentioned(tokens: &[Token<'_>]) -> Vec<Mention> {
    const BEFORE_A_TABLE: [&str; 8] =
        ["into", "update", "from", "join", "table", "only", "truncate", "using"];
    let mut found = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        if !BEFORE_A_TABLE.iter().any(|word| token.is_word(word)) {
            continue;
        }
        let mut at = index + 1;
        while tokens.get(at + 1).is_some_and(|dot| dot.kind == TokenKind::Symbol && dot.text == ".") {
            at += 2;
        }
        let Some(table) = tokens.get(at) else { continue };
        let is_written = writes(&tokens[..=index]);
        found.extend(table.name().map(|name| {
            let written = table.text.to_owned();
            Mention { name, written, offset: table.start, is_written }
        }));
    }
    found
}

/// Whether the words before a table, of which the last ones are these, say that it is changed.
fn writes(before: &[Token<'_>]) -> bool {
    let verb =
        before.iter().rposition(|token| !token.is_word("only")).map_or(before, |last| &before[..=last]);
    match verb {
        [.., first, last] if last.is_word("from") => first.is_word("delete"),
        [.., last] => !["from", "join", "using"].iter().any(|word| last.is_word(word)),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_is_read_is_told_from_one_that_is_written() {
        let found = |text: &str| {
            let all = mentions(text).into_iter().map(|mention| (mention.name, mention.is_written));
            all.collect::<Vec<_>>()
        };
        for (text, name, is_written) in [
            ("insert into t values (1)", "t", true),
            ("update only public.t set a = 1", "t", true),
            ("delete from t", "t", true),
            ("delete from only t", "t", true),
            ("truncate t", "t", true),
            ("truncate table \"t\"", "t", true),
            ("execute 'delete from ' || 't'", "", true),
            ("execute 'delete from t'", "t", true),
            ("if true then execute format($$update t set a = %L$$, 1); end if", "t", true),
            ("perform from t", "t", false),
            ("perform 'delete from t'", "", false),
            ("select a into b from only t", "t", false),
            ("select a into b from x join t on true", "t", false),
            ("delete from x using t where x.a = t.a", "t", false),
        ] {
            let mentioned = found(text);
            let last = mentioned.iter().rfind(|(known, _)| known == "t");
            assert_eq!(last, (!name.is_empty()).then(|| (name.to_owned(), is_written)).as_ref(), "{text}");
        }
    }
}
