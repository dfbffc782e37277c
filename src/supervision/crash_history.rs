//! How a worker has crashed lately.

use std::time::{Duration, Instant};

/// More crashes than this within [`WINDOW`] are a crash loop.
const CRASHES_MAX: usize = 5;

/// The time in which crashes are counted.
const WINDOW: Duration = Duration::from_secs(60);

/// The crashes of a worker since it was last healthy: since it last lived for [`healthy_after`].
///
/// [`healthy_after`]: super::lifecycle::Policy::healthy_after
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CrashHistory {
    in_a_row: u32,
    /// The times of the latest crashes, the latest first.
    latest: [Option<Instant>; CRASHES_MAX],
    crash_loop: bool,
}

impl CrashHistory {
    /// Adds a crash at `now`. Once there is a crash loop, slower crashes do not end it: they are slower because the
    /// delays have grown.
    pub(super) fn with_crash_at(mut self, now: Instant) -> Self {
        let oldest = self.latest[CRASHES_MAX - 1];
        self.crash_loop |= oldest.is_some_and(|oldest| now.saturating_duration_since(oldest) <= WINDOW);
        self.latest.rotate_right(1);
        self.latest[0] = Some(now);
        self.in_a_row = self.in_a_row.saturating_add(1);
        self
    }

    /// How many crashes there were.
    pub(crate) fn in_a_row(&self) -> u32 {
        self.in_a_row
    }

    /// Whether there were more than five crashes within a minute.
    pub(crate) fn is_crash_loop(&self) -> bool {
        self.crash_loop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_crashes_are_no_crash_loop() {
        let begun = Instant::now();
        let crashes = |seconds: u64| {
            let times = (0..50).map(|nth| begun + Duration::from_secs(seconds * nth));
            times.fold(CrashHistory::default(), CrashHistory::with_crash_at)
        };
        assert!(!crashes(13).is_crash_loop());
        assert!(crashes(12).is_crash_loop());
        assert_eq!(crashes(13).in_a_row(), 50);
    }
}
