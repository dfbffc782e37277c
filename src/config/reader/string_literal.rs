//! Finds where each character of a TOML string is written.
//!
//! The parser returns the value of a string and the range of the literal. This file reads the literal
//! again, so that an error inside a piece of SQL can be shown at its line and column, whatever quotes,
//! escapes and line breaks the author used.

use crate::postgres::source_text::Builder;
use crate::processing::declaration::SourceText;

/// Reads a string literal, quotes included, that begins at `line` and `column` of `file`.
///
/// `value` is what the parser made of it. If the two disagree, the parser is right and every
/// character is placed as if the value had been written without quotes.
pub(crate) fn locate_characters(
    literal: &str,
    value: &str,
    file: &str,
    line: usize,
    column: usize,
) -> SourceText {
    let scanned = scan(literal, file, line, column);
    match scanned {
        Some(source) if source.text == value => source,
        _ => SourceText::new(value, file, line, column),
    }
}

/// The literal's characters, or `None` if it is not a complete string literal.
fn scan(literal: &str, file: &str, line: usize, column: usize) -> Option<SourceText> {
    let quotes = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quotes| literal.starts_with(quotes))?;
    let content = literal.strip_prefix(quotes)?.strip_suffix(quotes)?;
    let mut scanner =
        Scanner { rest: content, line, column: column + quotes.len(), built: Builder::default() };
    if quotes.len() == 3 {
        // A line break right after the opening quotes is not part of the value.
        scanner.skip_newline();
    }
    if quotes.starts_with('"') {
        scanner.read_escaped()?
    } else {
        scanner.read_plain()
    };
    Some(scanner.built.finish(file, scanner.line, scanner.column))
}

/// Reads the literal from its beginning to its end.
struct Scanner<'l> {
    rest: &'l str,
    line: usize,
    column: usize,
    built: Builder,
}

impl Scanner<'_> {
    /// Reads a literal in which every character stands for itself.
    fn read_plain(&mut self) {
        while let Some(character) = self.rest.chars().next() {
            self.built.push(character, self.line, self.column);
            self.advance(character);
        }
    }

    /// Reads a literal in which a backslash begins an escape and every other character stands for itself.
    fn read_escaped(&mut self) -> Option<()> {
        while let Some(character) = self.rest.chars().next() {
            let (line, column) = (self.line, self.column);
            self.advance(character);
            if character != '\\' {
                self.built.push(character, line, column);
            } else if let Some(escaped) = self.read_escape()? {
                self.built.push(escaped, line, column);
            }
        }
        Some(())
    }

    /// Reads what follows a backslash: a character, or `Some(None)` for a continued line.
    fn read_escape(&mut self) -> Option<Option<char>> {
        let letter = self.rest.chars().next()?;
        if letter.is_ascii_whitespace() {
            self.skip_whitespace();
            return Some(None);
        }
        self.advance(letter);
        let character = match letter {
            'b' => '\u{8}',
            't' => '\t',
            'n' => '\n',
            'f' => '\u{c}',
            'r' => '\r',
            'e' => '\u{1b}',
            '"' | '\\' => letter,
            'x' => self.read_code(2)?,
            'u' => self.read_code(4)?,
            'U' => self.read_code(8)?,
            _ => return None,
        };
        Some(Some(character))
    }

    /// Reads a character given by hexadecimal digits.
    fn read_code(&mut self, digits: usize) -> Option<char> {
        let code = self.rest.get(..digits)?;
        self.rest = &self.rest[digits..];
        self.column += digits;
        char::from_u32(u32::from_str_radix(code, 16).ok()?)
    }

    fn skip_whitespace(&mut self) {
        while let Some(character) = self.rest.chars().next().filter(char::is_ascii_whitespace) {
            self.advance(character);
        }
    }

    fn skip_newline(&mut self) {
        for newline in ["\r\n", "\n"] {
            if let Some(rest) = self.rest.strip_prefix(newline) {
                (self.rest, self.line, self.column) = (rest, self.line + 1, 1);
                return;
            }
        }
    }

    /// Steps over the next character, which is `character`.
    fn advance(&mut self, character: char) {
        self.rest = &self.rest[character.len_utf8()..];
        (self.line, self.column) =
            if character == '\n' { (self.line + 1, 1) } else { (self.line, self.column + 1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where `needle` of the value is written, in a file that begins with this literal.
    fn place(literal: &str, needle: &str) -> (usize, usize) {
        let value = value_of(literal);
        let source = locate_characters(literal, &value, "a.toml", 1, 1);
        let byte = source.text.find(needle).unwrap();
        source.locate(source.text[..byte].chars().count())
    }

    fn value_of(literal: &str) -> String {
        toml::de::DeValue::parse(literal).unwrap().get_ref().as_str().unwrap().to_owned()
    }

    #[test]
    fn plain_strings_are_placed_behind_their_quotes() {
        assert_eq!(place("'select x'", "x"), (1, 9));
        assert_eq!(place("\"select x\"", "x"), (1, 9));
    }

    #[test]
    fn the_first_line_break_of_a_long_string_is_not_content() {
        assert_eq!(place("\"\"\"\n  select\n  x\"\"\"", "select"), (2, 3));
        assert_eq!(place("\"\"\"\n  select\n  x\"\"\"", "x"), (3, 3));
        assert_eq!(place("'''\r\n  select\r\n  x'''", "x"), (3, 3));
        assert_eq!(place("'''select\nx'''", "select"), (1, 4));
        assert_eq!(place("\"\"\"\n\nx\"\"\"", "x"), (3, 1));
    }

    #[test]
    fn escapes_are_counted_as_they_are_written() {
        assert_eq!(place(r#""\t\"\u00e9\\x y""#, "x"), (1, 14));
        assert_eq!(place("\"\"\"a\\n\\\n   x\"\"\"", "x"), (2, 4));
    }

    #[test]
    fn quotes_at_the_end_of_a_long_string_belong_to_it() {
        assert_eq!(place("\"\"\"say \"x\"\"\"\"", "x\""), (1, 9));
    }

    proptest::proptest! {
        #[test]
        fn the_scanner_reads_what_the_parser_reads(content in r#"([a-zé \n"'\r]|\\[tn"\\]|\\u00e9|\\ *\n){0,12}"#) {
            for quotes in ["\"\"\"", "'''", "\"", "'"] {
                let literal = format!("{quotes}{content}{quotes}");
                let Ok(parsed) = toml::de::DeValue::parse(&literal) else { continue };
                let Some(value) = parsed.get_ref().as_str() else { continue };
                let scanned = scan(&literal, "a.toml", 1, 1).map(|source| source.text);
                proptest::prop_assert_eq!(scanned.as_deref(), Some(value), "{}", literal);
            }
        }
    }
}
