//! The life of one worker, as data: what is, what happens, what follows.
//!
//! A pure function of state, event and time: no process, no clock, no waiting. The supervisor carries out
//! the actions and reports back. `docs/lifecycle.md` has the picture.
//!
//! ```text
//!            start          exited               due
//!  Waiting ────────► Running ──────► Waiting ─────────► …
//!     │               │   │ hung, too large, replaced    exited
//!     │               │   └─────────────► Ending ──────────────► Waiting
//!     │ stop          │ stop                │ stop
//!     │               ▼                     ▼
//!     │            Stopping ◄───────────────┘       grace over: KILL, in Ending too
//!     │               │ exited
//!     ▼               ▼
//!    Stopped ◄────────┘
//! ```

use std::time::{Duration, Instant};

use super::crash_history::Ends;

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
    /// How long a worker may give no sign of life.
    pub hang_timeout: Duration,
}

impl Default for Policy {
    /// 0.5 s doubling to 1 min, healthy after 10 s, 30 s of grace, hung after 60 s.
    fn default() -> Self {
        Self {
            restart_initial: Duration::from_millis(500),
            restart_max: Duration::from_secs(60),
            healthy_after: Duration::from_secs(10),
            grace: Duration::from_secs(30),
            hang_timeout: Duration::from_secs(60),
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
        /// How it has died before.
        ends: Ends,
    },
    /// Alive.
    Running {
        /// From when on.
        since: Instant,
        /// The latest sign of life.
        beat: Instant,
        /// How it has died before this life.
        ends: Ends,
    },
    /// Asked to end, to be started again.
    Ending {
        /// Why.
        why: Why,
        /// From when on it was alive.
        since: Instant,
        /// When it will be killed.
        deadline: Instant,
        /// Whether it was.
        killed: bool,
        /// How it has died before this life.
        ends: Ends,
    },
    /// Asked to end for good.
    Stopping {
        /// When it will be killed.
        deadline: Instant,
        /// Whether it was.
        killed: bool,
    },
    /// Ended, and not to be started again.
    Stopped,
}

/// Why a living worker is ended and started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It gave no sign of life.
    Hung,
    /// It used more memory than it may.
    TooLarge,
    /// It is configured anew.
    Replaced,
}

/// What happens to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// The process was started.
    Started,
    /// The process showed that everything in it was alive at this time.
    Beat(Instant),
    /// The process uses more memory than it may.
    TooLarge,
    /// The process has ended, or could not be started.
    Exited,
    /// There is another program to run in its place.
    Replaced,
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
        Self::Waiting { due: now, ends: Ends::default() }
    }

    /// When [`Event::Tick`] is of interest next.
    pub fn deadline(&self, policy: &Policy) -> Option<Instant> {
        match self {
            Self::Waiting { due, .. } => Some(*due),
            Self::Running { beat, .. } => Some(*beat + policy.hang_timeout),
            Self::Ending { deadline, killed: false, .. } | Self::Stopping { deadline, killed: false } => {
                Some(*deadline)
            }
            Self::Ending { killed: true, .. } | Self::Stopping { killed: true, .. } | Self::Stopped => None,
        }
    }

    /// Whether it has ended again and again lately, also while it has just been started once more.
    pub fn is_crash_loop(&self) -> bool {
        match self {
            Self::Waiting { ends, .. } | Self::Running { ends, .. } | Self::Ending { ends, .. } => {
                ends.is_crash_loop()
            }
            Self::Stopping { .. } | Self::Stopped => false,
        }
    }

    /// The word for it: `waiting`, `crash_looping`, `running`, `restarting`, `stopping` or `stopped`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Waiting { ends, .. } if ends.is_crash_loop() => "crash_looping",
            Self::Waiting { .. } => "waiting",
            Self::Running { .. } => "running",
            Self::Ending { .. } => "restarting",
            Self::Stopping { .. } => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

/// What follows from an event.
pub fn next(state: State, event: Event, now: Instant, policy: &Policy) -> (State, Action) {
    use Action::{Kill, Nothing, Start, Terminate};
    use State::{Ending, Running, Stopped, Stopping, Waiting};

    let deadline = now + policy.grace;
    match (state, event) {
        (Waiting { due, .. }, Event::Tick) if due <= now => (state, Start),
        (Waiting { ends, .. }, Event::Started) => (Running { since: now, beat: now, ends }, Nothing),
        (Waiting { .. }, Event::StopRequested | Event::KillRequested) => (Stopped, Nothing),
        (Waiting { ends, .. }, Event::Exited) => (restart(ends, now, policy), Nothing),
        (Waiting { .. } | Stopped, Event::Replaced) => (State::new(now), Nothing),

        (Running { since, beat, ends }, Event::Beat(at)) => {
            (Running { since, beat: beat.max(at), ends }, Nothing)
        }
        (Running { since, ends, .. }, Event::Exited) => (again(since, ends, now, policy), Nothing),
        (Running { since, beat, ends }, Event::Tick) if now >= beat + policy.hang_timeout => {
            (Ending { why: Why::Hung, since, deadline, killed: false, ends }, Terminate)
        }
        (Running { since, ends, .. }, Event::TooLarge) => {
            (Ending { why: Why::TooLarge, since, deadline, killed: false, ends }, Terminate)
        }
        (Running { since, ends, .. }, Event::Replaced) => {
            (Ending { why: Why::Replaced, since, deadline, killed: false, ends }, Terminate)
        }
        (Running { .. }, Event::StopRequested) => (Stopping { deadline, killed: false }, Terminate),
        (Running { .. } | Ending { .. }, Event::KillRequested) => {
            (Stopping { deadline: now, killed: true }, Kill)
        }

        (Ending { why: Why::Replaced, .. }, Event::Exited) => (State::new(now), Nothing),
        (Ending { since, ends, .. }, Event::Exited) => (again(since, ends, now, policy), Nothing),
        (Ending { why, since, deadline, killed: false, ends }, Event::Tick) if deadline <= now => {
            (Ending { why, since, deadline, killed: true, ends }, Kill)
        }
        (Ending { since, deadline, killed, ends, .. }, Event::Replaced) => {
            (Ending { why: Why::Replaced, since, deadline, killed, ends }, Nothing)
        }
        (Ending { deadline, killed, .. }, Event::StopRequested) => (Stopping { deadline, killed }, Nothing),

        (Stopping { .. }, Event::Exited) => (Stopped, Nothing),
        (Stopping { killed: false, .. }, Event::KillRequested) => {
            (Stopping { deadline: now, killed: true }, Kill)
        }
        (Stopping { deadline, killed: false }, Event::Tick) if deadline <= now => {
            (Stopping { deadline, killed: true }, Kill)
        }
        (Stopping { deadline, killed }, Event::Replaced) => {
            let ends = Ends::default();
            (Ending { why: Why::Replaced, since: now, deadline, killed, ends }, Nothing)
        }
        // A start that was under way when the stop was requested.
        (Stopped, Event::Started) => (Stopping { deadline, killed: false }, Terminate),
        (state, _) => (state, Nothing),
    }
}

/// A worker that has lived since then has died.
fn again(since: Instant, ends: Ends, now: Instant, policy: &Policy) -> State {
    let healthy = now.duration_since(since) >= policy.healthy_after;
    restart(if healthy { Ends::default() } else { ends }, now, policy)
}

fn restart(before: Ends, now: Instant, policy: &Policy) -> State {
    let factor = 2u32.saturating_pow(before.in_a_row().min(31));
    let delay = policy.restart_initial.saturating_mul(factor).min(policy.restart_max);
    State::Waiting { due: now + delay, ends: before.and(now) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        restart_initial: Duration::from_secs(1),
        restart_max: Duration::from_secs(8),
        healthy_after: Duration::from_secs(60),
        grace: Duration::from_secs(30),
        hang_timeout: Duration::from_secs(20),
    };

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_table() {
        use Action::*;
        use State::*;
        let now = Instant::now();
        let earlier = now.checked_sub(s(60)).unwrap();
        let none = Ends::default();
        let two = none.and(earlier).and(earlier);
        let three = two.and(now);
        let waiting = |seconds, ends| Waiting { due: now + s(seconds), ends };
        let running = |since, beat| Running { since, beat, ends: two };
        let (young, ripe) = (running(now, now), running(earlier, now));
        let (silent, heard) = (running(earlier, now.checked_sub(s(20)).unwrap()), running(earlier, now));
        let ending = |why, since, seconds, killed| Ending {
            why,
            since,
            deadline: now + s(seconds),
            killed,
            ends: two,
        };
        let stopping = |seconds, killed| Stopping { deadline: now + s(seconds), killed };
        let stop = [Event::StopRequested, Event::KillRequested];
        let table = [
            (waiting(0, none), Event::Tick, waiting(0, none), Start),
            (waiting(1, none), Event::Tick, waiting(1, none), Nothing),
            (waiting(0, two), Event::Started, young, Nothing),
            (waiting(0, two), Event::Exited, waiting(4, three), Nothing),
            (waiting(9, two), Event::Replaced, waiting(0, none), Nothing),
            (waiting(1, none), stop[0], Stopped, Nothing),
            (waiting(1, none), stop[1], Stopped, Nothing),
            (young, Event::Tick, young, Nothing),
            (young, Event::Exited, waiting(4, three), Nothing),
            (ripe, Event::Exited, waiting(1, none.and(now)), Nothing),
            (silent, Event::Tick, ending(Why::Hung, earlier, 30, false), Terminate),
            (silent, Event::Beat(now), heard, Nothing),
            (heard, Event::Beat(earlier), heard, Nothing),
            (young, Event::TooLarge, ending(Why::TooLarge, now, 30, false), Terminate),
            (young, Event::Replaced, ending(Why::Replaced, now, 30, false), Terminate),
            (young, stop[0], stopping(30, false), Terminate),
            (young, stop[1], stopping(0, true), Kill),
            (ending(Why::Hung, now, 1, false), Event::Tick, ending(Why::Hung, now, 1, false), Nothing),
            (ending(Why::Hung, now, 0, false), Event::Tick, ending(Why::Hung, now, 0, true), Kill),
            (ending(Why::Hung, now, 0, true), Event::Tick, ending(Why::Hung, now, 0, true), Nothing),
            (ending(Why::Hung, now, 1, false), Event::Beat(now), ending(Why::Hung, now, 1, false), Nothing),
            (ending(Why::Hung, now, 1, true), Event::Exited, waiting(4, three), Nothing),
            (ending(Why::Hung, earlier, 1, true), Event::Exited, waiting(1, none.and(now)), Nothing),
            (ending(Why::Replaced, now, 1, false), Event::Exited, waiting(0, none), Nothing),
            (
                ending(Why::Hung, now, 1, false),
                Event::Replaced,
                ending(Why::Replaced, now, 1, false),
                Nothing,
            ),
            (ending(Why::Hung, now, 1, false), stop[0], stopping(1, false), Nothing),
            (ending(Why::Hung, now, 1, true), stop[0], stopping(1, true), Nothing),
            (ending(Why::Hung, now, 1, false), stop[1], stopping(0, true), Kill),
            (stopping(30, false), Event::Tick, stopping(30, false), Nothing),
            (stopping(0, false), Event::Tick, stopping(0, true), Kill),
            (stopping(30, false), stop[0], stopping(30, false), Nothing),
            (stopping(30, false), stop[1], stopping(0, true), Kill),
            (stopping(30, false), Event::Exited, Stopped, Nothing),
            (stopping(0, true), Event::Tick, stopping(0, true), Nothing),
            (stopping(0, true), stop[1], stopping(0, true), Nothing),
            (stopping(0, true), Event::Exited, Stopped, Nothing),
            (Stopped, Event::Started, stopping(30, false), Terminate),
            (Stopped, Event::Exited, Stopped, Nothing),
            (Stopped, Event::Replaced, waiting(0, none), Nothing),
        ];
        for (state, event, expected_state, expected_action) in table {
            assert_eq!(
                next(state, event, now, &POLICY),
                (expected_state, expected_action),
                "{state:?} {event:?}"
            );
        }
        // One that was taken out of the configuration and put back ends and starts again.
        let (again, action) = next(stopping(5, false), Event::Replaced, now, &POLICY);
        assert!(matches!(again, Ending { why: Why::Replaced, killed: false, .. }), "{again:?}");
        assert_eq!(action, Nothing);
    }

    /// Lives one early death after the other; returns the delays in seconds and the words for the waiting.
    fn die_early(times: usize) -> (Vec<u64>, Vec<&'static str>) {
        let (mut now, mut state) = (Instant::now(), State::new(Instant::now()));
        let (mut delays, mut words) = (Vec::new(), Vec::new());
        for _ in 0..times {
            (state, _) = next(state, Event::Started, now, &POLICY);
            (state, _) = next(state, Event::Exited, now, &POLICY);
            let State::Waiting { due, .. } = state else { panic!("{state:?}") };
            delays.push(due.duration_since(now).as_secs());
            words.push(state.word());
            now = due;
        }
        (delays, words)
    }

    #[test]
    fn the_delay_doubles_to_its_maximum_and_never_overflows() {
        assert_eq!(die_early(6).0, [1, 2, 4, 8, 8, 8]);
        assert_eq!(die_early(100).0.last(), Some(&8));
    }

    #[test]
    fn more_than_five_ends_in_a_minute_are_a_crash_loop_which_is_never_given_up() {
        let (_, words) = die_early(50);
        assert_eq!(words[..6], ["waiting", "waiting", "waiting", "waiting", "waiting", "crash_looping"]);
        assert!(words[6..].iter().all(|word| *word == "crash_looping"));
    }

    #[test]
    fn a_healthy_life_ends_a_crash_loop() {
        let now = Instant::now();
        let ends = (0..9).fold(Ends::default(), |ends, _| ends.and(now));
        assert!(ends.is_crash_loop());
        let state = State::Running { since: now, beat: now, ends };
        let (state, _) = next(state, Event::Exited, now + s(60), &POLICY);
        assert_eq!((state.word(), state.deadline(&POLICY)), ("waiting", Some(now + s(61))));
    }
}
