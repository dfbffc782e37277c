//! Reads `[projector]` and `[reactor]`.

use chrono::{DateTime, Utc};

use super::isolation::read_isolation;
use super::program::{read_program, refuse_companions};
use super::store::{read_batch_limits, read_retry};
use super::webhook::read_webhook;
use crate::config::keys::{self, Keys};
use crate::config::reader::tree::Section;
use crate::config::reader::value::{Value, advise_name};
use crate::postgres::name::is_name;
use crate::processing::declaration::{
    BatchLimits, HandledEvents, Handler, Handling, Isolation, ProcessorDeclaration, Reaction, SourceText,
    Start, TableDeclaration,
};
use crate::retry::RetryPolicy;

const ADVISE_EMITS: &str = "write a list of event types: emits = [\"SomethingHappened\"]";

pub(crate) const ADVISE_EVENTS: &str =
    "write a list of event types: events = [\"SomethingHappened\"], or [\"*\"] for all";

/// How a kind of processor is written.
pub(crate) struct Form {
    /// The key of its sections.
    pub(crate) key: &'static str,
    pub(crate) keys: &'static Keys,
    retry: &'static Keys,
    handler: &'static Keys,
}

pub(crate) const PROJECTOR: Form =
    Form { key: "projector", keys: &keys::PROJECTOR, retry: &keys::PROJECTOR_RETRY, handler: &keys::HANDLER };

pub(crate) const REACTOR: Form = Form {
    key: "reactor",
    keys: &keys::REACTOR,
    retry: &keys::REACTOR_RETRY,
    handler: &keys::REACTOR_HANDLER,
};

/// What a processor inherits unless it says otherwise.
pub(crate) struct Defaults {
    pub(crate) batch: BatchLimits,
    pub(crate) retry: RetryPolicy,
    pub(crate) isolation: Isolation,
}

/// A processor, or `None` where a fault leaves it incomplete.
pub(crate) fn read_processor(
    section: &Section<'_>,
    form: &Form,
    defaults: &Defaults,
) -> Option<ProcessorDeclaration> {
    // Everything is read before anything is given up, so that all faults are noted.
    let name = read_name(section);
    let version =
        section.value("version").map_or(Some(1), |version| version.integer(1..=i64::from(i32::MAX)));
    let batch = read_batch_limits(section, defaults.batch);
    let retry = section.value("retry").and_then(|retry| retry.section(form.retry));
    let retry = retry.map_or(defaults.retry, |retry| read_retry(&retry, defaults.retry));
    let isolation = section.value("isolation").and_then(|value| read_isolation(&value));
    let tables = section.value("tables").map(|tables| read_tables(&tables)).unwrap_or_default();
    let ddl = section.value("ddl").map(|ddl| read_ddl(&ddl)).unwrap_or_default();
    let handling = read_handling(section, form);
    let reaction = (form.key == REACTOR.key).then(|| read_reaction(section));
    Some(ProcessorDeclaration {
        name: name?,
        version: i32::try_from(version?).ok()?,
        tables,
        ddl,
        handling: handling?,
        batch,
        retry,
        isolation: isolation.unwrap_or_else(|| defaults.isolation.clone()),
        reaction,
    })
}

fn read_name(section: &Section<'_>) -> Option<String> {
    let value = section.require("name", "write `name = \"…\"`, unique among all processors")?;
    let name = value.name("processor")?;
    value.location.reserve("processor", &name, "give each processor a name of its own");
    Some(name)
}

fn read_reaction(section: &Section<'_>) -> Reaction {
    let emits = section.value("emits").and_then(|emits| emits.items(ADVISE_EMITS));
    let chain_max = section.value("chain_max").and_then(|most| most.integer(1..=10_000));
    let default = Reaction::default();
    Reaction {
        chain_max: chain_max.and_then(|most| u32::try_from(most).ok()).unwrap_or(default.chain_max),
        emits: emits.map(|items| read_event_types(&items)).unwrap_or_default(),
        start: section.value("start").and_then(|start| read_start(&start)).unwrap_or_default(),
    }
}

fn read_start(value: &Value<'_>) -> Option<Start> {
    let Some(words) = value.written_text() else {
        return value.integer(0..=i64::MAX).map(|position| Start::Position(position.into()));
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
    let mut tables = Vec::new();
    for (key, columns) in
        value.entries("write [projector.tables] and `table_name = \"columns\"` below it").unwrap_or_default()
    {
        let columns = columns.sql();
        if !is_name(key.name) {
            key.location.report(
                format!("`{}` is not a name for a table", key.name.escape_debug()),
                advise_name(key.name),
            );
            continue;
        }
        if key.name == "event" {
            key.location.report(
                "a table cannot be called `event`",
                "choose another name; `event` is the event in a handler",
            );
            continue;
        }
        key.location.reserve(
            "table",
            key.name,
            "a table belongs to one projector; give this one another name",
        );
        tables.extend(columns.map(|columns| TableDeclaration { name: key.name.to_owned(), columns }));
    }
    tables
}

fn read_ddl(value: &Value<'_>) -> Vec<SourceText> {
    let statements =
        value.items("write a list of statements: ddl = [\"create index …\"]").unwrap_or_default();
    statements.iter().filter_map(Value::sql).collect()
}

/// The keys that say who handles the events; a processor has one of them.
const WAYS: [&str; 4] = ["on", "command", "webhook", "native"];

/// Who handles the events: declared SQL, a program, a receiver of requests, or the program that espd is part of.
fn read_handling(section: &Section<'_>, form: &Form) -> Option<Handling> {
    let known = |key: &&&'static str| form.keys.names.contains(*key);
    let ways: Vec<_> = WAYS.iter().filter(known).filter_map(|key| section.value(key)).collect();
    if let [first, second, ..] = ways.as_slice() {
        let message = format!("`{}` stands beside `{}`", second.key(), first.key());
        second
            .location
            .report(message, "remove one of them: the events of a processor are handled in one way");
        return None;
    }
    let way = ways.first().map(Value::key);
    if way != Some("command") {
        refuse_companions(section);
    }
    match way {
        Some("command") => read_program(section).map(Handling::Program),
        Some("webhook") => read_webhook(section).map(Handling::Webhook),
        Some("native") => read_native(section),
        _ => {
            refuse_events(section, form);
            Some(Handling::Sql(read_handlers(section, form)))
        }
    }
}

/// `events` beside the processor's name is for those without handlers of their own.
fn refuse_events(section: &Section<'_>, form: &Form) {
    if let Some(events) = section.value("events") {
        let advice = format!("write it below {}", form.handler.title);
        events.location.report("`events` stands without `command` or `webhook`", advice);
    }
}

/// What it handles, and in which tables, the program knows that has registered it.
fn read_native(section: &Section<'_>) -> Option<Handling> {
    let native = section.value("native")?;
    if !native.boolean()? {
        native.location.report("`native = false` says nothing", "remove it");
    }
    for key in ["events", "tables", "ddl", "version", "emits"] {
        if let Some(value) = section.value_if_known(key) {
            let message = format!("`{key}` stands beside `native`");
            value.location.report(message, "remove it: the program says it where it registers the processor");
        }
    }
    Some(Handling::Native(HandledEvents::All))
}

fn read_handlers(section: &Section<'_>, form: &Form) -> Vec<Handler> {
    let advice = format!("write {} with `events` and `sql` below it", form.handler.title);
    let Some(on) = section.require("on", &advice) else { return Vec::new() };
    let Some(handlers) = on.sections(form.handler) else { return Vec::new() };
    if handlers.is_empty() {
        on.location.report(format!("a {} without handlers does nothing", form.key), advice);
    }
    handlers.iter().filter_map(read_handler).collect()
}

fn read_handler(section: &Section<'_>) -> Option<Handler> {
    let events = section
        .require("events", "write `events = [\"SomethingHappened\"]`, or `events = [\"*\"]` for all")
        .and_then(|events| read_events(&events));
    let sql = section.require("sql", "write `sql = \"\"\" … \"\"\"`").and_then(|sql| sql.sql());
    Some(Handler { events: events?, sql: sql? })
}

pub(crate) fn read_events(value: &Value<'_>) -> Option<HandledEvents> {
    let items = value.items(ADVISE_EVENTS)?;
    if items.is_empty() {
        value.location.report("a handler without event types handles nothing", ADVISE_EVENTS);
    }
    let types = read_event_types(&items);
    if !types.iter().any(|event_type| event_type == "*") {
        return Some(HandledEvents::Types(types));
    }
    if types.len() > 1 {
        let advice = "write [\"*\"] alone, or split this into two handlers; both run, in order";
        value.location.report("`*` stands for all types and allows no other beside it", advice);
    }
    Some(HandledEvents::All)
}

pub(crate) fn read_event_types(items: &[Value<'_>]) -> Vec<String> {
    let mut types = Vec::new();
    for item in items {
        match item.text() {
            Some(event_type) if event_type.trim().is_empty() => {
                item.location.report("an event type is never empty", ADVISE_EVENTS);
            }
            Some(event_type) if types.contains(&event_type) => {
                item.location
                    .report(format!("{} is listed twice", item.as_written()), "remove one of the two");
            }
            event_type => types.extend(event_type),
        }
    }
    types
}
