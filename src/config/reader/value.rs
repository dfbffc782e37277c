//! Reads one value of a configuration file, and notes what is wrong with it.

use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::context::{Context, Location};
use super::interpolation::{interpolate, is_interpolated};
use super::quantity::{format_duration, format_size, parse_duration, parse_size};
use super::string_literal::locate_characters;
use super::tree::Section;
use crate::config::keys::{self, Keys};
use crate::postgres::database_url::DatabaseUrl;
use crate::postgres::name::{is_identifier, is_name};
use crate::postgres::source_text::SourceText;

/// A value, and the key that it was found under.
#[derive(Clone, Copy)]
pub(crate) struct Value<'c> {
    context: &'c Context<'c>,
    key: &'c str,
    value: &'c DeValue<'c>,
    /// Where it is written.
    pub(crate) location: Location<'c>,
}

impl<'c> Value<'c> {
    pub(crate) fn new(context: &'c Context<'c>, key: &'c str, spanned: &'c Spanned<DeValue<'c>>) -> Self {
        Self { context, key, value: spanned.get_ref(), location: Location::new(context, spanned.span()) }
    }

    /// The key that it was found under.
    pub(crate) fn key(&self) -> &'c str {
        self.key
    }

    /// The folder of the file that it is written in.
    pub(crate) fn folder(&self) -> PathBuf {
        let folder = &self.context.environment.folder;
        if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.clone() }
    }

    /// The key, with the place of its value.
    pub(crate) fn place(&self) -> SourceText {
        let (line, column) = self.context.file.place(self.location.span().start);
        SourceText::new(self.key, &self.context.file.name, line, column)
    }

    /// True or false.
    pub(crate) fn boolean(&self) -> Option<bool> {
        if let DeValue::Boolean(truth) = self.value {
            return Some(*truth);
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

    /// As [`Self::text`], for what is not shown, not even when a variable of it is missing.
    pub(crate) fn secret(&self) -> Option<String> {
        let written = self.string("a string", "write it in quotes")?;
        let unresolved = match interpolate(written, self.context.environment) {
            Ok(resolved) => return self.refuse_nul(&resolved).map(|()| resolved),
            Err(unresolved) => unresolved,
        };
        for one in unresolved {
            self.location.report_secret(one.message, one.advice);
        }
        None
    }

    /// SQL exactly as it is written: no variables, as `$` belongs to SQL. Never blank.
    pub(crate) fn sql(&self) -> Option<SourceText> {
        let written =
            self.string("SQL as a string", "write it in quotes: \"\"\" … \"\"\" for several lines")?;
        self.refuse_nul(written)?;
        if written.trim().is_empty() {
            self.location.report(format!("`{}` is empty", self.key), "write the SQL, or remove the key");
            return None;
        }
        let (line, column) = self.context.file.place(self.location.span().start);
        Some(locate_characters(self.literal(), written, &self.context.file.name, line, column))
    }

    /// The name of a processor, a table or a schema.
    pub(crate) fn name(&self, kind: &str) -> Option<String> {
        let name = self.text()?;
        if is_name(&name) {
            return Some(name);
        }
        self.location
            .report(format!("{} is not a name for a {kind}", self.as_written()), advise_name(self.as_str()));
        None
    }

    /// A name that somebody else has given, in whatever case.
    pub(crate) fn identifier(&self, kind: &str) -> Option<String> {
        let name = self.text()?;
        if is_identifier(&name) {
            return Some(name);
        }
        let advice = "write the bare name: up to 63 letters, digits and _, not beginning with a digit";
        self.location.report(format!("{} is not a name for a {kind}", self.as_written()), advice);
        None
    }

    /// A string, with its variables replaced; `None` without a fault where it is something else.
    pub(crate) fn written_text(&self) -> Option<String> {
        matches!(self.value, DeValue::String(_)).then(|| self.text()).flatten()
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

    /// One of a few words.
    pub(crate) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let word = self.text()?;
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == word) {
            return Some(*choice);
        }
        let names = choices.iter().map(|(name, _)| *name);
        let known: Vec<_> = names.clone().map(|name| format!("\"{name}\"")).collect();
        let guess = keys::nearest(&word, names).map(|name| format!("did you mean \"{name}\"? "));
        self.location.report(
            format!("unknown {} {}", self.key, self.as_written()),
            format!("{}known: {}", guess.unwrap_or_default(), known.join(", ")),
        );
        None
    }

    /// A whole number, or a string whose variables make one.
    pub(crate) fn integer(&self, range: RangeInclusive<i64>) -> Option<i64> {
        let advice =
            format!("write a whole number from {} to {}, without quotes", range.start(), range.end());
        let number = match self.value {
            DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix()).ok(),
            _ => self.interpolated_number(),
        };
        self.within(number, &range, &advice)
    }

    /// A number with a fraction, or a string whose variables make one.
    pub(crate) fn fraction(&self, range: RangeInclusive<f64>) -> Option<f64> {
        let advice = format!("write a number from {} to {}, like 0.1", range.start(), range.end());
        let number = match self.value {
            DeValue::Integer(integer) => {
                i32::from_str_radix(integer.as_str(), integer.radix()).ok().map(f64::from)
            }
            DeValue::Float(float) => float.as_str().parse().ok(),
            _ => self.interpolated_number(),
        };
        self.within(number, &range, &advice)
    }

    /// A length of time.
    pub(crate) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let [from, to] = [range.start(), range.end()].map(|bound| format_duration(*bound));
        let advice = format!("write a number and a unit, \"{from}\" to \"{to}\"; units: ms, s, m, h, d");
        let words = self.quantity(&advice)?;
        self.within(parse_duration(&words), &range, &advice)
    }

    /// A number of bytes.
    pub(crate) fn size(&self, range: RangeInclusive<i64>) -> Option<i64> {
        let [from, to] = [range.start(), range.end()].map(|bound| format_size(*bound));
        let advice =
            format!("write a number and a unit, \"{from}\" to \"{to}\"; units: B, KiB, MiB, GiB, kB, MB, GB");
        let words = self.quantity(&advice)?;
        self.within(parse_size(&words), &range, &advice)
    }

    /// The URL of a database. It is never shown, not even when it is wrong.
    pub(crate) fn database_url(&self) -> Option<DatabaseUrl> {
        let advice = "write \"postgres://user:password@host:5432/database\", or take it from the environment: \
                      \"${DATABASE_URL}\"";
        let url = DatabaseUrl::new(self.text()?);
        url.map_err(|error| self.location.report_secret(error.to_string(), advice)).ok()
    }

    /// The items of a list.
    pub(crate) fn items(&self, advice: &str) -> Option<Vec<Self>> {
        match self.value {
            DeValue::Array(items) => {
                Some(items.iter().map(|item| Self::new(self.context, self.key, item)).collect())
            }
            _ => {
                self.refuse_type("a list", advice);
                None
            }
        }
    }

    /// A table of known keys.
    pub(crate) fn section(&self, keys: &'static Keys) -> Option<Section<'c>> {
        match self.value {
            DeValue::Table(table) => Some(Section::open(self.context, keys, table, self.location.span())),
            _ => {
                self.refuse_type("a table", &format!("write {} and its keys below it", keys.title));
                None
            }
        }
    }

    /// A table of known keys, or several of them.
    pub(crate) fn sections(&self, keys: &'static Keys) -> Option<Vec<Section<'c>>> {
        match self.value {
            DeValue::Array(items) => {
                let item = |item| Self::new(self.context, self.key, item).section(keys);
                Some(items.iter().filter_map(item).collect())
            }
            _ => self.section(keys).map(|section| vec![section]),
        }
    }

    /// The keys of a table whose keys are chosen by the user, each with its value, in the order of the
    /// file. The key comes as a value of its own, so that faults can point at it.
    pub(crate) fn entries(&self, advice: &str) -> Option<Vec<(Key<'c>, Self)>> {
        let DeValue::Table(table) = self.value else {
            self.refuse_type("a table", advice);
            return None;
        };
        let mut entries: Vec<_> = table
            .iter()
            .map(|(key, value)| {
                let name = key.get_ref().as_ref();
                let location = Location::new(self.context, key.span());
                (Key { name, location }, Self::new(self.context, name, value))
            })
            .collect();
        entries.sort_by_key(|(key, _)| key.location.span().start);
        Some(entries)
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
            self.location.report(format!("{} is not allowed for `{}`", self.as_written(), self.key), advice);
        }
        allowed
    }

    fn refuse_type(&self, expected: &str, advice: &str) {
        let found = self.value.type_str();
        let article = if found.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        let message = format!("`{}` must be {expected}, not {article} {found}", self.key);
        let is_secret = matches!(self.key, "secrets" | "headers");
        let hidden = is_secret.then(|| self.location.span());
        self.location.report_hiding(hidden, &message, advice);
    }

    fn refuse_nul(&self, text: &str) -> Option<()> {
        if text.contains('\0') {
            self.location.report(
                format!("`{}` contains a NUL character", self.key),
                "remove it; PostgreSQL cannot store it",
            );
            return None;
        }
        Some(())
    }

    /// The value as it stands in the file, quotes included.
    fn literal(&self) -> &'c str {
        self.context.file.text.get(self.location.span()).unwrap_or_default()
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

    /// Where this part of the string is written.
    fn location_of(&self, written: &str, part: Range<usize>) -> Location<'c> {
        let found = written.get(part.clone()).and_then(|text| self.literal().find(text));
        match found {
            Some(offset) => {
                let start = self.location.span().start + offset;
                Location::new(self.context, start..start + part.len())
            }
            None => self.location,
        }
    }
}

/// A key that the user chose.
#[derive(Clone, Copy)]
pub(crate) struct Key<'c> {
    pub(crate) name: &'c str,
    pub(crate) location: Location<'c>,
}

/// The rule for names, with a name near the refused one if that looks like a name at all.
pub(crate) fn advise_name(refused: &str) -> String {
    let rule = "write up to 48 of a-z, 0-9 and _, beginning with a letter or _";
    let near: String =
        refused.to_lowercase().chars().map(|c| if matches!(c, '-' | ' ' | '.') { '_' } else { c }).collect();
    if is_name(&near) { format!("{rule}, for example `{near}`") } else { rule.to_owned() }
}
