//! A projector's handlers, compiled into one PL/pgSQL function.
//!
//! One call of the function is one batch; `project_batch.sql` is its text. When a handler fails, the effects of the batch
//! are rolled back and the events before the failing one are handled again, so that they commit; the failure is returned
//! as a value with the event's id.
//!
//! The handlers' text is copied verbatim and starts on a line of its own. That is how a line of the
//! function is traced back to a line of the file that it was written in.

mod columns;
mod dispatch;

use columns::used_columns;
use dispatch::Dispatch;

use crate::diagnostic::{DatabaseAnswer, Diagnostic};
use crate::handlers::sql::event_source::{
    COLUMNS, EventSource, literals, mentions_deferrable, type_condition,
};
use crate::handlers::sql::fold;
use crate::handlers::sql::gate::{OWN, own_prefix};
use crate::handlers::sql::reactor;
use crate::handlers::sql::template::Template;
use crate::own_name::in_own_name;
use crate::postgres::name::{IDENTIFIER_LENGTH_MAX, fitting};
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::sql_scope::SqlScope;
use crate::postgres::sqlstate::{FOREIGN_WRITE, INFRASTRUCTURE_SQLSTATES, TEXT_MAX};
use crate::processing::declaration::{Handler, ProcessorDeclaration};
use crate::store::upcast::{Upcast, stored_types};
use crate::store::witness::attachments;

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
    /// Compiles `projector`, with espd's own tables in `schema`, for SQL that means what `scope` says.
    pub(crate) fn compile(
        projector: &ProcessorDeclaration,
        schema: &str,
        scope: &SqlScope,
        source: EventSource<'_>,
    ) -> Result<Self, CompileError> {
        let fold = fold::name_of(&projector.name, projector.version);
        Self::compile_named((&name(projector), &fold), projector, schema, scope, source)
    }

    /// As [`Self::compile`], for one share of the aggregates, whose events `source` has.
    pub(crate) fn compile_share(
        projector: &ProcessorDeclaration,
        schema: &str,
        scope: &SqlScope,
        source: EventSource<'_>,
        share: i32,
    ) -> Result<Self, CompileError> {
        let name = share_name_of(&projector.name, projector.version, share);
        let fold = fold::share_name_of(&projector.name, projector.version, share);
        Self::compile_named((&name, &fold), projector, schema, scope, source)
    }

    /// As [`Self::compile`], for a function of this name that has batches folded by another one.
    fn compile_named(
        (name, fold): (&str, &str),
        projector: &ProcessorDeclaration,
        schema: &str,
        scope: &SqlScope,
        source: EventSource<'_>,
    ) -> Result<Self, CompileError> {
        let qualified = |name: &str| format!("{}.{}", quote_identifier(schema), quote_identifier(name));
        let (name, fold) = (qualified(name), qualified(fold));
        let template = template((&name, fold), projector, schema, scope, source);
        Self::assemble(name, projector, TEXT, template)
    }

    /// Compiles the function that handles the events of a synchronous projector when they are inserted, which are read through
    /// these layers.
    pub(crate) fn compile_inserted(
        projector: &ProcessorDeclaration,
        schema: &str,
        scope: &SqlScope,
        upcasts: &[Upcast],
    ) -> Result<Self, CompileError> {
        let name = name_of_inserted(&projector.name, projector.version);
        let name = format!("{}.{}", quote_identifier(schema), quote_identifier(&name));
        let inserted = |source: String, (place, upcast): (usize, &Upcast)| upcast.over(&source, place);
        let inserted = upcasts.iter().enumerate().fold(INSERTED_EVENTS.to_owned(), inserted);
        let template = inserted_template((schema, &name), projector, scope, inserted);
        Self::assemble(name, projector, INSERTED, template)
    }

    /// Puts the handlers in their place in a text, and fills in the rest.
    fn assemble(
        name: String,
        projector: &ProcessorDeclaration,
        text: &str,
        mut template: Template<'static>,
    ) -> Result<Self, CompileError> {
        let dispatch = Dispatch::of(projector.handlers())?;
        if dispatch.may_change_event() {
            template.conditions.push("guarded");
        }
        let own = own_prefix(texts(projector, &template));
        let text = text.replace(OWN, &own);
        let (before, behind) = text.split_once(HANDLERS).unwrap_or((&text, ""));
        let (before, behind) = (template.fill(before), template.fill(behind));
        let delimiter = format!("${own}body$");
        let body_start = before.find(&delimiter).map_or(0, |start| start + delimiter.len());
        let first = before.len() - body_start;
        let (handlers, starts) = dispatch.write(&own);
        let handler_starts = starts.iter().map(|start| first + start).collect();
        Ok(Self { name, create: before + &handlers + &behind, body_start, handler_starts })
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
    name_of(&projector.name, projector.version)
}

/// As [`name`], without a declaration.
pub(crate) fn name_of(processor: &str, version: i32) -> String {
    fitting(format!("handle_{processor}_v{version}"))
}

/// The name of the function of one share of the aggregates.
pub(crate) fn share_name_of(processor: &str, version: i32, share: i32) -> String {
    fitting(format!("handle_{processor}_v{version}_share_{share}"))
}

/// The name of the function that handles events when they are inserted.
pub(crate) fn name_of_inserted(processor: &str, version: i32) -> String {
    fitting(format!("handle_inserted_{processor}_v{version}"))
}

/// The name that the function had while its parameters had names. PostgreSQL cut it off where it was too long.
pub(crate) fn earlier_name(projector: &ProcessorDeclaration) -> String {
    earlier_name_of(&projector.name, projector.version)
}

/// As [`earlier_name`], without a declaration.
pub(crate) fn earlier_name_of(processor: &str, version: i32) -> String {
    let mut name = format!("project_{processor}_v{version}");
    name.truncate(IDENTIFIER_LENGTH_MAX);
    name
}

/// All that is written into the function.
fn texts<'t>(
    projector: &'t ProcessorDeclaration,
    template: &'t Template<'_>,
) -> impl Iterator<Item = &'t str> {
    let handlers = projector.handlers().iter().map(|handler| handler.sql.text.as_str());
    let types = projector.handlers().iter().filter_map(|handler| handler.events.types()).flatten();
    handlers.chain(types).chain(template.values.iter().map(|(_, value)| value.as_str()))
}

/// The function, without the handlers.
const TEXT: &str = include_str!("project_batch.sql");

/// The function of a synchronous projector, without the handlers.
const INSERTED: &str = include_str!("handle_inserted.sql");

/// What the trigger calls the events that a statement has inserted, quoted. No declared table has such a name.
const INSERTED_EVENTS: &str = "\"Inserted events of espd\"";

/// Where the handlers belong in [`TEXT`] and [`INSERTED`].
const HANDLERS: &str = "--{{handlers}}\n";

/// The SQLSTATE of a batch that has met a store which is not the one that was followed.
pub(crate) const DIVERGED: &str = "ES005";

/// Everything that is filled in but the handlers.
fn template(
    (function, fold): (&str, String),
    projector: &ProcessorDeclaration,
    schema: &str,
    scope: &SqlScope,
    source: EventSource<'_>,
) -> Template<'static> {
    let mut template = Template::default();
    template.values.extend([
        ("function", function.to_owned()),
        ("scope", scope.clauses()),
        ("schema", quote_identifier(schema)),
        ("processor", quote_literal(&projector.name)),
        ("version", projector.version.to_string()),
        ("columns", COLUMNS.to_owned()),
        ("of_types", type_condition(projector.event_types())),
        ("infrastructure", literals(INFRASTRUCTURE_SQLSTATES)),
        ("text_max", TEXT_MAX.to_string()),
    ]);
    fill_source(&mut template, (projector, schema), source);
    if let Some(reactor) = &projector.reactor {
        let outbox = if matches!(source, EventSource::Arguments) { "'on'" } else { "'off'" };
        template.conditions.push("reactor");
        template.values.push(("emits_as", reactor::emits_as(&projector.name, reactor)));
        template.values.push(("outbox", outbox.to_owned()));
    }
    if projector.synchronous.is_some() && !matches!(source, EventSource::Arguments) {
        template.conditions.push("synchronous");
    }
    if fold::is_worth_trying(projector, scope, source) {
        template.conditions.push("folded");
        template.values.push(("fold", fold));
        template.values.push(("least", fold::LEAST.to_string()));
        template.values.push(("setting", quote_literal(&format!("espd.fold_{}", projector.name))));
    }
    if mentions_deferrable(projector) {
        template.conditions.push("deferrable");
    }
    template
}

/// Everything that is filled in for a synchronous projector but the handlers.
fn inserted_template(
    (schema, function): (&str, &str),
    projector: &ProcessorDeclaration,
    scope: &SqlScope,
    inserted: String,
) -> Template<'static> {
    let name = &projector.name;
    let advice = format!(
        "`espctl pause {name}` lets events be stored again, and {name} handle them later; so does a configuration without \
         synchronous"
    );
    let advice = in_own_name(&advice).into_owned();
    Template {
        values: vec![
            ("function", function.to_owned()),
            ("schema", quote_identifier(schema)),
            ("scope", scope.clauses()),
            ("processor", quote_literal(name)),
            ("columns", COLUMNS.to_owned()),
            ("of_types", type_condition(projector.event_types())),
            ("plain", INSERTED_EVENTS.to_owned()),
            ("inserted", inserted),
            ("advice", quote_literal(&advice)),
        ],
        conditions: if mentions_deferrable(projector) { vec!["deferrable"] } else { Vec::new() },
    }
}

/// An expression that counts the rows which the session has changed in tables that no batch changes: stored events, which trackers there
/// are, and whose tables are whose.
fn own_changes(events_table: &str, schema: &str, trackers: &str) -> String {
    let own = |name: &str| format!("{}.{}", quote_identifier(schema), quote_identifier(name));
    let counted = |verbs: &[&str], table: &str| {
        let count =
            |verb: &&str| format!("pg_stat_get_xact_tuples_{verb}({}::regclass)", quote_literal(table));
        verbs.iter().map(count).collect::<Vec<_>>().join(" + ")
    };
    [
        counted(&["updated", "deleted"], events_table),
        counted(&["inserted", "deleted"], &own(trackers)),
        counted(&["inserted", "updated", "deleted"], &own("projection_tables")),
    ]
    .join(" + ")
}

/// Where the events come from.
fn fill_source(
    template: &mut Template<'static>,
    (projector, schema): (&ProcessorDeclaration, &str),
    source: EventSource<'_>,
) {
    let EventSource::Table { source, table, trackers, stored, may_be_unreadable, is_whole, upcasts } = source
    else {
        return template.conditions.push("passed");
    };
    template.conditions.push(match (may_be_unreadable, is_whole) {
        (false, _) => "table",
        (true, true) => "limited",
        (true, false) => "layered",
    });
    template.conditions.push("stored");
    template.values.push(("used", used_columns(projector)));
    template.values.push(("source", source.to_owned()));
    template.values.push(("events_table", table.to_owned()));
    template.values.push(("attachments", attachments(table)));
    template.values.push(("diverged", quote_literal(DIVERGED)));
    template.values.push(("foreign_write", quote_literal(FOREIGN_WRITE)));
    template.values.push(("own_changes", own_changes(table, schema, trackers)));
    if may_be_unreadable {
        let types = projector.event_types().map(|types| stored_types(upcasts, types));
        // Where it is whole and without upcasts, the table occurs once in its source.
        let (before, behind) = source.split_once(table).unwrap_or_default();
        template.values.push(("before_table", before.to_owned()));
        template.values.push(("behind_table", behind.to_owned()));
        template.conditions.push("unreadable");
        template.values.push(("stored_source", stored.to_owned()));
        template.values.push(("table", table.to_owned()));
        template.values.push(("of_stored_types", type_condition(types)));
    }
}
