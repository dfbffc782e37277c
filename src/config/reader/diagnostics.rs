//! Collects everything that is wrong with a configuration, so that all of it is reported at once.

use std::cell::{Cell, RefCell};
use std::fmt;

use crate::diagnostic::{Diagnostic, render_all};

/// The diagnostics found so far, while the files are read.
#[derive(Debug, Default)]
pub(crate) struct Diagnostics {
    kept: RefCell<Vec<Diagnostic>>,
    /// How many more there are.
    further: Cell<usize>,
}

/// Diagnostics that are kept. Nobody reads more, and finding the place of each takes time.
const KEPT_MAX: usize = 1_000;

/// Diagnostics that a report shows.
const SHOWN_MAX: usize = 100;

impl Diagnostics {
    pub(crate) fn push(&self, diagnostic: Diagnostic) {
        if self.is_full() {
            return self.count();
        }
        self.kept.borrow_mut().push(diagnostic);
    }

    /// Whether further diagnostics are only counted.
    pub(crate) fn is_full(&self) -> bool {
        self.kept.borrow().len() >= KEPT_MAX
    }

    /// Counts a diagnostic that is not kept.
    pub(crate) fn count(&self) {
        self.further.set(self.further.get() + 1);
    }

    /// Whether nothing is wrong so far.
    pub(crate) fn is_empty(&self) -> bool {
        self.kept.borrow().is_empty()
    }

    /// All diagnostics, in the order of `files` and of lines; `None`: nothing was wrong.
    pub(crate) fn into_faults(self, files: &[String]) -> Option<InvalidConfig> {
        let mut found = self.kept.into_inner();
        if found.is_empty() {
            return None;
        }
        let rank = |diagnostic: &Diagnostic| files.iter().position(|file| *file == diagnostic.file);
        found.sort_by_key(|diagnostic| (rank(diagnostic), diagnostic.line, diagnostic.column));
        Some(InvalidConfig { kept: found, further: self.further.get() })
    }
}

/// Everything that is wrong with a configuration. `Display` writes the whole report.
#[derive(Debug, Clone)]
pub struct InvalidConfig {
    kept: Vec<Diagnostic>,
    /// How many more there are.
    further: usize,
}

impl InvalidConfig {
    /// A single diagnostic.
    pub(crate) fn one(diagnostic: Diagnostic) -> Self {
        Self { kept: vec![diagnostic], further: 0 }
    }

    /// Several diagnostics, at least one.
    pub(crate) fn several(kept: Vec<Diagnostic>) -> Self {
        Self { kept, further: 0 }
    }

    /// How many faults there are.
    pub(crate) fn count(&self) -> usize {
        self.kept.len() + self.further
    }

    /// The diagnostics, in the order of the files and of their lines; at least one, and a thousand at most.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.kept
    }
}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.count();
        let shown = &self.kept[..self.kept.len().min(SHOWN_MAX)];
        write!(f, "{}\n\n", render_all(shown))?;
        match count - shown.len() {
            0 if count == 1 => write!(f, "1 fault in the configuration"),
            0 => write!(f, "{count} faults in the configuration"),
            hidden => write!(f, "{count} faults in the configuration, {hidden} of them not shown"),
        }
    }
}

impl std::error::Error for InvalidConfig {}
