//! Reads `[projector]` and `[reactor]`.

use chrono::{DateTime, Utc};

use super::events::{read_event_types, read_events};
use super::isolation::read_isolation;
use super::program::{read_program, refuse_companions};
use super::retry::read_retry;
use super::runner::read_batch_limits;
use super::settings::said_in;
use super::webhook::read_webhook;
use crate::config::reader::scalars::advise_name;
use crate::config::reader::tree::{ChosenKey, Section, Value};
use crate::config::{keys, nearest};
use crate::postgres::lexer::{self, Token};
use crate::postgres::name::is_name;
use crate::processing::alteration::own_columns;
use crate::processing::declaration::{
    BatchLimits, Check, HandledEvents, Handler, Handling, Isolation, OnHandlerChange, ProcessorDeclaration,
    ProcessorKind, ProcessorSettings, ReactorDeclaration, SourceText, Start, TableDeclaration,
    handler_timeout,
};
use crate::retry::RetryPolicy;

const ADVISE_READS: &str = "write a list of tables of other processors: reads = [\"customers\"]";

const ADVISE_EMITS: &str = "write a list of event types: emits = [\"SomethingHappened\"]";

/// What a processor inherits unless it says otherwise.
pub(crate) struct Defaults {
    pub(crate) batch: BatchLimits,
    pub(crate) retry: RetryPolicy,
    pub(crate) isolation: Isolation,
    pub(crate) on_handler_change: OnHandlerChange,
}

impl Defaults {
    /// What happens when the handlers of a processor have changed. What a reactor has done cannot be undone.
    fn on_handler_change_of(&self, kind: ProcessorKind) -> OnHandlerChange {
        match (kind, self.on_handler_change) {
            (ProcessorKind::Reactor, OnHandlerChange::Rebuild) => OnHandlerChange::Warn,
            (_, on_handler_change) => on_handler_change,
        }
    }
}

/// A processor, and what its section itself says of how it is run; `None` if a mistake leaves it incomplete.
pub(crate) fn read_processor(
    section: &Section<'_>,
    kind: ProcessorKind,
    defaults: &Defaults,
) -> Option<(ProcessorDeclaration, ProcessorSettings)> {
    // Everything is read before anything is given up, so that all mistakes are reported.
    let name = read_name(section);
    let version = section.integer("version");
    let batch = read_batch_limits(section, defaults.batch);
    let retry_section = section.section("retry");
    let retry = retry_section.as_ref().map(|retry| read_retry(retry, defaults.retry));
    let isolation = section.value("isolation").and_then(|value| read_isolation(&value));
    let on_handler_change = section.choice("on_handler_change");
    let tables = section.value("tables").map(|tables| read_tables(&tables)).unwrap_or_default();
    let ddl = section.value("ddl").map(|ddl| read_ddl(&ddl)).unwrap_or_default();
    let handling = read_handling(section, kind);
    let handler_timeout = section.duration("handler_timeout").unwrap_or_else(handler_timeout);
    let start = section.value("start").and_then(|start| read_start(&start));
    let reads = section.value("reads").map(|reads| read_reads(&reads, &tables)).unwrap_or_default();
    let synchronous = if kind == ProcessorKind::Projector { section.choice("synchronous") } else { None };
    let fold = if kind == ProcessorKind::Projector {
        section.value("fold").and_then(|fold| fold.boolean())
    } else {
        None
    };
    let aggregate_column =
        if kind == ProcessorKind::Projector { read_aggregate_column(section, &tables, &ddl) } else { None };
    let is_projector = kind == ProcessorKind::Projector;
    let approve = if is_projector { section.choice("approve") } else { None };
    let checks = if is_projector { read_checks(section) } else { Vec::new() };
    let reactor = (kind == ProcessorKind::Reactor).then(|| read_reactor(section));
    let mut declaration = ProcessorDeclaration {
        name: name?,
        version: i32::try_from(version?).ok()?,
        tables,
        ddl,
        handling: handling?,
        batch,
        retry: retry.unwrap_or(defaults.retry),
        isolation: isolation.unwrap_or_else(|| defaults.isolation.clone()),
        on_handler_change: on_handler_change.unwrap_or_else(|| defaults.on_handler_change_of(kind)),
        handler_timeout,
        start,
        reads,
        synchronous,
        fold: fold.unwrap_or(true),
        aggregate_column,
        approve: approve.unwrap_or_default(),
        checks,
        reactor,
        read_through: None,
        scope: None,
    };
    // What is left out of a native processor, its program may say.
    if !matches!(declaration.handling, Handling::Native(_)) {
        declaration.start = Some(declaration.start());
    }
    let said = said_in(section, retry_section.as_ref(), &declaration);
    Some((declaration, said))
}

fn read_name(section: &Section<'_>) -> Option<String> {
    let value = section.value("name")?;
    let name = value.name_for("processor")?;
    value.location.reserve("processor", &name, "give each processor a name of its own");
    Some(name)
}

fn read_reactor(section: &Section<'_>) -> ReactorDeclaration {
    let emits = section.value("emits").and_then(|emits| emits.items(ADVISE_EMITS));
    let chain_max = section.integer("chain_max").and_then(|most| u32::try_from(most).ok());
    let default = ReactorDeclaration::default();
    ReactorDeclaration {
        chain_max: chain_max.unwrap_or(default.chain_max),
        emits: emits.map(|items| read_event_types(&items)).unwrap_or_default(),
    }
}

/// The tables of other processors that the handlers read.
fn read_reads(value: &Value<'_>, own: &[TableDeclaration]) -> Vec<SourceText> {
    let mut names: Vec<SourceText> = Vec::new();
    for item in value.items(ADVISE_READS).unwrap_or_default() {
        let Some(name) = item.text() else { continue };
        if !is_name(&name) {
            item.location
                .report(format!("{} is not a name for a table", item.as_written()), advise_name(&name));
        } else if own.iter().any(|table| table.name == name) {
            let message = format!("{name} is a table of this processor, which it reads anyway");
            item.location.report(message, "remove it");
        } else if names.iter().any(|listed| listed.text == name) {
            item.location.report(format!("{} is listed twice", item.as_written()), "remove one of the two");
        } else {
            let SourceText { file, line, column, .. } = item.place();
            names.push(SourceText::new(&name, &file, line, column));
        }
    }
    names
}

fn read_start(value: &Value<'_>) -> Option<Start> {
    let Some(words) = value.text_if_string() else {
        return value.integer_within(0..=i64::MAX).map(|position| Start::Position(position.into()));
    };
    match words.as_str() {
        "beginning" => Some(Start::Beginning),
        "now" => Some(Start::Now),
        time => match time.parse::<DateTime<Utc>>() {
            Ok(time) => Some(Start::Time(time)),
            Err(_) => {
                let advice = "write \"now\", \"beginning\", a position like 1234, or a time like \"2026-01-31T00:00:00Z\"";
                value.location.report(format!("{} is no place to start", value.as_written()), advice);
                None
            }
        },
    }
}

fn read_tables(value: &Value<'_>) -> Vec<TableDeclaration> {
    let advice = "write [projector.tables] and `table_name = \"columns\"` below it";
    let mut tables = Vec::new();
    for (key, value) in value.entries(advice).unwrap_or_default() {
        let table = read_table(key.name, &value);
        if table.as_ref().and_then(TableDeclaration::find_semicolon).is_some() {
            let message = format!("`;` ends the statement that creates {}", key.name);
            let advice = "write one list of columns; what else is to be done belongs to `ddl`";
            value.location.report(message, advice);
        }
        if is_table_name(&key) {
            let advice = "a table belongs to one projector; give this one another name";
            key.location.reserve("table", key.name, advice);
            tables.extend(table);
        }
    }
    tables
}

/// A table, which is declared by a text, or by a table of `columns`, `options` and `comment`.
fn read_table(name: &str, value: &Value<'_>) -> Option<TableDeclaration> {
    let Some(table) = value.table_of(&keys::TABLE) else {
        return value.sql().map(|columns| TableDeclaration::new(name, columns));
    };
    let (columns, options) = (table.sql("columns"), table.sql("options"));
    let comment = table.text("comment");
    Some(TableDeclaration { options, comment, ..TableDeclaration::new(name, columns?) })
}

/// Whether a table may have this name; reports it if not.
fn is_table_name(key: &ChosenKey<'_>) -> bool {
    if !is_name(key.name) {
        let message = format!("`{}` is not a name for a table", key.name.escape_debug());
        key.location.report(message, advise_name(key.name));
        return false;
    }
    if key.name == "event" {
        let advice = "choose another name; `event` is the event in a handler";
        key.location.report("a table cannot be called `event`", advice);
        return false;
    }
    true
}

/// The column of each table that has the aggregate. Where only the database knows the columns of a table, `espctl check` asks it.
fn read_aggregate_column(
    section: &Section<'_>,
    tables: &[TableDeclaration],
    ddl: &[SourceText],
) -> Option<String> {
    let value = section.value("aggregate_column")?;
    let name = value.name_for("column")?;
    // The program of a native processor says which tables it has.
    let is_told = ["tables", "native"].iter().any(|key| section.value_if_known(key).is_some());
    if !is_told {
        let message = format!("no table is declared that could have the column {name}");
        value.location.report(message, "declare it below [projector.tables], or remove `aggregate_column`");
    }
    if ddl.iter().any(may_alter) {
        return Some(name);
    }
    for (table, columns) in tables.iter().filter_map(|table| Some((table, own_columns(table)?))) {
        if !columns.contains(&name) {
            let guess = nearest(&name, columns.iter().map(String::as_str));
            let guess = guess.map(|near| format!("did you mean {near:?}? ")).unwrap_or_default();
            let advice =
                format!("{guess}name a column that each of its tables has, or remove `aggregate_column`");
            value.location.report(format!("table {} has no column {name}", table.name), advice);
        }
    }
    Some(name)
}

/// Whether a statement of `ddl` may give a table another column.
fn may_alter(ddl: &SourceText) -> bool {
    let text = ddl.text.to_lowercase();
    !text.trim_start().starts_with("create") || text.contains("alter")
}

fn read_ddl(value: &Value<'_>) -> Vec<SourceText> {
    let statements =
        value.items("write a list of statements: ddl = [\"create index …\"]").unwrap_or_default();
    let read = |statement: &Value<'_>| {
        let sql = statement.sql()?;
        if let Some(command) = find_transaction_command(&sql.text) {
            let advice = "remove it: tables, ddl and position are committed together";
            statement.location.report(format!("`{command}` is not for ddl"), advice);
        }
        Some(sql)
    };
    statements.iter().filter_map(read).collect()
}

/// A command that would end the transaction in which the tables are made.
fn find_transaction_command(text: &str) -> Option<String> {
    let tokens = lexer::tokens(text).unwrap_or_default();
    let ends = |statement: &[Token<'_>]| {
        let is_first = |words: &[&str]| words.iter().any(|word| statement[0].is_word(word));
        let is_partial = statement.iter().any(|token| token.is_word("to"));
        let is_block = statement[0].is_word("end") && tokens.iter().any(|token| token.is_word("atomic"));
        (is_first(&["commit", "abort", "end"]) || is_first(&["rollback"]) && !is_partial) && !is_block
            || is_first(&["prepare"]) && statement.get(1).is_some_and(|token| token.is_word("transaction"))
    };
    lexer::statements(&tokens).find(|statement| ends(statement)).map(|statement| statement[0].text.to_owned())
}

/// The keys that say what handles the events; a processor has one of them.
const WAYS: [&str; 4] = ["on", "command", "webhook", "native"];

/// What handles the events: declared SQL, a program, a receiver of requests, or the program that espd is part of.
fn read_handling(section: &Section<'_>, kind: ProcessorKind) -> Option<Handling> {
    let ways: Vec<_> = WAYS.iter().filter_map(|key| section.value_if_known(key)).collect();
    if let [first, second, ..] = ways.as_slice() {
        let message = format!("`{}` cannot be combined with `{}`", second.name(), first.name());
        let advice = "remove one of them: the events of a processor are handled in one way";
        second.location.report(message, advice);
        return None;
    }
    let way = ways.first().map(Value::name);
    if kind == ProcessorKind::Projector && way.is_some_and(|way| way != "on") {
        refuse_synchronous(section);
        refuse_fold(section);
    }
    if way != Some("command") {
        refuse_companions(section);
    }
    if way != Some("native")
        && let Some(value) = section.value_if_known("handler_timeout")
    {
        let advice =
            "remove it: it is for handlers in Rust. A program has `command_timeout`, a webhook has `timeout`";
        value.location.report("`handler_timeout` cannot be used without `native`", advice);
    }
    match way {
        Some("command") => read_program(section).map(Handling::Program),
        Some("webhook") => read_webhook(section).map(Handling::Webhook),
        Some("native") => read_native(section),
        _ => {
            refuse_events(section, kind);
            Some(Handling::Sql(read_handlers(section, kind)))
        }
    }
}

/// Only SQL can run inside the transactions of others.
fn refuse_synchronous(section: &Section<'_>) {
    if let Some(value) = section.value("synchronous") {
        let advice = "remove it, or write the handlers in SQL, below [[projector.on]]";
        value.location.report("only a projector in SQL can be synchronous", advice);
    }
}

/// Only the effect of SQL is known before it runs.
fn refuse_fold(section: &Section<'_>) {
    if let Some(value) = section.value("fold") {
        value.location.report("only batches of SQL handlers can be folded", "remove it");
    }
}

/// Only a processor without SQL handlers has `events` of its own: each SQL handler names its events.
fn refuse_events(section: &Section<'_>, kind: ProcessorKind) {
    if let Some(events) = section.value("events") {
        let advice = format!("write it below [[{}.on]]", kind.as_str());
        events.location.report("`events` cannot be used without `command` or `webhook`", advice);
    }
}

/// The Rust program that registers the processor says which events it handles, and in which tables.
fn read_native(section: &Section<'_>) -> Option<Handling> {
    let native = section.value("native")?;
    if !native.boolean()? {
        native.location.report("`native = false` says nothing", "remove it");
    }
    for key in ["events", "tables", "ddl", "version", "emits"] {
        if let Some(value) = section.value_if_known(key) {
            let message = format!("`{key}` cannot be combined with `native`");
            value.location.report(message, "remove it: the program says it where it registers the processor");
        }
    }
    Some(Handling::Native(HandledEvents::All))
}

/// What has to be true of the tables of a version before it goes live.
fn read_checks(section: &Section<'_>) -> Vec<Check> {
    let read = |check: &Section<'_>| {
        let (name, sql) = (check.text("name"), check.sql("sql"));
        Some(Check { name: name?, sql: sql? })
    };
    section.sections("check").iter().filter_map(read).collect()
}

fn read_handlers(section: &Section<'_>, kind: ProcessorKind) -> Vec<Handler> {
    let kind = kind.as_str();
    let advice = format!("write [[{kind}.on]] with `events` and `sql` below it");
    let Some(on) = section.require("on", &advice) else { return Vec::new() };
    let Some(handlers) = on.sections() else { return Vec::new() };
    if handlers.is_empty() {
        on.location.report(format!("a {kind} without handlers does nothing"), advice);
    }
    handlers.iter().filter_map(read_handler).collect()
}

fn read_handler(section: &Section<'_>) -> Option<Handler> {
    let events = section.value("events").and_then(|events| read_events(&events));
    let sql = section.sql("sql");
    Some(Handler { events: events?, sql: sql? })
}
