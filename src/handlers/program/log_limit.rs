//! How much of what a program writes goes to espd's log: bounded in length and in rate, with a count of what was left out.

use std::time::{Duration, Instant};

use tracing::warn;

/// Bytes of a line that are logged.
pub(super) const LINE_MAX: usize = 4 << 10;

/// Lines that are logged in one [`WINDOW`], and bytes of them after which no further line is.
const LINES_MAX: u64 = 100;
const BYTES_MAX: usize = 64 << 10;

const WINDOW: Duration = Duration::from_secs(1);

/// Limits the lines and bytes that are logged in a window of one second.
#[derive(Debug)]
pub(super) struct LogLimit {
    window_began: Instant,
    lines: u64,
    bytes: usize,
    suppressed: u64,
}

/// Whether a line is logged.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LogDecision {
    /// The line is logged. `suppressed` lines before it were not, and the log does not say so yet.
    Log {
        suppressed: u64,
    },
    Suppress,
}

impl LogLimit {
    pub(super) fn new(now: Instant) -> Self {
        Self { window_began: now, lines: 0, bytes: 0, suppressed: 0 }
    }

    /// Decides whether a line of `length` bytes is logged at `now`.
    pub(super) fn decide(&mut self, now: Instant, length: usize) -> LogDecision {
        if now.duration_since(self.window_began) >= WINDOW {
            (self.window_began, self.lines, self.bytes) = (now, 0, 0);
        }
        if self.lines == LINES_MAX || self.bytes >= BYTES_MAX {
            self.suppressed += 1;
            return LogDecision::Suppress;
        }
        self.lines += 1;
        self.bytes += length;
        LogDecision::Log { suppressed: self.take_suppressed() }
    }

    /// The number of lines that were suppressed since this was asked last.
    pub(super) fn take_suppressed(&mut self) -> u64 {
        std::mem::take(&mut self.suppressed)
    }
}

/// Logs how many lines were suppressed, if any were.
pub(super) fn log_suppressed(processor: &str, suppressed: u64) {
    if suppressed > 0 {
        warn!(processor, left_out = suppressed, "the program writes too many lines: some were left out");
    }
}

/// The beginning of a text, at most `bytes_max` bytes of it.
pub(super) fn truncate(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suppressed_lines_are_counted_and_reported_with_the_next_line() {
        let begin = Instant::now();
        let mut limit = LogLimit::new(begin);
        for _ in 0..LINES_MAX {
            assert_eq!(limit.decide(begin, 10), LogDecision::Log { suppressed: 0 });
        }
        for _ in 0..7 {
            assert_eq!(limit.decide(begin, 10), LogDecision::Suppress);
        }
        assert_eq!(limit.decide(begin + WINDOW, BYTES_MAX), LogDecision::Log { suppressed: 7 });
        assert_eq!(limit.decide(begin + WINDOW, 10), LogDecision::Suppress);
        assert_eq!((limit.take_suppressed(), limit.take_suppressed()), (1, 0));
    }
}
