//! Signs of life of a runner, so that one that no longer turns is told from one that waits.
//!
//! A runner does nothing for long without having said for how long: before it waits it calls `promise`.
//! A promise that is not kept is what a hang looks like from outside. It is made by the work loop itself and
//! never by a timer beside it, which would go on beating for a dead one.
//!
//! Whoever runs a runner gives it a `Heart`; without one, a promise is made to nobody.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::event::Position;
use crate::process::report::Condition;

tokio::task_local! {
    /// Of the runner that lives in this task.
    static HEART: Heart;
}

/// One runner's signs of life. Written by the runner's task, read by the one that reports; both short.
#[derive(Debug, Clone)]
pub(crate) struct Heart(Arc<Mutex<Pulse>>);

#[derive(Debug, Clone, Copy)]
struct Pulse {
    back_by: Instant,
    condition: Condition,
    /// How many events the runner has set aside, and which last.
    set_aside: u64,
    last_set_aside: Position,
}

impl Heart {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Pulse {
            back_by: Instant::now(),
            condition: Condition::Starting,
            set_aside: 0,
            last_set_aside: 0,
        })))
    }

    /// Runs a runner that beats with this heart.
    pub(crate) async fn beat_for<F: Future>(&self, runner: F) -> F::Output {
        HEART.scope(self.clone(), runner).await
    }

    /// Its owner will give the next sign within this time.
    pub(crate) fn promise(&self, time: Duration) {
        self.pulse().back_by = Instant::now() + time;
    }

    /// For how long a promise has been broken; zero while none is.
    pub(crate) fn silence(&self) -> Duration {
        self.pulse().back_by.elapsed()
    }

    pub(crate) fn condition(&self) -> Condition {
        self.pulse().condition
    }

    /// How many events were set aside since the runner began, and which last.
    pub(crate) fn set_aside(&self) -> (u64, Position) {
        let pulse = self.pulse();
        (pulse.set_aside, pulse.last_set_aside)
    }

    fn pulse(&self) -> MutexGuard<'_, Pulse> {
        // Two plain values: no panic leaves them half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The runner in this task will give the next sign within `time`.
pub(crate) fn promise(time: Duration) {
    let _ = HEART.try_with(|heart| heart.promise(time));
}

/// The runner in this task is about to do something, in this condition.
pub(crate) fn turn(condition: Condition) {
    let _ = HEART.try_with(|heart| {
        let mut pulse = heart.pulse();
        (pulse.back_by, pulse.condition) = (Instant::now(), condition);
    });
}

/// The runner in this task has set an event aside.
pub(crate) fn set_aside(event_id: Position) {
    let _ = HEART.try_with(|heart| {
        let mut pulse = heart.pulse();
        pulse.set_aside += 1;
        pulse.last_set_aside = event_id;
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn silence_begins_where_a_promise_ends() {
        let heart = Heart::new();
        let beating = async {
            promise(Duration::from_secs(60));
            assert_eq!(heart.silence(), Duration::ZERO);
            turn(Condition::Retrying);
        };
        heart.beat_for(beating).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(heart.silence() >= Duration::from_millis(20));
        assert_eq!(heart.condition(), Condition::Retrying);
        // Without a heart it is said to nobody.
        promise(Duration::from_secs(60));
        assert!(heart.silence() >= Duration::from_millis(20));
    }
}
