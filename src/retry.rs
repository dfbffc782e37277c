//! How long to wait before the next attempt, and what to do when there is none. The only file that names the `backoff`
//! crate.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;
use serde::{Deserialize, Serialize};

/// How the delay grows from one failure to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// `initial`, doubling up to `max`.
    #[default]
    Exponential,
    /// Always `initial`.
    Constant,
    /// No delay but the shortest: ten attempts a second at most.
    None,
}

/// Lower bound for every delay, also with `strategy = "none"`: each failure costs a transaction and a log line.
const SHORTEST: Duration = Duration::from_millis(100);

/// What is configured to happen when the attempts are used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Try again without end.
    #[default]
    Retry,
    /// Stop until an operator acts.
    Stop,
    /// Set the event aside, and with it the later ones of its aggregate; continue with the others.
    Park,
    /// Set the event aside; continue with all others.
    Skip,
}

/// How to retry, at what pace and how often.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// How the delay grows.
    pub strategy: Strategy,
    /// The first delay.
    pub initial: Duration,
    /// The longest delay.
    pub max: Duration,
    /// Random share of a delay that is added or taken off, from 0 (exact) to 1.
    pub jitter: f64,
    /// Attempts after which `on_failure` decides, at least 1; `None`: the number of attempts is not limited.
    pub max_attempts: Option<u32>,
    /// What happens when the attempts are used up.
    pub on_failure: OnFailure,
}

/// What to do about something that has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextStep {
    /// Try it again.
    TryAgain,
    /// Stop until an operator acts.
    Stop,
    /// Set the event aside. `blocks`: the later events of its aggregate wait behind it.
    SetAside {
        /// Whether later events of the aggregate have to wait.
        blocks: bool,
    },
}

impl Default for RetryPolicy {
    /// 1 s doubling to 64 s, ±10 %.
    fn default() -> Self {
        Self {
            strategy: Strategy::Exponential,
            initial: Duration::from_secs(1),
            max: Duration::from_secs(64),
            jitter: 0.1,
            max_attempts: None,
            on_failure: OnFailure::Retry,
        }
    }
}

impl RetryPolicy {
    /// The policy for connections and other infrastructure: 100 ms doubling to 5 s, ±20 %.
    pub fn infrastructure() -> Self {
        Self {
            strategy: Strategy::Exponential,
            initial: Duration::from_millis(100),
            max: Duration::from_secs(5),
            jitter: 0.2,
            ..Self::default()
        }
    }

    /// What to do about an event that has failed in each of `attempts` attempts.
    pub fn decide(&self, attempts: u32) -> NextStep {
        let used_up = self.max_attempts.is_some_and(|most| attempts >= most);
        match self.on_failure {
            _ if !used_up => NextStep::TryAgain,
            OnFailure::Retry => NextStep::TryAgain,
            OnFailure::Stop => NextStep::Stop,
            OnFailure::Park => NextStep::SetAside { blocks: true },
            OnFailure::Skip => NextStep::SetAside { blocks: false },
        }
    }

    /// How long to wait after `attempts` failures in a row, for callers that count attempts themselves.
    pub fn delay_after(&self, attempts: u32) -> Duration {
        let mut retry = Retry::new(*self);
        retry.resume((), attempts.saturating_sub(1));
        retry.failed(())
    }

    fn delays(&self) -> ExponentialBackoff {
        let mut delays = ExponentialBackoff {
            current_interval: self.initial,
            initial_interval: self.initial,
            multiplier: if self.strategy == Strategy::Exponential { 2.0 } else { 1.0 },
            max_interval: self.max.max(self.initial),
            randomization_factor: self.jitter.clamp(0.0, 1.0),
            // Without this the crate gives up after a quarter of an hour.
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        delays.reset();
        delays
    }
}

/// The delay, made longer or shorter by up to a fifth, so that many processes do not act at the same moment.
pub(crate) fn spread(delay: Duration) -> Duration {
    let policy = RetryPolicy {
        strategy: Strategy::Constant,
        initial: delay,
        max: delay,
        ..RetryPolicy::infrastructure()
    };
    policy.delays().next_backoff().unwrap_or(delay)
}

/// Counts how often in a row the same thing has failed, and says how long to wait after each failure.
///
/// The delay grows only while the *same* thing keeps failing (EventSourcery's rule): another thing, or
/// a success, starts over at the initial delay.
#[derive(Debug)]
pub(crate) struct Retry<T> {
    policy: RetryPolicy,
    failing: Option<T>,
    attempts: u32,
    delays: ExponentialBackoff,
}

impl<T: PartialEq> Retry<T> {
    /// A counter of no failures.
    pub(crate) fn new(policy: RetryPolicy) -> Self {
        Self { policy, failing: None, attempts: 0, delays: policy.delays() }
    }

    /// Counts a failure of `thing` and returns the delay before the next try.
    pub(crate) fn failed(&mut self, thing: T) -> Duration {
        if self.failing.as_ref() != Some(&thing) {
            self.succeeded();
            self.failing = Some(thing);
        }
        self.attempts = self.attempts.saturating_add(1);
        if self.policy.strategy == Strategy::None {
            return SHORTEST;
        }
        self.delays.next_backoff().unwrap_or(self.policy.max)
    }

    /// How many attempts there are once `thing` has failed again.
    pub(crate) fn attempts_with(&self, thing: &T) -> u32 {
        if self.failing.as_ref() == Some(thing) { self.attempts.saturating_add(1) } else { 1 }
    }

    /// The policy that the failures are judged by.
    pub(crate) fn policy(&self) -> &RetryPolicy {
        &self.policy
    }

    /// Sets the count to what another process has reached, so that attempts and delays continue from there.
    pub(crate) fn resume(&mut self, thing: T, attempts: u32) {
        self.succeeded();
        self.failing = Some(thing);
        self.attempts = attempts;
        // More than 64 doublings reach every maximum.
        for _ in 0..attempts.min(64) {
            self.delays.next_backoff();
        }
    }

    /// Forgets all failures.
    pub(crate) fn succeeded(&mut self) {
        self.failing = None;
        self.attempts = 0;
        self.delays = self.policy.delays();
    }

    /// How often in a row the same thing has failed.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(strategy: Strategy) -> RetryPolicy {
        RetryPolicy { strategy, jitter: 0.0, ..RetryPolicy::default() }
    }

    fn seconds(retry: &mut Retry<u8>, things: &[u8]) -> Vec<u64> {
        things.iter().map(|thing| retry.failed(*thing).as_secs()).collect()
    }

    #[test]
    fn the_delay_doubles_to_its_maximum_while_the_same_thing_fails() {
        let mut retry = Retry::new(exact(Strategy::Exponential));
        assert_eq!(seconds(&mut retry, &[1; 10]), vec![1, 2, 4, 8, 16, 32, 64, 64, 64, 64]);
        assert_eq!(retry.attempts(), 10);
    }

    #[test]
    fn another_thing_starts_over() {
        let mut retry = Retry::new(exact(Strategy::Exponential));
        assert_eq!(seconds(&mut retry, &[1, 1, 1, 2, 2]), vec![1, 2, 4, 1, 2]);
    }

    #[test]
    fn a_success_starts_over() {
        let mut retry = Retry::new(exact(Strategy::Exponential));
        seconds(&mut retry, &[1, 1]);
        retry.succeeded();
        assert_eq!((seconds(&mut retry, &[1]), retry.attempts()), (vec![1], 1));
    }

    #[test]
    fn another_process_continues_with_the_delay_that_was_reached() {
        let mut retry = Retry::new(exact(Strategy::Exponential));
        retry.resume(7, 3);
        assert_eq!((seconds(&mut retry, &[7, 7, 8]), retry.attempts()), (vec![8, 16, 1], 1));
    }

    #[test]
    fn constant_stays_and_none_hardly_waits() {
        assert_eq!(seconds(&mut Retry::new(exact(Strategy::Constant)), &[1; 3]), vec![1, 1, 1]);
        assert_eq!(Retry::new(exact(Strategy::None)).failed(1), SHORTEST);
    }

    #[test]
    fn attempts_are_used_up_only_where_that_is_wanted() {
        let stop =
            RetryPolicy { max_attempts: Some(3), on_failure: OnFailure::Stop, ..RetryPolicy::default() };
        let used_up = |policy, failures: &[u8]| {
            let mut retry = Retry::new(policy);
            seconds(&mut retry, failures);
            retry.policy().decide(retry.attempts()) == NextStep::Stop
        };
        assert!(used_up(stop, &[1, 1, 1]) && !used_up(stop, &[1, 1]) && !used_up(stop, &[1, 1, 2]));
        assert!(!used_up(RetryPolicy { on_failure: OnFailure::Retry, ..stop }, &[1; 9]));
        assert!(!used_up(RetryPolicy { max_attempts: None, ..stop }, &[1; 9]));
    }

    #[test]
    fn the_policy_decides_once_the_attempts_are_used_up() {
        for (on_failure, then) in [
            (OnFailure::Retry, NextStep::TryAgain),
            (OnFailure::Stop, NextStep::Stop),
            (OnFailure::Park, NextStep::SetAside { blocks: true }),
            (OnFailure::Skip, NextStep::SetAside { blocks: false }),
        ] {
            let policy = RetryPolicy { max_attempts: Some(3), on_failure, ..RetryPolicy::default() };
            assert_eq!([policy.decide(2), policy.decide(3)], [NextStep::TryAgain, then]);
        }
    }

    #[test]
    fn attempts_are_known_before_they_are_counted() {
        let mut retry = Retry::new(RetryPolicy::default());
        assert_eq!(retry.attempts_with(&1), 1);
        seconds(&mut retry, &[1, 1]);
        assert_eq!((retry.attempts_with(&1), retry.attempts_with(&2), retry.attempts()), (3, 1, 2));
    }

    #[test]
    fn spread_delays_differ_by_a_fifth_at_most() {
        let delays: Vec<Duration> = (0..100).map(|_| spread(Duration::from_secs(10))).collect();
        assert!(delays.iter().all(|delay| (8..=12).contains(&delay.as_secs())), "{delays:?}");
        assert!(delays.iter().any(|delay| *delay != delays[0]));
    }

    proptest::proptest! {
        #[test]
        fn no_number_of_failures_overflows(initial in 0u64..1 << 50, max in 0u64..1 << 50, failures in 1usize..300) {
            let policy = RetryPolicy { initial: Duration::from_millis(initial), max: Duration::from_millis(max), jitter: 0.0, ..RetryPolicy::default() };
            let mut retry = Retry::new(policy);
            let mut before = Duration::ZERO;
            for _ in 0..failures {
                let delay = retry.failed(());
                proptest::prop_assert!(delay.mul_f64(1.000_001) >= before.min(policy.max));
                proptest::prop_assert!(delay <= policy.max.max(policy.initial).mul_f64(1.000_001));
                before = delay;
            }
        }
    }
}
