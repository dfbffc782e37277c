//! Reads one table of a configuration file, key by key.
//!
//! Nothing here returns an error. A fault is noted, the value is absent, and reading goes on, so that
//! the user sees everything that is wrong at once.

use std::ops::Range;

use toml::de::DeTable;

use super::context::{Context, Location};
use super::value::Value;
use crate::config::keys::{self, Keys};

/// One table of a file.
#[derive(Clone, Copy)]
pub(crate) struct Section<'c> {
    context: &'c Context<'c>,
    keys: &'static Keys,
    table: &'c DeTable<'c>,
    header: Location<'c>,
}

impl<'c> Section<'c> {
    /// Opens a table whose header is at `header`, and notes every key that it should not have.
    pub(crate) fn open(
        context: &'c Context<'c>,
        keys: &'static Keys,
        table: &'c DeTable<'c>,
        header: Range<usize>,
    ) -> Self {
        let section = Self { context, keys, table, header: Location::new(context, header) };
        section.refuse_unknown_keys();
        section
    }

    /// The value of a key, if it is there.
    pub(crate) fn value(&self, key: &'static str) -> Option<Value<'c>> {
        debug_assert!(self.keys.names.contains(&key), "`{key}` is missing from the list of keys");
        self.table.get(key).map(|value| Value::new(self.context, key, value))
    }

    /// As [`Self::value`], for keys that not every section of this shape has.
    pub(crate) fn value_if_known(&self, key: &'static str) -> Option<Value<'c>> {
        self.keys.names.contains(&key).then(|| self.value(key)).flatten()
    }

    /// The value of a key that has to be there; its absence is noted as a fault.
    pub(crate) fn require(&self, key: &'static str, advice: &str) -> Option<Value<'c>> {
        let value = self.value(key);
        // Behind a syntax error, the parser may have lost what looks missing.
        if value.is_none() && self.context.damaged_lines.is_empty() {
            self.header.report(format!("{} needs `{key}`", self.keys.title), advice);
        }
        value
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
            if !self.keys.names.contains(&name) {
                // Whatever an unknown key holds may be a secret.
                let secret = value.get_ref().is_str().then(|| value.span());
                let message = format!("unknown key `{}` {place}", name.escape_debug());
                Location::new(self.context, key.span()).report_hiding(secret, &message, self.advise(name));
            }
        }
    }

    /// What to write instead of an unknown key.
    fn advise(&self, unknown: &str) -> String {
        if let Some(key) = keys::nearest(unknown, self.keys.names.iter().copied()) {
            return format!("did you mean `{key}`?");
        }
        if self.keys.title.is_empty() && keys::MAIN_FILE.names.contains(&unknown) {
            return "move it to the main file; an included file holds processors only".into();
        }
        let known = self.keys.names.join(", ");
        match keys::nearest(unknown, keys::keys_elsewhere(self.keys)) {
            Some(key) => {
                let sections = keys::sections_with(key, self.keys).join(" or ");
                format!("did you mean `{key}` of {sections}? The keys known here: {known}")
            }
            None => format!("remove it; the keys known here: {known}"),
        }
    }
}
