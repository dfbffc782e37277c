//! A projector's handlers, compiled into one PL/pgSQL function.
//!
//! One call of the function is one batch: it locks the tracker under the caller's epoch, loops over the
//! events in order, runs the handlers, and moves the tracker, all in the caller's transaction. When a
//! handler fails, the block's effects are rolled back and the events before the failing one are handled
//! again, so that they commit; the failure is returned as a value with the event's id.
//!
//! The handlers' text is copied verbatim and starts on a line of its own. That is how a line of the
//! function is traced back to a line of the file that it was written in.

use std::fmt::Write as _;

use crate::diagnostic::{DatabaseAnswer, Diagnostic};
use crate::handlers::sql::reaction;
use crate::postgres::lexer::{self, Token, TokenKind};
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
        let mut body = Body::new(projector, schema, source);
        body.write()?;
        let head = head(&name, projections_schema, source);
        let create = format!("{head}{}{DELIMITER}", body.text);
        Ok(Self { name, create, body_start: head.len(), handler_starts: body.handler_starts })
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
    format!("project_{}_v{}", projector.name, projector.version)
}

/// Quotes the function's body. No handler may contain it; see [`Body::write_handler`].
const DELIMITER: &str = "$espd_body$";

/// The parameters that every projector function takes, after the batch itself where that is passed.
const PARAMETERS: &str = "espd_partition integer, espd_epoch bigint, espd_from bigint, espd_upto bigint, \
     espd_limit integer, espd_bytes_max bigint, espd_time_max interval, espd_lease interval, espd_rate real, \
     espd_letter bigint";

/// The batch as arrays, one element per event.
const BATCH_PARAMETERS: &str = "espd_ids bigint[], espd_uuids uuid[], espd_aggregate_ids uuid[], espd_types text[], \
     espd_versions bigint[], espd_bodies jsonb[], espd_metadata jsonb[], espd_correlation_ids uuid[], \
     espd_causation_ids uuid[], espd_created_ats timestamptz[], ";

/// The columns of `event`, in the order of the arrays above.
pub(crate) const COLUMNS: &str =
    "id, uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at";

fn head(name: &str, projections_schema: &str, source: EventSource<'_>) -> String {
    let batch = if matches!(source, EventSource::Arguments) { BATCH_PARAMETERS } else { "" };
    format!(
        "create or replace function {name}({batch}{PARAMETERS}, \
         out espd_position bigint, out espd_handled integer, out espd_failure jsonb, out espd_finished boolean)\n\
         language plpgsql\n\
         set search_path = {schema}, public, pg_temp\n\
         set jit = off\n\
         -- A plan made while a projection was small must not scan it once it is large.\n\
         set enable_seqscan = off\n\
         as {DELIMITER}",
        schema = quote_identifier(projections_schema),
    )
}

struct Body<'a> {
    projector: &'a ProcessorDeclaration,
    /// The quoted schema of the trackers.
    schema: String,
    source: EventSource<'a>,
    text: String,
    handler_starts: Vec<usize>,
}

impl<'a> Body<'a> {
    fn new(projector: &'a ProcessorDeclaration, schema: &str, source: EventSource<'a>) -> Self {
        let schema = quote_identifier(schema);
        Self { projector, schema, source, text: String::new(), handler_starts: Vec::new() }
    }

    fn write(&mut self) -> Result<(), CompileError> {
        self.write_opening();
        for (index, handler) in self.projector.handlers().iter().enumerate() {
            self.write_handler(index, handler)?;
        }
        self.write_closing();
        Ok(())
    }

    fn write_opening(&mut self) {
        let schema = self.schema.clone();
        let name = quote_literal(&self.projector.name);
        let version = self.projector.version;
        let source = self.source_query();
        let reaction = self.projector.reaction.as_ref();
        let declarations = reaction.map_or("", |_| reaction::DECLARATIONS);
        let begin_batch = reaction
            .map(|reaction| {
                let outbox = matches!(self.source, EventSource::Arguments);
                reaction::begin_batch(&self.projector.name, version, reaction, &schema, outbox)
            })
            .unwrap_or_default();
        let begin_event = reaction.map_or("", |_| reaction::BEGIN_EVENT);
        let opening = format!(
            "
#variable_conflict use_column
declare
  event record;
  -- The event at hand, whatever a handler does to its record.
  espd_id bigint;
{declarations}  espd_bytes bigint;
  espd_deadline timestamptz := clock_timestamp() + espd_time_max;
  espd_state text;
  espd_message text;
  espd_detail text;
  espd_hint text;
  espd_context text;
  -- Whether an event that is set aside may be met, or one that has to wait behind it.
  espd_parking boolean;
begin
  -- Nobody waits for a lock without end and unseen: after this time it is an outage, which the status shows.
  if current_setting('lock_timeout') = '0' then
    perform set_config('lock_timeout', '30s', true);
  end if;
  -- lock_tracker: no row means that the caller is no longer the owner, or paused
  perform from {schema}.trackers as t
    where t.name = {name} and t.version = {version} and t.partition = espd_partition
      and t.epoch = espd_epoch and (t.position = espd_from or espd_letter is not null) and t.paused_at is null
    for update;
  if not found then
    espd_finished := true;
    return;
  end if;
  if espd_letter is null then
    espd_parking := exists (select from {schema}.dead_letters as d
        where d.processor = {name} and d.version = {version} and d.partition = espd_partition and d.blocks)
      or exists (select from {schema}.dead_letters as d
        where d.processor = {name} and d.version = {version} and d.partition = espd_partition and d.event_id > espd_from);
  else
    espd_parking := false;
    -- lock_dead_letter: an operator may have discarded it
    perform from {schema}.dead_letters as d
      where d.processor = {name} and d.version = {version} and d.partition = espd_partition and d.event_id = espd_letter for update;
    if not found then
      espd_position := espd_letter;
      espd_handled := 0;
      espd_finished := true;
      return;
    end if;
  end if;
{begin_batch}  -- When a handler fails: once to meet the failing event, once more for those before it.
  loop
    espd_position := espd_upto;
    espd_handled := 0;
    espd_bytes := 0;
    espd_id := null;
    begin
      for event in
        {source}
      loop
        espd_id := event.id;
        if espd_parking and {schema}.set_aside_behind({name}, {version}, espd_partition, event.id, event.uuid,
             event.type, event.aggregate_id) then
          null;
        else
{begin_event}"
        );
        self.text.push_str(&opening);
    }

    /// The query of the loop, in id order.
    fn source_query(&self) -> String {
        match self.source {
            EventSource::Table { source, json_bodies, upcasts } => {
                let wanted = format!(
                    "where e.id > espd_from and e.id <= espd_upto{}\n        order by e.id limit espd_limit",
                    type_condition(self.projector.event_types())
                );
                if json_bodies.is_none() && upcasts.is_empty() {
                    return format!("select {COLUMNS} from {source} as e\n        {wanted}");
                }
                // A plan may compute bodies before it sorts and cuts off. So first come the ids: one that cannot be read
                // must not be an error of those before it.
                format!(
                    "select {COLUMNS} from {source} as e where e.id = any (array(\n        \
                     select e.id from {source} as e {wanted}))\n        order by e.id"
                )
            }
            // `espd_upto` shrinks when a handler fails.
            EventSource::Arguments => format!(
                "select {COLUMNS} from unnest(espd_ids, espd_uuids, espd_aggregate_ids, espd_types, espd_versions, \
                 espd_bodies, espd_metadata, espd_correlation_ids, espd_causation_ids, espd_created_ats)\n        \
                 as e({COLUMNS}) where e.id <= espd_upto order by e.id"
            ),
        }
    }

    fn write_handler(&mut self, index: usize, handler: &Handler) -> Result<(), CompileError> {
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
        self.handler_starts.push(self.text.len());
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

    fn write_closing(&mut self) {
        let schema = self.schema.clone();
        let name = quote_literal(&self.projector.name);
        let version = self.projector.version;
        let deferred = self.deferred_check();
        let infrastructure = literals(INFRASTRUCTURE_SQLSTATES);
        let find_unreadable = self.find_unreadable();
        let closing = format!(
            "{deferred}        end if;
        espd_handled := espd_handled + 1;
        espd_bytes := espd_bytes + pg_column_size(event.body);
        if espd_handled >= espd_limit or espd_bytes >= espd_bytes_max or clock_timestamp() >= espd_deadline then
          espd_position := espd_id;
          exit;
        end if;
        espd_id := null;
      end loop;
      exit;
    exception when others or assert_failure then
      get stacked diagnostics
        espd_state = returned_sqlstate, espd_message = message_text, espd_detail = pg_exception_detail,
        espd_hint = pg_exception_hint, espd_context = pg_exception_context;
{find_unreadable}      if espd_id is null or espd_state like any (array[{infrastructure}]) then
        raise;
      end if;
      espd_failure := jsonb_build_object(
        'event_id', espd_id, 'event_uuid', event.uuid, 'event_type', event.type,
        'aggregate_id', event.aggregate_id, 'sqlstate', espd_state,
        'message', left(espd_message, {TEXT_MAX}), 'detail', nullif(left(espd_detail, {TEXT_MAX}), ''),
        'hint', nullif(left(espd_hint, {TEXT_MAX}), ''), 'context', right(espd_context, {TEXT_MAX}));
      espd_upto := espd_id - 1;
      -- They were handled in time once; all of them have to be before the failure is told.
      espd_deadline := 'infinity';
    end;
  end loop;
  if espd_letter is not null then
    if espd_failure is null then
      perform {schema}.remove_dead_letter({name}, {version}, espd_partition, espd_letter);
    end if;
    espd_finished := true;
    return;
  end if;
  if espd_handled = 0 then
    -- Nobody's effect depends on it: lost in a crash, the same ids are passed again.
    perform set_config('synchronous_commit', 'off', true);
  end if;
  -- move_tracker
  update {schema}.trackers as t
    set position = espd_position, caught_up = espd_position >= espd_upto and espd_failure is null,
        handled = t.handled + espd_handled, rate = espd_rate,
        lease_until = clock_timestamp() + espd_lease, updated_at = clock_timestamp(),
        attempts = case when espd_handled > 0 or espd_failure is null then 0 else t.attempts end,
        last_error = case when espd_handled > 0 or espd_failure is null then null else t.last_error end,
        next_retry_at = null, outage = null
    where t.name = {name} and t.version = {version} and t.partition = espd_partition
      and t.epoch = espd_epoch and t.position = espd_from and espd_position >= t.position;
  if not found then
    raise exception 'a handler of projector % changed the tracker', {name};
  end if;
  espd_finished := true;
end
"
        );
        self.text.push_str(&closing);
    }

    /// Finds the event that no batch can be read across, where bodies come from strangers: JSON that `jsonb` refuses,
    /// such as a zero character. Only after a failure that was none of a handler's.
    fn find_unreadable(&self) -> String {
        let EventSource::Table { json_bodies: Some(table), upcasts, .. } = self.source else {
            return String::new();
        };
        let types = self.projector.event_types().map(|types| stored_types(upcasts, types));
        format!(
            "      if espd_id is null then
        for event in
          select e.id, e.uuid, e.aggregate_id, e.type::text as type, e.body from {table} as e
          where e.id > espd_from and e.id <= espd_upto{} order by e.id limit espd_limit
        loop
          begin
            perform event.body::jsonb;
          exception when others then
            espd_id := event.id;
            exit;
          end;
        end loop;
      end if;
",
            type_condition(types)
        )
    }

    /// A deferred constraint would fail at commit, where no event can be blamed any more.
    fn deferred_check(&self) -> &'static str {
        if mentions_deferrable(self.projector) {
            "        set constraints all immediate;\n        set constraints all deferred;\n"
        } else {
            ""
        }
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
