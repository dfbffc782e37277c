//! Reads the tables and lists of a configuration file, key by key.
//!
//! Nothing here returns an error. A mistake is reported, the value is absent, and reading continues, so that the user sees
//! everything that is wrong at once.

use std::ops::Range;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::context::{Context, Location};
use super::key::{Key, Keys, Kind, nearest};
use crate::postgres::source_text::SourceText;

/// One table of a file.
#[derive(Clone, Copy)]
pub(crate) struct Section<'c> {
    context: &'c Context<'c>,
    pub(crate) keys: &'static Keys,
    table: &'c DeTable<'c>,
    header: Location<'c>,
}

impl<'c> Section<'c> {
    /// Opens a table whose header is at `header`; reports unknown keys and missing ones.
    pub(crate) fn open(
        context: &'c Context<'c>,
        keys: &'static Keys,
        table: &'c DeTable<'c>,
        header: Range<usize>,
    ) -> Self {
        let section = Self { context, keys, table, header: Location::new(context, header) };
        section.refuse_unknown_keys();
        for key in keys.iter() {
            if let Some(advice) = key.required {
                section.require(key.name, advice);
            }
        }
        section
    }

    /// The value of a key, if both are there.
    pub(crate) fn value(&self, name: &'static str) -> Option<Value<'c>> {
        let key = self.keys.find(name);
        debug_assert!(key.is_some(), "`{name}` is missing from the table of keys");
        self.value_of(key?)
    }

    /// As [`Self::value`], for keys that not every section of this shape has.
    pub(crate) fn value_if_known(&self, name: &str) -> Option<Value<'c>> {
        self.value_of(self.keys.find(name)?)
    }

    fn value_of(&self, key: &'static Key) -> Option<Value<'c>> {
        self.table.get(key.name).map(|value| Value::new(self.context, key, value))
    }

    /// The value of a key that has to be there; its absence is reported.
    pub(crate) fn require(&self, name: &'static str, advice: &str) -> Option<Value<'c>> {
        let value = self.value(name);
        // The parser may have lost the key after a syntax error.
        if value.is_none() && self.context.damaged_lines.is_empty() {
            self.header.report(format!("{} needs `{name}`", self.keys.title), advice);
        }
        value
    }

    /// The table below a key, if it is there.
    pub(crate) fn section(&self, name: &'static str) -> Option<Section<'c>> {
        self.value(name)?.section()
    }

    /// The tables below a key: none, one or several.
    pub(crate) fn sections(&self, name: &'static str) -> Vec<Section<'c>> {
        self.value(name).and_then(|value| value.sections()).unwrap_or_default()
    }

    /// Whether a key that is not known seems to be meant as this one.
    pub(crate) fn has_misspelt(&self, name: &str) -> bool {
        let mut keys = self.table.iter().map(|(key, _)| key.get_ref().as_ref());
        keys.any(|key| self.keys.find(key).is_none() && nearest(key, self.keys.names()) == Some(name))
    }

    /// Reports a mistake in the section as a whole.
    pub(crate) fn report(&self, message: impl AsRef<str>, advice: impl Into<String>) {
        self.header.report(message, advice);
    }

    fn refuse_unknown_keys(&self) {
        let place = match self.keys.title {
            "" => "at the top of this file".to_owned(),
            title => format!("in {title}"),
        };
        for (key, value) in self.table {
            let name = key.get_ref().as_ref();
            if self.keys.find(name).is_none() {
                if self.context.diagnostics.is_full() {
                    self.context.diagnostics.count();
                    continue;
                }
                let location = Location::new(self.context, key.span());
                // The value of an unknown key may be a secret.
                let location =
                    if value.get_ref().is_str() { location.hiding(value.span()) } else { location };
                let message = format!("unknown key `{}` {place}", name.escape_debug());
                location.report(message, self.advise(name));
            }
        }
    }

    /// What to write instead of an unknown key.
    fn advise(&self, unknown: &str) -> String {
        if let Some(key) = nearest(unknown, self.keys.names()) {
            return format!("did you mean `{key}`?");
        }
        if self.keys.title.is_empty() && self.context.sections.iter().any(|keys| is_top_key(keys, unknown)) {
            return "move it to the main file; an included file holds events and processors only".into();
        }
        let known = self.keys.names().collect::<Vec<_>>().join(", ");
        let here = self.keys.title;
        let elsewhere =
            || self.context.sections.iter().filter(|keys| !keys.title.is_empty() && keys.title != here);
        match nearest(unknown, elsewhere().flat_map(|keys| keys.names())) {
            Some(key) => {
                let sections = elsewhere().filter(|keys| keys.find(key).is_some()).map(|keys| keys.title);
                let sections = sections.collect::<Vec<_>>().join(" or ");
                format!("did you mean `{key}` of {sections}? The keys known here: {known}")
            }
            None => format!("remove it; the keys known here: {known}"),
        }
    }
}

fn is_top_key(keys: &Keys, name: &str) -> bool {
    keys.title.is_empty() && keys.find(name).is_some()
}

/// A value, with the key that it was found under.
#[derive(Clone, Copy)]
pub(crate) struct Value<'c> {
    pub(super) context: &'c Context<'c>,
    pub(super) key: &'static Key,
    /// The name to use in messages: the key, or a name in its table that the user chose.
    name: &'c str,
    pub(super) value: &'c DeValue<'c>,
    /// Where the value is written. What is reported here does not show a secret.
    pub(crate) location: Location<'c>,
}

impl<'c> Value<'c> {
    fn new(context: &'c Context<'c>, key: &'static Key, spanned: &'c Spanned<DeValue<'c>>) -> Self {
        let location = Location::new(context, spanned.span());
        let location = if key.is_secret { location.hiding(spanned.span()) } else { location };
        Self { context, key, name: key.name, value: spanned.get_ref(), location }
    }

    /// A value inside this one, as secret as this one is.
    fn inner(&self, name: &'c str, spanned: &'c Spanned<DeValue<'c>>) -> Self {
        let location = self.location.at(spanned.span());
        Self { name, value: spanned.get_ref(), location, ..*self }
    }

    /// The name to use in messages: the key, or a name in its table that the user chose.
    pub(crate) fn name(&self) -> &'c str {
        self.name
    }

    /// The folder of the file that the value is written in.
    pub(crate) fn folder(&self) -> PathBuf {
        let folder = &self.context.environment.folder;
        if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.clone() }
    }

    /// The name of the key, with the place of the value.
    pub(crate) fn place(&self) -> SourceText {
        let (line, column) = self.context.file.place(self.location.span().start);
        SourceText::new(self.name, &self.context.file.name, line, column)
    }

    /// The items of a list.
    pub(crate) fn items(&self, advice: &str) -> Option<Vec<Self>> {
        match self.value {
            DeValue::Array(items) => Some(items.iter().map(|item| self.inner(self.name, item)).collect()),
            _ => {
                self.refuse_type("a list", advice);
                None
            }
        }
    }

    /// The keys of a table whose keys the user chooses, each with its value, in the order of the file.
    pub(crate) fn entries(&self, advice: &str) -> Option<Vec<(ChosenKey<'c>, Self)>> {
        let DeValue::Table(table) = self.value else {
            self.refuse_type("a table", advice);
            return None;
        };
        let mut entries: Vec<_> = table
            .iter()
            .map(|(key, value)| {
                let name = key.get_ref().as_ref();
                (ChosenKey { name, location: self.location.at(key.span()) }, self.inner(name, value))
            })
            .collect();
        entries.sort_by_key(|(key, _)| key.location.span().start);
        Some(entries)
    }

    /// The table that the key stands for.
    fn section(&self) -> Option<Section<'c>> {
        let (Kind::Section(keys) | Kind::Sections(keys)) = self.key.kind else {
            debug_assert!(false, "`{}` is no section", self.name);
            return None;
        };
        match self.value {
            DeValue::Table(table) => Some(Section::open(self.context, keys, table, self.location.span())),
            _ => {
                self.refuse_type("a table", &format!("write {} and its keys below it", keys.title));
                None
            }
        }
    }

    /// The value as a table with these keys, if it is a table.
    pub(crate) fn table_of(&self, keys: &'static Keys) -> Option<Section<'c>> {
        let DeValue::Table(table) = self.value else { return None };
        Some(Section::open(self.context, keys, table, self.location.span()))
    }

    /// The table that the key stands for, or several of them.
    pub(crate) fn sections(&self) -> Option<Vec<Section<'c>>> {
        match self.value {
            DeValue::Array(items) => {
                Some(items.iter().filter_map(|item| self.inner(self.name, item).section()).collect())
            }
            _ => self.section().map(|section| vec![section]),
        }
    }

    /// Reports that the value has another type than `expected`.
    pub(super) fn refuse_type(&self, expected: &str, advice: &str) {
        let found = self.value.type_str();
        let article = if found.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        let message = format!("`{}` must be {expected}, not {article} {found}", self.name);
        self.location.report(message, advice);
    }

    /// The value as it stands in the file, quotes included.
    pub(super) fn literal(&self) -> &'c str {
        self.context.file.text.get(self.location.span()).unwrap_or_default()
    }
}

/// A key that the user chose.
#[derive(Clone, Copy)]
pub(crate) struct ChosenKey<'c> {
    pub(crate) name: &'c str,
    pub(crate) location: Location<'c>,
}
