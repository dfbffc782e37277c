//! The life of one worker, as data: what is, what happens, what follows.
//!
//! A pure function of state, event and time: no process, no clock, no waiting. The supervisor carries out
//! the actions and reports back.
//!
//! ```text
//!            start          exited               due
//!  Waiting ────────► Running ──────► Waiting ─────────► …
//!     │                 │ stop
//!     │ stop            ▼       grace over
//!     └────────────► Stopping ────────────► Stopping (killed)
//!                       │ exited               │ exited
//!                       ▼                      ▼
//!                    Stopped ◄─────────────────┘
//! ```

use std::time::{Duration, Instant};

/// When to restart and when to lose patience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Delay before the first restart.
    pub restart_initial: Duration,
    /// Longest delay before a restart; it doubles from one early death to the next.
    pub restart_max: Duration,
    /// A worker that has lived this long was healthy: its next restart is a first one.
    pub healthy_after: Duration,
    /// Time to end after TERM, before KILL.
    pub grace: Duration,
}

impl Default for Policy {
    /// 0.5 s doubling to 30 s, healthy after 10 s, 30 s of grace.
    fn default() -> Self {
        Self {
            restart_initial: Duration::from_millis(500),
            restart_max: Duration::from_secs(30),
            healthy_after: Duration::from_secs(10),
            grace: Duration::from_secs(30),
        }
    }
}

/// Where a worker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not alive; to be started.
    Waiting {
        /// When.
        due: Instant,
        /// Early deaths in a row.
        deaths: u32,
    },
    /// Alive.
    Running {
        /// From when on.
        since: Instant,
        /// Early deaths in a row, before this life.
        deaths: u32,
    },
    /// Asked to end.
    Stopping {
        /// When it will be killed.
        deadline: Instant,
        /// Whether it was.
        killed: bool,
    },
    /// Ended, and not to be started again.
    Stopped,
}

/// What happens to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// The process was started.
    Started,
    /// The process has ended, or could not be started.
    Exited,
    /// The worker is to end.
    StopRequested,
    /// The worker is to end at once.
    KillRequested,
}

/// What the supervisor has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Start the process.
    Start,
    /// Ask it to end (TERM).
    Terminate,
    /// End it, and all that it started (KILL to its group).
    Kill,
}

impl State {
    /// A worker that is to be started now.
    pub fn new(now: Instant) -> Self {
        Self::Waiting { due: now, deaths: 0 }
    }

    /// When [`Event::Tick`] is of interest next.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Waiting { due, .. } => Some(*due),
            Self::Stopping { deadline, killed: false } => Some(*deadline),
            Self::Running { .. } | Self::Stopping { killed: true, .. } | Self::Stopped => None,
        }
    }
}

/// What follows from an event.
pub fn next(state: State, event: Event, now: Instant, policy: &Policy) -> (State, Action) {
    use Action::{Kill, Nothing, Start, Terminate};
    use State::{Running, Stopped, Stopping, Waiting};

    match (state, event) {
        (Waiting { due, .. }, Event::Tick) if due <= now => (state, Start),
        (Waiting { deaths, .. }, Event::Started) => (Running { since: now, deaths }, Nothing),
        (Waiting { .. }, Event::StopRequested | Event::KillRequested) => (Stopped, Nothing),
        (Waiting { deaths, .. }, Event::Exited) => (restart(deaths, now, policy), Nothing),
        (Running { since, deaths }, Event::Exited) => {
            let healthy = now.duration_since(since) >= policy.healthy_after;
            (restart(if healthy { 0 } else { deaths }, now, policy), Nothing)
        }
        (Running { .. }, Event::StopRequested) => {
            (Stopping { deadline: now + policy.grace, killed: false }, Terminate)
        }
        (Running { .. } | Stopping { .. }, Event::KillRequested) => {
            (Stopping { deadline: now, killed: true }, Kill)
        }
        (Stopping { deadline, killed: false }, Event::Tick) if deadline <= now => {
            (Stopping { deadline, killed: true }, Kill)
        }
        (Stopping { .. }, Event::Exited) => (Stopped, Nothing),
        // A start that was under way when the stop was requested.
        (Stopped, Event::Started) => (Stopping { deadline: now + policy.grace, killed: false }, Terminate),
        (state, _) => (state, Nothing),
    }
}

fn restart(deaths: u32, now: Instant, policy: &Policy) -> State {
    let factor = 2u32.saturating_pow(deaths.min(31));
    let delay = policy.restart_initial.saturating_mul(factor).min(policy.restart_max);
    State::Waiting { due: now + delay, deaths: deaths.saturating_add(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        restart_initial: Duration::from_secs(1),
        restart_max: Duration::from_secs(8),
        healthy_after: Duration::from_secs(60),
        grace: Duration::from_secs(30),
    };

    #[test]
    fn the_table() {
        use Action::*;
        use State::*;
        let now = Instant::now();
        let s = Duration::from_secs;
        let waiting = |seconds, deaths| Waiting { due: now + s(seconds), deaths };
        let young = Running { since: now, deaths: 2 };
        let ripe = Running { since: now.checked_sub(s(60)).unwrap(), deaths: 2 };
        let stopping = Stopping { deadline: now + s(30), killed: false };
        let overdue = Stopping { deadline: now, killed: false };
        let killed = Stopping { deadline: now, killed: true };
        let table = [
            (waiting(0, 0), Event::Tick, waiting(0, 0), Start),
            (waiting(1, 0), Event::Tick, waiting(1, 0), Nothing),
            (waiting(0, 2), Event::Started, young, Nothing),
            (waiting(0, 2), Event::Exited, waiting(4, 3), Nothing),
            (waiting(1, 0), Event::StopRequested, Stopped, Nothing),
            (young, Event::Tick, young, Nothing),
            (young, Event::Exited, waiting(4, 3), Nothing),
            (ripe, Event::Exited, waiting(1, 1), Nothing),
            (young, Event::StopRequested, stopping, Terminate),
            (young, Event::KillRequested, killed, Kill),
            (stopping, Event::Tick, stopping, Nothing),
            (overdue, Event::Tick, killed, Kill),
            (stopping, Event::StopRequested, stopping, Nothing),
            (stopping, Event::KillRequested, killed, Kill),
            (stopping, Event::Exited, Stopped, Nothing),
            (killed, Event::Tick, killed, Nothing),
            (killed, Event::Exited, Stopped, Nothing),
            (Stopped, Event::Started, stopping, Terminate),
            (Stopped, Event::Exited, Stopped, Nothing),
        ];
        for (state, event, expected_state, expected_action) in table {
            assert_eq!(
                next(state, event, now, &POLICY),
                (expected_state, expected_action),
                "{state:?} {event:?}"
            );
        }
    }

    #[test]
    fn the_delay_doubles_to_its_maximum_and_never_overflows() {
        let now = Instant::now();
        let delay = |deaths| match restart(deaths, now, &POLICY) {
            Waiting { due, .. } => due.duration_since(now).as_secs(),
            other => panic!("{other:?}"),
        };
        use State::Waiting;
        assert_eq!([0, 1, 2, 3, 4, u32::MAX].map(delay), [1, 2, 4, 8, 8, 8]);
    }
}
