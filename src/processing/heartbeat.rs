//! The heartbeat of a runner: whoever watches it can tell a runner that hangs from one that waits.
//!
//! A runner calls `expect_within` before everything that takes long, such as a pause or a statement. A runner that lets
//! the time pass without another call is overdue, which is what a hang looks like from outside. The calls are made by the
//! loop that works, and never by a timer beside it, which would go on for a loop that hangs.
//!
//! Who starts a runner puts it into the scope of a `Heartbeat`. Without one, the functions below do nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::event::Position;
use crate::process::hook::{DivergenceFacts, FailureFacts};
use crate::process::report::Condition;

tokio::task_local! {
    /// The heartbeat of the runner that lives in this task.
    static CURRENT: Heartbeat;
}

/// One runner's heartbeat. The runner's task writes it, the task that reports to the supervisor reads it; neither keeps
/// the lock for longer than that.
#[derive(Debug, Clone)]
pub(crate) struct Heartbeat(Arc<Mutex<HeartbeatState>>);

/// Failures that the reporting task has not taken yet, at most. It takes one a second.
const FAILURES_MAX: usize = 16;

#[derive(Debug)]
struct HeartbeatState {
    /// When the next call is due.
    due: Instant,
    condition: Condition,
    /// What a handler was handed last: the first event, and how many.
    at_hand: Option<(Position, usize)>,
    /// How many events the runner has set aside.
    set_aside: u64,
    last_set_aside: Position,
    /// Why the last one was set aside.
    set_aside_failure: Option<Box<FailureFacts>>,
    failures: FailureQueue,
    /// The divergence that the reporting task has not taken yet.
    divergence: Option<Box<DivergenceFacts>>,
}

/// The failures that are to be reported: those that are no repetition of the one before.
#[derive(Debug, Default)]
struct FailureQueue {
    waiting: VecDeque<FailureFacts>,
    /// The last failure, whether or not it is to be reported.
    last: Option<FailureFacts>,
    /// How many had no room.
    left_out: u64,
}

impl FailureQueue {
    fn add(&mut self, failure: FailureFacts) {
        let is_news = self.last.as_ref().is_none_or(|last| !failure.repeats(last));
        if is_news && self.waiting.len() == FAILURES_MAX {
            self.left_out += 1;
        } else if is_news {
            self.waiting.push_back(failure.clone());
        }
        self.last = Some(failure);
    }
}

impl Heartbeat {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(HeartbeatState {
            due: Instant::now(),
            condition: Condition::Starting,
            at_hand: None,
            set_aside: 0,
            last_set_aside: Position::START,
            set_aside_failure: None,
            failures: FailureQueue::default(),
            divergence: None,
        })))
    }

    /// Runs a runner whose heartbeat this is.
    pub(crate) async fn scope<F: Future>(&self, runner: F) -> F::Output {
        CURRENT.scope(self.clone(), runner).await
    }

    /// Expects the next call within `time`.
    pub(crate) fn expect_within(&self, time: Duration) {
        self.state().due = Instant::now() + time;
    }

    /// For how long the next call has been due; zero before it is.
    pub(crate) fn overdue(&self) -> Duration {
        self.state().due.elapsed()
    }

    /// The condition that the runner was in last.
    pub(crate) fn condition(&self) -> Condition {
        self.state().condition
    }

    /// How many events were set aside since the runner began, which last, and why that.
    pub(crate) fn set_aside(&self) -> (u64, Position, Option<Box<FailureFacts>>) {
        let state = self.state();
        (state.set_aside, state.last_set_aside, state.set_aside_failure.clone())
    }

    /// Hands the next failure that is to be reported to `report`, with the number of those that were left out. It stays the next
    /// one unless `report` returns that it was reported.
    pub(crate) fn report_failure(&self, report: impl FnOnce(&FailureFacts, u64) -> bool) {
        let mut state = self.state();
        let failures = &mut state.failures;
        let Some(failure) = failures.waiting.front() else { return };
        if report(failure, failures.left_out) {
            failures.waiting.pop_front();
            failures.left_out = 0;
        }
    }

    /// As [`Self::report_failure`], for a divergence.
    pub(crate) fn report_divergence(&self, report: impl FnOnce(&DivergenceFacts) -> bool) {
        let mut state = self.state();
        if state.divergence.as_ref().is_some_and(|divergence| report(divergence)) {
            state.divergence = None;
        }
    }

    fn state(&self) -> MutexGuard<'_, HeartbeatState> {
        // Plain values: no panic leaves them half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Expects the next call of the runner in this task within `time`.
pub(crate) fn expect_within(time: Duration) {
    let _ = CURRENT.try_with(|heartbeat| heartbeat.expect_within(time));
}

/// Records that the runner in this task is about to do something, and its condition.
pub(crate) fn record_condition(condition: Condition) {
    let _ = CURRENT.try_with(|heartbeat| {
        let mut state = heartbeat.state();
        (state.due, state.condition, state.at_hand) = (Instant::now(), condition, None);
    });
}

/// Records what a handler is handed in this task: the first event, and how many.
pub(crate) fn record_at_hand(first: Position, events: usize) {
    let _ = CURRENT.try_with(|heartbeat| heartbeat.state().at_hand = Some((first, events)));
}

/// What a handler in this task was handed last.
pub(crate) fn at_hand() -> Option<(Position, usize)> {
    CURRENT.try_with(|heartbeat| heartbeat.state().at_hand).ok().flatten()
}

/// Records that the runner in this task has set an event aside.
pub(crate) fn record_set_aside(event_id: Position, failure: FailureFacts) {
    let _ = CURRENT.try_with(|heartbeat| {
        let mut state = heartbeat.state();
        state.set_aside += 1;
        state.last_set_aside = event_id;
        state.set_aside_failure = Some(Box::new(failure));
    });
}

/// Records that the runner in this task has failed.
pub(crate) fn record_failure(failure: FailureFacts) {
    let _ = CURRENT.try_with(|heartbeat| heartbeat.state().failures.add(failure));
}

/// Records that the runner in this task has stopped, because the event store is not the one that it followed.
pub(crate) fn record_divergence(divergence: DivergenceFacts) {
    let _ = CURRENT.try_with(|heartbeat| heartbeat.state().divergence = Some(Box::new(divergence)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_runner_is_overdue_once_the_expected_time_has_passed() {
        let heartbeat = Heartbeat::new();
        let runner = async {
            expect_within(Duration::from_secs(60));
            assert_eq!(heartbeat.overdue(), Duration::ZERO);
            record_condition(Condition::Retrying);
        };
        heartbeat.scope(runner).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(heartbeat.overdue() >= Duration::from_millis(20));
        assert_eq!(heartbeat.condition(), Condition::Retrying);
        // Out of the scope of any heartbeat it changes nothing.
        expect_within(Duration::from_secs(60));
        assert!(heartbeat.overdue() >= Duration::from_millis(20));
    }
}
