//! A piece of SQL that remembers where it was written.

use serde::{Deserialize, Serialize};

/// SQL from a configuration file, with the place of every character of it.
///
/// PostgreSQL reports an error by its offset in the text that it was sent; [`SourceText::locate`] turns
/// that into the line and column that the author has to look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceText {
    /// The SQL.
    pub text: String,
    /// The file that it was written in, as named by the user.
    pub file: String,
    /// Line of the first character, from 1.
    pub line: usize,
    /// Column of the first character, from 1, in characters.
    pub column: usize,
    /// Where the text and the file stop running in parallel, by ascending offset: at each new line,
    /// after each escape. Anything in between is found by counting on.
    anchors: Vec<Anchor>,
}

/// The place of one character.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Anchor {
    offset: usize,
    line: usize,
    column: usize,
}

impl SourceText {
    /// A text whose characters stand in `file` exactly as they are, from `line` and `column` on.
    pub fn new(text: &str, file: &str, line: usize, column: usize) -> Self {
        let (mut line, mut column) = (line, column);
        let mut builder = Builder::default();
        for character in text.chars() {
            builder.push(character, line, column);
            (line, column) = if character == '\n' { (line + 1, 1) } else { (line, column + 1) };
        }
        builder.finish(file, line, column)
    }

    /// A text that was not written in a file, for tests and generated declarations.
    pub fn unplaced(text: &str) -> Self {
        Self::new(text, "<inline>", 1, 1)
    }

    /// Line and column, both from 1, of the character at `offset` (in characters, from 0).
    ///
    /// An offset beyond the text is taken for its end.
    pub fn locate(&self, offset: usize) -> (usize, usize) {
        let offset = offset.min(self.text.chars().count());
        let after = self.anchors.partition_point(|anchor| anchor.offset <= offset);
        match after.checked_sub(1).and_then(|index| self.anchors.get(index)) {
            Some(anchor) => (anchor.line, anchor.column + (offset - anchor.offset)),
            None => (self.line, self.column),
        }
    }
}

/// Builds a [`SourceText`] character by character, each with its place.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    text: String,
    length: usize,
    anchors: Vec<Anchor>,
}

impl Builder {
    /// Adds a character that is written at this place.
    pub(crate) fn push(&mut self, character: char, line: usize, column: usize) {
        self.anchor(line, column);
        self.text.push(character);
        self.length += 1;
    }

    /// The text built; the place is the one just behind it.
    pub(crate) fn finish(mut self, file: &str, line: usize, column: usize) -> SourceText {
        self.anchor(line, column);
        let (line, column) = self.anchors.first().map_or((line, column), |first| (first.line, first.column));
        SourceText { text: self.text, file: file.to_owned(), line, column, anchors: self.anchors }
    }

    /// Notes the place of the next character, unless it follows from the last one noted.
    fn anchor(&mut self, line: usize, column: usize) {
        let offset = self.length;
        let follows = self
            .anchors
            .last()
            .is_some_and(|last| last.line == line && last.column + (offset - last.offset) == column);
        if !follows {
            self.anchors.push(Anchor { offset, line, column });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_is_found() {
        let source = SourceText::new("ab\n  ü?\n", "a.sql", 7, 3);
        assert_eq!((source.line, source.column), (7, 3));
        let places: Vec<_> = (0..=8).map(|offset| source.locate(offset)).collect();
        let expected = [(7, 3), (7, 4), (7, 5), (8, 1), (8, 2), (8, 3), (8, 4), (8, 5), (9, 1)];
        assert_eq!(places, expected);
        assert_eq!(source.locate(1_000), (9, 1));
    }

    #[test]
    fn an_empty_text_has_a_place() {
        assert_eq!(SourceText::new("", "a.sql", 7, 3).locate(0), (7, 3));
    }
}
