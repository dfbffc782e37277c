//! The JSON Schema knows what the reader knows.

use espd::internals::config::Config;
use serde_json::Value;

use super::{load, repository};

/// Whether the value is as the schema says: as much of JSON Schema as ours uses, patterns left out.
fn admits(schema: &Value, value: &Value) -> bool {
    let known = [
        "$schema",
        "title",
        "description",
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "anyOf",
        "enum",
        "pattern",
    ];
    let unknown = schema.as_object().unwrap().keys().find(|key| !known.contains(&key.as_str()));
    assert_eq!(unknown, None, "extend this validator");
    let has_type = match schema["type"].as_str() {
        None => true,
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64(),
        Some("number") => value.is_number(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        Some(other) => panic!("extend this validator: {other}"),
    };
    has_type
        && schema["enum"].as_array().is_none_or(|words| words.contains(value))
        && schema["anyOf"].as_array().is_none_or(|schemas| schemas.iter().any(|schema| admits(schema, value)))
        && schema
            .get("items")
            .is_none_or(|schema| value.as_array().unwrap().iter().all(|item| admits(schema, item)))
        && (schema["type"] != "object" || admits_members(schema, value.as_object().unwrap()))
}

fn admits_members(schema: &Value, members: &serde_json::Map<String, Value>) -> bool {
    let required = schema["required"].as_array().into_iter().flatten();
    let complete = required.map(|key| key.as_str().unwrap()).all(|key| members.contains_key(key));
    complete
        && members.iter().all(|(key, value)| {
            match (schema["properties"].get(key), &schema["additionalProperties"]) {
                (Some(property), _) => admits(property, value),
                (None, Value::Bool(admitted)) => *admitted,
                (None, others) => admits(others, value),
            }
        })
}

fn toml(text: &str) -> Value {
    toml::from_str(text).unwrap()
}

#[test]
fn the_committed_files_are_as_the_schema_says() {
    let schema = Config::json_schema();
    for name in ["espd.minimal.toml", "espd.example.toml", "processors/outstanding_todos.toml"] {
        let text = std::fs::read_to_string(repository().join("config").join(name)).unwrap();
        assert!(admits(&schema, &toml(&text)), "{name}");
    }
}

#[test]
fn what_the_schema_refuses_is_wrong() {
    let schema = Config::json_schema();
    for wrong in [
        "bach_size = 1",
        "[runner]\nbatch_size = []",
        "[event_store]\nlayout = 1",
        "[event_store]\nurls = ''",
        "[projector]\non = { events = ['A'], sql = 'null' }",
        "[[projector]]\nname = 'a'\non = [{ events = ['A'] }]",
        "[projector]\nname = 'a'\ntables = { a = 1 }\non = { events = ['A'], sql = 'null' }",
    ] {
        assert!(!admits(&schema, &toml(wrong)), "{wrong}");
    }
    for right in
        ["[runner]\nbatch_size = '${SIZE}'", "[projector]\nname = 'a'\non = { events = ['A'], sql = 'null' }"]
    {
        assert!(admits(&schema, &toml(right)), "{right}");
    }
}

#[test]
fn every_word_that_the_schema_offers_is_read() {
    for (section, keys) in [("event_store", 1), ("retry", 2), ("log", 1)] {
        let properties = Config::json_schema()["properties"][section]["properties"].clone();
        let offers = |property: &Value| property["anyOf"][0]["enum"].as_array().cloned();
        let choices: Vec<(String, Vec<Value>)> = properties
            .as_object()
            .unwrap()
            .iter()
            .filter_map(|(key, property)| Some((key.clone(), offers(property)?)))
            .collect();
        assert_eq!(choices.len(), keys, "{section}");
        for (key, words) in choices {
            for word in words {
                let further = if section == "retry" { "max_attempts = 3" } else { "" };
                let shown = load(&format!("[{section}]\n{key} = {word}\n{further}\n")).unwrap().redacted();
                assert_eq!(shown[section][&key], word);
            }
        }
    }
}

#[test]
fn the_schema_has_exactly_the_keys_of_the_reader() {
    fn collect(schema: &Value, prefix: &str, keys: &mut Vec<String>) {
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            keys.push(format!("{prefix}{key}"));
            assert!(!property["description"].as_str().unwrap().is_empty(), "{key}");
            let section = property["anyOf"].get(0).unwrap_or(property);
            collect(section, &format!("{prefix}{key}."), keys);
        }
    }
    let mut keys = Vec::new();
    collect(&Config::json_schema(), "", &mut keys);
    keys.sort();
    let mut known = espd::internals::config::known_keys();
    known.sort();
    assert_eq!(keys, known);
}
