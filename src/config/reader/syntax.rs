//! Reports what is wrong with a file that is not TOML.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

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
        let message = format!("not TOML: {}", error.message());
        let (span, message, advice) = match (unclosed, find_first(file, tree, error)) {
            (Some(start), _) => (start..start, message, "close this string"),
            (None, Some((name, line))) => (
                span,
                format!("not TOML: `{name}` is in line {line} already"),
                "remove one of the two; of a section that there may be several of, write each as [[section]]",
            ),
            (None, None) => (
                span,
                message,
                "write TOML: `key = value`, strings in quotes, [section] on a line of its own",
            ),
        };
        let (line, _) = file.place(span.start);
        // One mistake often makes several errors on its line; the first one is enough.
        if lines.insert(line) {
            diagnostics.push(file.diagnose(span, None, &message).with_advice(advice));
        }
    }
    lines
}

/// The key that this error says is there twice, and the line that has it first.
fn find_first(file: &SourceFile, tree: &DeTable<'_>, error: &Error) -> Option<(String, usize)> {
    let again = error.span().filter(|_| error.message() == "duplicate key")?;
    let name = file.text.get(again.clone())?.trim();
    let (line, _) = file.place(again.start);
    // Of a section that is there twice, the parser keeps the second header.
    let headers = file.text.lines().take(line).map(header_in).collect::<Vec<_>>();
    if let Some((Some(header), above)) = headers.split_last() {
        let first = above.iter().rposition(|above| above.as_ref() == Some(header))?;
        return Some((header.clone(), first + 1));
    }
    let mut keys = Vec::new();
    note_keys(tree, &mut keys);
    // Other sections have keys of the same name, and end before the one with the key begins.
    let before = keys.into_iter().filter(|key| key.start < again.start);
    let first = before
        .filter(|key| file.text.get(key.clone()).map(str::trim) == Some(name))
        .max_by_key(|key| key.start)?;
    Some((name.to_owned(), file.place(first.start).0))
}

/// What is between the brackets, where a line is the header of a section.
fn header_in(line: &str) -> Option<String> {
    let inside = line.trim().strip_prefix('[')?;
    let (name, _) = inside.split_once(']')?;
    Some(name.trim_start_matches('[').trim().to_owned())
}

/// Notes where each key is.
fn note_keys(tree: &DeTable<'_>, keys: &mut Vec<Range<usize>>) {
    for (key, value) in tree {
        keys.push(key.span());
        note_keys_in(value, keys);
    }
}

fn note_keys_in(value: &toml::Spanned<DeValue<'_>>, keys: &mut Vec<Range<usize>>) {
    match value.get_ref() {
        DeValue::Array(items) => items.iter().for_each(|item| note_keys_in(item, keys)),
        DeValue::Table(table) => note_keys(table, keys),
        _ => {}
    }
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
