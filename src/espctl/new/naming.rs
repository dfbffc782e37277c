//! Names in a project: the same words as a type, a file, a path.

use std::str::FromStr;

use anyhow::ensure;

use super::type_text;

/// A name that can be one in Rust and SQL: `order`, `OrderPaid`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name(String);

/// Words that Rust keeps for itself, as far as somebody may want them for a name.
const KEYWORDS: &[&str] = &[
    "abstract", "as", "async", "await", "box", "break", "const", "continue", "crate", "do", "dyn", "else",
    "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop", "macro",
    "match", "mod", "move", "mut", "override", "priv", "pub", "ref", "return", "self", "static", "struct",
    "super", "trait", "true", "try", "type", "unsafe", "use", "virtual", "where", "while", "yield",
];

/// Crates that a project uses, or that come with Rust: a package or a module of such a name would stand before them.
const CRATES: &[&str] = &[
    "alloc",
    "async_trait",
    "axum",
    "chrono",
    "core",
    "espctl",
    "espd",
    "proc_macro",
    "reqwest",
    "serde",
    "serde_json",
    "sqlx",
    "std",
    "test",
    "tokio",
    "tracing",
    "tracing_subscriber",
    "uuid",
];

/// What a project cannot be called beside: folders of cargo, and databases that every PostgreSQL has.
const FOLDERS_AND_DATABASES: &[&str] =
    &["build", "deps", "examples", "incremental", "postgres", "template0", "template1"];

/// Types and traits that the file of an aggregate uses: one that is declared there would stand before them.
const TYPES_IN_USE: &[&str] = &[
    "Aggregate",
    "Clone",
    "Context",
    "Debug",
    "Decide",
    "Default",
    "Deserialize",
    "Err",
    "From",
    "Into",
    "None",
    "Ok",
    "Option",
    "PartialEq",
    "Refusal",
    "Result",
    "Serialize",
    "Some",
    "String",
    "ToOwned",
    "Uuid",
    "Vec",
];

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !text.starts_with(|c: char| c.is_ascii_alphabetic())
            || !text.chars().all(is_word)
            || text.len() > 60
        {
            return Err("a name has letters, digits and underscores, and begins with a letter".to_owned());
        }
        let name = Self(text.to_owned());
        if KEYWORDS.contains(&name.underscored().as_str()) {
            return Err(format!("{text} is a word of Rust"));
        }
        Ok(name)
    }
}

impl Name {
    /// As it was given.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Requires that it can be that of a project.
    pub(super) fn require_project(&self) -> anyhow::Result<()> {
        self.require_module()?;
        let name = self.underscored();
        ensure!(
            !FOLDERS_AND_DATABASES.contains(&name.as_str()),
            "{name} is the name of a folder of cargo or of a database that is always there: choose another name"
        );
        Ok(())
    }

    /// Requires that it can be that of a file in `src/`, and of the type in it.
    pub(super) fn require_aggregate(&self) -> anyhow::Result<()> {
        self.require_module()?;
        self.require_type()
    }

    /// Requires that it can be that of a type in the file of an aggregate.
    pub(super) fn require_type(&self) -> anyhow::Result<()> {
        let name = self.camel();
        ensure!(
            !TYPES_IN_USE.contains(&name.as_str()),
            "{name} is a type that the file of an aggregate uses: choose another name"
        );
        Ok(())
    }

    fn require_module(&self) -> anyhow::Result<()> {
        let name = self.underscored();
        ensure!(!CRATES.contains(&name.as_str()), "{name} is a crate that projects use: choose another name");
        Ok(())
    }

    /// `order_paid`.
    pub(super) fn underscored(&self) -> String {
        self.words().join("_")
    }

    /// `order-paid`.
    pub(super) fn hyphenated(&self) -> String {
        self.words().join("-")
    }

    /// `OrderPaid`.
    pub(super) fn camel(&self) -> String {
        let capital = |word: &String| word[..1].to_ascii_uppercase() + &word[1..];
        self.words().iter().map(capital).collect()
    }

    fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        let mut before = '_';
        for c in self.0.chars() {
            let begins = before == '_' || c.is_ascii_uppercase() && !before.is_ascii_uppercase();
            match words.last_mut() {
                _ if c == '_' => {}
                Some(word) if !begins => word.push(c.to_ascii_lowercase()),
                _ => words.push(c.to_ascii_lowercase().to_string()),
            }
            before = c;
        }
        words
    }
}

/// A field of an event or a command: `amount:u32`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: Name,
    pub(super) of_type: String,
}

impl FromStr for Field {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, of_type) = text.split_once(':').unwrap_or((text, "String"));
        let name: Name = name.parse()?;
        if name.as_str() != name.underscored() {
            return Err(format!("a field is written in small letters: {}", name.underscored()));
        }
        type_text::check(of_type)?;
        Ok(Self { name, of_type: of_type.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_is_written_in_each_way() {
        for text in ["OrderPaid", "order_paid", "orderPaid"] {
            let name = name(text);
            assert_eq!(
                (name.underscored(), name.hyphenated(), name.camel()),
                ("order_paid".to_owned(), "order-paid".to_owned(), "OrderPaid".to_owned())
            );
        }
        assert_eq!(name("HTTPCall").underscored(), "httpcall");
    }

    #[test]
    fn what_cannot_be_a_name_is_refused() {
        for text in ["", "1st", "a-b", "a b", "../x", "type", "type_", "Self"] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_project_is_not_called_like_what_it_uses() {
        for text in CRATES.iter().chain(FOLDERS_AND_DATABASES) {
            assert!(name(text).require_project().is_err(), "{text}");
        }
        for line in include_str!("template/Cargo.toml.txt").lines().filter(|line| line.contains(" = ")) {
            let dependency = line.split(' ').next().unwrap().replace('-', "_");
            let is_field = ["name", "version", "edition", "publish"].contains(&dependency.as_str());
            assert!(is_field || CRATES.contains(&dependency.as_str()), "{dependency}");
        }
        name("shop").require_project().unwrap();
    }

    #[test]
    fn an_aggregate_is_not_called_like_what_its_file_uses() {
        for text in ["refusal", "context", "aggregate", "tokio", "serde", "string"] {
            assert!(name(text).require_aggregate().is_err(), "{text}");
        }
        for text in ["request", "state", "query", "path", "body", "event", "id", "order", "delivery"] {
            name(text).require_aggregate().unwrap();
        }
        // Whatever the template's files of aggregates import by name.
        let files = [include_str!("template/aggregate.rs.txt"), include_str!("template/src/note.rs.txt")];
        for import in files.iter().flat_map(|file| file.lines()).filter_map(|line| line.strip_prefix("use "))
        {
            let last = import.trim_end_matches(';').rsplit("::").next().unwrap();
            assert!(last == "*" || TYPES_IN_USE.contains(&last), "{import}");
        }
    }

    #[test]
    fn a_field_is_called_as_anything_but_words_of_rust() {
        assert_eq!("test".parse::<Field>().unwrap().name.as_str(), "test");
        assert!("type".parse::<Field>().is_err());
    }

    #[test]
    fn a_field_has_a_type() {
        let field: Field = "due:Option<chrono::NaiveDate>".parse().unwrap();
        assert_eq!((field.name.as_str(), field.of_type.as_str()), ("due", "Option<chrono::NaiveDate>"));
        assert_eq!("title".parse::<Field>().unwrap().of_type, "String");
        for text in ["Due", "due:", "due:String}", ":u32"] {
            assert!(text.parse::<Field>().is_err(), "{text}");
        }
    }
}
