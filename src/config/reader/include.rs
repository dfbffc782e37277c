//! Finds the files that `include` names.

use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern, glob_with};

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
        let file = folder.join(&pattern);
        if file.is_file() {
            return vec![file];
        }
        value.location.report(
            format!("there is no file {}", file.display()),
            "name an existing file, or write a pattern with `*`, which may match nothing",
        );
        return Vec::new();
    }
    let absolute = Path::new(&pattern).is_absolute();
    let base = if absolute { String::new() } else { Pattern::escape(&folder.join("").to_string_lossy()) };
    // Editors give their temporary files names that begin with a dot.
    let options = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::new() };
    match glob_with(&format!("{base}{pattern}"), options) {
        Ok(paths) => paths.filter_map(Result::ok).filter(|path| !path.is_dir()).collect(),
        Err(error) => {
            value.location.report(format!("not a pattern: {error}"), "use `*`, `?`, `[a-z]` and `**`");
            Vec::new()
        }
    }
}

fn has_wildcard(pattern: &str) -> bool {
    pattern.contains(['*', '?', '['])
}

/// A path that is equal for two paths to the same file.
fn identity(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
