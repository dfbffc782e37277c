//! The configuration as people may see it.

use serde_json::{Map, Value, json};

use super::reader::quantity::{format_duration, format_size};
use super::sections::admin::{AdminSettings, Token};
use super::{Config, EventStoreSettings};
use crate::postgres::database_url::DatabaseUrl;
use crate::processing::declaration::{
    BatchLimits, HandledEvents, Handler, Handling, Header, ProcessorDeclaration, Reaction, SourceText, Start,
    WebhookDeclaration,
};
use crate::processing::processor::ProcessorKind;
use crate::retry::RetryPolicy;
use crate::store::layout::LayoutSettings;
use crate::store::upcast::Upcast;

/// The configuration in the shape of its file, defaults filled in, passwords hidden.
pub(super) fn redact(config: &Config) -> Value {
    let mut shown = json!({
        "event_store": show_layout(&config.event_store),
        "projections": { "schema": config.projections.schema },
        "runner": {
            "poll_interval_max": format_duration(config.runner.poll_interval_max),
            "shutdown_timeout": format_duration(config.runner.shutdown_timeout),
            "isolation": config.runner.isolation.to_string(),
            "hang_timeout": format_duration(config.runner.hang_timeout),
            "restart_max": format_duration(config.runner.restart_max),
        },
        "retry": show_retry(&config.retry),
        "log": { "format": config.log.format, "level": config.log.level },
        "upcast": config.upcasts.iter().map(show_upcast).collect::<Vec<_>>(),
        "projector": show_processors(config, ProcessorKind::Projector),
        "reactor": show_processors(config, ProcessorKind::Reactor),
    });
    show_url(&mut shown["event_store"], "url", config.event_store.url.as_ref());
    show_url(&mut shown["event_store"], "direct_url", config.event_store.direct_url.as_ref());
    show_url(&mut shown["projections"], "url", config.projections.url.as_ref());
    show_url(&mut shown["projections"], "direct_url", config.projections.direct_url.as_ref());
    if let Some(memory_max) = config.runner.memory_max {
        shown["runner"]["memory_max"] = json!(format_size(memory_max));
    }
    show_batch_limits(&mut shown["runner"], &config.runner.batch);
    shown["hooks"] = json!({
        "on_worker_end": config.hooks.on_worker_end,
        "on_failure": config.hooks.on_failure,
        "on_dead_letter": config.hooks.on_dead_letter,
        "timeout": format_duration(config.hooks.timeout),
    });
    if let Some(admin) = &config.admin {
        shown["admin"] = show_admin(admin);
    }
    escape_variables(&mut shown);
    shown
}

/// Writes `${` so that reading it again gives `${`. SQL is taken as it is.
fn escape_variables(value: &mut Value) {
    match value {
        Value::String(text) => *text = text.replace("${", "$${"),
        Value::Array(items) => items.iter_mut().for_each(escape_variables),
        Value::Object(members) => {
            let values = members
                .iter_mut()
                .filter(|(key, _)| !matches!(key.as_str(), "tables" | "ddl" | "sql" | "body" | "when"));
            values.for_each(|(_, value)| escape_variables(value));
        }
        _ => {}
    }
}

/// Whether there are tokens, not which.
fn show_admin(admin: &AdminSettings) -> Value {
    let mut shown = json!({ "listen": admin.listen.to_string(), "allowed_hosts": admin.allowed_hosts });
    let mut show = |key: &str, token: &Option<Token>| {
        if token.is_some() {
            shown[key] = json!("***");
        }
    };
    show("read_token", &admin.read_token);
    show("operator_token", &admin.operator_token);
    shown
}

fn show_layout(settings: &EventStoreSettings) -> Value {
    let mut shown = json!({ "layout": "espd", "schema": settings.schema });
    if let LayoutSettings::EventSourcery(names) = &settings.layout {
        shown["layout"] = json!("event_sourcery");
        shown["event_sourcery"] = json!(names);
        if names.sequence.is_none() {
            shown["event_sourcery"]["sequence"] = json!(format!("{}_id_seq", names.events_table));
        }
    }
    shown
}

/// TOML has no null, so a URL that is absent is left out.
fn show_url(section: &mut Value, key: &str, url: Option<&DatabaseUrl>) {
    if let Some(url) = url {
        section[key] = json!(url.to_string());
    }
}

fn show_batch_limits(section: &mut Value, limits: &BatchLimits) {
    section["batch_size"] = json!(limits.size);
    section["batch_bytes"] = json!(format_size(limits.bytes));
    section["batch_time"] = json!(format_duration(limits.time));
    section["batch_span"] = json!(limits.span);
}

fn show_retry(policy: &RetryPolicy) -> Value {
    let mut shown = json!({
        "strategy": policy.strategy,
        "initial": format_duration(policy.initial),
        "max": format_duration(policy.max),
        "jitter": policy.jitter,
        "on_failure": policy.on_failure,
    });
    if let Some(most) = policy.max_attempts {
        shown["max_attempts"] = json!(most);
    }
    shown
}

fn show_upcast(upcast: &Upcast) -> Value {
    let mut shown = json!({ "events": upcast.events });
    if let Some(event_type) = &upcast.event_type {
        shown["type"] = json!(event_type);
    }
    for (key, sql) in [("body", &upcast.body), ("when", &upcast.when)] {
        if let Some(sql) = sql {
            shown[key] = json!(sql.text);
        }
    }
    shown
}

fn show_processors(config: &Config, kind: ProcessorKind) -> Vec<Value> {
    config.processors.iter().filter(|processor| processor.kind() == kind).map(show_processor).collect()
}

fn show_processor(projector: &ProcessorDeclaration) -> Value {
    let table = |table: &crate::processing::declaration::TableDeclaration| {
        (table.name.clone(), json!(table.columns.text))
    };
    let mut shown = json!({
        "name": projector.name,
        "version": projector.version,
        "isolation": projector.isolation.to_string(),
        "retry": show_retry(&projector.retry),
        "tables": projector.tables.iter().map(table).collect::<Map<_, _>>(),
        "ddl": projector.ddl.iter().map(|statement: &SourceText| &statement.text).collect::<Vec<_>>(),
    });
    show_handling(&mut shown, &projector.handling);
    show_batch_limits(&mut shown, &projector.batch);
    if let Some(Reaction { emits, start, chain_max }) = &projector.reaction {
        shown["chain_max"] = json!(chain_max);
        shown["emits"] = json!(emits);
        shown["start"] = match start {
            Start::Beginning => json!("beginning"),
            Start::Now => json!("now"),
            Start::Position(position) => json!(position),
            Start::Time(time) => json!(time),
        };
    }
    shown
}

fn show_handling(shown: &mut Value, handling: &Handling) {
    match handling {
        Handling::Sql(handlers) => shown["on"] = handlers.iter().map(show_handler).collect(),
        Handling::Native(_) => {
            shown["native"] = json!(true);
            for key in ["version", "tables", "ddl"] {
                shown.as_object_mut().map(|keys| keys.remove(key));
            }
        }
        Handling::Program(program) => {
            shown["events"] = show_events(&program.events);
            shown["command"] = json!(program.command);
            shown["command_timeout"] = json!(format_duration(program.timeout));
            if let Some(memory_max) = program.memory_max {
                shown["command_memory_max"] = json!(format_size(memory_max.cast_signed()));
            }
            let hidden = program.environment.keys().map(|name| (name.clone(), json!("***")));
            shown["command_environment"] = hidden.collect::<Map<_, _>>().into();
        }
        Handling::Webhook(webhook) => {
            shown["events"] = show_events(&webhook.events);
            shown["webhook"] = show_webhook(webhook);
            for key in ["tables", "ddl"] {
                shown.as_object_mut().map(|keys| keys.remove(key));
            }
        }
    }
}

/// How many secrets and which headers there are, not what they are.
fn show_webhook(webhook: &WebhookDeclaration) -> Value {
    let hidden = |header: &Header| (header.name.clone(), json!("***"));
    let mut shown = json!({
        "url": webhook.url.to_string(),
        "secrets": vec!["***"; webhook.secrets.len()],
        "concurrency": webhook.concurrency,
        "connect_timeout": format_duration(webhook.connect_timeout),
        "timeout": format_duration(webhook.timeout),
        "allow_private": webhook.allow_private,
        "allow_http": webhook.url.is_plain(),
        "headers": webhook.headers.iter().map(hidden).collect::<Map<_, _>>(),
    });
    if let Some(file) = &webhook.ca_file {
        shown["ca_file"] = json!(file);
    }
    shown
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
