//! A projector's handlers, compiled into one PL/pgSQL function.
//!
//! One call of the function is one batch; `project_batch.sql` is its text. When a handler fails, the effects of the batch
//! are rolled back and the events before the failing one are handled again, so that they commit; the failure is returned
//! as a value with the event's id.
//!
//! The handlers' text is copied verbatim and starts on a line of its own. That is how a line of the
//! function is traced back to a line of the file that it was written in.

use std::fmt::Write as _;

use crate::diagnostic::{DatabaseAnswer, Diagnostic};
use crate::handlers::sql::reactor;
use crate::handlers::sql::template::Template;
use crate::postgres::lexer::{self, Token, TokenKind};
use crate::postgres::name::fitting;
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::sqlstate::{INFRASTRUCTURE_SQLSTATES, TEXT_MAX};
use crate::processing::declaration::{HandledEvents, Handler, ProcessorDeclaration};
use crate::store::upcast::{Upcast, stored_types};

/// Where the function finds its events.
#[derive(Debug, Clone, Copy)]
pub(crate) enum EventSource<'a> {
    /// In the same database: the function reads them itself.
    Table {
        /// What stands behind `from`, with the columns of an event.
        source: &'a str,
        /// The table of the events itself.
        table: &'a str,
        /// The table itself, if its bodies are JSON that `jsonb` may refuse.
        json_bodies: Option<&'a str>,
        /// The layers that old events are read through.
        upcasts: &'a [Upcast],
    },
    /// In another database: the caller passes the batch as arrays.
    Arguments,
}

/// The compiled form of a projector.
#[derive(Debug)]
pub(crate) struct ProcessorFunction {
    /// Qualified and quoted name.
    pub(crate) name: String,
    /// The complete `create or replace function` statement.
    pub(crate) create: String,
    /// Byte offset of the function's body in `create`.
    body_start: usize,
    /// Byte offset in the body at which each handler's text begins, in the order of the declaration.
    handler_starts: Vec<usize>,
}

/// Why a projector cannot be compiled: a handler's text would reach beyond itself.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct CompileError {
    pub(crate) handler: usize,
    /// Byte offset in the handler's text.
    pub(crate) offset: usize,
    pub(crate) message: String,
}

/// A place in a handler's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HandlerPlace {
    pub(crate) handler: usize,
    /// Byte offset in the handler's text.
    pub(crate) offset: usize,
}

impl ProcessorFunction {
    /// Compiles `projector` for the schemas of espd's own tables and of the projections.
    pub(crate) fn compile(
        projector: &ProcessorDeclaration,
        schema: &str,
        projections_schema: &str,
        source: EventSource<'_>,
    ) -> Result<Self, CompileError> {
        let name = format!("{}.{}", quote_identifier(schema), quote_identifier(&name(projector)));
        let template = template(&name, projector, schema, projections_schema, source);
        let handlers = Handlers::of(projector.handlers())?;
        let (before, behind) = TEXT.split_once(HANDLERS).unwrap_or((TEXT, ""));
        let (before, behind) = (template.fill(before), template.fill(behind));
        let body_start = before.find(DELIMITER).map_or(0, |start| start + DELIMITER.len());
        let first = before.len() - body_start;
        let handler_starts = handlers.starts.iter().map(|start| first + start).collect();
        Ok(Self { name, create: before + &handlers.text + &behind, body_start, handler_starts })
    }

    /// Where a byte offset in `create` lies in the author's text.
    pub(crate) fn place_of_offset(&self, offset: usize, declared: &[Handler]) -> Option<HandlerPlace> {
        let offset = offset.checked_sub(self.body_start)?;
        let handler = self.handler_starts.iter().rposition(|start| *start <= offset)?;
        let offset = offset - self.handler_starts[handler];
        (offset <= declared[handler].sql.text.len()).then_some(HandlerPlace { handler, offset })
    }

    /// Where a line of the body (from 1) lies in the author's text.
    pub(crate) fn place_of_line(&self, line: usize, declared: &[Handler]) -> Option<HandlerPlace> {
        let body = &self.create[self.body_start..];
        let offset = match line.checked_sub(2) {
            None => 0,
            Some(newline) => body.match_indices('\n').nth(newline)?.0 + 1,
        };
        self.place_of_offset(self.body_start + offset, declared)
    }
}

/// The mistake that keeps a declaration from being compiled.
pub(crate) fn diagnose_compile_error(declaration: &ProcessorDeclaration, error: CompileError) -> Diagnostic {
    Diagnostic::in_source(&declaration.handlers()[error.handler].sql, error.offset, error.message)
}

/// The mistake that made the database refuse the whole function.
pub(crate) fn diagnose_refusal(
    declaration: &ProcessorDeclaration,
    function: &ProcessorFunction,
    error: &sqlx::Error,
) -> Diagnostic {
    let (answer, handlers) = (DatabaseAnswer::of(error), declaration.handlers());
    let offset = answer.offset_in(&function.create);
    let place = offset.and_then(|offset| function.place_of_offset(offset, handlers));
    let HandlerPlace { handler, offset } = place.unwrap_or(HandlerPlace { handler: 0, offset: 0 });
    answer.at(&handlers[handler].sql, offset)
}

/// The function's own name, in its schema.
pub(crate) fn name(projector: &ProcessorDeclaration) -> String {
    fitting(format!("project_{}_v{}", projector.name, projector.version))
}

/// The function, without the handlers.
const TEXT: &str = include_str!("project_batch.sql");

/// Where the handlers belong in [`TEXT`].
const HANDLERS: &str = "--{{handlers}}\n";

/// Quotes the function's body. No handler may contain it; see [`escape`].
const DELIMITER: &str = "$espd_body$";

/// The SQLSTATE of a batch that has met a store which is not the one that was followed.
pub(crate) const DIVERGED: &str = "ES005";

/// The columns of `event`, in the order of the arrays that a batch is passed as.
pub(crate) const COLUMNS: &str =
    "id, uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at";

/// Everything that is filled in but the handlers.
fn template(
    function: &str,
    projector: &ProcessorDeclaration,
    schema: &str,
    projections_schema: &str,
    source: EventSource<'_>,
) -> Template<'static> {
    let mut template = Template::default();
    template.values.extend([
        ("function", function.to_owned()),
        ("projections_schema", quote_identifier(projections_schema)),
        ("schema", quote_identifier(schema)),
        ("processor", quote_literal(&projector.name)),
        ("version", projector.version.to_string()),
        ("columns", COLUMNS.to_owned()),
        ("of_types", type_condition(projector.event_types())),
        ("infrastructure", literals(INFRASTRUCTURE_SQLSTATES)),
        ("text_max", TEXT_MAX.to_string()),
    ]);
    fill_source(&mut template, projector, source);
    if let Some(reactor) = &projector.reactor {
        let outbox = if matches!(source, EventSource::Arguments) { "'on'" } else { "'off'" };
        template.conditions.push("reactor");
        template.values.push(("emits_as", reactor::emits_as(&projector.name, reactor)));
        template.values.push(("outbox", outbox.to_owned()));
    }
    if mentions_deferrable(projector) {
        template.conditions.push("deferrable");
    }
    template
}

/// Where the events come from.
fn fill_source(template: &mut Template<'static>, projector: &ProcessorDeclaration, source: EventSource<'_>) {
    let EventSource::Table { source, table, json_bodies, upcasts } = source else {
        return template.conditions.push("passed");
    };
    let is_plain = json_bodies.is_none() && upcasts.is_empty();
    template.conditions.push(if is_plain { "table" } else { "layered" });
    template.conditions.push("stored");
    template.values.push(("source", source.to_owned()));
    template.values.push(("events_table", table.to_owned()));
    template.values.push(("diverged", quote_literal(DIVERGED)));
    if let Some(table) = json_bodies {
        let types = projector.event_types().map(|types| stored_types(upcasts, types));
        template.conditions.push("json_bodies");
        template.values.push(("table", table.to_owned()));
        template.values.push(("of_stored_types", type_condition(types)));
    }
}

/// The handlers as they stand in the function.
#[derive(Default)]
struct Handlers {
    text: String,
    /// Byte offset at which the text of each begins.
    starts: Vec<usize>,
}

impl Handlers {
    fn of(handlers: &[Handler]) -> Result<Self, CompileError> {
        let mut written = Self::default();
        for (index, handler) in handlers.iter().enumerate() {
            written.write(index, handler)?;
        }
        Ok(written)
    }

    fn write(&mut self, index: usize, handler: &Handler) -> Result<(), CompileError> {
        let text = &handler.sql.text;
        let refuse = |(offset, message)| CompileError { handler: index, offset, message };
        let tokens =
            lexer::tokens(text).map_err(|unclosed| refuse((unclosed.start, unclosed.to_string())))?;
        escape(text, &tokens).map_or(Ok(()), |escape| Err(refuse(escape)))?;
        let jumps = tokens.iter().any(|token| token.is_word("exit") || token.is_word("continue"));
        match &handler.events {
            HandledEvents::All => self.text.push_str("        begin\n"),
            HandledEvents::Types(types) => {
                // Writing to a String cannot fail.
                let _ = writeln!(self.text, "        if event.type in ({}) then", literals(types));
            }
        }
        // A loop of its own to leave, so that it cannot leave the loop over the events.
        self.text.push_str(if jumps { "        for espd_once in 1..1 loop\n" } else { "" });
        self.starts.push(self.text.len());
        self.text.push_str(text);
        // On a line of its own: the text may end in a comment.
        let closed = tokens.last().is_none_or(|token| token.kind == TokenKind::Semicolon);
        self.text.push_str(if closed { "\n" } else { "\n        ;\n" });
        self.text.push_str(if jumps { "        end loop;\n" } else { "" });
        self.text.push_str(match handler.events {
            HandledEvents::All => "        end;\n",
            HandledEvents::Types(_) => "        end if;\n",
        });
        Ok(())
    }
}

fn type_condition<'t>(types: Option<impl IntoIterator<Item = &'t str>>) -> String {
    types.map_or(String::new(), |types| format!(" and e.type in ({})", literals(types)))
}

fn literals<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> String {
    texts.into_iter().map(|text| quote_literal(text.as_ref())).collect::<Vec<_>>().join(", ")
}

/// What would let a handler out of its place in the function, with its byte offset.
///
/// A `return` would commit rows without moving the position; a changed `event` would move it elsewhere.
fn escape(text: &str, tokens: &[Token<'_>]) -> Option<(usize, String)> {
    if let Some(offset) = text.find(DELIMITER) {
        return Some((offset, format!("{DELIMITER} is espd's own: choose another tag")));
    }
    if let Some(found) = tokens.iter().find(|token| token.is_word("return")) {
        return Some((
            found.start,
            "a handler cannot return: use if, or exit to end it for this event".to_owned(),
        ));
    }
    let assigned = lexer::statements(tokens).find(|statement| statement[0].is_word("event"));
    let selected = tokens.windows(2).find(|pair| pair[0].is_word("into") && pair[1].is_word("event"));
    let changed = assigned.map(|statement| statement[0].start).or(selected.map(|pair| pair[1].start));
    changed.map(|offset| (offset, "event cannot be changed: declare a variable of your own".to_owned()))
}

/// Whether a constraint of the projector's tables may be checked at commit only.
fn mentions_deferrable(projector: &ProcessorDeclaration) -> bool {
    let columns = projector.tables.iter().map(|table| &table.columns);
    columns.chain(&projector.ddl).any(|sql| sql.text.to_lowercase().contains("deferrable"))
}
