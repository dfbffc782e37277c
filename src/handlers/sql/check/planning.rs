//! Has PostgreSQL plan the statements of a handler, without running any: some mistakes are the planner's to find, such as an
//! `on conflict` without an index.

use super::empty_event::empty_event_for;
use crate::diagnostic::{DatabaseAnswer, Diagnostic};
use crate::handlers::scratch::{EVENT_TABLE, Scratch};
use crate::handlers::sql::gate::BEFORE_A_STATEMENT;
use crate::postgres::lexer::{self, Token};
use crate::postgres::quote::dollar_quote;
use crate::processing::declaration::Handler;

/// What the planner refuses whatever the event is: an `on conflict` or an `order by` that fits nothing, and what no plan can do.
/// Another refusal is about variables of the handler, which are not declared here.
const OF_THE_PLANNER: [&str; 2] = ["42P10", "0A000"];

/// The first statement of a handler that cannot be planned.
pub(super) async fn find_unplannable(
    scratch: &mut Scratch<'_>,
    handler: &Handler,
) -> Result<Option<Diagnostic>, sqlx::Error> {
    let tokens = lexer::tokens(&handler.sql.text).unwrap_or_default();
    let statements: Vec<&[Token<'_>]> = lexer::statements(&tokens).filter_map(planned).collect();
    // All of them at once, which costs least and is nearly always the end of it.
    if statements.is_empty() || try_to_plan(scratch, handler, &statements).await?.is_none() {
        return Ok(None);
    }
    for statement in statements {
        let Some(error) = try_to_plan(scratch, handler, &[statement]).await? else { continue };
        let answer = DatabaseAnswer::of(&error);
        if OF_THE_PLANNER.contains(&answer.code.as_str()) {
            return Ok(Some(answer.at(&handler.sql, statement[0].start)));
        }
    }
    Ok(None)
}

/// The part of a statement of PL/pgSQL that PostgreSQL plans: `insert …` in `if … then insert …`.
fn planned<'b, 'a>(statement: &'b [Token<'a>]) -> Option<&'b [Token<'a>]> {
    const WORDS: [&str; 6] = ["insert", "update", "delete", "merge", "with", "perform"];
    let is_begin = |index: usize| {
        index == 0
            || BEFORE_A_STATEMENT.iter().any(|word| statement[index - 1].text.eq_ignore_ascii_case(word))
    };
    let begins = |index: &usize| WORDS.iter().any(|word| statement[*index].is_word(word)) && is_begin(*index);
    (0..statement.len()).find(begins).map(|index| &statement[index..])
}

/// The error with which a plan for one of these statements of a handler is refused.
async fn try_to_plan(
    scratch: &mut Scratch<'_>,
    handler: &Handler,
    statements: &[&[Token<'_>]],
) -> Result<Option<sqlx::Error>, sqlx::Error> {
    let explain = |statement: &&[Token<'_>]| {
        let (Some(first), Some(last)) = (statement.first(), statement.last()) else { return String::new() };
        let is_perform = first.is_word("perform");
        let (verb, start) = if is_perform { ("select", first.end) } else { ("", first.start) };
        let text = &handler.sql.text[start..last.end];
        format!("for espd_plan in explain {verb} {text}\nloop end loop;\n")
    };
    let explained: String = statements.iter().map(explain).collect();
    let (function, schema) = (scratch.name_function(), scratch.schema.clone());
    let statement = format!(
        "-- plan_handler
         create function {function}(event {schema}.{EVENT_TABLE}) returns void language plpgsql
         as {quote}
         #variable_conflict use_column
         declare espd_plan record;
         begin\n{explained}end {quote};
         select {function}({event}::{schema}.{EVENT_TABLE})",
        quote = dollar_quote(&explained),
        event = empty_event_for(handler),
    );
    scratch.attempt(&statement).await
}
