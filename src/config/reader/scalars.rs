//! Reads values of single types: texts, numbers, durations, sizes, names. Ranges come from the table of keys.

use std::ops::{Range, RangeInclusive};
use std::str::FromStr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use toml::de::DeValue;

use super::context::Location;
use super::interpolation::{interpolate, is_interpolated};
use super::key::{Kind, nearest};
use super::quantity::{format_duration, format_size, parse_duration, parse_size};
use super::string_literal::locate_characters;
use super::tree::{Section, Value};
use crate::postgres::database_url::DatabaseUrl;
use crate::postgres::name::{is_identifier, is_name};
use crate::postgres::source_text::SourceText;

/// The values of keys: `None` if the key is absent or its value wrong, and the table has no default.
impl Section<'_> {
    pub(crate) fn text(&self, key: &'static str) -> Option<String> {
        self.value(key)?.text()
    }

    /// SQL exactly as it is written.
    pub(crate) fn sql(&self, key: &'static str) -> Option<SourceText> {
        self.value(key)?.sql()
    }

    /// The value of a switch, which is off by default.
    pub(crate) fn is_on(&self, key: &'static str) -> bool {
        self.value(key).and_then(|value| value.boolean()).unwrap_or(false)
    }

    pub(crate) fn integer(&self, key: &'static str) -> Option<i64> {
        let default = match self.keys.find(key)?.kind {
            Kind::Integer { default, .. } => default,
            _ => None,
        };
        self.value(key).and_then(|value| value.integer()).or(default)
    }

    pub(crate) fn fraction(&self, key: &'static str) -> Option<f64> {
        self.value(key)?.fraction()
    }

    pub(crate) fn duration(&self, key: &'static str) -> Option<Duration> {
        let default = match self.keys.find(key)?.kind {
            Kind::Duration { default, .. } => default,
            _ => None,
        };
        self.value(key).and_then(|value| value.duration()).or(default)
    }

    /// A number of bytes.
    pub(crate) fn size(&self, key: &'static str) -> Option<i64> {
        self.value(key)?.size()
    }

    /// One of the words that the key accepts, as the type that it stands for.
    pub(crate) fn choice<T: DeserializeOwned>(&self, key: &'static str) -> Option<T> {
        self.value(key)?.choice()
    }

    pub(crate) fn database_url(&self, key: &'static str) -> Option<DatabaseUrl> {
        self.value(key)?.database_url()
    }

    /// A program and its arguments, or an empty list.
    pub(crate) fn command(&self, key: &'static str) -> Option<Vec<String>> {
        self.value(key)?.command()
    }
}

impl<'c> Value<'c> {
    /// True or false.
    pub(crate) fn boolean(&self) -> Option<bool> {
        if let DeValue::Boolean(boolean) = self.value {
            return Some(*boolean);
        }
        self.refuse_type("true or false", "write it without quotes");
        None
    }

    /// A string, with its variables replaced. No NUL, which PostgreSQL cannot store.
    pub(crate) fn text(&self) -> Option<String> {
        let written = self.string("a string", "write it in quotes")?;
        match interpolate(written, self.context.environment) {
            Ok(resolved) => self.refuse_nul(&resolved).map(|()| resolved),
            Err(unresolved) => {
                for one in unresolved {
                    self.location_of(written, one.span).report(one.message, one.advice);
                }
                None
            }
        }
    }

    /// A string, with its variables replaced; `None` without a report if the value is something else.
    pub(crate) fn text_if_string(&self) -> Option<String> {
        matches!(self.value, DeValue::String(_)).then(|| self.text()).flatten()
    }

    /// SQL exactly as it is written: no variables, as `$` belongs to SQL. Never blank.
    pub(crate) fn sql(&self) -> Option<SourceText> {
        let written =
            self.string("SQL as a string", "write it in quotes: \"\"\" … \"\"\" for several lines")?;
        self.refuse_nul(written)?;
        if written.trim().is_empty() {
            self.location.report(format!("`{}` is empty", self.name()), "write the SQL, or remove the key");
            return None;
        }
        let (line, column) = self.context.file.place(self.location.span().start);
        Some(locate_characters(self.literal(), written, &self.context.file.name, line, column))
    }

    /// The name of a processor, a table or a schema.
    pub(crate) fn name_for(&self, kind: &str) -> Option<String> {
        let name = self.text()?;
        if is_name(&name) {
            return Some(name);
        }
        let message = format!("{} is not a name for a {kind}", self.as_written());
        self.location.report(message, advise_name(self.as_str()));
        None
    }

    /// A name that somebody else has given, in whatever case.
    pub(crate) fn identifier_for(&self, kind: &str) -> Option<String> {
        let name = self.text()?;
        if is_identifier(&name) {
            return Some(name);
        }
        let advice = "write the bare name: up to 63 letters, digits and _, not beginning with a digit";
        self.location.report(format!("{} is not a name for a {kind}", self.as_written()), advice);
        None
    }

    /// A program and its arguments, or an empty list.
    pub(crate) fn command(&self) -> Option<Vec<String>> {
        const ADVICE: &str =
            "write a list of a program and its arguments: [\"/usr/local/bin/notify\", \"espd\"]";
        let words: Vec<String> = self.items(ADVICE)?.iter().filter_map(Value::text).collect();
        if words.first().is_some_and(String::is_empty) {
            self.location.report("a command needs a program", ADVICE);
        }
        Some(words)
    }

    /// One of the words that the key accepts, as the type that it stands for.
    fn choice<T: DeserializeOwned>(&self) -> Option<T> {
        let Kind::Choice(words) = self.key.kind else { return self.refuse_kind() };
        let word = self.text()?;
        if words.contains(&word.as_str()) {
            return serde_json::from_value(word.into()).ok();
        }
        let known: Vec<_> = words.iter().map(|name| format!("\"{name}\"")).collect();
        let guess = nearest(&word, words.iter().copied()).map(|name| format!("did you mean \"{name}\"? "));
        self.location.report(
            format!("unknown {} {}", self.name(), self.as_written()),
            format!("{}known: {}", guess.unwrap_or_default(), known.join(", ")),
        );
        None
    }

    /// A whole number, or a string whose variables make one.
    fn integer(&self) -> Option<i64> {
        let Kind::Integer { from, to, .. } = self.key.kind else { return self.refuse_kind() };
        self.integer_within(from..=to)
    }

    /// A whole number in this range, or a string whose variables make one.
    pub(crate) fn integer_within(&self, range: RangeInclusive<i64>) -> Option<i64> {
        let advice =
            format!("write a whole number from {} to {}, without quotes", range.start(), range.end());
        let number = match self.value {
            DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix()).ok(),
            _ => self.interpolated_number(),
        };
        self.within(number, &range, &advice)
    }

    /// A number with a fraction, or a string whose variables make one.
    fn fraction(&self) -> Option<f64> {
        let Kind::Fraction { from, to } = self.key.kind else { return self.refuse_kind() };
        let advice = format!("write a number from {from} to {to}, like 0.1");
        let number = match self.value {
            DeValue::Integer(integer) => {
                i32::from_str_radix(integer.as_str(), integer.radix()).ok().map(f64::from)
            }
            DeValue::Float(float) => float.as_str().parse().ok(),
            _ => self.interpolated_number(),
        };
        self.within(number, &(from..=to), &advice)
    }

    /// A length of time.
    fn duration(&self) -> Option<Duration> {
        let Kind::Duration { from, to, .. } = self.key.kind else { return self.refuse_kind() };
        let [least, most] = [from, to].map(format_duration);
        let advice = format!("write a number and a unit, \"{least}\" to \"{most}\"; units: ms, s, m, h, d");
        let words = self.quantity(&advice)?;
        self.within(parse_duration(&words), &(from..=to), &advice)
    }

    /// A number of bytes.
    fn size(&self) -> Option<i64> {
        let Kind::Size { from, to } = self.key.kind else { return self.refuse_kind() };
        let [least, most] = [from, to].map(format_size);
        let advice = format!(
            "write a number and a unit, \"{least}\" to \"{most}\"; units: B, KiB, MiB, GiB, kB, MB, GB"
        );
        let words = self.quantity(&advice)?;
        self.within(parse_size(&words), &(from..=to), &advice)
    }

    /// The URL of a database. It is never shown, not even when it is wrong.
    fn database_url(&self) -> Option<DatabaseUrl> {
        let advice = "write \"postgres://user:password@host:5432/database\", or take it from the environment: \
                      \"${DATABASE_URL}\"";
        let url = DatabaseUrl::new(self.text()?);
        url.map_err(|error| self.location.hidden().report(error.to_string(), advice)).ok()
    }

    /// The value for a message: what the user wrote, so never what a variable holds.
    pub(crate) fn as_written(&self) -> String {
        match self.value {
            DeValue::String(text) if is_interpolated(text) => {
                format!("`{text}` (with its variables replaced)")
            }
            DeValue::String(text) => format!("`{}`", text.escape_debug()),
            _ => format!("`{}`", self.literal()),
        }
    }

    fn as_str(&self) -> &'c str {
        self.value.as_str().unwrap_or_default()
    }

    fn string(&self, expected: &str, advice: &str) -> Option<&'c str> {
        let string = self.value.as_str();
        if string.is_none() {
            self.refuse_type(expected, advice);
        }
        string
    }

    /// The string of a duration or a size.
    fn quantity(&self, advice: &str) -> Option<String> {
        self.string("a number with a unit", advice)?;
        self.text()
    }

    /// The number that a string becomes when its variables are replaced; a plain string is none.
    fn interpolated_number<N: FromStr>(&self) -> Option<N> {
        if !is_interpolated(self.as_str()) {
            return None;
        }
        self.text()?.trim().parse().ok()
    }

    fn within<T: PartialOrd>(&self, value: Option<T>, range: &RangeInclusive<T>, advice: &str) -> Option<T> {
        let allowed = value.filter(|value| range.contains(value));
        if allowed.is_none() {
            let message = format!("{} is not allowed for `{}`", self.as_written(), self.name());
            self.location.report(message, advice);
        }
        allowed
    }

    /// The key is read as another kind than the table says: a defect of espd, found by its tests.
    fn refuse_kind<T>(&self) -> Option<T> {
        debug_assert!(false, "`{}` is read as another kind than the table of keys says", self.name());
        None
    }

    fn refuse_nul(&self, text: &str) -> Option<()> {
        if text.contains('\0') {
            let message = format!("`{}` contains a NUL character", self.name());
            self.location.report(message, "remove it; PostgreSQL cannot store it");
            return None;
        }
        Some(())
    }

    /// Where this part of the string is written.
    fn location_of(&self, written: &str, part: Range<usize>) -> Location<'c> {
        let found = written.get(part.clone()).and_then(|text| self.literal().find(text));
        match found {
            Some(offset) if !self.key.is_secret => {
                let start = self.location.span().start + offset;
                self.location.at(start..start + part.len())
            }
            _ => self.location,
        }
    }
}

/// The rule for names, with a name near the refused one if that looks like a name at all.
pub(crate) fn advise_name(refused: &str) -> String {
    let rule = "write up to 48 of a-z, 0-9 and _, beginning with a letter or _";
    let near: String =
        refused.to_lowercase().chars().map(|c| if matches!(c, '-' | ' ' | '.') { '_' } else { c }).collect();
    if is_name(&near) { format!("{rule}, for example `{near}`") } else { rule.to_owned() }
}
