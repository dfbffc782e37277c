//! The configuration as a JSON Schema, for editors: keys from the table of keys, descriptions from
//! the commented example.
//!
//! Whatever the schema refuses, the reader refuses. The reader refuses more: values out of range, names used twice, SQL
//! that is blank.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::EXAMPLE;
use super::keys;
use super::reader::key::{Keys, Kind};

/// Matches a string whose value comes from a variable.
const VARIABLE: &str = r"\$\{";

/// The schema, draft 2020-12.
pub(super) fn schema() -> Value {
    let descriptions = descriptions(EXAMPLE);
    let mut root = object(&keys::MAIN_FILE, &descriptions);
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!("espd");
    root["description"] = json!("Configuration of espd; `espctl config example` is a commented one.");
    root
}

/// A section: its keys, and no other.
fn object(keys: &Keys, descriptions: &BTreeMap<String, String>) -> Value {
    let mut properties = Map::new();
    for key in keys.iter() {
        let mut property = property(key.kind, descriptions);
        property["description"] = json!(describe(&format!("{}{}", keys.prefix, key.name), descriptions));
        properties.insert(key.name.to_owned(), property);
    }
    let required: Vec<_> = keys.iter().filter(|key| key.required.is_some()).map(|key| key.name).collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

/// The description of a key. The example says once what is the same for reactors as for projectors.
fn describe<'d>(name: &str, descriptions: &'d BTreeMap<String, String>) -> &'d str {
    let told = |name: &str| descriptions.get(name).map(String::as_str).filter(|told| !told.is_empty());
    let as_projector = || told(&name.replacen("reactor.", "projector.", 1));
    told(name).or_else(as_projector).unwrap_or_default()
}

fn property(kind: Kind, descriptions: &BTreeMap<String, String>) -> Value {
    match kind {
        Kind::Text | Kind::Url | Kind::Sql => json!({ "type": "string" }),
        Kind::Boolean => json!({ "type": "boolean" }),
        Kind::Integer { .. } | Kind::Start => number("integer"),
        Kind::Fraction { .. } => number("number"),
        Kind::Duration { .. } => text("^[0-9]+ ?(ms|s|m|h|d)$"),
        Kind::Size { .. } => text("^[0-9]+ ?(B|[kKMG]i?B)$"),
        Kind::Choice(words) => choice(words),
        Kind::Isolation => text("^(process|task|group:.+)$"),
        Kind::JsonSchema => {
            let object = json!({ "type": "object", "additionalProperties": true });
            json!({ "anyOf": [{ "type": "string" }, object, { "type": "boolean" }] })
        }
        Kind::TextList | Kind::SqlList => json!({ "type": "array", "items": { "type": "string" } }),
        Kind::TextMap => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
        Kind::Tables(keys) => {
            let table = json!({ "anyOf": [{ "type": "string" }, object(keys, descriptions)] });
            json!({ "type": "object", "additionalProperties": table })
        }
        Kind::Section(keys) => object(keys, descriptions),
        Kind::Sections(keys) => {
            let section = object(keys, descriptions);
            json!({ "anyOf": [section, { "type": "array", "items": section }] })
        }
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
