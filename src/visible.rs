//! Text of others, made visible: what a terminal or a log would obey, or not show, is written as an escape.
//!
//! Event types, bodies, keys, errors and the names of sessions come from anywhere. Where a person reads them, they pass
//! through here: no text moves the cursor, changes what stands elsewhere, or breaks a table. JSON needs none of it.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The text in one line: control characters, line breaks, marks of direction and characters without a width are escaped, as in
/// `\u{1b}`.
pub(crate) fn in_one_line(text: &str) -> Cow<'_, str> {
    escape(text, |_| false)
}

/// As [`in_one_line`], but line breaks stay, and so do tabs. For a text that is put together of lines already.
pub(crate) fn in_lines(text: &str) -> Cow<'_, str> {
    escape(text, |character| matches!(character, '\n' | '\t'))
}

/// Lines of others below a heading: each is escaped, and those after the first are indented, so that none can be taken for a
/// line of the program.
pub(crate) fn in_block(text: &str, indent: usize) -> String {
    let lines: Vec<Cow<'_, str>> = text.lines().map(in_one_line).collect();
    lines.join(&format!("\n{}", " ".repeat(indent)))
}

fn escape(text: &str, is_kept: fn(char) -> bool) -> Cow<'_, str> {
    let is_escaped = |character: char| is_hidden(character) && !is_kept(character);
    if !text.chars().any(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '\n' if is_escaped('\n') => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' if is_escaped('\t') => escaped.push_str("\\t"),
            _ if is_escaped(character) => {
                let _ = write!(escaped, "\\u{{{:x}}}", u32::from(character));
            }
            _ => escaped.push(character),
        }
    }
    Cow::Owned(escaped)
}

/// Whether a terminal obeys the character, or shows nothing for it.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            // Marks, embeddings, overrides and isolates of direction.
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            // Separators of lines and paragraphs, characters without a width, and tags.
            | '\u{2028}' | '\u{2029}' | '\u{200b}' | '\u{2060}'..='\u{2064}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        assert_eq!(in_one_line("\u{1b}[2J\u{7}a\nb\r\t\u{9b}1m"), "\\u{1b}[2J\\u{7}a\\nb\\r\\t\\u{9b}1m");
        assert_eq!(in_one_line("abc\u{202e}fdp.exe\u{2066}"), "abc\\u{202e}fdp.exe\\u{2066}");
        assert_eq!(in_lines("a\n\tb\u{1b}c\r\n"), "a\n\tb\\u{1b}c\\r\n");
        assert_eq!(in_block("one\n\u{1b}two\nthree", 2), "one\n  \\u{1b}two\n  three");
        for text in ["plain", "Grüße, 日本語 😀 עברית", "C:\\temp"] {
            assert!(matches!(in_one_line(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }
}
