//! How a worker has died lately.

use std::time::{Duration, Instant};

/// More ends than this within [`WINDOW`] are a crash loop.
const ENDS_MAX: usize = 5;

/// See [`ENDS_MAX`].
const WINDOW: Duration = Duration::from_secs(60);

/// The early deaths of a worker since its last healthy life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ends {
    in_a_row: u32,
    /// The latest ones, the latest first.
    latest: [Option<Instant>; ENDS_MAX],
    crash_loop: bool,
}

impl Ends {
    /// These ends and one more, now. Once there is a crash loop, slower deaths do not end it: they are slower
    /// because the delays have grown.
    pub(super) fn and(mut self, now: Instant) -> Self {
        let oldest = self.latest[ENDS_MAX - 1];
        self.crash_loop |= oldest.is_some_and(|oldest| now.saturating_duration_since(oldest) <= WINDOW);
        self.latest.rotate_right(1);
        self.latest[0] = Some(now);
        self.in_a_row = self.in_a_row.saturating_add(1);
        self
    }

    /// How many there are.
    pub fn in_a_row(&self) -> u32 {
        self.in_a_row
    }

    /// Whether there were more than five in a minute.
    pub fn is_crash_loop(&self) -> bool {
        self.crash_loop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_ends_are_no_crash_loop() {
        let begun = Instant::now();
        let ends = |seconds: u64| {
            (0..50).fold(Ends::default(), |ends, nth| ends.and(begun + Duration::from_secs(seconds * nth)))
        };
        assert!(!ends(13).is_crash_loop());
        assert!(ends(12).is_crash_loop());
        assert_eq!(ends(13).in_a_row(), 50);
    }
}
