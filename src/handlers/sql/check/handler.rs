//! Checks one SQL handler.
//!
//! A handler made of plain statements is created as an SQL-language function, whose body PostgreSQL analyses at once. A
//! handler with control flow, or one that emits, is run with an empty event, which finds mistakes in the branches that it
//! takes. What it does to tables that it does not declare is rolled back as well, but their locks are held until then.

use super::meaning;
use crate::diagnostic::{DatabaseAnswer, Diagnostic};
use crate::handlers::scratch::{EVENT_TABLE, Scratch};
use crate::handlers::sql::event_source::COLUMNS;
use crate::postgres::lexer::{self, Token};
use crate::postgres::quote::{dollar_quote, quote_literal};
use crate::postgres::sqlstate::INSUFFICIENT_PRIVILEGE;
use crate::processing::declaration::{HandledEvents, Handler, SourceText};

/// SQLSTATE of an event that may not be emitted.
const NOT_EMITTED: &str = "ES004";

/// SQLSTATE of a table that does not exist.
const UNDEFINED_TABLE: &str = "42P01";

/// Begins the class of SQLSTATEs for errors of syntax and access rules.
const SYNTAX_OR_ACCESS: &str = "42";

/// The first mistake in a handler. The function with its text has been compiled.
pub(super) async fn check_handler(
    scratch: &mut Scratch<'_>,
    handler: &Handler,
) -> Result<Option<Diagnostic>, sqlx::Error> {
    let source = &handler.sql;
    // The lexer has accepted the text when the function was compiled.
    let tokens = lexer::tokens(&source.text).unwrap_or_default();
    if let Some(select) = lexer::statements(&tokens).find_map(bare_select) {
        let mistake = Diagnostic::in_source(source, select, "the result of this select goes nowhere");
        let advice = "write perform instead of select, or select … into a variable";
        return Ok(Some(mistake.with_advice(advice)));
    }
    let plain = lexer::statements(&tokens).all(is_plain);
    if plain {
        if let Some(mistake) = analyse(scratch, source, &tokens).await? {
            return Ok(Some(mistake));
        }
        if let Some(warning) =
            meaning::find_other_meaning(scratch, source, &as_selects(source, &tokens)).await?
        {
            return Ok(Some(warning));
        }
    }
    let emits = tokens.iter().any(|token| token.is_word("emit"));
    if plain && !emits { Ok(None) } else { try_with_an_empty_event(scratch, handler).await }
}

/// Has PostgreSQL analyse plain statements, as the body of an SQL-language function.
async fn analyse(
    scratch: &mut Scratch<'_>,
    source: &SourceText,
    tokens: &[Token<'_>],
) -> Result<Option<Diagnostic>, sqlx::Error> {
    let text = as_selects(source, tokens);
    let quote = dollar_quote(&text);
    let head = format!(
        "create or replace function {0}.espd_handler(event {0}.{EVENT_TABLE}) returns void language sql as {quote}",
        scratch.schema
    );
    let statement = format!("{head}{text}{quote}");
    let refusal = scratch.attempt(&statement).await?;
    Ok(refusal.map(|error| {
        let unknown_field = unknown_field(source, head.len(), &statement, &error);
        unknown_field.unwrap_or_else(|| Diagnostic::of_refusal(source, head.len(), &statement, &error))
    }))
}

/// The text as PostgreSQL's own SQL. Every character stays where it is.
fn as_selects(source: &SourceText, tokens: &[Token<'_>]) -> String {
    let mut text = source.text.clone();
    for statement in lexer::statements(tokens).filter(|statement| statement[0].is_word("perform")) {
        text.replace_range(statement[0].start..statement[0].end, "select ");
    }
    text
}

/// Runs a handler with an event whose body is empty. An error counts only if it does not depend on the event.
async fn try_with_an_empty_event(
    scratch: &mut Scratch<'_>,
    handler: &Handler,
) -> Result<Option<Diagnostic>, sqlx::Error> {
    let source = &handler.sql;
    let Some(error) = scratch.attempt(&call_with_an_empty_event(&scratch.schema, handler)).await? else {
        return Ok(None);
    };
    let answer = DatabaseAnswer::of(&error);
    let is_in_the_text = answer.code == NOT_EMITTED
        || answer.code.starts_with(SYNTAX_OR_ACCESS) && answer.code != INSUFFICIENT_PRIVILEGE;
    let offset = answer.offset_in(&source.text).unwrap_or(0);
    Ok(is_in_the_text.then(|| answer.at(source, offset)))
}

/// Statements that make a function of the handler and call it. As in the projector's function, the handler stands in a loop,
/// which `exit` ends.
fn call_with_an_empty_event(schema: &str, handler: &Handler) -> String {
    let event_type = match &handler.events {
        HandledEvents::All => "",
        HandledEvents::Types(types) => types.first().map_or("", String::as_str),
    };
    format!(
        "-- try_handler
         create or replace function {schema}.espd_handler(event {schema}.{EVENT_TABLE}) returns void language plpgsql
         as {quote}
         #variable_conflict use_column
         begin loop\n{text}\n;exit; end loop; end {quote};
         select {schema}.espd_handler(
           row(1, gen_random_uuid(), gen_random_uuid(), {event_type}, 1, '{{}}', '{{}}', null, null, clock_timestamp()
         )::{schema}.{EVENT_TABLE})",
        text = handler.sql.text.trim_end().trim_end_matches(';'),
        event_type = quote_literal(event_type),
        quote = dollar_quote(&handler.sql.text),
    )
}

/// Whether a statement means the same in an SQL-language function as in PL/pgSQL.
fn is_plain(statement: &[Token<'_>]) -> bool {
    const WORDS: [&str; 7] = ["insert", "update", "delete", "merge", "with", "perform", "truncate"];
    let begins_plainly = WORDS.iter().any(|word| statement[0].is_word(word));
    let returning_into = statement
        .windows(2)
        .any(|pair| !pair[0].is_word("insert") && !pair[0].is_word("merge") && pair[1].is_word("into"));
    begins_plainly && !returning_into
}

/// A field that `event` does not have, which PostgreSQL takes for a column of an unknown table `event`.
fn unknown_field(
    source: &SourceText,
    lead: usize,
    statement: &str,
    error: &sqlx::Error,
) -> Option<Diagnostic> {
    let answer = DatabaseAnswer::of(error);
    let offset = answer.offset_in(statement)?.checked_sub(lead)?;
    let is_unknown_table = answer.code == UNDEFINED_TABLE;
    let field = source.text.get(offset..)?.strip_prefix("event.").filter(|_| is_unknown_table)?;
    let length = field.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(field.len());
    let mistake = Diagnostic::in_source(source, offset, format!("event has no field {}", &field[..length]));
    Some(mistake.with_advice(format!("it has {COLUMNS}")))
}

/// The place of a `select` whose result goes nowhere, which PL/pgSQL refuses only when it runs.
fn bare_select(statement: &[Token<'_>]) -> Option<usize> {
    let bare = statement[0].is_word("select") && !statement.iter().any(|token| token.is_word("into"));
    bare.then_some(statement[0].start)
}
