//! Reports what is wrong with a file that is not TOML.

use toml::de::{DeTable, DeValue, Error};

use super::diagnostics::Diagnostics;
use super::source_file::SourceFile;

/// Reports all syntax errors of a file and returns their lines.
pub(crate) fn report_syntax_errors(
    file: &SourceFile,
    errors: &[Error],
    tree: &DeTable<'_>,
    diagnostics: &Diagnostics,
) -> Vec<usize> {
    let mut lines = Vec::new();
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let unclosed = unclosed_string(tree, span.start);
        let (span, advice) = match unclosed {
            Some(start) => (start..start, "close this string"),
            None => (span, "write TOML: `key = value`, strings in quotes, [section] on a line of its own"),
        };
        let (line, _) = file.place(span.start);
        // One mistake often makes several errors on its line; the first one is enough.
        if !lines.contains(&line) {
            lines.push(line);
            let diagnostic = file.diagnose(span, None, &format!("not TOML: {}", error.message()));
            diagnostics.push(diagnostic.with_advice(advice));
        }
    }
    lines
}

/// The beginning of a string whose end the parser missed at `end`.
///
/// The parser reports it at the end of the file; the author needs its beginning.
fn unclosed_string(tree: &DeTable<'_>, end: usize) -> Option<usize> {
    tree.iter().find_map(|(_, value)| unclosed_in(value, end))
}

fn unclosed_in(value: &toml::Spanned<DeValue<'_>>, end: usize) -> Option<usize> {
    match value.get_ref() {
        DeValue::String(_) => {
            (value.span().end == end && !value.span().is_empty()).then(|| value.span().start)
        }
        DeValue::Array(items) => items.iter().find_map(|item| unclosed_in(item, end)),
        DeValue::Table(table) => unclosed_string(table, end),
        _ => None,
    }
}
