//! What is wrong with a configuration: every fault with its place and what to write instead.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

use serde::Serialize;

/// One fault of a configuration.
#[derive(Debug, Clone, Serialize)]
pub struct Fault {
    /// The file, as named by the user.
    pub file: String,
    /// The line, from 1; absent if the fault has no place in the file.
    pub line: Option<usize>,
    /// The column, from 1, in characters.
    pub column: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// What to write or do instead.
    pub advice: String,
    #[serde(skip)]
    pub(crate) excerpt: Option<Excerpt>,
}

impl Fault {
    /// A fault of a file as a whole.
    pub(crate) fn of_file(file: &str, message: String, advice: String) -> Self {
        Self { file: file.to_owned(), line: None, column: None, message, advice, excerpt: None }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, ":{line}:{column}")?;
        }
        writeln!(f, ": {}", self.message)?;
        if let (Some(line), Some(excerpt)) = (self.line, &self.excerpt) {
            let caret = "^".repeat(excerpt.length);
            writeln!(f, "{line:>5} | {}", excerpt.line)?;
            writeln!(f, "      | {:indent$}{caret}", "", indent = excerpt.start)?;
        }
        write!(f, "      = {}", self.advice)
    }
}

/// The line of a fault, fit to be shown: without secrets and control characters.
#[derive(Debug, Clone)]
pub(crate) struct Excerpt {
    line: String,
    /// Characters before the marked part, and in it.
    start: usize,
    length: usize,
}

impl Excerpt {
    /// Cuts a line out of a text, marks the part of it that `span` covers, hides what `secret` covers.
    ///
    /// All ranges are bytes of the whole text.
    pub(crate) fn new(
        text: &str,
        line: Range<usize>,
        span: Range<usize>,
        secret: Option<Range<usize>>,
    ) -> Self {
        let within = |byte: usize| text.floor_char_boundary(byte.clamp(line.start, line.end)) - line.start;
        let part = |range: Range<usize>| within(range.start)..within(range.end);
        let (marked, line_text) = (part(span), &text[line.clone()]);
        let mut hidden = passwords_in(line_text);
        hidden.extend(secret.map(part));
        let shown = |part: Range<usize>| show_part(line_text, part, &hidden);
        let (before, after) = (shown(0..marked.start), shown(marked.end..line_text.len()));
        let marked = shown(marked);
        Self {
            start: before.chars().count(),
            length: marked.chars().count().max(1),
            line: format!("{before}{marked}{after}").trim_end().to_owned(),
        }
    }
}

/// A text as it may be shown.
pub(crate) fn hide_passwords(text: &str) -> String {
    show_part(text, 0..text.len(), &passwords_in(text))
}

/// Part of a line as it may be shown: each hidden piece is `***`, no character moves the cursor.
fn show_part(line: &str, part: Range<usize>, hidden: &[Range<usize>]) -> String {
    let mut shown = String::new();
    let mut was_hidden = false;
    for (offset, character) in line[part.clone()].char_indices() {
        let is_hidden = hidden.iter().any(|range| range.contains(&(part.start + offset)));
        match character {
            _ if is_hidden && was_hidden => {}
            _ if is_hidden => shown.push_str("***"),
            '\u{feff}' | '\r' => {}
            _ if character.is_control() => shown.push(' '),
            _ => shown.push(character),
        }
        was_hidden = is_hidden;
    }
    shown
}

/// What looks like a password in a line: between `://user:` and `@`, after `password=`, and after `whsec_`.
///
/// A net below the reader, which hides the values of secret keys exactly: it catches URLs under a
/// misspelt key, in a comment, or in a file that is not even TOML.
fn passwords_in(line: &str) -> Vec<Range<usize>> {
    let in_urls = line.match_indices("://").filter_map(|(found, mark)| {
        let start = found + mark.len();
        let word = &line[start..end_of(line, start, &[' ', '"'])];
        // A password may hold anything, an `@` too: the last one of the word ends it.
        let credentials = &word[..word.rfind('@')?];
        let colon = credentials.find(':')?;
        Some(start + colon + 1..start + credentials.len())
    });
    let in_parameters = line.match_indices("password=").map(|(found, mark)| {
        let start = found + mark.len();
        start..end_of(line, start, &['&', ' ', '"', '\''])
    });
    let in_secrets = line.match_indices("whsec_").map(|(found, mark)| {
        let start = found + mark.len();
        start..end_of(line, start, &[',', ' ', '"', '\''])
    });
    in_urls.chain(in_parameters).chain(in_secrets).collect()
}

/// Where the first of these characters stands from `start` on, or the end of the line.
fn end_of(line: &str, start: usize, characters: &[char]) -> usize {
    line[start..].find(characters).map_or(line.len(), |length| start + length)
}

/// Collects faults while everything is read.
#[derive(Debug, Default)]
pub(crate) struct Faults(RefCell<Vec<Fault>>);

impl Faults {
    /// Notes a fault.
    pub(crate) fn push(&self, fault: Fault) {
        self.0.borrow_mut().push(fault);
    }

    /// The value, if nothing was wrong; otherwise all faults, in the order of `files` and of lines.
    pub(crate) fn into_result<T>(self, value: T, files: &[String]) -> Result<T, ConfigFaults> {
        let mut faults = self.0.into_inner();
        if faults.is_empty() {
            return Ok(value);
        }
        let rank = |fault: &Fault| files.iter().position(|file| *file == fault.file);
        faults.sort_by_key(|fault| (rank(fault), fault.line, fault.column));
        Err(ConfigFaults(faults))
    }
}

/// Everything that is wrong with a configuration. Displays itself as a report.
#[derive(Debug, Clone)]
pub struct ConfigFaults(Vec<Fault>);

impl ConfigFaults {
    /// A single fault that has no place in a file.
    pub(crate) fn one(fault: Fault) -> Self {
        Self(vec![fault])
    }

    /// The faults, in the order of the files and of their lines; at least one.
    pub fn faults(&self) -> &[Fault] {
        &self.0
    }
}

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.0 {
            writeln!(f, "{fault}\n")?;
        }
        let count = self.0.len();
        write!(f, "{count} {} in the configuration", if count == 1 { "fault" } else { "faults" })
    }
}

impl std::error::Error for ConfigFaults {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_hidden_wherever_they_stand() {
        for (text, shown) in [
            ("u = \"postgres://a:b@h/d\"", "u = \"postgres://a:***@h/d\""),
            ("postgres://a:b@c@h:5432/d # postgres://h/d", "postgres://a:***@h:5432/d # postgres://h/d"),
            ("postgres://a:b/c?d@h/d", "postgres://a:***@h/d"),
            ("postgres:///d?password=x&user=y", "postgres:///d?password=***&user=y"),
            ("postgres://${A}:b}@h", "postgres://${A}:***@h"),
            ("secrets = ['whsec_bWluZQ==', \"whsec_a\"]", "secrets = ['whsec_***', \"whsec_***\"]"),
            ("postgres://a@h:5432/d", "postgres://a@h:5432/d"),
            ("postgres://h:5432/d and a@b", "postgres://h:5432/d and a@b"),
            ("no url", "no url"),
        ] {
            assert_eq!(hide_passwords(text), shown);
        }
    }

    #[test]
    fn an_excerpt_marks_the_part_and_hides_the_secret() {
        let text = "a\n\tk = \"söcret\" x\nb";
        let value = text.find('"').unwrap()..text.find(" x").unwrap();
        let excerpt = Excerpt::new(text, 2..text.len() - 2, value.clone(), Some(value));
        assert_eq!(excerpt.line, " k = *** x");
        assert_eq!((excerpt.start, excerpt.length), (5, 3));
    }
}
