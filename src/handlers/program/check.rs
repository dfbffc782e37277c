//! Finding out whether a program can be a worker, before it is deployed.

use super::hello;
use super::session::Worker;
use crate::diagnostic::Diagnostic;
use crate::handlers::batch::RowTables;
use crate::processing::declaration::{ProcessorDeclaration, ProgramDeclaration};

/// What is wrong with a program and the tables that it writes, as far as that shows without an event. It is started, greeted
/// and let go.
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
    match Worker::start(program, &hello(declaration, tables)).await {
        Ok(worker) => worker.dismiss(super::DISMISSAL_GRACE).await,
        Err(error) => found.push(Diagnostic::in_source(&program.place, 0, error.to_string())),
    }
    found
}
