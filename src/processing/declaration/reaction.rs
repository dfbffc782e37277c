//! What makes a processor a reactor: what it may emit, and where it begins.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::event::Position;

/// What is declared about a reactor beside what projectors have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReactorDeclaration {
    /// The event types that it may emit, in the order of the file, none twice.
    pub emits: Vec<String>,
    /// Where it begins when it is run for the first time.
    pub start: Start,
    /// How many emitted events may lead to one another, at least 1: reactors that answer each other for ever are stopped
    /// there.
    pub chain_max: u32,
}

impl Default for ReactorDeclaration {
    /// Emits nothing, begins now, chains of 100.
    fn default() -> Self {
        Self { emits: Vec::new(), start: Start::default(), chain_max: 100 }
    }
}

/// Where a reactor begins. What was there before it is none of its business, unless it says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// With the first event of the store, written `"beginning"`.
    Beginning,
    /// With the first event appended after its first start, written `"now"`.
    #[default]
    Now,
    /// With the first event beyond this position, written as a number from 0.
    Position(Position),
    /// With the first event created at this time or later, written like `"2026-01-31T00:00:00Z"`.
    Time(DateTime<Utc>),
}
