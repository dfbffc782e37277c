//! Finds handlers and `ddl` that use a table of another processor, as far as their text shows it. What it does not show is found at run
//! time: `refuse_foreign_writes` in `migrations/processing`.

use super::mentions::{Mention, mentions};
use crate::diagnostic::Diagnostic;
use crate::processing::declaration::{ProcessorDeclaration, SourceText};

/// Mentions in handlers of tables that another processor of `all` owns: those that are written, and those that are read and not
/// declared.
pub(crate) fn find_foreign_tables(
    declaration: &ProcessorDeclaration,
    all: &[ProcessorDeclaration],
) -> Vec<Diagnostic> {
    let is_allowed = |mention: &Mention| !mention.is_written && declaration.reads(&mention.name);
    let in_handler = |text| find_in_text(declaration, text, all, is_allowed);
    declaration.handlers().iter().map(|handler| &handler.sql).flat_map(in_handler).collect()
}

/// Mentions in `ddl` of tables that another processor of `all` owns and that it changes. A view may read any of them.
pub(crate) fn find_foreign_tables_in_ddl(
    declaration: &ProcessorDeclaration,
    all: &[ProcessorDeclaration],
) -> Vec<Diagnostic> {
    let in_statement = |text| find_in_text(declaration, text, all, |mention| !mention.is_written);
    declaration.ddl.iter().flat_map(in_statement).collect()
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

fn find_in_text(
    declaration: &ProcessorDeclaration,
    source: &SourceText,
    all: &[ProcessorDeclaration],
    is_allowed: impl Fn(&Mention) -> bool,
) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for mention in mentions(&source.text).into_iter().filter(|mention| !is_allowed(mention)) {
        let Mention { name, written, offset, is_written, .. } = mention;
        let Some(owner) = owner_of(declaration, &name, all) else { continue };
        let message = format!("table {written} belongs to {} {}", owner.kind().as_str(), owner.name);
        let advice = if is_written {
            format!("declare a table of {}'s own: nobody else may change that one", declaration.name)
        } else {
            format!("if {} is meant to read it, declare that: reads = [{name:?}]", declaration.name)
        };
        found.push(Diagnostic::in_source(source, offset, message).with_advice(advice));
    }
    found
}
