//! How many events a worker is sent at a time.
//!
//! A batch that has begun cannot be cut short, so it must not be larger than what the worker does in the time that a
//! batch may take. And a worker that ends or falls silent in the middle of a batch leaves open which event it was
//! about, because it may have kept answers back: the next batch is one event, which is then to blame or is not. Where it
//! is known, that event is likely to fail again, and nothing behind it has to be handled in vain.

use std::time::Duration;

/// The first batch of a worker nobody knows yet.
const FIRST: i64 = 64;

/// The size of the next batch, in events.
#[derive(Debug)]
pub(super) struct Pace {
    size: i64,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { size: FIRST }
    }

    pub(super) fn size(&self) -> i64 {
        self.size
    }

    /// A batch of `events` was answered in `took`; one may take `limit`.
    pub(super) fn answered(&mut self, events: usize, took: Duration, limit: Duration) {
        let events = i64::try_from(events).unwrap_or(i64::MAX);
        if took > limit {
            self.size = (events / 2).max(1);
        } else if took < limit / 2 && events >= self.size {
            self.size = self.size.saturating_mul(2);
        }
    }

    /// A batch was not handled whole.
    pub(super) fn broken_off(&mut self) {
        self.size = 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);

    /// Sizes of the batches of a worker that needs `each` for an event.
    fn sizes(pace: &mut Pace, each: Duration, batches: usize) -> Vec<i64> {
        let batch = |_| {
            let size = pace.size().min(1_000);
            pace.answered(size as usize, each * size as u32, LIMIT);
            size
        };
        (0..batches).map(batch).collect()
    }

    #[test]
    fn a_fast_worker_soon_gets_all_that_it_may_have() {
        assert_eq!(sizes(&mut Pace::new(), Duration::from_micros(50), 6), [64, 128, 256, 512, 1_000, 1_000]);
    }

    #[test]
    fn a_slow_worker_gets_what_it_does_in_the_time_of_a_batch() {
        let sizes = sizes(&mut Pace::new(), Duration::from_millis(100), 20);
        assert_eq!(sizes[..3], [64, 32, 16]);
        assert!(sizes[3..].iter().all(|size| (8..=20).contains(size)), "{sizes:?}");
        assert_eq!(self::sizes(&mut Pace::new(), Duration::from_secs(3), 8)[7], 1);
    }

    #[test]
    fn after_a_batch_that_was_broken_off_comes_a_single_event() {
        let mut pace = Pace::new();
        pace.broken_off();
        assert_eq!(sizes(&mut pace, Duration::from_micros(50), 3), [1, 2, 4]);
    }

    #[test]
    fn a_small_batch_says_nothing_about_large_ones() {
        let mut pace = Pace::new();
        pace.answered(3, Duration::from_micros(50), LIMIT);
        assert_eq!(pace.size(), FIRST);
    }
}
