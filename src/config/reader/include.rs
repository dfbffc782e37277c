//! Finds the files that `include` names.

use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

use glob::{GlobError, MatchOptions, Pattern, PatternError, glob_with};

use super::tree::Value;

/// The files that the patterns match: in the order of the patterns, by name within one pattern, none twice, and
/// never the including file itself.
pub(crate) fn expand(patterns: &Value<'_>, including: &Path) -> Vec<PathBuf> {
    let advice = "write a list of files or patterns: include = [\"processors/*.toml\"]";
    let mut found = Vec::new();
    let mut seen = vec![identity(including)];
    for pattern in patterns.items(advice).unwrap_or_default() {
        for file in find_files(&pattern, including) {
            let identity = identity(&file);
            if !seen.contains(&identity) {
                seen.push(identity);
                found.push(file);
            }
        }
    }
    found
}

/// The files of one pattern, relative to the folder of the including file.
fn find_files(value: &Value<'_>, including: &Path) -> Vec<PathBuf> {
    let Some(pattern) = value.text() else { return Vec::new() };
    let folder = including.parent().unwrap_or(Path::new(""));
    if !has_wildcard(&pattern) {
        return find_file(value, including, folder.join(&pattern));
    }
    if let Some(range) = empty_range(&pattern) {
        let message = format!("not a pattern: no character is in [{range}]");
        value.location.report(message, "write the smaller character first");
        return Vec::new();
    }
    match match_paths(folder, &pattern) {
        Ok(paths) => {
            report_hidden(value, folder, &pattern);
            paths.into_iter().filter_map(|path| keep_file(value, &pattern, path)).collect()
        }
        Err(error) => {
            value.location.report(format!("not a pattern: {error}"), "use `*`, `?`, `[a-z]` and `**`");
            Vec::new()
        }
    }
}

/// The file of a name without wildcards.
fn find_file(value: &Value<'_>, including: &Path, file: PathBuf) -> Vec<PathBuf> {
    if identity(&file) == identity(including) {
        let advice = "name other files, or remove it: this one is read anyway";
        value.location.report("a file cannot include itself", advice);
        return Vec::new();
    }
    match file.metadata() {
        Ok(data) if data.is_file() => return vec![file],
        Err(error) if !is_absence(&error) => report_unreadable(value, &file, &error),
        Ok(data) if data.is_dir() => {
            let advice = format!(
                "name the files in it: {:?}",
                format!("{}/*.toml", value.text().unwrap_or_default().trim_end_matches('/'))
            );
            value.location.report(format!("{} is a folder", file.display()), advice);
        }
        _ => value.location.report(
            format!("there is no file {}", file.display()),
            "name an existing file, or write a pattern with `*`, which may match nothing",
        ),
    }
    Vec::new()
}

/// What a pattern matches, and the folders that could not be looked into.
fn match_paths(folder: &Path, pattern: &str) -> Result<Vec<Result<PathBuf, GlobError>>, PatternError> {
    let is_absolute = Path::new(pattern).is_absolute();
    let base = if is_absolute { String::new() } else { Pattern::escape(&folder.join("").to_string_lossy()) };
    // Editors give their temporary files names that begin with a dot.
    let options = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::new() };
    Ok(glob_with(&format!("{base}{pattern}"), options)?.collect())
}

/// A match that is a file. A folder that could not be looked into is a fault: the processors that are declared in it would be
/// taken for ones that nobody wants any more.
fn keep_file(value: &Value<'_>, pattern: &str, path: Result<PathBuf, GlobError>) -> Option<PathBuf> {
    let path = match path {
        Ok(path) => path,
        Err(error) => {
            report_unreadable(value, error.path(), error.error());
            return None;
        }
    };
    if !path.is_dir() {
        return Some(path);
    }
    // Whoever writes `*` alone means the files among what is there.
    if !pattern.ends_with('*') {
        let message = format!("{} matches, and is a folder", path.display());
        value.location.report(message, "name the files in it by a pattern, or give the folder another name");
    }
    None
}

/// Reports the parts of a pattern without a wildcard that cannot be reached: to what matches patterns they are not there.
fn report_hidden(value: &Value<'_>, folder: &Path, pattern: &str) {
    let starts = pattern.match_indices('/').map(|(slash, _)| slash + 1);
    for start in std::iter::once(0).chain(starts) {
        let (before, rest) = pattern.split_at(start);
        let name = rest.split('/').next().unwrap_or_default();
        if name.is_empty() || has_wildcard(name) {
            continue;
        }
        let above = if has_wildcard(before) {
            let found = match_paths(folder, before.trim_end_matches('/')).unwrap_or_default();
            found.into_iter().filter_map(Result::ok).collect()
        } else {
            vec![folder.join(before)]
        };
        for path in above.into_iter().map(|folder| folder.join(name)) {
            if let Err(error) = path.metadata()
                && !is_absence(&error)
            {
                return report_unreadable(value, &path, &error);
            }
        }
    }
}

fn report_unreadable(value: &Value<'_>, path: &Path, error: &Error) {
    let message = format!("cannot look into {}: {error}", path.display());
    let advice = "let this user read it; until then nobody knows what is declared there";
    value.location.report(message, advice);
}

/// Whether nothing is there, which a pattern may match as well.
fn is_absence(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn has_wildcard(pattern: &str) -> bool {
    pattern.contains(['*', '?', '['])
}

/// A range of characters that ends before it begins, so that nothing matches it.
fn empty_range(pattern: &str) -> Option<String> {
    let inside = pattern.split('[').skip(1).filter_map(|rest| rest.split(']').next());
    inside.map(|set| set.trim_start_matches('!').chars().collect::<Vec<_>>()).find_map(|set| {
        let range = set.windows(3).find(|range| range[1] == '-' && range[0] > range[2])?;
        Some(range.iter().collect())
    })
}

/// A path that is equal for two paths to the same file.
fn identity(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
