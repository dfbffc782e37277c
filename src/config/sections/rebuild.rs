//! Reads `[rebuild]`.

use serde::{Deserialize, Serialize};

use crate::config::reader::tree::Section;

/// `[rebuild]`: how a daemon builds versions beside those that serve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RebuildSection {
    /// How many versions are built at a time; 0: none, operators build them.
    pub parallelism: i64,
    /// How many sessions handle the events of one version at once, where it is not folded and keyed by the aggregate.
    pub workers: i64,
    /// A build waits while the database of the projections has more bytes; `None`: it may have as many as there are.
    pub database_size_max: Option<i64>,
    /// The share of the time that a build works while events are appended, above 0 and up to 1.
    pub share: f64,
}

impl Default for RebuildSection {
    fn default() -> Self {
        Self { parallelism: 1, workers: 2, database_size_max: None, share: 0.25 }
    }
}

impl RebuildSection {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let default = Self::default();
        Self {
            parallelism: section.integer("parallelism").unwrap_or(default.parallelism),
            workers: section.integer("workers").unwrap_or(default.workers),
            database_size_max: section.size("database_size_max"),
            share: section.fraction("share").unwrap_or(default.share),
        }
    }
}
