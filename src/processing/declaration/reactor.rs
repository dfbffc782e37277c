//! A reactor declares what it may emit, and where it begins.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::event::Position;

/// What a reactor declares in addition to what every processor declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReactorDeclaration {
    /// The event types that the reactor may emit, in the order of the configuration file, none twice.
    pub emits: Vec<String>,
    /// Where the reactor begins when it runs for the first time.
    pub start: Start,
    /// How many emitted events may lead to one another, at least 1. The limit stops reactors that answer each other without
    /// end.
    pub chain_max: u32,
}

impl Default for ReactorDeclaration {
    /// The reactor emits nothing, begins now, and allows chains of 100 events.
    fn default() -> Self {
        Self { emits: Vec::new(), start: Start::default(), chain_max: 100 }
    }
}

/// Where a reactor begins. It does not handle the events that were there before its first start, unless it declares so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// With the first event of the store, written `"beginning"`.
    Beginning,
    /// With the first event appended after its first start, written `"now"`: after those that transactions were writing at
    /// that moment, for whose end it waits.
    #[default]
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
