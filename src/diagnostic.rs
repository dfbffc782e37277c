//! A diagnostic says what is wrong with a declared text: where, and what to write instead.
//!
//! The configuration and the checks of SQL and programs produce the same type, so that `espd`, `espd check` and
//! `espctl check` print every mistake in the same form.

use std::fmt::{self, Write as _};
use std::ops::Range;

use serde::Serialize;
use sqlx::postgres::{PgDatabaseError, PgErrorPosition};

use crate::postgres::source_text::SourceText;

/// How serious a diagnostic is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It is wrong: nothing runs with it.
    Error,
    /// It may be meant, and may be a mistake.
    Warning,
}

/// One mistake in a declared text.
///
/// `Display` writes it in one line, for logs and error messages; [`Diagnostic::render`] shows the line of the file too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The file, as named by the user.
    pub file: String,
    /// The line, from 1; absent if the mistake has no place in the file.
    pub line: Option<usize>,
    /// The column, from 1, in characters.
    pub column: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// Whether it has to be mended.
    pub severity: Severity,
    /// What to write or do instead; absent if neither espd nor the database knows it.
    pub advice: Option<String>,
    #[serde(skip)]
    excerpt: Option<Box<Excerpt>>,
}

impl Diagnostic {
    /// A mistake that concerns a file as a whole.
    pub(crate) fn of_file(file: &str, message: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: None,
            column: None,
            message: message.into(),
            severity: Severity::Error,
            advice: None,
            excerpt: None,
        }
    }

    /// A mistake at a line and a column of a file, both from 1.
    pub(crate) fn at(file: &str, (line, column): (usize, usize), message: impl Into<String>) -> Self {
        Self { line: Some(line), column: Some(column), ..Self::of_file(file, message) }
    }

    /// A mistake at a byte offset of a declared text.
    pub(crate) fn in_source(source: &SourceText, offset: usize, message: impl Into<String>) -> Self {
        let before = source.text.get(..offset).unwrap_or(&source.text);
        Self::at(&source.file, source.locate(before.chars().count()), message)
    }

    /// The database's refusal of `statement`, which holds `source` verbatim from byte `lead` on.
    pub(crate) fn of_refusal(source: &SourceText, lead: usize, statement: &str, error: &sqlx::Error) -> Self {
        let answer = DatabaseAnswer::of(error);
        let offset = answer.offset_in(statement).and_then(|offset| offset.checked_sub(lead)).unwrap_or(0);
        answer.at(source, offset.min(source.text.len()))
    }

    /// As [`Self::of_refusal`], for a statement that holds several declared texts, each from its byte on.
    pub(crate) fn of_refusal_in(
        places: &[(usize, &SourceText)],
        statement: &str,
        error: &sqlx::Error,
    ) -> Self {
        let offset = DatabaseAnswer::of(error).offset_in(statement).unwrap_or(0);
        let holds = places.iter().rfind(|(lead, _)| *lead <= offset).or(places.first());
        match holds {
            Some((lead, source)) => Self::of_refusal(source, *lead, statement, error),
            None => Self::of_file("<generated>", error.to_string()),
        }
    }

    /// The same, as something to look at that prevents nothing.
    pub(crate) fn into_warning(self) -> Self {
        Self { severity: Severity::Warning, ..self }
    }

    /// The same mistake, with what to write or do instead.
    pub(crate) fn with_advice(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    /// The same mistake, shown with its line of the file.
    pub(crate) fn with_excerpt(self, excerpt: Excerpt) -> Self {
        Self { excerpt: Some(Box::new(excerpt)), ..self }
    }

    /// The same mistake, shown with the line that stands in the file now, if the file can be read.
    pub(crate) fn with_line_of_file(self) -> Self {
        let (Some(line), Some(column)) = (self.line, self.column) else { return self };
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let Some(text) = text.lines().nth(line - 1) else { return self };
        let start = text.char_indices().nth(column - 1).map_or(text.len(), |(offset, _)| offset);
        self.with_excerpt(Excerpt::new(text, 0..text.len(), start..start, None))
    }

    /// The mistake with its line of the file, a mark below the wrong part, and the advice.
    pub fn render(&self) -> String {
        let mut text = self.heading();
        if let (Some(line), Some(Excerpt { line: shown, start, length })) =
            (self.line, self.excerpt.as_deref())
        {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n{line:>5} | {shown}\n      | {:start$}{}", "", "^".repeat(*length));
        }
        if let Some(advice) = &self.advice {
            let _ = write!(text, "\n      = {advice}");
        }
        text
    }

    fn heading(&self) -> String {
        let severity = if self.severity == Severity::Warning { "warning: " } else { "" };
        match (self.line, self.column) {
            (Some(line), Some(column)) => {
                format!("{severity}{}:{line}:{column}: {}", self.file, self.message)
            }
            _ => format!("{severity}{}: {}", self.file, self.message),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.heading())?;
        match &self.advice {
            Some(advice) => write!(f, " ({advice})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Diagnostic {}

/// All of these, each as [`Diagnostic::render`] shows it, with an empty line in between.
pub(crate) fn render_all(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().map(Diagnostic::render).collect::<Vec<_>>().join("\n\n")
}

/// What PostgreSQL said about a statement.
pub(crate) struct DatabaseAnswer {
    message: String,
    hint: Option<String>,
    /// The SQLSTATE; empty if the error did not come from the database.
    pub(crate) code: String,
    /// A position in characters, from 1, and the text that it is in, if that is not the statement itself.
    position: Option<(usize, Option<String>)>,
}

impl DatabaseAnswer {
    pub(crate) fn of(error: &sqlx::Error) -> Self {
        let Some(answer) = error.as_database_error().and_then(|e| e.try_downcast_ref::<PgDatabaseError>())
        else {
            return Self { message: error.to_string(), hint: None, code: String::new(), position: None };
        };
        let position = answer.position().map(|position| match position {
            PgErrorPosition::Original(at) => (at, None),
            PgErrorPosition::Internal { position, query } => (position, Some(query.to_owned())),
        });
        let (message, hint) = (answer.message().to_owned(), answer.hint().map(str::to_owned));
        Self { message, hint, code: answer.code().to_owned(), position }
    }

    /// The byte offset in `statement` that the database pointed at.
    pub(crate) fn offset_in(&self, statement: &str) -> Option<usize> {
        let (position, query) = self.position.as_ref()?;
        let (start, text) = match query {
            Some(query) => (statement.find(query.as_str())?, query.as_str()),
            None => (0, statement),
        };
        let characters = position.checked_sub(1)?;
        Some(start + text.char_indices().nth(characters).map_or(text.len(), |(offset, _)| offset))
    }

    /// The answer as a mistake at a byte offset of a declared text.
    pub(crate) fn at(self, source: &SourceText, offset: usize) -> Diagnostic {
        Diagnostic { advice: self.hint, ..Diagnostic::in_source(source, offset, self.message) }
    }
}

/// The line of a mistake, fit to be shown: without secrets and control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Excerpt {
    line: String,
    /// Characters before the marked part.
    start: usize,
    /// Characters in the marked part, at least one.
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

/// A text with everything that looks like a password replaced by `***`.
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
/// The reader of the configuration hides the values of secret keys exactly. This finds what is left: a URL under a
/// misspelt key, in a comment, or in a file that is not TOML.
fn passwords_in(line: &str) -> Vec<Range<usize>> {
    let in_urls = line.match_indices("://").filter_map(|(found, mark)| {
        let start = found + mark.len();
        let word = &line[start..end_of(line, start, &[' ', '"'])];
        // A password may contain an `@`: the last one of the word ends the password.
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

    #[test]
    fn a_mistake_is_shown_in_one_line_or_with_its_line_of_the_file() {
        let excerpt = Excerpt::new("on = 1\nof = 2", 7..13, 7..9, None);
        let diagnostic =
            Diagnostic::at("a.toml", (2, 1), "unknown key `of`").with_advice("did you mean `on`?");
        let diagnostic = diagnostic.with_excerpt(excerpt);
        assert_eq!(diagnostic.to_string(), "a.toml:2:1: unknown key `of` (did you mean `on`?)");
        assert_eq!(
            diagnostic.render(),
            "a.toml:2:1: unknown key `of`\n    2 | of = 2\n      | ^^\n      = did you mean `on`?"
        );
        assert_eq!(Diagnostic::of_file("a.toml", "cannot be read").render(), "a.toml: cannot be read");
    }
}
