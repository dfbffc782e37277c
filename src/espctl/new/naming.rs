//! Names in a project: the same words as a type, a file, a path.

use std::str::FromStr;

/// A name that can be one in Rust and SQL: `order`, `OrderPaid`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name(String);

/// Words that Rust keeps for itself, as far as somebody may want them for a name.
const TAKEN: &[&str] = &[
    "abstract", "as", "async", "await", "box", "break", "const", "continue", "crate", "do", "dyn", "else",
    "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop", "macro",
    "match", "mod", "move", "mut", "override", "priv", "pub", "ref", "return", "self", "static", "struct",
    "super", "trait", "true", "try", "type", "unsafe", "use", "virtual", "where", "while", "yield", "test",
    "core", "std", "espd",
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
        if TAKEN.contains(&text.to_ascii_lowercase().as_str()) {
            return Err(format!("{text} is a word of Rust, or a crate"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl Name {
    /// As it was given.
    pub(super) fn as_str(&self) -> &str {
        &self.0
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
        let is_of_type = |c: char| c.is_ascii_alphanumeric() || "_:<>, ".contains(c);
        if of_type.is_empty() || !of_type.chars().all(is_of_type) {
            return Err(format!("{of_type:?} is no type of Rust: write amount:u32"));
        }
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
        for text in ["", "1st", "a-b", "a b", "../x", "type", "Self", "espd"] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_field_has_a_type() {
        let field: Field = "due:Option<NaiveDate>".parse().unwrap();
        assert_eq!((field.name.as_str(), field.of_type.as_str()), ("due", "Option<NaiveDate>"));
        assert_eq!("title".parse::<Field>().unwrap().of_type, "String");
        for text in ["Due", "due:", "due:String}", ":u32"] {
            assert!(text.parse::<Field>().is_err(), "{text}");
        }
    }
}
