//! Reads `[verify]`.

use crate::config::reader::tree::Section;

/// `[verify]`: how much of the projectors' tables is compared with their events while they serve.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct VerifySection {
    /// What share of the aggregates of each projector is verified in a day: 0 to 1. 0: none.
    pub share: f64,
}

impl VerifySection {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        Self { share: section.fraction("share").unwrap_or_default() }
    }
}
