//! The configuration as a JSON Schema, for editors: keys from the reader's own table, descriptions from the
//! commented example.
//!
//! A schema cannot say everything that the reader checks (ranges, names used twice, SQL), and does not try to:
//! what it refuses, the reader refuses.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::EXAMPLE;
use super::keys;

/// What stands in a string where its value comes from a variable.
const VARIABLE: &str = r"\$\{";

/// The schema, draft 2020-12.
pub(super) fn schema() -> Value {
    let descriptions = descriptions(EXAMPLE);
    let mut root = object("", &descriptions);
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!("espd");
    root["description"] = json!("Configuration of espd; `espctl config example` is a commented one.");
    root
}

/// A section: its keys, and no other.
fn object(prefix: &str, descriptions: &BTreeMap<String, String>) -> Value {
    let mut properties = Map::new();
    for name in keys::known_keys() {
        let Some(key) = name.strip_prefix(prefix).filter(|key| !key.contains('.')) else { continue };
        let mut property = property(&name, descriptions);
        property["description"] = json!(describe(&name, descriptions));
        properties.insert(key.to_owned(), property);
    }
    let required = match prefix {
        "projector." | "reactor." => json!(["name"]),
        "upcast." => json!(["events"]),
        "projector.on." | "reactor.on." => json!(["events", "sql"]),
        "reactor.webhook." => json!(["url"]),
        _ => json!([]),
    };
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

/// What a key is. The example says once what is the same for reactors as for projectors.
fn describe<'d>(name: &str, descriptions: &'d BTreeMap<String, String>) -> &'d str {
    let told = |name: &str| descriptions.get(name).map(String::as_str).filter(|told| !told.is_empty());
    let as_projector = || told(&name.replacen("reactor.", "projector.", 1));
    told(name).or_else(as_projector).unwrap_or_default()
}

fn property(name: &str, descriptions: &BTreeMap<String, String>) -> Value {
    let key = name.rsplit('.').next().unwrap_or(name);
    if keys::known_keys().iter().any(|other| other.starts_with(&format!("{name}."))) {
        let section = object(&format!("{name}."), descriptions);
        return match key {
            // One of them may stand alone.
            "projector" | "reactor" | "on" | "upcast" => {
                json!({ "anyOf": [section, { "type": "array", "items": section }] })
            }
            _ => section,
        };
    }
    match key {
        // There are two of this name.
        "on_failure" if !name.starts_with("hooks.") => choice(&["retry", "stop", "park", "skip"]),
        "include" | "ddl" | "command" | "events" | "emits" | "allowed_hosts" | "on_worker_end"
        | "on_failure" | "on_dead_letter" | "secrets" => {
            json!({ "type": "array", "items": { "type": "string" } })
        }
        "tables" | "command_environment" | "headers" => {
            json!({ "type": "object", "additionalProperties": { "type": "string" } })
        }
        "batch_size" | "batch_span" | "version" | "max_attempts" | "chain_max" | "concurrency" => {
            number("integer")
        }
        // A position, or a word, or a time.
        "start" => number("integer"),
        "jitter" => number("number"),
        "native" | "allow_private" | "allow_http" => json!({ "type": "boolean" }),
        "layout" => choice(&["espd", "event_sourcery"]),
        "strategy" => choice(&["exponential", "constant", "none"]),
        "format" => choice(&["auto", "human", "json"]),
        "isolation" => text("^(process|task|group:.+)$"),
        "batch_bytes" | "memory_max" | "command_memory_max" => text("^[0-9]+ ?(B|[kKMG]i?B)$"),
        "batch_time" | "poll_interval_max" | "shutdown_timeout" | "hang_timeout" | "restart_max"
        | "command_timeout" | "timeout" | "connect_timeout" | "initial" | "max" => {
            text("^[0-9]+ ?(ms|s|m|h|d)$")
        }
        _ => json!({ "type": "string" }),
    }
}

/// A number, or a string whose variables make one.
fn number(kind: &str) -> Value {
    json!({ "anyOf": [{ "type": kind }, { "type": "string" }] })
}

fn choice(words: &[&str]) -> Value {
    json!({ "anyOf": [{ "enum": words }, { "type": "string", "pattern": VARIABLE }] })
}

fn text(pattern: &str) -> Value {
    json!({ "anyOf": [{ "type": "string", "pattern": pattern }, { "type": "string", "pattern": VARIABLE }] })
}

/// What the example says above each key and section, by full name.
fn descriptions(example: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let (mut section, mut comment, mut in_text) = (String::new(), Vec::new(), false);
    let mut told = false;
    for line in example.lines() {
        let opens_or_closes = line.matches("\"\"\"").count() % 2 == 1;
        if in_text {
            in_text = !opens_or_closes;
        } else if let Some(words) = line.strip_prefix("# ") {
            if std::mem::take(&mut told) {
                comment.clear();
            }
            comment.push(words.trim());
        } else if let Some(header) = line.strip_prefix('[') {
            header.trim_matches(['[', ']']).clone_into(&mut section);
            found.entry(section.clone()).or_insert_with(|| comment.join(" "));
            told = true;
        } else if let Some((key, _)) = line.trim_start_matches('#').split_once('=') {
            let key =
                if section.is_empty() { key.trim().to_owned() } else { format!("{section}.{}", key.trim()) };
            found.entry(key).or_insert_with(|| comment.join(" "));
            (told, in_text) = (true, opens_or_closes);
        } else if line.is_empty() {
            comment.clear();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_describes_every_key() {
        let descriptions = descriptions(EXAMPLE);
        for key in keys::known_keys() {
            let description = describe(&key, &descriptions);
            assert!(!description.is_empty(), "config/espd.example.toml says nothing above {key}");
        }
        assert_eq!(
            descriptions["projector.on.events"],
            "Required. The event types, or [\"*\"] for all events."
        );
        assert!(descriptions["runner"].starts_with("How processors follow the store."));
    }
}
