//! Collects everything that is wrong with a configuration, so that all of it is reported at once.

use std::cell::RefCell;
use std::fmt;

use crate::diagnostic::{Diagnostic, render_all};

/// The diagnostics found so far, while the files are read.
#[derive(Debug, Default)]
pub(crate) struct Diagnostics(RefCell<Vec<Diagnostic>>);

impl Diagnostics {
    pub(crate) fn push(&self, diagnostic: Diagnostic) {
        self.0.borrow_mut().push(diagnostic);
    }

    /// The value, if nothing was wrong; otherwise all diagnostics, in the order of `files` and of lines.
    pub(crate) fn into_result<T>(self, value: T, files: &[String]) -> Result<T, InvalidConfig> {
        let mut found = self.0.into_inner();
        if found.is_empty() {
            return Ok(value);
        }
        let rank = |diagnostic: &Diagnostic| files.iter().position(|file| *file == diagnostic.file);
        found.sort_by_key(|diagnostic| (rank(diagnostic), diagnostic.line, diagnostic.column));
        Err(InvalidConfig(found))
    }
}

/// Everything that is wrong with a configuration. `Display` writes the whole report.
#[derive(Debug, Clone)]
pub struct InvalidConfig(Vec<Diagnostic>);

impl InvalidConfig {
    /// A single diagnostic.
    pub(crate) fn one(diagnostic: Diagnostic) -> Self {
        Self(vec![diagnostic])
    }

    /// The diagnostics, in the order of the files and of their lines; at least one.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.0
    }
}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        let noun = if count == 1 { "fault" } else { "faults" };
        write!(f, "{}\n\n{count} {noun} in the configuration", render_all(&self.0))
    }
}

impl std::error::Error for InvalidConfig {}
