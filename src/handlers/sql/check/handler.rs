//! Checks one SQL handler.
//!
//! A handler made of plain statements is created as an SQL-language function, whose body PostgreSQL analyses at once. A
//! handler with control flow, or one that emits, is run with an empty event, which finds mistakes in the branches that it
//! takes. What it does to tables that it does not declare is rolled back as well, but their locks are held until then.

use super::empty_event::empty_event_for;
use super::{meaning, planning};
use crate::diagnostic::{DatabaseAnswer, Diagnostic};
use crate::handlers::scratch::{EVENT_TABLE, Scratch};
use crate::handlers::sql::event_source::COLUMNS;
use crate::handlers::sql::gate::BEFORE_A_STATEMENT;
use crate::postgres::lexer::{self, Token, TokenKind};
use crate::postgres::quote::dollar_quote;
use crate::postgres::sqlstate::INSUFFICIENT_PRIVILEGE;
use crate::processing::declaration::{Handler, SourceText};

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
    if let Some(command) = find_transaction_command(&tokens) {
        let mistake =
            Diagnostic::in_source(source, command.start, format!("{} is not for handlers", command.text));
        let advice = "remove it: espd commits rows and position together";
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
    if (!plain || emits)
        && let Some(mistake) = try_with_an_empty_event(scratch, handler).await?
    {
        return Ok(Some(mistake));
    }
    planning::find_unplannable(scratch, handler).await
}

/// A command that would end the transaction, or a text that is executed and is one: PostgreSQL refuses it when it runs.
fn find_transaction_command<'b, 'a>(tokens: &'b [Token<'a>]) -> Option<&'b Token<'a>> {
    let is_command = |text: &str| ["commit", "rollback"].iter().any(|word| text.eq_ignore_ascii_case(word));
    let executed = |token: &Token<'_>| {
        let content = token.content().unwrap_or_default();
        lexer::tokens(content).unwrap_or_default().first().is_some_and(|first| is_command(first.text))
    };
    (0..tokens.len()).map(|index| (index, &tokens[index])).find_map(|(index, token)| {
        let before = index.checked_sub(1).map_or(";", |before| tokens[before].text);
        let behind = tokens.get(index + 1).map_or(";", |behind| behind.text);
        let begins = BEFORE_A_STATEMENT.iter().any(|word| before.eq_ignore_ascii_case(word));
        let ends = [";", "and"].iter().any(|word| behind.eq_ignore_ascii_case(word));
        let is_written = token.kind == TokenKind::Word && is_command(token.text) && begins && ends;
        (is_written || before.eq_ignore_ascii_case("execute") && executed(token)).then_some(token)
    })
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
        "create function {}(event {}.{EVENT_TABLE}) returns void language sql as {quote}",
        scratch.name_function(),
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
    let function = scratch.name_function();
    let call = call_with_an_empty_event(&scratch.schema, &function, handler);
    let Some(error) = scratch.attempt(&call).await? else {
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
fn call_with_an_empty_event(schema: &str, function: &str, handler: &Handler) -> String {
    format!(
        "-- try_handler
         create function {function}(event {schema}.{EVENT_TABLE}) returns void language plpgsql
         as {quote}
         #variable_conflict use_column
         begin loop\n{text}\n;exit; end loop; end {quote};
         select {function}({event}::{schema}.{EVENT_TABLE})",
        text = handler.sql.text.trim_end().trim_end_matches(';'),
        event = empty_event_for(handler),
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
