//! A configuration file as text, and the places in it.

use std::ops::Range;
use std::path::Path;

use super::bounded;
use crate::diagnostic::{Diagnostic, Excerpt, hide_passwords};

/// The largest file of a configuration.
const FILE_MAX: u64 = 16 << 20;

/// A file of the configuration.
#[derive(Debug)]
pub(crate) struct SourceFile {
    /// The path as named by the user, or as found by a pattern of the user.
    pub(crate) name: String,
    /// The whole content.
    pub(crate) text: String,
    /// Where each line begins.
    line_starts: Vec<usize>,
}

impl SourceFile {
    /// Reads a file, or says why it cannot be read.
    pub(crate) fn read(path: &Path) -> Result<Self, Box<Diagnostic>> {
        let name = path.display().to_string();
        match bounded::read(path, FILE_MAX) {
            Ok(bytes) => Self::from_bytes(name, bytes),
            Err(error) => {
                let advice = "name an existing file that this user may read; \
                              `espctl config example` prints one to start from";
                let message = format!("cannot read the file: {error}");
                Err(Box::new(Diagnostic::of_file(&name, message).with_advice(advice)))
            }
        }
    }

    fn from_bytes(name: String, bytes: Vec<u8>) -> Result<Self, Box<Diagnostic>> {
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self::new(name, text)),
            Err(error) => {
                let end = error.utf8_error().valid_up_to();
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                let file = Self::new(name, text);
                let diagnostic = file.diagnose(end..end, None, "this is not UTF-8");
                Err(Box::new(diagnostic.with_advice("save the file as UTF-8")))
            }
        }
    }

    fn new(name: String, text: String) -> Self {
        let breaks = text.match_indices('\n').map(|(at, _)| at + 1);
        let line_starts = std::iter::once(0).chain(breaks).collect();
        Self { name, text, line_starts }
    }

    /// A diagnostic for a range of bytes; what `secret` covers is not shown.
    pub(crate) fn diagnose(
        &self,
        span: Range<usize>,
        secret: Option<Range<usize>>,
        message: &str,
    ) -> Diagnostic {
        let place = self.place(span.start);
        let start = self.line_start(span.start);
        let end = self.text[start..].find('\n').map_or(self.text.len(), |length| start + length);
        // A message may quote the file; advice never does.
        let message = hide_passwords(message);
        let excerpt = Excerpt::new(&self.text, start..end, span, secret);
        Diagnostic::at(&self.name, place, message).with_excerpt(excerpt)
    }

    /// Line and column, both from 1, the column in characters.
    pub(crate) fn place(&self, byte: usize) -> (usize, usize) {
        let byte = self.text.floor_char_boundary(byte);
        let line = self.line_of(byte);
        let start = self.line_starts[line - 1];
        // A byte order mark does not count as a column.
        let column = self.text[start..byte].chars().filter(|c| *c != '\u{feff}').count() + 1;
        (line, column)
    }

    /// Where the line of this byte begins.
    fn line_start(&self, byte: usize) -> usize {
        self.line_starts[self.line_of(byte) - 1]
    }

    /// The number of the line of this byte, from 1.
    fn line_of(&self, byte: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= byte).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters() {
        let file = SourceFile::new("a.toml".into(), "\u{feff}ä = 1\nb = 'ü' # x\n".into());
        let at = |needle| file.place(file.text.find(needle).unwrap());
        assert_eq!(at("ä"), (1, 1));
        assert_eq!(at("1"), (1, 5));
        assert_eq!(at("b"), (2, 1));
        assert_eq!(at("x"), (2, 11));
        assert_eq!(file.place(usize::MAX), (3, 1));
    }

    #[test]
    fn a_file_that_is_not_text_is_refused_where_it_ceases_to_be() {
        let diagnostic =
            SourceFile::from_bytes("a.toml".into(), b"a = 1\nb = '\xff'\n".to_vec()).unwrap_err();
        assert_eq!((diagnostic.line, diagnostic.column), (Some(2), Some(6)));
    }
}
