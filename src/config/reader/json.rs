//! Reads JSON: as text in a string, or as the TOML table that means the same.

use serde_json::{Map, Value as Json, json};
use toml::de::DeValue;

use super::tree::Value;

const ADVICE: &str =
    "write JSON in quotes (''' … ''' for several lines), \"${file:schemas/name.json}\", or a table";

impl Value<'_> {
    /// The value as JSON. Variables in strings are replaced.
    pub(crate) fn json(&self) -> Option<Json> {
        let DeValue::String(_) = self.value else {
            if !matches!(self.value, DeValue::Table(_) | DeValue::Boolean(_)) {
                self.refuse_type("JSON in a string, or a table", ADVICE);
                return None;
            }
            return self.as_json();
        };
        let text = self.text()?;
        match serde_json::from_str(&text) {
            Ok(read) => Some(read),
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
