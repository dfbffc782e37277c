//! How many ids a runner passes per second.

use std::time::Instant;

/// Ids passed per second, over the last second or more.
#[derive(Debug)]
pub(super) struct Rate {
    since: Instant,
    passed: i64,
    per_second: f32,
}

impl Rate {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), passed: 0, per_second: 0.0 }
    }

    pub(super) fn count(&mut self, passed: i64) {
        self.passed += passed;
        let elapsed = self.since.elapsed().as_secs_f32();
        if elapsed >= 1.0 {
            *self = Self { since: Instant::now(), passed: 0, per_second: self.passed as f32 / elapsed };
        }
    }

    /// The rate of the last full second; before one has passed, of the time so far.
    pub(super) fn per_second(&self) -> f32 {
        if self.per_second > 0.0 {
            return self.per_second;
        }
        self.passed as f32 / self.since.elapsed().as_secs_f32().max(0.01)
    }
}
