//! Which versions can be built beside the one that serves, as far as their declarations say: a pure rule, which everybody asks who
//! promises, builds or refuses one.

use super::{ProcessorDeclaration, ProcessorKind};

/// Why a version is never built beside the one that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsuitable {
    /// It acts, and makes no tables that others read.
    Reactor,
    /// It declares no tables.
    WithoutTables,
    /// Its rows are written by the appends themselves.
    Synchronous,
}

impl Unsuitable {
    /// Why a declaration cannot be built beside; `None`: it can. `is_synchronous`: whether events are handled when they are inserted.
    pub(crate) fn find(declaration: &ProcessorDeclaration, is_synchronous: bool) -> Option<Self> {
        if declaration.kind() == ProcessorKind::Reactor {
            Some(Self::Reactor)
        } else if declaration.tables.is_empty() {
            Some(Self::WithoutTables)
        } else {
            is_synchronous.then_some(Self::Synchronous)
        }
    }

    /// As [`Self::find`], once a daemon follows the declaration: it ends what is not synchronous any more.
    pub(crate) fn find_deployed(declaration: &ProcessorDeclaration, is_synchronous: bool) -> Option<Self> {
        Self::find(declaration, is_synchronous && declaration.synchronous.is_some())
    }

    /// Why it cannot, as a part of a sentence.
    pub(crate) fn because(self, name: &str) -> String {
        match self {
            Self::Reactor | Self::WithoutTables => {
                "only projectors with declared tables are built beside".to_owned()
            }
            Self::Synchronous => {
                format!(
                    "{name} is synchronous, and a version beside it would miss what is inserted meanwhile"
                )
            }
        }
    }

    /// What has the declared version run, as a part of a sentence.
    pub(crate) fn remedy(self, name: &str, version: i32) -> String {
        match self {
            Self::Reactor => format!(
                "`espctl reset {name}` has version {version} take its place: it begins with the first event, and repeats no effects \
                 unless it is told to"
            ),
            Self::WithoutTables => {
                format!("`espctl reset {name}` has version {version} take its place, and begin anew")
            }
            Self::Synchronous => format!(
                "take `synchronous` out of its declaration and reload, and declare it again once version {version} is live; or \
                 `espctl reset {name} --in-place` empties its tables and fills them again"
            ),
        }
    }
}
