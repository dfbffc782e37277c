//! Formats what is written to a project: lines grow with names.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// The text of a Rust file as rustfmt writes it, with the settings of the project. Without rustfmt, or where it finds fault, as it is.
///
/// Text from the standard input is formatted alone; a file would be formatted with all its modules.
pub(super) fn formatted(project: &Path, text: &str) -> String {
    run(project, text).unwrap_or_else(|| text.to_owned())
}

fn run(project: &Path, text: &str) -> Option<String> {
    let mut rustfmt = Command::new("rustfmt");
    rustfmt.args(["--edition", "2024"]).current_dir(project);
    let mut child =
        rustfmt.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    // It reads everything before it writes.
    child.stdin.take()?.write_all(text.as_bytes()).ok()?;
    let output = child.wait_with_output().ok()?;
    let formatted = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !formatted.is_empty()).then_some(formatted)
}
