//! The keywords of JSON Schema that the store checks, and which values they may have.
//!
//! A keyword that the store would pass over is a mistake here: it would look like one that is met.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::SchemaMistake;

const TYPES: [&str; 7] = ["array", "boolean", "integer", "null", "number", "object", "string"];

const FORMATS: [&str; 3] = ["date", "date-time", "uuid"];

/// Keywords that say something to people only.
const ANNOTATIONS: [&str; 10] = [
    "$schema",
    "$id",
    "$comment",
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
];

const ADVISE_KEYWORD: &str =
    "remove it, or write x- before it: docs/event-schemas.md lists the keywords that are checked";
const ADVISE_SCHEMA: &str = "write a JSON object, such as {\"type\": \"string\"}, or true or false";
const ADVISE_TYPE: &str =
    "write one of array, boolean, integer, null, number, object, string, or a list of them";
const ADVISE_FORMAT: &str = "write date, date-time or uuid, or a pattern, or leave it out";
const ADVISE_CYCLE: &str = "refer from inside `properties`, `additionalProperties` or `items`, so that each turn is about a smaller part of the body";
const ADVISE_REFERENCE: &str = "write \"#\", or \"#/$defs/NAME\" of a schema that is there";

type Checked = Result<(), SchemaMistake>;

/// Checks a schema at `path` of `root`.
pub(super) fn check(schema: &Value, root: &Value, path: &str) -> Checked {
    match schema {
        Value::Bool(_) => Ok(()),
        Value::Object(keywords) => keywords
            .iter()
            .try_for_each(|(keyword, wanted)| check_keyword(keyword, wanted, root, &below(path, keyword))),
        _ => refuse(path, "a schema is an object", ADVISE_SCHEMA),
    }
}

fn check_keyword(keyword: &str, wanted: &Value, root: &Value, path: &str) -> Checked {
    match keyword {
        "type" => check_type(wanted, path),
        "format" => one_of(wanted, &FORMATS, path, ADVISE_FORMAT),
        "enum" => {
            require(wanted.as_array().is_some_and(|values| !values.is_empty()), path, "a list of values")
        }
        "required" => require(
            wanted.as_array().is_some_and(|names| names.iter().all(Value::is_string)),
            path,
            "a list of names",
        ),
        "properties" | "$defs" | "definitions" => {
            let schemas = wanted.as_object().map(|schemas| schemas.iter());
            let Some(mut schemas) = schemas else { return require(false, path, "an object of schemas") };
            schemas.try_for_each(|(name, schema)| check(schema, root, &below(path, name)))
        }
        "additionalProperties" | "items" | "not" => check(wanted, root, path),
        "allOf" | "anyOf" | "oneOf" => match wanted.as_array().filter(|schemas| !schemas.is_empty()) {
            None => require(false, path, "a list of schemas"),
            Some(schemas) => (0..).zip(schemas).try_for_each(|(place, schema): (usize, _)| {
                check(schema, root, &below(path, &place.to_string()))
            }),
        },
        "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {
            require(wanted.is_number(), path, "a number")
        }
        "multipleOf" => require(wanted.as_f64().is_some_and(|number| number > 0.0), path, "a number above 0"),
        "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" => {
            let is_count = wanted.as_u64().is_some_and(|count| i32::try_from(count).is_ok());
            require(is_count, path, "a whole number from 0")
        }
        "uniqueItems" => require(wanted.is_boolean(), path, "true or false"),
        "pattern" => require(wanted.is_string(), path, "a regular expression"),
        "$ref" => check_reference(wanted, root, path),
        "const" => Ok(()),
        _ if keyword.starts_with("x-") || ANNOTATIONS.contains(&keyword) => Ok(()),
        _ => refuse(path, format!("the keyword `{keyword}` is not checked"), ADVISE_KEYWORD),
    }
}

fn check_type(wanted: &Value, path: &str) -> Checked {
    match wanted {
        Value::Array(types) if !types.is_empty() => {
            types.iter().try_for_each(|one| one_of(one, &TYPES, path, ADVISE_TYPE))
        }
        one => one_of(one, &TYPES, path, ADVISE_TYPE),
    }
}

/// A reference leads to a schema of the same text.
fn check_reference(wanted: &Value, root: &Value, path: &str) -> Checked {
    let target = match wanted.as_str() {
        Some("#") => return Ok(()),
        Some(reference) => ["$defs", "definitions"].into_iter().find_map(|folder| {
            let name = reference.strip_prefix("#/")?.strip_prefix(folder)?.strip_prefix('/')?;
            // The store does not read escapes.
            root.get(folder)?.get(name).filter(|_| !name.contains(['/', '~', '%']))
        }),
        None => None,
    };
    match target {
        Some(_) => Ok(()),
        None => refuse(path, format!("{wanted} leads to no schema"), ADVISE_REFERENCE),
    }
}

/// Refuses texts that the store cannot keep, wherever they are: names of properties, and values.
pub(super) fn check_texts(value: &Value, path: &str) -> Checked {
    match value {
        Value::String(text) => check_text(text, path),
        Value::Array(values) => (0..)
            .zip(values)
            .try_for_each(|(place, value): (usize, _)| check_texts(value, &below(path, &place.to_string()))),
        Value::Object(members) => members.iter().try_for_each(|(name, value)| {
            let path = below(path, name);
            check_text(name, &path).and_then(|()| check_texts(value, &path))
        }),
        _ => Ok(()),
    }
}

fn check_text(text: &str, path: &str) -> Checked {
    match text.contains('\0') {
        true => refuse(path, "a text with a NUL character cannot be stored", "leave the character out"),
        false => Ok(()),
    }
}

fn one_of(value: &Value, known: &[&str], path: &str, advice: &'static str) -> Checked {
    match value.as_str() {
        Some(word) if known.contains(&word) => Ok(()),
        _ => refuse(path, format!("{value} is not known"), advice),
    }
}

fn require(is_so: bool, path: &str, what: &str) -> Checked {
    if is_so { Ok(()) } else { refuse(path, format!("this must be {what}"), "see docs/event-schemas.md") }
}

fn refuse(path: &str, message: impl Into<String>, advice: &'static str) -> Checked {
    Err(SchemaMistake { path: path.to_owned(), message: message.into(), advice })
}

fn below(path: &str, key: &str) -> String {
    format!("{path}/{}", key.replace('~', "~0").replace('/', "~1").replace('\0', "\\u0000"))
}

/// The regular expressions in a schema. Whether PostgreSQL can read them, only PostgreSQL knows.
pub(crate) fn patterns(schema: &Value) -> Vec<&str> {
    let mut found = Vec::new();
    if let Value::Object(keywords) = schema {
        found.extend(keywords.get("pattern").and_then(Value::as_str));
        for (keyword, wanted) in keywords {
            found.extend(subschemas(keyword, wanted).into_iter().flat_map(patterns));
        }
    }
    found
}

/// Refuses a schema whose references lead round in a circle on one and the same value: checking a body would never end.
pub(super) fn check_references(schema: &Value) -> Checked {
    let named = ["$defs", "definitions"].into_iter().filter_map(|folder| {
        let schemas = schema.get(folder)?.as_object()?;
        Some(schemas.iter().map(move |(name, one)| (format!("#/{folder}/{name}"), one)))
    });
    let targets: BTreeMap<String, &Value> =
        [("#".to_owned(), schema)].into_iter().chain(named.flatten()).collect();
    targets.keys().try_for_each(|start| follow(start, start, &targets, &mut BTreeSet::new()))
}

/// Follows the references from `name` until one leads to `start`, or to what was `seen`.
fn follow(
    start: &str,
    name: &str,
    targets: &BTreeMap<String, &Value>,
    seen: &mut BTreeSet<String>,
) -> Checked {
    let Some(target) = targets.get(name).filter(|_| seen.insert(name.to_owned())) else { return Ok(()) };
    for (path, reference) in references_on_the_spot(target, name.trim_start_matches('#')) {
        if reference == start {
            return refuse(
                &path,
                format!("{start} leads back to itself without going into the body"),
                ADVISE_CYCLE,
            );
        }
        follow(start, reference, targets, seen)?;
    }
    Ok(())
}

/// The references in a schema that are about the same value as the schema itself, each with its path.
fn references_on_the_spot<'s>(schema: &'s Value, path: &str) -> Vec<(String, &'s str)> {
    let reference = schema.get("$ref").and_then(Value::as_str).map(|to| (below(path, "$ref"), to));
    let several = ["allOf", "anyOf", "oneOf"].into_iter().flat_map(|keyword| {
        let schemas = schema.get(keyword).and_then(Value::as_array).into_iter().flatten();
        let at = below(path, keyword);
        (0..).zip(schemas).map(move |(place, one): (usize, _)| (below(&at, &place.to_string()), one))
    });
    let inner = schema.get("not").map(|one| (below(path, "not"), one)).into_iter().chain(several);
    reference.into_iter().chain(inner.flat_map(|(path, one)| references_on_the_spot(one, &path))).collect()
}

fn subschemas<'s>(keyword: &str, wanted: &'s Value) -> Vec<&'s Value> {
    match keyword {
        "properties" | "$defs" | "definitions" => {
            wanted.as_object().map(Map::values).into_iter().flatten().collect()
        }
        "additionalProperties" | "items" | "not" => vec![wanted],
        "allOf" | "anyOf" | "oneOf" => wanted.as_array().into_iter().flatten().collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::find_mistake;
    use super::*;

    #[test]
    fn a_schema_of_known_keywords_has_no_mistake() {
        for schema in [
            json!(true),
            json!({}),
            json!({ "type": ["string", "null"], "format": "date", "x-unit": "day", "title": "Due", "pattern": "^2" }),
            json!({ "$defs": { "Count": { "type": "integer" } }, "properties": { "n": { "$ref": "#/$defs/Count" } },
                    "additionalProperties": false, "required": ["n"], "minProperties": 1 }),
            json!({ "anyOf": [{ "const": null }, { "items": { "$ref": "#" }, "uniqueItems": true }] }),
        ] {
            assert_eq!(find_mistake(&schema), None, "{schema}");
        }
    }

    #[test]
    fn what_would_not_be_checked_is_a_mistake_and_has_a_place() {
        for (schema, path) in [
            (json!([]), ""),
            (json!({ "propertys": {} }), "/propertys"),
            (json!({ "properties": { "a/b": { "type": "text" } } }), "/properties/a~1b/type"),
            (json!({ "items": [{ "type": "string" }] }), "/items"),
            (json!({ "anyOf": [{}, { "minLength": -1 }] }), "/anyOf/1/minLength"),
            (json!({ "anyOf": [] }), "/anyOf"),
            (json!({ "enum": [] }), "/enum"),
            (json!({ "required": [1] }), "/required"),
            (json!({ "format": "email" }), "/format"),
            (json!({ "exclusiveMinimum": true }), "/exclusiveMinimum"),
            (json!({ "multipleOf": 0 }), "/multipleOf"),
            (json!({ "$ref": "#/$defs/Missing" }), "/$ref"),
            (json!({ "$ref": "other.json" }), "/$ref"),
            (json!({ "$defs": { "a/b": {} }, "$ref": "#/$defs/a/b" }), "/$ref"),
            (json!({ "$defs": { "A": { "if": {} } } }), "/$defs/A/if"),
            (json!({ "properties": { "a\0": {} } }), "/properties/a\\u0000"),
            (json!({ "enum": ["a", ["b\0"]] }), "/enum/1/0"),
        ] {
            assert_eq!(find_mistake(&schema).map(|mistake| mistake.path).as_deref(), Some(path), "{schema}");
        }
    }

    #[test]
    fn a_reference_that_leads_back_on_the_spot_is_a_mistake() {
        for (schema, path) in [
            (json!({ "$ref": "#" }), "/$ref"),
            (json!({ "anyOf": [{ "$ref": "#" }, { "$ref": "#" }] }), "/anyOf/0/$ref"),
            (
                json!({ "allOf": [{}, { "oneOf": [{ "not": { "$ref": "#" } }] }] }),
                "/allOf/1/oneOf/0/not/$ref",
            ),
            (
                json!({ "$defs": { "A": { "$ref": "#/$defs/B" }, "B": { "anyOf": [{ "$ref": "#/$defs/A" }] } } }),
                "/$defs/B/anyOf/0/$ref",
            ),
            (json!({ "definitions": { "A": { "$ref": "#/definitions/A" } } }), "/definitions/A/$ref"),
            // Behind one that goes into the body, and on the way to a circle that it is no part of.
            (
                json!({ "properties": { "a": { "$ref": "#/$defs/A" } }, "$ref": "#/$defs/A",
                     "$defs": { "A": { "not": { "$ref": "#/$defs/A" } } } }),
                "/$defs/A/not/$ref",
            ),
        ] {
            assert_eq!(find_mistake(&schema).map(|mistake| mistake.path).as_deref(), Some(path), "{schema}");
        }
        for schema in [
            json!({ "properties": { "a": { "$ref": "#" } }, "additionalProperties": { "$ref": "#" } }),
            json!({ "$ref": "#/$defs/A", "$defs": { "A": { "anyOf": [{ "type": "null" }, { "items": { "$ref": "#/$defs/A" } }] } } }),
            // Twice to the same is no circle, and a value that looks like a reference is none.
            json!({ "allOf": [{ "$ref": "#/$defs/A" }, { "$ref": "#/$defs/A" }], "const": { "$ref": "#" }, "$defs": { "A": {} } }),
        ] {
            assert_eq!(find_mistake(&schema), None, "{schema}");
        }
    }

    #[test]
    fn patterns_are_found_wherever_they_are() {
        let schema = json!({
            "pattern": "a", "properties": { "pattern": { "pattern": "b" } }, "const": { "pattern": "no" },
            "anyOf": [{ "items": { "not": { "pattern": "c" } } }], "$defs": { "A": { "pattern": "d" } },
        });
        let mut found = patterns(&schema);
        found.sort_unstable();
        assert_eq!(found, ["a", "b", "c", "d"]);
    }
}
