//! A processor key identifies a tracker.

use std::fmt;

use crate::postgres::quote::quote_literal;

/// The key of a row in `trackers`, and of every row that refers to one.
///
/// Operators address a processor by its name alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessorKey {
    /// Name of the processor.
    pub name: String,
    /// Version of the processor's tables, from 1.
    pub version: i32,
    /// Partition of the processor's aggregates; 0 for a processor that is not partitioned.
    pub partition: i32,
}

impl ProcessorKey {
    /// Returns the key of a processor that is not partitioned.
    pub fn new(name: &str, version: i32) -> Self {
        Self { name: name.to_owned(), version, partition: 0 }
    }

    /// Returns the condition on a row of `trackers` or `signs_of_life`, whose key has the column `name`.
    pub(crate) fn is_tracker(&self) -> String {
        let Self { name, version, partition } = self;
        format!("name = {} and version = {version} and partition = {partition}", quote_literal(name))
    }

    /// Returns the condition on a row of a table that refers to a tracker by `processor`, `version` and `partition`.
    pub(crate) fn is_processor(&self) -> String {
        let Self { name, version, partition } = self;
        format!("processor = {} and version = {version} and partition = {partition}", quote_literal(name))
    }

    /// Returns the first arguments of every SQL function about a tracker.
    pub(crate) fn arguments(&self) -> String {
        let Self { name, version, partition } = self;
        format!("{}, {version}, {partition}", quote_literal(name))
    }
}

/// As people read it: `orders (version 2, partition 0)`.
impl fmt::Display for ProcessorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (version {}, partition {})", self.name, self.version, self.partition)
    }
}
