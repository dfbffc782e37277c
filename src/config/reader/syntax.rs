//! Reports what is wrong with a file that is not TOML.

use std::collections::{BTreeMap, BTreeSet};

use toml::de::{DeTable, DeValue, Error};

use super::diagnostics::Diagnostics;
use super::source_file::SourceFile;

/// Reports all syntax errors of a file and returns their lines.
pub(crate) fn report_syntax_errors(
    file: &SourceFile,
    errors: &[Error],
    tree: &DeTable<'_>,
    diagnostics: &Diagnostics,
) -> BTreeSet<usize> {
    let mut lines = BTreeSet::new();
    let mut ends = BTreeMap::new();
    note_ends(tree, &mut ends);
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let unclosed = ends.get(&span.start).copied();
        let (span, advice) = match unclosed {
            Some(start) => (start..start, "close this string"),
            None => (span, "write TOML: `key = value`, strings in quotes, [section] on a line of its own"),
        };
        let (line, _) = file.place(span.start);
        // One mistake often makes several errors on its line; the first one is enough.
        if lines.insert(line) {
            let diagnostic = file.diagnose(span, None, &format!("not TOML: {}", error.message()));
            diagnostics.push(diagnostic.with_advice(advice));
        }
    }
    lines
}

/// Notes where each string ends, and where it begins. The parser reports a string that is never closed at its end; the
/// author needs its beginning.
fn note_ends(tree: &DeTable<'_>, ends: &mut BTreeMap<usize, usize>) {
    for (_, value) in tree {
        note_ends_in(value, ends);
    }
}

fn note_ends_in(value: &toml::Spanned<DeValue<'_>>, ends: &mut BTreeMap<usize, usize>) {
    match value.get_ref() {
        DeValue::String(_) if !value.span().is_empty() => {
            ends.entry(value.span().end).or_insert(value.span().start);
        }
        DeValue::Array(items) => items.iter().for_each(|item| note_ends_in(item, ends)),
        DeValue::Table(table) => note_ends(table, ends),
        _ => {}
    }
}
