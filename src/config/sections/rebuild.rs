//! Reads `[rebuild]`.

use serde::{Deserialize, Serialize};

use crate::config::reader::tree::Section;

/// `[rebuild]`: how a daemon builds versions beside those that serve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RebuildSection {
    /// How many versions are built at a time; 0: none, operators build them.
    pub parallelism: i64,
    /// The share of the time that a build works while events are appended, above 0 and up to 1.
    pub share: f64,
}

impl Default for RebuildSection {
    fn default() -> Self {
        Self { parallelism: 1, share: 0.5 }
    }
}

impl RebuildSection {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let default = Self::default();
        Self {
            parallelism: section.integer("parallelism").unwrap_or(default.parallelism),
            share: section.fraction("share").unwrap_or(default.share),
        }
    }
}
