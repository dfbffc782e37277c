//! The number of events that a program is sent at a time.
//!
//! A batch that has begun cannot be cut short, so it must not be larger than what the program handles in the time that a
//! batch may take.
//!
//! A program that ends or falls silent within a batch leaves open which event it was handling, because it may have kept
//! answers back. The next batch is therefore a single event, and whether that fails tells whether it is to blame. Where
//! the event is known already, it is likely to fail again, and a single event keeps those behind it from being handled in
//! vain.

use std::time::Duration;

/// The size of the first batch, when nothing is known about the program.
const FIRST: i64 = 64;

/// The size of the next batch, in events.
#[derive(Debug)]
pub(super) struct BatchSize {
    events: i64,
}

impl BatchSize {
    pub(super) fn new() -> Self {
        Self { events: FIRST }
    }

    /// At least 1.
    pub(super) fn events(&self) -> i64 {
        self.events
    }

    /// Records that a batch of `events` was answered in `took`. A batch may take `limit`.
    pub(super) fn record_answered(&mut self, events: usize, took: Duration, limit: Duration) {
        let events = i64::try_from(events).unwrap_or(i64::MAX);
        if took > limit {
            self.events = (events / 2).max(1);
        } else if took < limit / 2 && events >= self.events {
            self.events = self.events.saturating_mul(2);
        }
    }

    /// Records that a batch ended early.
    pub(super) fn record_failure(&mut self) {
        self.events = 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);

    /// The sizes of the first batches of a program that needs `each` for an event.
    fn sizes(size: &mut BatchSize, each: Duration, batches: usize) -> Vec<i64> {
        let batch = |_| {
            let events = size.events().min(1_000);
            size.record_answered(events as usize, each * events as u32, LIMIT);
            events
        };
        (0..batches).map(batch).collect()
    }

    #[test]
    fn the_batches_of_a_fast_program_soon_reach_the_limit() {
        assert_eq!(
            sizes(&mut BatchSize::new(), Duration::from_micros(50), 6),
            [64, 128, 256, 512, 1_000, 1_000]
        );
    }

    #[test]
    fn the_batches_of_a_slow_program_fit_the_time_of_a_batch() {
        let sizes = sizes(&mut BatchSize::new(), Duration::from_millis(100), 20);
        assert_eq!(sizes[..3], [64, 32, 16]);
        assert!(sizes[3..].iter().all(|size| (8..=20).contains(size)), "{sizes:?}");
        assert_eq!(self::sizes(&mut BatchSize::new(), Duration::from_secs(3), 8)[7], 1);
    }

    #[test]
    fn a_batch_that_ended_early_is_followed_by_a_single_event() {
        let mut size = BatchSize::new();
        size.record_failure();
        assert_eq!(sizes(&mut size, Duration::from_micros(50), 3), [1, 2, 4]);
    }

    #[test]
    fn a_batch_below_the_size_does_not_raise_it() {
        let mut size = BatchSize::new();
        size.record_answered(3, Duration::from_micros(50), LIMIT);
        assert_eq!(size.events(), FIRST);
    }
}
