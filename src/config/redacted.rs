//! The configuration as people may see it: in the shape of its file, defaults filled in, secrets hidden.
//!
//! The functions below say which value belongs to which key. What the table of keys says is done in one place,
//! [`apply_keys`]: secrets are hidden, and what looks like a variable is escaped.

use serde_json::{Map, Value, json};

use super::keys;
use super::reader::key::{Keys, Kind};
use super::reader::quantity::{format_duration, format_size};
use super::sections::admin::AdminSettings;
use super::{Config, EventStoreSettings, RunnerSection};
use crate::processing::declaration::{
    BatchLimits, Check, HandledEvents, Handler, Handling, ProcessorDeclaration, ProcessorKind,
    ProcessorSettings, ProgramDeclaration, SourceText, Start, TableDeclaration, WebhookDeclaration,
};
use crate::retry::RetryPolicy;
use crate::store::declared_event::DeclaredEvent;
use crate::store::layout::{EspdNames, LayoutSettings};
use crate::store::upcast::Upcast;
use crate::supervision::hooks::HookSettings;

/// What is shown in the place of a secret.
const HIDDEN: &str = "***";

/// The configuration in the shape of its file.
pub(super) fn redact(config: &Config) -> Value {
    let mut shown = json!({
        "event_store": show_event_store(&config.event_store),
        "projections": {
            "url": config.projections.url.as_ref().map(ToString::to_string),
            "direct_url": config.projections.direct_url.as_ref().map(ToString::to_string),
            "schema": config.projections.schema,
            "search_path": config.projections.search_path,
            "settings": config.projections.settings,
        },
        "runner": show_runner(&config.runner),
        "rebuild": {
            "parallelism": config.rebuild.parallelism, "workers": config.rebuild.workers,
            "database_size_max": config.rebuild.database_size_max.map(format_size), "share": config.rebuild.share,
        },
        "retry": show_retry(&config.retry),
        "verify": { "share": config.verify.share },
        "log": {
            "format": config.log.format,
            "level": config.log.level,
            "query_literals": config.log.query_literals,
        },
        "admin": config.admin.as_ref().map(show_admin),
        "hooks": show_hooks(&config.hooks),
        "upcast": config.upcasts.iter().filter(|upcast| !upcast.in_program).map(show_upcast).collect::<Vec<_>>(),
        "event": config.events.iter().map(show_event).collect::<Vec<_>>(),
        "projector": show_processors(config, ProcessorKind::Projector),
        "reactor": show_processors(config, ProcessorKind::Reactor),
    });
    apply_keys(&mut shown, &keys::MAIN_FILE);
    shown
}

/// Removes what is absent, as TOML has no null; hides secrets; escapes what reading would take for a variable.
fn apply_keys(section: &mut Value, keys: &Keys) {
    let Value::Object(members) = section else { return };
    members.retain(|_, value| !value.is_null());
    for (name, value) in members {
        let Some(key) = keys.find(name) else {
            debug_assert!(false, "`{name}` is missing from the table of keys");
            continue;
        };
        match (key.kind, value) {
            (Kind::Section(inner), value) => apply_keys(value, inner),
            (Kind::Sections(inner), Value::Array(items)) => {
                items.iter_mut().for_each(|item| apply_keys(item, inner));
            }
            (Kind::Sql | Kind::SqlList, _) => {}
            (Kind::Tables(inner), Value::Object(tables)) => {
                tables.values_mut().for_each(|table| apply_keys(table, inner));
            }
            // `Display` of a URL has hidden its secret parts.
            (kind, value) if key.is_secret && !matches!(kind, Kind::Url) => {
                replace_texts(value, &|_| HIDDEN.to_owned());
            }
            (_, value) => replace_texts(value, &|text| text.replace("${", "$${")),
        }
    }
}

/// Replaces every string in a value.
fn replace_texts(value: &mut Value, replace: &dyn Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = replace(text),
        Value::Array(items) => items.iter_mut().for_each(|item| replace_texts(item, replace)),
        Value::Object(members) => members.values_mut().for_each(|member| replace_texts(member, replace)),
        _ => {}
    }
}

fn show_event_store(settings: &EventStoreSettings) -> Value {
    let mut shown = json!({
        "url": settings.url.as_ref().map(ToString::to_string),
        "direct_url": settings.direct_url.as_ref().map(ToString::to_string),
        "layout": "espd",
        "schema": settings.schema,
    });
    match &settings.layout {
        LayoutSettings::Espd(names) if *names == EspdNames::default() => {}
        LayoutSettings::Espd(names) => shown["espd"] = json!(names.resolved()),
        LayoutSettings::EventSourcery(names) => {
            shown["layout"] = json!("event_sourcery");
            shown["event_sourcery"] = json!(names);
            if names.sequence.is_none() {
                shown["event_sourcery"]["sequence"] = json!(format!("{}_id_seq", names.events_table));
            }
        }
    }
    shown
}

fn show_runner(runner: &RunnerSection) -> Value {
    let mut shown = json!({
        "poll_interval_max": format_duration(runner.poll_interval_max),
        "shutdown_timeout": format_duration(runner.shutdown_timeout),
        "isolation": runner.isolation.to_string(),
        "on_handler_change": runner.on_handler_change.to_string(),
        "hang_timeout": format_duration(runner.hang_timeout),
        "memory_max": runner.memory_max.map(format_size),
        "restart_max": format_duration(runner.restart_max),
    });
    show_batch_limits(&mut shown, &runner.batch);
    shown
}

/// Whether there are tokens, not which.
fn show_admin(admin: &AdminSettings) -> Value {
    json!({
        "listen": admin.listen.to_string(),
        "read_token": admin.read_token.as_ref().map(|_| HIDDEN),
        "operator_token": admin.operator_token.as_ref().map(|_| HIDDEN),
        "allowed_hosts": admin.allowed_hosts,
    })
}

fn show_hooks(hooks: &HookSettings) -> Value {
    json!({
        "on_worker_start": hooks.on_worker_start,
        "on_worker_end": hooks.on_worker_end,
        "on_failure": hooks.on_failure,
        "on_dead_letter": hooks.on_dead_letter,
        "on_diverged": hooks.on_diverged,
        "timeout": format_duration(hooks.timeout),
    })
}

fn show_batch_limits(section: &mut Value, limits: &BatchLimits) {
    section["batch_size"] = json!(limits.size);
    section["batch_size_max"] = json!(limits.size_max);
    section["batch_bytes"] = json!(format_size(limits.bytes));
    section["batch_time"] = json!(format_duration(limits.time));
    section["batch_span"] = json!(limits.span);
}

fn show_retry(policy: &RetryPolicy) -> Value {
    json!({
        "strategy": policy.strategy,
        "initial": format_duration(policy.initial),
        "max": format_duration(policy.max),
        "jitter": policy.jitter,
        "max_attempts": policy.max_attempts,
        "on_failure": policy.on_failure,
    })
}

fn show_upcast(upcast: &Upcast) -> Value {
    json!({
        "events": upcast.events,
        "type": upcast.event_type,
        "body": upcast.body.as_ref().map(|sql| &sql.text),
        "when": upcast.when.as_ref().map(|sql| &sql.text),
    })
}

fn show_event(event: &DeclaredEvent) -> Value {
    let check = if event.is_checked { "append" } else { "report" };
    json!({ "type": event.event_type, "schema": event.text, "check": check })
}

fn show_processors(config: &Config, kind: ProcessorKind) -> Vec<Value> {
    let of_kind = config.processors.iter().filter(|processor| processor.kind() == kind);
    of_kind
        .map(|processor| {
            let mut shown = show_processor(processor);
            if let Some(said) = config.said.get(&processor.name) {
                leave_to_program(&mut shown, said);
            }
            shown
        })
        .collect()
}

fn show_processor(processor: &ProcessorDeclaration) -> Value {
    let table = |table: &TableDeclaration| (table.name.clone(), show_table(table));
    let mut shown = json!({
        "name": processor.name,
        "version": processor.version,
        "isolation": processor.isolation.to_string(),
        "on_handler_change": processor.on_handler_change.to_string(),
        "retry": show_retry(&processor.retry),
        "tables": processor.tables.iter().map(table).collect::<Map<_, _>>(),
        "ddl": processor.ddl.iter().map(|statement: &SourceText| &statement.text).collect::<Vec<_>>(),
    });
    show_handling(&mut shown, &processor.handling);
    show_batch_limits(&mut shown, &processor.batch);
    shown["start"] = processor.start.map_or(Value::Null, show_start);
    shown["reads"] = json!(processor.reads.iter().map(|table| &table.text).collect::<Vec<_>>());
    shown["aggregate_column"] = json!(processor.aggregate_column);
    if processor.reactor.is_none() {
        let check = |check: &Check| json!({ "name": check.name, "sql": check.sql.text });
        shown["approve"] = json!(processor.approve.to_string());
        shown["check"] = processor.checks.iter().map(check).collect();
    }
    if let Some(reactor) = &processor.reactor {
        shown["chain_max"] = json!(reactor.chain_max);
        shown["emits"] = json!(reactor.emits);
    }
    shown
}

/// Leaves out what the section of a native processor does not say, because the program may say it.
fn leave_to_program(shown: &mut Value, said: &ProcessorSettings) {
    let unsaid = [
        ("batch_size", said.batch_size.is_none()),
        ("batch_size_max", said.batch_size_max.or(said.batch_size).is_none()),
        ("batch_bytes", said.batch_bytes.is_none()),
        ("batch_time", said.batch_time.is_none()),
        ("batch_span", said.batch_span.is_none()),
        ("isolation", said.isolation.is_none()),
        ("on_handler_change", said.on_handler_change.is_none()),
        ("handler_timeout", said.handler_timeout.is_none()),
        ("start", said.start.is_none()),
        ("chain_max", said.chain_max.is_none()),
        ("approve", said.approve.is_none()),
    ];
    let keys: Vec<&str> =
        unsaid.into_iter().filter(|(_, is_unsaid)| *is_unsaid).map(|(key, _)| key).collect();
    leave_out(shown, &keys);
    let retry = &said.retry;
    let unsaid = [
        ("strategy", retry.strategy.is_none()),
        ("initial", retry.initial.is_none()),
        ("max", retry.max.is_none()),
        ("jitter", retry.jitter.is_none()),
        ("max_attempts", retry.max_attempts.is_none()),
        ("on_failure", retry.on_failure.is_none()),
    ];
    let keys: Vec<&str> =
        unsaid.into_iter().filter(|(_, is_unsaid)| *is_unsaid).map(|(key, _)| key).collect();
    leave_out(&mut shown["retry"], &keys);
}

fn show_table(table: &TableDeclaration) -> Value {
    let TableDeclaration { columns, options, comment, .. } = table;
    if options.is_none() && comment.is_none() {
        return json!(columns.text);
    }
    json!({ "columns": columns.text, "options": options.as_ref().map(|sql| &sql.text), "comment": comment })
}

fn show_start(start: Start) -> Value {
    match start {
        Start::Beginning => json!("beginning"),
        Start::Now => json!("now"),
        Start::Position(position) => json!(position),
        Start::Time(time) => json!(time),
    }
}

fn show_handling(shown: &mut Value, handling: &Handling) {
    match handling {
        Handling::Sql(handlers) => {
            shown["on"] = handlers.iter().map(show_handler).collect();
        }
        Handling::Native(_) => {
            shown["native"] = json!(true);
            leave_out(shown, &["version", "tables", "ddl"]);
        }
        Handling::Program(program) => show_program(shown, program),
        Handling::Webhook(webhook) => {
            shown["events"] = show_events(&webhook.events);
            shown["webhook"] = show_webhook(webhook);
            leave_out(shown, &["tables", "ddl"]);
        }
    }
}

/// Leaves out keys that the reader refuses here.
fn leave_out(shown: &mut Value, keys: &[&str]) {
    for key in keys {
        shown[*key] = Value::Null;
    }
}

/// Which variables there are, not their values.
fn show_program(shown: &mut Value, program: &ProgramDeclaration) {
    let memory_max = program.memory_max.map(|size| format_size(size.cast_signed()));
    let variables = program.environment.keys().map(|name| (name.clone(), json!(HIDDEN)));
    shown["events"] = show_events(&program.events);
    shown["command"] = json!(program.command);
    shown["command_timeout"] = json!(format_duration(program.timeout));
    shown["command_memory_max"] = json!(memory_max);
    shown["command_environment"] = variables.collect::<Map<_, _>>().into();
}

/// How many secrets and which headers there are, not what they are.
fn show_webhook(webhook: &WebhookDeclaration) -> Value {
    let headers = webhook.headers.iter().map(|header| (header.name.clone(), json!(HIDDEN)));
    json!({
        "url": webhook.url.to_string(),
        "secrets": vec![HIDDEN; webhook.secrets.len()],
        "concurrency": webhook.concurrency,
        "connect_timeout": format_duration(webhook.connect_timeout),
        "timeout": format_duration(webhook.timeout),
        "allow_private": webhook.allow_private,
        "allow_http": webhook.url.is_plain(),
        "ca_file": webhook.ca_file,
        "headers": headers.collect::<Map<_, _>>(),
    })
}

fn show_handler(handler: &Handler) -> Value {
    json!({ "events": show_events(&handler.events), "sql": handler.sql.text })
}

fn show_events(events: &HandledEvents) -> Value {
    match events {
        HandledEvents::All => json!(["*"]),
        HandledEvents::Types(types) => json!(types),
    }
}
