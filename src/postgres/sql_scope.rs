//! What SQL means: in which schemas its names are looked up, and every setting that changes what a text is read as or what
//! a result looks like.
//!
//! A database, a role or a session may have other settings tomorrow. So handlers, declared tables and the rows of programs
//! always get the same ones: those of [`PINNED`], unless the configuration declares others.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::quote::{quote_identifier, quote_literal};

/// The settings that change what SQL means, with the values that they have unless others are declared.
pub(crate) const PINNED: [(&str, &str); 15] = [
    ("TimeZone", "UTC"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("xmlbinary", "base64"),
    ("xmloption", "content"),
    ("lc_monetary", "C"),
    ("lc_numeric", "C"),
    ("lc_time", "C"),
    ("standard_conforming_strings", "on"),
    ("backslash_quote", "safe_encoding"),
    ("array_nulls", "on"),
    ("transform_null_equals", "off"),
    ("quote_all_identifiers", "off"),
];

/// Settings that change what SQL means and have no value that would be right for everybody: the database's own holds, unless
/// one is declared.
pub(crate) const DECLARABLE: [&str; 1] = ["default_text_search_config"];

/// The schemas in which names are looked up behind that of the projections, unless others are declared.
pub(crate) const SEARCH_PATH: [&str; 1] = ["public"];

/// Where the tables of processors are, and what SQL means there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SqlScope {
    /// The schema of the tables, in which names are looked up first.
    pub schema: String,
    /// The schemas in which names are looked up after that, in this order.
    pub search_path: Vec<String>,
    /// The declared settings by name, each one of [`PINNED`] or [`DECLARABLE`].
    pub settings: BTreeMap<String, String>,
}

impl From<&str> for SqlScope {
    /// A schema, with everything else as if nothing was declared.
    fn from(schema: &str) -> Self {
        let search_path = SEARCH_PATH.map(str::to_owned).into();
        Self { schema: schema.to_owned(), search_path, settings: BTreeMap::new() }
    }
}

impl SqlScope {
    /// The same meaning for tables in another schema, where names of this one are found as well.
    pub(crate) fn beside(&self, schema: &str) -> Self {
        let search_path = [&self.schema].into_iter().chain(&self.search_path).cloned().collect();
        Self { schema: schema.to_owned(), search_path, settings: self.settings.clone() }
    }

    /// The value of `search_path`. Temporary objects come last, so that none can take a name.
    pub(crate) fn search_path(&self) -> String {
        let schemas =
            [&self.schema].into_iter().chain(&self.search_path).map(|schema| quote_identifier(schema));
        schemas.chain(["pg_temp".to_owned()]).collect::<Vec<_>>().join(", ")
    }

    /// The clauses of `create function` that give a function this meaning whoever calls it, a line for each.
    pub(crate) fn clauses(&self) -> String {
        let mut lines = vec![format!("set search_path = {}", self.search_path())];
        lines.extend(self.settings().map(|(name, value)| format!("set {name} = {}", as_list(name, value))));
        lines.join("\n")
    }

    /// Expressions of a select that give the rest of the transaction this meaning.
    pub(crate) fn set_local(&self) -> String {
        let search_path = self.search_path();
        let settings = [("search_path", search_path.as_str()), ("row_security", "off")].into_iter();
        let calls = settings.chain(self.settings()).map(|(name, value)| {
            format!("set_config({}, {}, true)", quote_literal(name), quote_literal(value))
        });
        calls.collect::<Vec<_>>().join(", ")
    }

    fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        let declared = |name: &str| self.settings.get(name).map(String::as_str);
        let pinned = PINNED.into_iter().map(move |(name, value)| (name, declared(name).unwrap_or(value)));
        pinned.chain(DECLARABLE.into_iter().filter_map(move |name| Some((name, declared(name)?))))
    }
}

/// The value of a setting in a `set` clause, where one literal would be one item of a list.
fn as_list(name: &str, value: &str) -> String {
    match name {
        "DateStyle" => value.split(',').map(|part| quote_literal(part.trim())).collect::<Vec<_>>().join(", "),
        _ => quote_literal(value),
    }
}

/// The name of a setting that may be declared, as PostgreSQL spells it. Letters may be in any case.
pub(crate) fn setting_name(name: &str) -> Option<&'static str> {
    setting_names().find(|known| known.eq_ignore_ascii_case(name))
}

/// The names of all settings that may be declared.
pub(crate) fn setting_names() -> impl Iterator<Item = &'static str> {
    PINNED.into_iter().map(|(name, _)| name).chain(DECLARABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_the_own_schema_first_and_settings_are_those_declared() {
        let mut scope = SqlScope::from("views");
        scope.search_path.push("a\"b".to_owned());
        scope.settings.insert("DateStyle".to_owned(), "ISO, DMY".to_owned());
        scope.settings.insert("default_text_search_config".to_owned(), "english".to_owned());
        let clauses = scope.clauses();
        assert!(
            clauses.starts_with("set search_path = \"views\", \"public\", \"a\"\"b\", pg_temp\n"),
            "{clauses}"
        );
        assert!(clauses.contains("\nset TimeZone = 'UTC'\nset DateStyle = 'ISO', 'DMY'\n"), "{clauses}");
        assert!(clauses.ends_with("set default_text_search_config = 'english'"), "{clauses}");
        let beside = scope.beside("scratch");
        assert!(beside.search_path().starts_with("\"scratch\", \"views\", \"public\""));
        assert!(beside.set_local().contains("set_config('DateStyle', 'ISO, DMY', true)"));
    }

    #[test]
    fn a_setting_is_known_in_any_case() {
        assert_eq!(setting_name("timezone"), Some("TimeZone"));
        assert_eq!(setting_name("work_mem"), None);
    }
}
