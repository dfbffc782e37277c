//! What the values of a file are read with, and the locations that diagnostics point at.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::diagnostics::Diagnostics;
use super::interpolation::Environment;
use super::key::Keys;
use super::source_file::SourceFile;
use crate::diagnostic::Diagnostic;

/// What every value of a file is read with.
pub(crate) struct Context<'c> {
    pub(crate) file: &'c SourceFile,
    pub(crate) diagnostics: &'c Diagnostics,
    pub(crate) names: &'c UniqueNames,
    pub(crate) environment: &'c Environment<'c>,
    /// The keys of every section, the main file first: what a misplaced key is looked for in.
    pub(crate) sections: &'static [&'static Keys],
    /// The lines that are not TOML. The parser continues after them as well as it can, so a mistake on such a line, or a
    /// missing key, may only be a consequence.
    pub(crate) damaged_lines: BTreeSet<usize>,
}

impl Context<'_> {
    /// Adds a diagnostic, unless a syntax error on the same line explains it.
    fn report(&self, diagnostic: Diagnostic) {
        if !diagnostic.line.is_some_and(|line| self.damaged_lines.contains(&line)) {
            self.diagnostics.push(diagnostic);
        }
    }
}

/// Names that may be used once in the whole configuration, each with the place that uses it.
#[derive(Debug, Default)]
pub(crate) struct UniqueNames(RefCell<BTreeMap<(&'static str, String), String>>);

/// Part of a file, for diagnostics to point at.
#[derive(Clone, Copy)]
pub(crate) struct Location<'c> {
    context: &'c Context<'c>,
    start: usize,
    end: usize,
    /// The bytes of the file that what is reported here does not show.
    secret: Option<(usize, usize)>,
}

impl<'c> Location<'c> {
    pub(crate) fn new(context: &'c Context<'c>, span: Range<usize>) -> Self {
        Self { context, start: span.start, end: span.end, secret: None }
    }

    /// Another part of the file, which hides the same bytes.
    pub(crate) fn at(&self, span: Range<usize>) -> Self {
        Self { start: span.start, end: span.end, ..*self }
    }

    /// The same location, without showing the bytes of `secret`.
    pub(crate) fn hiding(&self, secret: Range<usize>) -> Self {
        Self { secret: Some((secret.start, secret.end)), ..*self }
    }

    /// The same location, without showing what is written there.
    pub(crate) fn hidden(&self) -> Self {
        self.hiding(self.span())
    }

    /// The bytes of the file.
    pub(crate) fn span(&self) -> Range<usize> {
        self.start..self.end
    }

    /// Reports a mistake here.
    pub(crate) fn report(&self, message: impl AsRef<str>, advice: impl Into<String>) {
        if self.context.diagnostics.is_full() {
            return self.context.diagnostics.count();
        }
        let secret = self.secret.map(|(start, end)| start..end);
        let diagnostic = self.context.file.diagnose(self.span(), secret, message.as_ref());
        self.context.report(diagnostic.with_advice(advice));
    }

    /// Reserves `name` among all names of this `kind`; reports a mistake if another place uses it already.
    pub(crate) fn reserve(&self, kind: &'static str, name: &str, advice: &str) {
        let (line, _) = self.context.file.place(self.start);
        let here = format!("{}:{line}", self.context.file.name);
        let mut names = self.context.names.0.borrow_mut();
        let key = (kind, name.to_owned());
        match names.get(&key) {
            Some(earlier) => self.report(format!("there is another {kind} `{name}`, at {earlier}"), advice),
            None => drop(names.insert(key, here)),
        }
    }
}
