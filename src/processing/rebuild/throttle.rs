//! How much a build works while events are appended: a pure rule.

use std::time::{Duration, Instant};

use crate::event::Position;

/// For how long an append counts as one that goes on.
const RECENT: Duration = Duration::from_secs(5);

/// The longest pause between two batches.
const LONGEST: Duration = Duration::from_secs(10);

/// The least share of the time that a build works.
pub(super) const SHARE_MIN: f64 = 0.01;

/// Knows whether events are appended, from how far the serving version is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Throttle {
    last: Option<Position>,
    moved_at: Option<Instant>,
    is_resting: bool,
}

impl Throttle {
    /// How long to rest after a batch from `begun` to `now`, where the serving version was at `target`. `share`: the share of the
    /// time that a build works while events are appended.
    pub(crate) fn rest(&mut self, share: f64, target: Position, begun: Instant, now: Instant) -> Duration {
        if self.last.is_some_and(|last| target > last) {
            self.moved_at = Some(now);
        }
        self.last = Some(target);
        let is_appended = self.moved_at.is_some_and(|at| now.duration_since(at) < RECENT);
        self.is_resting = is_appended && share < 1.0;
        if !self.is_resting {
            return Duration::ZERO;
        }
        now.duration_since(begun).mul_f64((1.0 - share) / share.max(SHARE_MIN)).min(LONGEST)
    }

    /// Why it rests; `None`: it does not.
    pub(crate) fn describe(&self, share: f64) -> Option<String> {
        self.is_resting.then(|| {
            format!(
                "events are appended, so it works {:.0} % of the time (`share` in [rebuild])",
                100.0 * share
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_rests_as_long_as_it_has_worked_while_events_are_appended_and_not_at_all_otherwise() {
        let (mut throttle, begun) = (Throttle::default(), Instant::now());
        let second = |seconds: u64| begun + Duration::from_secs(seconds);
        let mut rest =
            |share, target: i64, from, to| throttle.rest(share, target.into(), second(from), second(to));
        assert_eq!(rest(0.5, 100, 0, 2), Duration::ZERO, "nothing is known yet");
        assert_eq!(rest(0.5, 100, 2, 4), Duration::ZERO, "nothing is appended");
        assert_eq!(rest(0.5, 101, 4, 6), Duration::from_secs(2));
        assert_eq!(rest(0.25, 101, 6, 8), Duration::from_secs(6), "just now something was");
        assert_eq!(rest(0.05, 102, 8, 10), LONGEST);
        assert_eq!(rest(1.0, 103, 10, 12), Duration::ZERO);
        assert_eq!(rest(0.5, 103, 20, 22), Duration::ZERO, "no more");
        assert_eq!(throttle.describe(0.5), None);
    }
}
