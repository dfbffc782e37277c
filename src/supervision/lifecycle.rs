//! The life of one worker as data: what is, what happens, what follows.
//!
//! [`next`] is a pure function of state, event and time: no process, no clock, no waiting. The supervisor carries out
//! the actions and reports what becomes of them. `docs/lifecycle.md` has the diagram.
//!
//! ```text
//!            start          exited               due
//!  Waiting ────────► Running ──────► Waiting ─────────► …
//!     │               │   │ hung, too large, replaced        exited
//!     │               │   └─────────────► Restarting ──────────────► Waiting
//!     │ stop          │ stop                │ stop
//!     │               ▼                     ▼
//!     │            Stopping ◄───────────────┘       grace over: KILL, in Restarting too
//!     │               │ exited
//!     ▼               ▼
//!    Stopped ◄────────┘
//! ```

use std::time::{Duration, Instant};

use super::crash_history::CrashHistory;

/// Says when workers are restarted and when they are killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Delay before the first restart.
    pub restart_initial: Duration,
    /// Longest delay before a restart; the delay doubles with each crash up to this.
    pub restart_max: Duration,
    /// A worker that has lived this long was healthy: its next restart counts as the first one.
    pub healthy_after: Duration,
    /// Time between TERM and KILL.
    pub grace: Duration,
    /// Longest time between two heartbeats of a worker; one that takes longer is restarted.
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
pub(crate) enum WorkerState {
    /// The worker is not alive and will be started.
    Waiting {
        /// When it will be started.
        due: Instant,
        /// How it has crashed before.
        crashes: CrashHistory,
    },
    /// The worker is alive.
    Running {
        /// When it was started.
        since: Instant,
        /// When everything in it was last known to be alive.
        last_heartbeat: Instant,
        /// How it has crashed before it was started.
        crashes: CrashHistory,
    },
    /// The worker is asked to end, and will be started again.
    Restarting {
        /// Why it has to end.
        reason: RestartReason,
        /// When it was started.
        since: Instant,
        /// When it will be killed.
        deadline: Instant,
        /// Whether it was killed.
        killed: bool,
        /// How it has crashed before it was started.
        crashes: CrashHistory,
    },
    /// The worker is asked to end for good.
    Stopping {
        /// When it will be killed.
        deadline: Instant,
        /// Whether it was killed.
        killed: bool,
    },
    /// The worker has ended, and will not be started again.
    Stopped,
}

/// Why a living worker is ended and started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartReason {
    /// It gave no heartbeat in time.
    Hung,
    /// It used more memory than it may.
    TooLarge,
    /// Its configuration has changed.
    Replaced,
}

/// What happens to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerEvent {
    /// Time has passed.
    Tick,
    /// The process was started.
    Started,
    /// The process showed that everything in it was alive at this time.
    Heartbeat(Instant),
    /// The process uses more memory than it may.
    TooLarge,
    /// The process has ended, or could not be started.
    Exited,
    /// Another program has to run in its place.
    Replaced,
    /// The worker has to end.
    StopRequested,
    /// The worker has to end at once.
    KillRequested,
}

/// What the supervisor has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerAction {
    /// Nothing.
    Nothing,
    /// Start the process.
    Start,
    /// Ask the process to end (TERM).
    Terminate,
    /// End the process and all that it has started (KILL to its group).
    Kill,
}

impl WorkerState {
    /// The state of a worker that has to be started now.
    pub(crate) fn new(now: Instant) -> Self {
        Self::Waiting { due: now, crashes: CrashHistory::default() }
    }

    /// When the worker needs the next [`WorkerEvent::Tick`]; `None` if time changes nothing.
    pub(crate) fn deadline(&self, policy: &Policy) -> Option<Instant> {
        match self {
            Self::Waiting { due, .. } => Some(*due),
            Self::Running { last_heartbeat, .. } => Some(*last_heartbeat + policy.hang_timeout),
            Self::Restarting { deadline, killed: false, .. } | Self::Stopping { deadline, killed: false } => {
                Some(*deadline)
            }
            Self::Restarting { killed: true, .. } | Self::Stopping { killed: true, .. } | Self::Stopped => {
                None
            }
        }
    }

    /// Whether the worker has crashed again and again lately; also true while it runs once more.
    pub(crate) fn is_crash_loop(&self) -> bool {
        match self {
            Self::Waiting { crashes, .. }
            | Self::Running { crashes, .. }
            | Self::Restarting { crashes, .. } => crashes.is_crash_loop(),
            Self::Stopping { .. } | Self::Stopped => false,
        }
    }

    /// The word that users see: `waiting`, `crash_looping`, `running`, `restarting`, `stopping` or `stopped`.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Waiting { crashes, .. } if crashes.is_crash_loop() => "crash_looping",
            Self::Waiting { .. } => "waiting",
            Self::Running { .. } => "running",
            Self::Restarting { .. } => "restarting",
            Self::Stopping { .. } => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

/// Returns what follows from an event: the next state, and what the supervisor has to do.
pub(crate) fn next(
    state: WorkerState,
    event: WorkerEvent,
    now: Instant,
    policy: &Policy,
) -> (WorkerState, WorkerAction) {
    use WorkerAction::{Kill, Nothing, Start, Terminate};
    use WorkerEvent::{Exited, Heartbeat, KillRequested, Replaced, Started, StopRequested, Tick, TooLarge};
    use WorkerState::{Restarting, Running, Stopped, Stopping, Waiting};

    let deadline = now + policy.grace;
    let restart_for =
        |reason, since, crashes| (Restarting { reason, since, deadline, killed: false, crashes }, Terminate);
    match (state, event) {
        (Waiting { due, .. }, Tick) if due <= now => (state, Start),
        (Waiting { crashes, .. }, Started) => (Running { since: now, last_heartbeat: now, crashes }, Nothing),
        (Waiting { .. }, StopRequested | KillRequested) => (Stopped, Nothing),
        (Waiting { crashes, .. }, Exited) => (restart(crashes, now, policy), Nothing),
        (Waiting { .. } | Stopped, Replaced) => (WorkerState::new(now), Nothing),

        (Running { since, last_heartbeat, crashes }, Heartbeat(at)) => {
            (Running { since, last_heartbeat: last_heartbeat.max(at), crashes }, Nothing)
        }
        (Running { since, crashes, .. }, Exited) => (restart_after(since, crashes, now, policy), Nothing),
        (Running { since, last_heartbeat, crashes }, Tick) if now >= last_heartbeat + policy.hang_timeout => {
            restart_for(RestartReason::Hung, since, crashes)
        }
        (Running { since, crashes, .. }, TooLarge) => restart_for(RestartReason::TooLarge, since, crashes),
        (Running { since, crashes, .. }, Replaced) => restart_for(RestartReason::Replaced, since, crashes),
        (Running { .. }, StopRequested) => (Stopping { deadline, killed: false }, Terminate),
        (Running { .. } | Restarting { .. }, KillRequested) => {
            (Stopping { deadline: now, killed: true }, Kill)
        }

        (Restarting { reason: RestartReason::Replaced, .. }, Exited) => (WorkerState::new(now), Nothing),
        (Restarting { since, crashes, .. }, Exited) => (restart_after(since, crashes, now, policy), Nothing),
        (Restarting { reason, since, deadline, killed: false, crashes }, Tick) if deadline <= now => {
            (Restarting { reason, since, deadline, killed: true, crashes }, Kill)
        }
        (Restarting { since, deadline, killed, crashes, .. }, Replaced) => {
            (Restarting { reason: RestartReason::Replaced, since, deadline, killed, crashes }, Nothing)
        }
        (Restarting { deadline, killed, .. }, StopRequested) => (Stopping { deadline, killed }, Nothing),

        (Stopping { .. }, Exited) => (Stopped, Nothing),
        (Stopping { killed: false, .. }, KillRequested) => (Stopping { deadline: now, killed: true }, Kill),
        (Stopping { deadline, killed: false }, Tick) if deadline <= now => {
            (Stopping { deadline, killed: true }, Kill)
        }
        (Stopping { deadline, killed }, Replaced) => {
            let crashes = CrashHistory::default();
            (Restarting { reason: RestartReason::Replaced, since: now, deadline, killed, crashes }, Nothing)
        }
        // The start was under way when the stop was requested.
        (Stopped, Started) => (Stopping { deadline, killed: false }, Terminate),
        (state, _) => (state, Nothing),
    }
}

/// The state of a worker that was started at `since` and has ended now.
fn restart_after(since: Instant, crashes: CrashHistory, now: Instant, policy: &Policy) -> WorkerState {
    let healthy = now.duration_since(since) >= policy.healthy_after;
    restart(if healthy { CrashHistory::default() } else { crashes }, now, policy)
}

/// The state of a worker that waits to be started again, for longer after each crash.
fn restart(before: CrashHistory, now: Instant, policy: &Policy) -> WorkerState {
    let factor = 2u32.saturating_pow(before.in_a_row().min(31));
    let delay = policy.restart_initial.saturating_mul(factor).min(policy.restart_max);
    WorkerState::Waiting { due: now + delay, crashes: before.with_crash_at(now) }
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
        use RestartReason as Reason;
        use WorkerAction::*;
        use WorkerEvent::*;
        use WorkerState::*;
        let now = Instant::now();
        let earlier = now.checked_sub(s(60)).unwrap();
        let none = CrashHistory::default();
        let two = none.with_crash_at(earlier).with_crash_at(earlier);
        let three = two.with_crash_at(now);
        let waiting = |seconds, crashes| Waiting { due: now + s(seconds), crashes };
        let running = |since, last_heartbeat| Running { since, last_heartbeat, crashes: two };
        let (young, ripe) = (running(now, now), running(earlier, now));
        let (silent, heard) = (running(earlier, now.checked_sub(s(20)).unwrap()), running(earlier, now));
        let restarting = |reason, since, seconds, killed| Restarting {
            reason,
            since,
            deadline: now + s(seconds),
            killed,
            crashes: two,
        };
        let stopping = |seconds, killed| Stopping { deadline: now + s(seconds), killed };
        let stop = [StopRequested, KillRequested];
        let table = [
            (waiting(0, none), Tick, waiting(0, none), Start),
            (waiting(1, none), Tick, waiting(1, none), Nothing),
            (waiting(0, two), Started, young, Nothing),
            (waiting(0, two), Exited, waiting(4, three), Nothing),
            (waiting(9, two), Replaced, waiting(0, none), Nothing),
            (waiting(1, none), stop[0], Stopped, Nothing),
            (waiting(1, none), stop[1], Stopped, Nothing),
            (young, Tick, young, Nothing),
            (young, Exited, waiting(4, three), Nothing),
            (ripe, Exited, waiting(1, none.with_crash_at(now)), Nothing),
            (silent, Tick, restarting(Reason::Hung, earlier, 30, false), Terminate),
            (silent, Heartbeat(now), heard, Nothing),
            (heard, Heartbeat(earlier), heard, Nothing),
            (young, TooLarge, restarting(Reason::TooLarge, now, 30, false), Terminate),
            (young, Replaced, restarting(Reason::Replaced, now, 30, false), Terminate),
            (young, stop[0], stopping(30, false), Terminate),
            (young, stop[1], stopping(0, true), Kill),
            (restarting(Reason::Hung, now, 1, false), Tick, restarting(Reason::Hung, now, 1, false), Nothing),
            (restarting(Reason::Hung, now, 0, false), Tick, restarting(Reason::Hung, now, 0, true), Kill),
            (restarting(Reason::Hung, now, 0, true), Tick, restarting(Reason::Hung, now, 0, true), Nothing),
            (
                restarting(Reason::Hung, now, 1, false),
                Heartbeat(now),
                restarting(Reason::Hung, now, 1, false),
                Nothing,
            ),
            (restarting(Reason::Hung, now, 1, true), Exited, waiting(4, three), Nothing),
            (
                restarting(Reason::Hung, earlier, 1, true),
                Exited,
                waiting(1, none.with_crash_at(now)),
                Nothing,
            ),
            (restarting(Reason::Replaced, now, 1, false), Exited, waiting(0, none), Nothing),
            (
                restarting(Reason::Hung, now, 1, false),
                Replaced,
                restarting(Reason::Replaced, now, 1, false),
                Nothing,
            ),
            (restarting(Reason::Hung, now, 1, false), stop[0], stopping(1, false), Nothing),
            (restarting(Reason::Hung, now, 1, true), stop[0], stopping(1, true), Nothing),
            (restarting(Reason::Hung, now, 1, false), stop[1], stopping(0, true), Kill),
            (stopping(30, false), Tick, stopping(30, false), Nothing),
            (stopping(0, false), Tick, stopping(0, true), Kill),
            (stopping(30, false), stop[0], stopping(30, false), Nothing),
            (stopping(30, false), stop[1], stopping(0, true), Kill),
            (stopping(30, false), Exited, Stopped, Nothing),
            (stopping(0, true), Tick, stopping(0, true), Nothing),
            (stopping(0, true), stop[1], stopping(0, true), Nothing),
            (stopping(0, true), Exited, Stopped, Nothing),
            (Stopped, Started, stopping(30, false), Terminate),
            (Stopped, Exited, Stopped, Nothing),
            (Stopped, Replaced, waiting(0, none), Nothing),
        ];
        for (state, event, expected_state, expected_action) in table {
            assert_eq!(
                next(state, event, now, &POLICY),
                (expected_state, expected_action),
                "{state:?} {event:?}"
            );
        }
        // A worker that was taken out of the configuration and put back ends and starts again.
        let (again, action) = next(stopping(5, false), Replaced, now, &POLICY);
        assert!(matches!(again, Restarting { reason: Reason::Replaced, killed: false, .. }), "{again:?}");
        assert_eq!(action, Nothing);
    }

    /// Lets a worker crash early again and again. Returns the delays in seconds and the words for the waiting.
    fn crash_early(times: usize) -> (Vec<u64>, Vec<&'static str>) {
        let (mut now, mut state) = (Instant::now(), WorkerState::new(Instant::now()));
        let (mut delays, mut words) = (Vec::new(), Vec::new());
        for _ in 0..times {
            (state, _) = next(state, WorkerEvent::Started, now, &POLICY);
            (state, _) = next(state, WorkerEvent::Exited, now, &POLICY);
            let WorkerState::Waiting { due, .. } = state else { panic!("{state:?}") };
            delays.push(due.duration_since(now).as_secs());
            words.push(state.word());
            now = due;
        }
        (delays, words)
    }

    #[test]
    fn the_delay_doubles_to_its_maximum_and_never_overflows() {
        assert_eq!(crash_early(6).0, [1, 2, 4, 8, 8, 8]);
        assert_eq!(crash_early(100).0.last(), Some(&8));
    }

    #[test]
    fn more_than_five_ends_in_a_minute_are_a_crash_loop_which_is_never_given_up() {
        let (_, words) = crash_early(50);
        assert_eq!(words[..6], ["waiting", "waiting", "waiting", "waiting", "waiting", "crash_looping"]);
        assert!(words[6..].iter().all(|word| *word == "crash_looping"));
    }

    #[test]
    fn a_healthy_life_ends_a_crash_loop() {
        let now = Instant::now();
        let crashes = (0..9).fold(CrashHistory::default(), |crashes, _| crashes.with_crash_at(now));
        assert!(crashes.is_crash_loop());
        let state = WorkerState::Running { since: now, last_heartbeat: now, crashes };
        let (state, _) = next(state, WorkerEvent::Exited, now + s(60), &POLICY);
        assert_eq!((state.word(), state.deadline(&POLICY)), ("waiting", Some(now + s(61))));
    }
}
