//! What is mechanical about a key of the configuration. Which keys there are is said elsewhere: `config/keys.rs`.

use std::time::Duration;

/// The keys of one section.
#[derive(Debug)]
pub(crate) struct Keys {
    /// How the section is written: `[runner]`; empty for the top of a file.
    pub(crate) title: &'static str,
    /// What precedes the section's keys in a full name: `runner.`.
    pub(crate) prefix: &'static str,
    /// The keys in the order of the documentation, in groups that several sections share.
    pub(crate) groups: &'static [&'static [Key]],
}

impl Keys {
    /// All keys, in the order of the documentation.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'static Key> + use<> {
        self.groups.iter().copied().flatten()
    }

    /// The names of all keys.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.iter().map(|key| key.name)
    }

    /// The key of this name, if the section has it.
    pub(crate) fn find(&self, name: &str) -> Option<&'static Key> {
        self.iter().find(|key| key.name == name)
    }
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// What to write if the key is missing; `None`: the key is optional.
    pub(crate) required: Option<&'static str>,
    /// Whether the value is never shown.
    pub(crate) is_secret: bool,
}

impl Key {
    /// An optional key that may be shown.
    pub(crate) const fn new(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, required: None, is_secret: false }
    }

    /// The same key, required; `advice` says what to write if it is missing.
    pub(crate) const fn required(self, advice: &'static str) -> Self {
        Self { required: Some(advice), ..self }
    }

    /// The same key, with a value that is never shown.
    pub(crate) const fn secret(self) -> Self {
        Self { is_secret: true, ..self }
    }
}

/// What a key accepts. Ranges include both ends. A default is given here unless the type that is read has it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// A string in which variables are replaced.
    Text,
    /// The URL of a database or a receiver: a string whose secret parts are never shown.
    Url,
    /// A string that is SQL, taken as it is.
    Sql,
    /// `true` or `false`.
    Boolean,
    /// A whole number.
    Integer { from: i64, to: i64, default: Option<i64> },
    /// A number with a fraction.
    Fraction { from: f64, to: f64 },
    /// A length of time: `"30s"`.
    Duration { from: Duration, to: Duration, default: Option<Duration> },
    /// A number of bytes: `"16MiB"`.
    Size { from: i64, to: i64 },
    /// One of a few words.
    Choice(&'static [&'static str]),
    /// `"process"`, `"task"` or `"group:NAME"`.
    Isolation,
    /// A position, a word, or a time.
    Start,
    /// A JSON Schema: JSON in a string, or a table.
    JsonSchema,
    /// A list of strings.
    TextList,
    /// A list of statements.
    SqlList,
    /// Strings by names that the user chooses.
    TextMap,
    /// By names that the user chooses: SQL, or a table with these keys.
    Tables(&'static Keys),
    /// A table.
    Section(&'static Keys),
    /// A table, or a list of tables.
    Sections(&'static Keys),
}

/// The word that was probably meant: at most every third letter differs.
pub(crate) fn nearest<'w>(word: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let distance_max = (word.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|candidate| (strsim::osa_distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= distance_max)
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_key_is_recognised() {
        let known = ["batch_size", "batch_bytes", "url", "direct_url", "isolation"];
        assert_eq!(nearest("batch_sise", known), Some("batch_size"));
        assert_eq!(nearest("ulr", known), Some("url"));
        assert_eq!(nearest("colour", known), None);
    }
}
