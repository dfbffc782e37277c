//! Checks a program before it is deployed: whether it starts and completes the handshake.

use std::time::Duration;

use super::protocol::Handshake;
use super::session::ProgramSession;
use crate::diagnostic::Diagnostic;
use crate::handlers::batch::RowTables;
use crate::processing::declaration::{ProcessorDeclaration, ProgramDeclaration};

/// How long a program has, after it was ready, to say what it was not asked for.
const UNASKED_TIME: Duration = Duration::from_millis(50);

/// Finds what is wrong with a program and its tables, as far as that shows without an event. The program is started and,
/// after the handshake, stopped.
pub(crate) async fn check(
    declaration: &ProcessorDeclaration,
    program: &ProgramDeclaration,
    tables: &RowTables,
) -> Vec<Diagnostic> {
    let keyless = tables.shapes().iter().filter(|shape| shape.key.is_empty());
    let sources =
        keyless.filter_map(|shape| declaration.tables.iter().find(|table| table.name == shape.name));
    let mut found: Vec<Diagnostic> = sources
        .map(|table| {
            let mistake =
                Diagnostic::in_source(&table.columns, 0, format!("table {} has no primary key", table.name));
            mistake.with_advice("a program names rows by their keys: make one of the columns a primary key")
        })
        .collect();
    match ProgramSession::start(program, &Handshake::new(declaration, &declaration.name, tables)).await {
        Ok(mut session) => {
            let unasked = session.find_unasked(UNASKED_TIME).await;
            let name = program.command.first().map_or("", String::as_str);
            let describe = |what| format!("{name:?} {what}: after `ready` it has to wait for events");
            found.extend(unasked.map(|what| Diagnostic::in_source(&program.place, 0, describe(what))));
            drop(session.stop().await);
        }
        Err(error) => found.push(Diagnostic::in_source(&program.place, 0, error.to_string())),
    }
    found
}
