//! Reads JSON: as text in a string, or as the TOML table that means the same.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use serde_json::{Map, Value as Json, json};
use toml::de::DeValue;

use super::tree::Value;

const ADVICE: &str =
    "write JSON in quotes (''' … ''' for several lines), \"${file:schemas/name.json}\", or a table";

/// The deepest nesting of JSON with numbers that no type of Rust holds, as of other JSON.
const DEPTH_MAX: usize = 128;

/// JSON, and its text, in which no number is rounded.
pub(crate) struct JsonText {
    pub(crate) value: Json,
    pub(crate) text: String,
}

impl Value<'_> {
    /// The value as JSON. Variables in strings are replaced.
    pub(crate) fn json(&self) -> Option<JsonText> {
        let DeValue::String(_) = self.value else {
            if !matches!(self.value, DeValue::Table(_) | DeValue::Boolean(_)) {
                self.refuse_type("JSON in a string, or a table", ADVICE);
                return None;
            }
            return self.as_json().map(|value| JsonText { text: value.to_string(), value });
        };
        let text = self.text()?;
        match parse(&text, 0) {
            Ok(value) => Some(JsonText { value, text }),
            Err(error) => {
                self.location.report(format!("`{}` is not JSON: {error}", self.name()), ADVICE);
                None
            }
        }
    }

    /// The JSON that a TOML value means. There are no dates in it, and no infinite numbers.
    fn as_json(&self) -> Option<Json> {
        match self.value {
            DeValue::String(_) => self.text().map(Json::String),
            DeValue::Boolean(truth) => Some(Json::Bool(*truth)),
            DeValue::Integer(number) => {
                i64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| json!(number))
            }
            DeValue::Float(number) => {
                number.as_str().parse().ok().and_then(serde_json::Number::from_f64).map(Json::Number)
            }
            DeValue::Array(_) => self.items(ADVICE)?.iter().map(Self::as_json).collect(),
            DeValue::Table(_) => {
                let entries = self.entries(ADVICE)?;
                let members =
                    entries.iter().map(|(key, value)| Some((key.name.to_owned(), value.as_json()?)));
                members.collect::<Option<Map<String, Json>>>().map(Json::Object)
            }
            DeValue::Datetime(_) => None,
        }
        .or_else(|| {
            if matches!(self.value, DeValue::Datetime(_) | DeValue::Integer(_) | DeValue::Float(_)) {
                self.location.report(format!("{} is not JSON", self.as_written()), ADVICE);
            }
            None
        })
    }
}

/// Reads JSON. A number beyond all floats is the largest of them: its text has to be kept beside.
fn parse(text: &str, depth: usize) -> serde_json::Result<Json> {
    let error = match serde_json::from_str(text) {
        Err(error) if depth < DEPTH_MAX && is_out_of_range(&error) => error,
        read => return read,
    };
    match text.trim_start().as_bytes() {
        [b'{', ..] => {
            let members: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text)?;
            members.into_iter().map(|(name, value)| Ok((name, parse(value.get(), depth + 1)?))).collect()
        }
        [b'[', ..] => {
            let items: Vec<Box<RawValue>> = serde_json::from_str(text)?;
            items.iter().map(|item| parse(item.get(), depth + 1)).collect()
        }
        // What is behind the number was not looked at.
        [b'-', ..] => serde_json::from_str(text).map(|_: &RawValue| json!(f64::MIN)),
        [b'0'..=b'9', ..] => serde_json::from_str(text).map(|_: &RawValue| json!(f64::MAX)),
        _ => Err(error),
    }
}

/// Serde says so only in words.
fn is_out_of_range(error: &serde_json::Error) -> bool {
    error.to_string().starts_with("number out of range")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_beyond_all_floats_is_json() {
        let read = parse(r#" {"a": [1e400, -1e400, 2], "b": {"c": 1E+999}, "d": "1e400"} "#, 0).unwrap();
        let expected = json!({"a": [f64::MAX, f64::MIN, 2], "b": {"c": f64::MAX}, "d": "1e400"});
        assert_eq!(read, expected);
        for wrong in ["1e400 2", "{\"a\": 1e400, }", "[1e400", "1e400x"] {
            assert!(parse(wrong, 0).is_err(), "{wrong}");
        }
        assert!(parse(&format!("{}1e400{}", "[".repeat(100_000), "]".repeat(100_000)), 0).is_err());
    }
}
