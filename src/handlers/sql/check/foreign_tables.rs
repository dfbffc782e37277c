//! Finds handlers that use a table of another processor.

use crate::diagnostic::Diagnostic;
use crate::postgres::lexer::{self, Token, TokenKind};
use crate::processing::declaration::{Handler, ProcessorDeclaration};

/// Mentions of tables that another processor of `all` owns, as far as the text of the handlers shows them.
pub(crate) fn find_foreign_tables(
    declaration: &ProcessorDeclaration,
    all: &[ProcessorDeclaration],
) -> Vec<Diagnostic> {
    let in_handler = |handler| find_in_handler(declaration, handler, all);
    declaration.handlers().iter().flat_map(in_handler).collect()
}

fn find_in_handler(
    declaration: &ProcessorDeclaration,
    handler: &Handler,
    all: &[ProcessorDeclaration],
) -> Vec<Diagnostic> {
    let owner_of = |table: &str| {
        all.iter()
            .find(|other| other.name != declaration.name && other.tables.iter().any(|own| own.name == table))
    };
    let tokens = lexer::tokens(&handler.sql.text).unwrap_or_default();
    let mut found = Vec::new();
    for token in mentioned_tables(&tokens) {
        let Some(owner) = token.name().and_then(|name| owner_of(&name)) else { continue };
        let message = format!("table {} belongs to projector {}", token.text, owner.name);
        let advice = format!("declare a table of {}'s own, or handle the events here", declaration.name);
        found.push(Diagnostic::in_source(&handler.sql, token.start, message).with_advice(advice));
    }
    found
}

/// The last part of each name that stands where SQL names a table.
fn mentioned_tables<'a, 'b>(tokens: &'b [Token<'a>]) -> Vec<&'b Token<'a>> {
    const BEFORE_A_TABLE: [&str; 7] = ["into", "update", "from", "join", "table", "only", "truncate"];
    let mut mentioned = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        if !BEFORE_A_TABLE.iter().any(|word| token.is_word(word)) {
            continue;
        }
        let mut at = index + 1;
        while tokens.get(at + 1).is_some_and(|dot| dot.kind == TokenKind::Symbol && dot.text == ".") {
            at += 2;
        }
        mentioned.extend(tokens.get(at));
    }
    mentioned
}
