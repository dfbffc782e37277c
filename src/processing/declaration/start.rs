//! A processor may declare where it begins.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::event::Position;

/// Where a processor begins that has never run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// With the first event of the store, written `"beginning"`.
    Beginning,
    /// With the first event appended after its first start, written `"now"`: after those that transactions were writing at
    /// that moment, for whose end it waits.
    Now,
    /// With the first event beyond this position, written as a number from 0.
    Position(Position),
    /// With the first event created at this time or later, written like `"2026-01-31T00:00:00Z"`.
    Time(DateTime<Utc>),
}

impl Start {
    /// Whether it depends on what is in the store at the first start. What is being written then has to end before.
    pub(crate) fn needs_now(self) -> bool {
        matches!(self, Self::Now | Self::Time(_))
    }
}
