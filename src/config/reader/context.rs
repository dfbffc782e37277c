//! What the values of a file are read with, and the spots that faults point at.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use super::faults::{Fault, Faults};
use super::interpolation::Environment;
use super::source_file::SourceFile;

/// What every value of a file is read with.
pub(crate) struct Context<'c> {
    pub(crate) file: &'c SourceFile,
    pub(crate) faults: &'c Faults,
    pub(crate) claims: &'c Claims,
    pub(crate) environment: &'c Environment<'c>,
    /// The lines that are not TOML. The parser goes on behind them as well as it can, so what is found
    /// on them, or found missing, may only be a consequence.
    pub(crate) damaged_lines: Vec<usize>,
}

impl Context<'_> {
    /// Notes a fault, unless a syntax error on the same line explains it.
    pub(crate) fn report(&self, fault: Fault) {
        if !fault.line.is_some_and(|line| self.damaged_lines.contains(&line)) {
            self.faults.push(fault);
        }
    }
}

/// Names that only one spot of the whole configuration may use, with the spot that has them.
#[derive(Debug, Default)]
pub(crate) struct Claims(RefCell<BTreeMap<(&'static str, String), String>>);

/// Part of a file, to point at.
#[derive(Clone, Copy)]
pub(crate) struct Spot<'c> {
    context: &'c Context<'c>,
    start: usize,
    end: usize,
}

impl<'c> Spot<'c> {
    pub(crate) fn new(context: &'c Context<'c>, span: Range<usize>) -> Self {
        Self { context, start: span.start, end: span.end }
    }

    /// The bytes of the file.
    pub(crate) fn span(&self) -> Range<usize> {
        self.start..self.end
    }

    /// Notes a fault here.
    pub(crate) fn fault(&self, message: impl Into<String>, advice: impl Into<String>) {
        self.context.report(self.context.file.fault(self.span(), None, message.into(), advice.into()));
    }

    /// Notes a fault here, without showing what stands in the bytes of `secret`.
    pub(crate) fn fault_hiding(
        &self,
        secret: Range<usize>,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.context.report(self.context.file.fault(
            self.span(),
            Some(secret),
            message.into(),
            advice.into(),
        ));
    }

    /// Claims `name` among all names of this `kind`; notes a fault if another spot has it already.
    pub(crate) fn claim(&self, kind: &'static str, name: &str, advice: &str) {
        let (line, _) = self.context.file.place(self.start);
        let here = format!("{}:{line}", self.context.file.name);
        let mut claims = self.context.claims.0.borrow_mut();
        let key = (kind, name.to_owned());
        match claims.get(&key) {
            Some(earlier) => self.fault(format!("there is another {kind} `{name}`, at {earlier}"), advice),
            None => drop(claims.insert(key, here)),
        }
    }
}
