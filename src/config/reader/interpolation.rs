//! Replaces `${VARIABLE}`, `${VARIABLE:-default}` and `${file:/path}` in string values.
//!
//! Variables are replaced after parsing, so nothing that a variable holds can change the structure of the file.
//! `$${` stands for `${`.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::bounded;

/// The largest file that a value is read from.
const FILE_MAX: u64 = 1 << 20;

/// Where the variables of the configuration come from.
pub(crate) struct Environment<'e> {
    /// The value of a variable, if it is set.
    pub(crate) variable: &'e dyn Fn(&str) -> Option<String>,
    /// The folder that relative paths of `${file:…}` start from.
    pub(crate) folder: PathBuf,
}

/// What cannot be replaced, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unresolved {
    /// The bytes of the `${…}` in the text.
    pub(crate) span: Range<usize>,
    pub(crate) message: String,
    pub(crate) advice: String,
}

/// Whether a text contains anything to replace.
pub(crate) fn is_interpolated(text: &str) -> bool {
    text.contains("${")
}

/// Replaces every `${…}` of a text, or says what is wrong with each that cannot be replaced.
pub(crate) fn interpolate(text: &str, environment: &Environment<'_>) -> Result<String, Vec<Unresolved>> {
    let mut resolved = String::new();
    let mut unresolved = Vec::new();
    let mut position = 0;
    while let Some(found) = text[position..].find("${") {
        let start = position + found;
        let escaped = text[position..start].ends_with('$');
        resolved.push_str(&text[position..start - usize::from(escaped)]);
        if escaped {
            resolved.push_str("${");
            position = start + 2;
            continue;
        }
        let end = text[start..].find('}').map_or(text.len(), |length| start + length + 1);
        match replace(&text[start..end], environment) {
            Ok(value) => resolved.push_str(&value),
            Err((message, advice)) => unresolved.push(Unresolved { span: start..end, message, advice }),
        }
        position = end;
    }
    resolved.push_str(&text[position..]);
    if unresolved.is_empty() { Ok(resolved) } else { Err(unresolved) }
}

/// The value of one `${…}`, or message and advice.
fn replace(expression: &str, environment: &Environment<'_>) -> Result<String, (String, String)> {
    let Some(inner) = expression.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) else {
        return Err((
            "`${` without its `}`".into(),
            "close it with `}`, or write `$${` for a literal `${`".into(),
        ));
    };
    let (name, default) = match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    };
    if default.is_none()
        && let Some(path) = inner.strip_prefix("file:")
    {
        return read_file(path, environment);
    }
    if !is_variable_name(name) {
        let advice =
            "write `${NAME}`, `${NAME:-default}` or `${file:/path}`; `$${` stands for a literal `${`";
        return Err((format!("`{expression}` is not one of the known forms"), advice.into()));
    }
    match ((environment.variable)(name).filter(|value| !value.is_empty()), default) {
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err((
            format!("the environment variable {name} is not set, or empty"),
            format!("set {name}, or give a default: `${{{name}:-default}}`"),
        )),
    }
}

fn is_variable_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The content of a file, without the one line break that editors leave at its end.
fn read_file(path: &str, environment: &Environment<'_>) -> Result<String, (String, String)> {
    let path = environment.folder.join(Path::new(path));
    let content = bounded::read(&path, FILE_MAX).and_then(|bytes| {
        String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
    });
    match content {
        Ok(content) => {
            let line = content.strip_suffix('\n').unwrap_or(&content);
            Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
        }
        Err(error) => Err((
            format!("cannot read {}: {error}", path.display()),
            "name a text file that the user running espd may read".into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn resolve(text: &str) -> Result<String, Vec<Unresolved>> {
        let variable = |name: &str| match name {
            "USER" => Some("jo".to_owned()),
            "EMPTY" => Some(String::new()),
            "SLY" => Some("${USER}".to_owned()),
            _ => None,
        };
        interpolate(text, &Environment { variable: &variable, folder: std::env::temp_dir() })
    }

    #[test]
    fn variables_are_replaced() {
        for (text, expected) in [
            ("", ""),
            ("a $ b {c}", "a $ b {c}"),
            ("${USER}@${USER}", "jo@jo"),
            ("${NONE:-x}${EMPTY:-y}${USER:-z}${NONE:-}", "xyjo"),
            ("$${USER}", "${USER}"),
            ("$$${USER}", "$${USER}"),
            ("${SLY}", "${USER}"),
            ("ü${USER}ü", "üjoü"),
        ] {
            assert_eq!(resolve(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn everything_that_is_missing_is_named() {
        let faults = resolve("${NONE} ${EMPTY} ${1} ${file:nowhere.txt} ${USER").unwrap_err();
        let spans: Vec<_> = faults.iter().map(|fault| fault.span.clone()).collect();
        assert_eq!(spans, [0..7, 8..16, 17..21, 22..41, 42..48]);
        assert!(faults[0].message.contains("NONE") && faults[1].message.contains("EMPTY"));
        assert!(faults[3].message.contains("nowhere.txt"));
    }

    #[test]
    fn a_file_loses_its_last_line_break_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        fs::write(&path, "two\nlines \r\n").unwrap();
        assert_eq!(resolve(&format!("<${{file:{}}}>", path.display())).as_deref(), Ok("<two\nlines >"));
    }
}
