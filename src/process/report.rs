//! What a worker tells its supervisor: lines of JSON on the worker's standard output, about once a second.
//!
//! This file is the whole vocabulary of that pipe. In the other direction goes one line, the assignment, which the
//! supervisor passes on without reading it.

use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tokio::net::unix::pipe;

pub use super::condition::Condition;

#[cfg(feature = "processors")]
use super::hook::{DivergenceFacts, FailureFacts};

/// One line from a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub(crate) enum Report {
    /// The process is alive.
    Heartbeat {
        /// For how long the next step of a processor has been overdue, in milliseconds; zero if none is. Where several
        /// are overdue, the longest time.
        overdue_ms: u64,
        /// The processor whose step is overdue for longest; `None` if none is.
        overdue: Option<String>,
    },
    /// Lines of the process's log are lost.
    LogLinesLost {
        /// How many since the previous report of this kind.
        lines: u64,
    },
    /// A processor has come into this condition.
    Condition {
        /// The processor's name.
        processor: String,
        /// Its condition from now on.
        condition: Condition,
    },
    /// A processor has failed, in another way than the last time.
    #[cfg(feature = "processors")]
    Failed {
        /// The processor's name.
        processor: String,
        /// What has failed.
        failure: Box<FailureFacts>,
        /// How many other failures were left out since the previous report of this kind.
        left_out: u64,
    },
    /// A processor has stopped, because the event store is not the one that it followed.
    #[cfg(feature = "processors")]
    Diverged {
        /// The processor's name.
        processor: String,
        /// How the store differs.
        divergence: Box<DivergenceFacts>,
    },
    /// A processor has set events aside.
    #[cfg(feature = "processors")]
    SetAside {
        /// The processor's name.
        processor: String,
        /// How many events since the previous report of this kind.
        events: u64,
        /// The id of the last of these events.
        last_event_id: i64,
        /// Why the last of them could not be handled.
        failure: Option<Box<FailureFacts>>,
    },
}

/// Lines of log that the workers of this process have lost.
static LOST_LINES: AtomicU64 = AtomicU64::new(0);

/// Counts lines of log that a worker has lost.
pub(crate) fn count_lost_lines(lines: u64) {
    LOST_LINES.fetch_add(lines, Ordering::Relaxed);
}

/// How many lines of log the workers of this process have lost.
pub(crate) fn lost_lines_of_workers() -> u64 {
    LOST_LINES.load(Ordering::Relaxed)
}

/// The worker's end of the pipe.
pub(crate) struct ReportPipe(pipe::Sender);

impl ReportPipe {
    /// Takes standard output; `None` if that is not a pipe, so no supervisor reads it.
    pub(crate) fn from_standard_output() -> Option<Self> {
        let own = std::io::stdout().as_fd().try_clone_to_owned().ok()?;
        pipe::Sender::from_owned_fd(own).ok().map(Self)
    }

    /// Writes a report, unless the pipe is full. Returns whether the report was written.
    ///
    /// A worker never waits for its supervisor: the next report says the same, or something newer. A line is far shorter
    /// than what the kernel writes in one piece, so it never arrives in part.
    pub(crate) fn try_send(&self, report: &Report) -> bool {
        let Ok(mut line) = serde_json::to_string(report) else { return false };
        line.push('\n');
        self.0.try_write(line.as_bytes()).is_ok()
    }
}
