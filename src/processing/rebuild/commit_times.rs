//! Whether a build makes those who append wait: how long commits take while it works, beside while it rests. A pure rule.

use std::time::Duration;

use super::throttle::SHARE_MIN;

/// How many times at rest are compared with how many others.
const RESTING: usize = 5;
const WORKING: usize = 3;

/// A commit that takes no longer is not slow, whatever it took before.
const FELT: Duration = Duration::from_millis(5);

/// Commits are slowed if half of them take longer than those at rest by this factor.
const FACTOR: u32 = 2;

/// How often the share of a build is halved at most: it goes on, however slowly.
const HALVINGS_MAX: i32 = 5;

/// What is known of commits.
#[derive(Debug, Clone, Default)]
pub(crate) struct CommitTimes {
    /// The last ones while the build rested.
    resting: Vec<Duration>,
    /// Those while it worked, since its share was changed.
    working: Vec<Duration>,
    halvings: i32,
    /// What half of the commits took, when they were slowed last.
    slowed: Option<Slowed>,
}

/// What half of the commits took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slowed {
    resting: Duration,
    working: Duration,
}

impl Slowed {
    fn is_felt(self) -> bool {
        self.working > FELT && self.working > self.resting * FACTOR
    }
}

impl CommitTimes {
    /// Notes what a commit took. Once enough is known, the share of the build is halved if commits are slowed, and doubled if not.
    pub(crate) fn note(&mut self, is_working: bool, took: Duration) {
        if !is_working {
            self.resting.truncate(RESTING - 1);
            self.resting.insert(0, took);
            return;
        }
        self.working.push(took);
        if self.working.len() < WORKING || self.resting.len() < RESTING {
            self.working.truncate(WORKING - 1);
            return;
        }
        let found = Slowed { resting: median(&mut self.resting.clone()), working: median(&mut self.working) };
        self.working.clear();
        let step = if found.is_felt() { 1 } else { -1 };
        self.halvings = (self.halvings + step).clamp(0, HALVINGS_MAX);
        self.slowed = Some(found).filter(|found| found.is_felt()).or(self.slowed);
    }

    /// What fraction of its share a build may take, above 0 and up to 1.
    pub(crate) fn fraction(&self) -> f64 {
        0.5_f64.powi(self.halvings)
    }

    /// Why a build takes less than its `share`; `None`: it does not.
    pub(crate) fn describe(&self, share: f64) -> Option<String> {
        let Slowed { resting, working } = self.slowed.filter(|_| self.halvings > 0)?;
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        Some(format!(
            "half of the commits took {:.1} ms and more while it worked, {:.1} ms while it rested, so it works {:.1} % of the time \
             instead of {:.0} % (`share` in [rebuild])",
            milliseconds(working),
            milliseconds(resting),
            100.0 * (share * self.fraction()).max(SHARE_MIN),
            100.0 * share
        ))
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(times: &mut CommitTimes, is_working: bool, milliseconds: &[u64]) {
        for took in milliseconds {
            times.note(is_working, Duration::from_millis(*took));
        }
    }

    #[test]
    fn the_share_is_halved_while_commits_are_slowed_and_grows_back_when_they_are_not() {
        let mut times = CommitTimes::default();
        note(&mut times, true, &[100; 20]);
        assert_eq!(times.fraction(), 1.0, "nobody knows what they take at rest");
        note(&mut times, false, &[4; 5]);
        note(&mut times, true, &[100; 1]);
        assert_eq!(times.fraction(), 0.5);
        note(&mut times, true, &[100; 2]);
        assert_eq!(times.fraction(), 0.5, "it is compared anew");
        note(&mut times, true, &[9]);
        assert_eq!(times.fraction(), 0.25);
        note(&mut times, true, &[1, 8, 100]);
        assert_eq!(times.fraction(), 0.5);
        note(&mut times, true, &[9, 1, 9]);
        assert_eq!(times.fraction(), 0.25);
        let because = times.describe(0.5).unwrap();
        assert!(
            because.contains(
                "took 9.0 ms and more while it worked, 4.0 ms while it rested, so it works 12.5 % of"
            ) && because.contains("instead of 50 %"),
            "{because}"
        );
        note(&mut times, true, &[100; 100]);
        assert_eq!(times.fraction(), 1.0 / 32.0, "it never stops");
        assert!(times.describe(0.25).unwrap().contains("works 1.0 % of"), "as the throttle has it");
        note(&mut times, true, &[8; 15]);
        assert_eq!((times.fraction(), times.describe(0.5)), (1.0, None), "twice as long is not yet slow");
    }

    #[test]
    fn neither_what_nobody_feels_nor_a_server_that_is_slow_at_rest_slows_a_build() {
        let mut times = CommitTimes::default();
        note(&mut times, false, &[1; 5]);
        note(&mut times, true, &[5; 51]);
        assert_eq!(times.fraction(), 1.0);
        note(&mut times, false, &[60; 5]);
        note(&mut times, true, &[100; 51]);
        assert_eq!(times.fraction(), 1.0);
        note(&mut times, false, &[49, 49, 49]);
        note(&mut times, true, &[100; 3]);
        assert_eq!(times.fraction(), 0.5, "the last ones count");
    }
}
