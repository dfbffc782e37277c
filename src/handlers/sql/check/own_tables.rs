//! Finds handlers and `ddl` that change espd's own tables, or append events past `emit`, as far as their text shows it.

use super::mentions::mentions;
use crate::diagnostic::Diagnostic;
use crate::postgres::lexer::{self, Token};
use crate::processing::declaration::{ProcessorDeclaration, ProcessorKind, SourceText};
use crate::store::layout::Layout;

/// What SQL of these declarations does to tables and functions in espd's own schema that only espd and applications should do.
pub(crate) fn find_own_tables<'d>(
    declarations: impl Iterator<Item = &'d ProcessorDeclaration>,
    layout: &Layout,
) -> Vec<Diagnostic> {
    declarations.flat_map(|declaration| find_in(declaration, layout)).collect()
}

fn find_in(declaration: &ProcessorDeclaration, layout: &Layout) -> Vec<Diagnostic> {
    let schema = layout.schema();
    let handlers = declaration.handlers().iter().map(|handler| &handler.sql);
    let written = handlers.clone().chain(&declaration.ddl).flat_map(|text| find_written(text, schema));
    let appends = handlers.filter_map(|text| find_append(declaration, text, layout));
    written.chain(appends).collect()
}

/// Tables of this schema that a text changes.
fn find_written(source: &SourceText, schema: &str) -> Vec<Diagnostic> {
    let is_own = |of: &Option<String>| of.as_deref() == Some(schema);
    let written = mentions(&source.text).into_iter().filter(|one| one.is_written && is_own(&one.schema));
    let diagnose = |table: String, offset: usize| {
        let message = format!("table {schema}.{table} is espd's own: no processor may change it");
        let advice = "write tables that this processor declares; events are emitted by a reactor, and positions moved by `espctl`";
        Diagnostic::in_source(source, offset, message).with_advice(advice)
    };
    written.map(|mention| diagnose(mention.written, mention.offset)).collect()
}

/// A call of a function that appends events. It is no mistake where the author knows that it repeats.
fn find_append(
    declaration: &ProcessorDeclaration,
    source: &SourceText,
    layout: &Layout,
) -> Option<Diagnostic> {
    let tokens = lexer::tokens(&source.text).unwrap_or_default();
    let names = layout.names();
    let functions = [&names.append, &names.append_events, &names.append_at, &names.append_after];
    let is_call = |call: &[Token<'_>]| {
        let called = call[2].name();
        call[0].name().as_deref() == Some(layout.schema())
            && call[1].text == "."
            && functions.into_iter().any(|function| called.as_ref() == Some(function))
            && call[3].text == "("
    };
    let call = tokens.windows(4).find(|call| is_call(call))?;
    let message = format!(
        "{}.{} appends once more whenever this event is handled again, after a reset for example",
        call[0].text, call[2].text
    );
    let advice = match declaration.kind() {
        ProcessorKind::Projector => {
            "let a reactor emit the event: what it emitted before a reset is not emitted again"
        }
        ProcessorKind::Reactor => {
            "write emit, emit_at or emit_after: what was emitted before a reset is not emitted again"
        }
    };
    Some(Diagnostic::in_source(source, call[0].start, message).with_advice(advice).into_warning())
}
