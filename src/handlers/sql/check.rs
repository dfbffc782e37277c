//! Finds an author's mistakes in SQL handlers and upcasts before they are deployed.
//!
//! PostgreSQL is asked in a transaction that is rolled back, at three depths:
//!
//! 1. The tables and the extra DDL are created, by [`Scratch`].
//! 2. The whole function is created, which finds errors of syntax.
//! 3. Each handler is checked alone (`handler`), which finds unknown tables, columns, functions and types, and planned
//!    (`planning`), which finds an `on conflict` without an index.

mod empty_event;
mod foreign_tables;
mod handler;
mod meaning;
mod mentions;
mod own_tables;
mod planning;
mod upcasts;

use sqlx::AssertSqlSafe;

pub(crate) use foreign_tables::{find_foreign_tables, find_foreign_tables_in_ddl};
pub(crate) use own_tables::find_own_tables;
pub(crate) use upcasts::{check_upcasts, hidden_types};

use crate::diagnostic::Diagnostic;
use crate::handlers::scratch::{EVENT_TABLE, Scratch};
use crate::handlers::sql::event_source::EventSource;
use crate::handlers::sql::function::{ProcessorFunction, diagnose_compile_error, diagnose_refusal};
use crate::handlers::sql::reactor;
use crate::processing::declaration::ProcessorDeclaration;

/// The mistakes in the handlers of a declaration whose tables exist in `scratch`.
pub(crate) async fn check(
    scratch: &mut Scratch<'_>,
    declaration: &ProcessorDeclaration,
) -> Result<Vec<Diagnostic>, sqlx::Error> {
    if let Some(mistake) = check_function(scratch, declaration).await? {
        return Ok(vec![mistake]);
    }
    pretend_to_react(scratch, declaration).await?;
    let mut found = meaning::find_foreign_operators(scratch, declaration).await?;
    for handler in declaration.handlers() {
        found.extend(handler::check_handler(scratch, handler).await?);
    }
    Ok(found)
}

async fn check_function(
    scratch: &mut Scratch<'_>,
    declaration: &ProcessorDeclaration,
) -> Result<Option<Diagnostic>, sqlx::Error> {
    let source = EventSource::Table {
        source: EVENT_TABLE,
        table: EVENT_TABLE,
        trackers: EVENT_TABLE,
        stored: EVENT_TABLE,
        may_be_unreadable: false,
        is_whole: true,
        upcasts: &[],
    };
    let function = match ProcessorFunction::compile(declaration, &scratch.schema, &scratch.scope, source) {
        Ok(function) => function,
        Err(error) => return Ok(Some(diagnose_compile_error(declaration, error))),
    };
    let refusal = scratch.attempt(&function.create).await?;
    Ok(refusal.map(|error| diagnose_refusal(declaration, &function, &error)))
}

/// Makes `emit` check what a reactor emits without storing it. A projector may emit nothing.
async fn pretend_to_react(
    scratch: &mut Scratch<'_>,
    declaration: &ProcessorDeclaration,
) -> Result<(), sqlx::Error> {
    let Some(reactor) = &declaration.reactor else { return Ok(()) };
    let statement = reactor::pretend(&declaration.name, reactor);
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(scratch.connection()).await.map(drop)
}
