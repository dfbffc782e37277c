//! How many ids a runner passes per second.

use std::time::{Duration, Instant};

/// For how long ids are counted together, at least.
const WINDOW: Duration = Duration::from_secs(1);

/// For how long a rate is told after the last batch that passed ids. Then nothing moves.
const VALIDITY: Duration = Duration::from_secs(2);

/// Ids passed per second, over the last second or more; 0 soon after the last batch.
#[derive(Debug)]
pub(super) struct Rate {
    /// The beginning of the present window, and the ids that were passed in it.
    since: Instant,
    passed: i64,
    /// The rate of the window before.
    per_second: f32,
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, passed: 0, per_second: 0.0 }
    }

    /// Counts the ids that a batch has passed, which took from `begun` to `now`.
    pub(super) fn count(&mut self, passed: i64, begun: Instant, now: Instant) {
        if passed == 0 {
            return;
        }
        if begun.saturating_duration_since(self.since) > VALIDITY {
            // The pause before this batch says nothing about its speed.
            *self = Self::new(begun);
        }
        self.passed += passed;
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= WINDOW {
            *self = Self { since: now, passed: 0, per_second: self.passed as f32 / elapsed.as_secs_f32() };
        }
    }

    /// The rate of the last window; before one has passed, of the time so far.
    pub(super) fn per_second(&self, now: Instant) -> f32 {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed > VALIDITY {
            0.0
        } else if self.per_second > 0.0 {
            self.per_second
        } else {
            self.passed as f32 / elapsed.as_secs_f32().max(0.01)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_second_and_ends_soon_after_the_last_batch() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut rate = Rate::new(start);
        assert_eq!(rate.per_second(at(100)), 0.0);
        rate.count(500, start, at(500));
        assert_eq!(rate.per_second(at(500)), 1_000.0);
        rate.count(1_500, at(500), at(1_000));
        assert_eq!(rate.per_second(at(1_000)), 2_000.0);
        // Batches without an id change nothing.
        for millis in (1_000..4_000).step_by(100) {
            rate.count(0, at(millis), at(millis + 1));
        }
        assert_eq!(rate.per_second(at(2_900)), 2_000.0);
        assert_eq!(rate.per_second(at(3_100)), 0.0);
        // After a pause of ninety seconds the rate is that of the batch alone.
        rate.count(100, at(90_000), at(90_100));
        assert_eq!(rate.per_second(at(90_100)), 1_000.0);
    }

    #[test]
    fn batches_that_take_long_have_a_rate() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rate = Rate::new(start);
        for nth in 0..5 {
            rate.count(300, at(nth * 3), at(nth * 3 + 3));
            assert_eq!(rate.per_second(at(nth * 3 + 3)), 100.0);
        }
    }
}
