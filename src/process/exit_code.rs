//! Exit codes of `espd`, its workers and `espctl`: one table, shared with the documentation.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use nix::sys::signal::Signal;

/// How `espd`, a worker or `espctl` ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// All went well.
    Success = 0,
    /// The program failed; the last line on standard error says why.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The configuration or a declaration is wrong.
    Configuration = 64,
    /// The event store is not the one that a processor has followed.
    Diverged = 65,
    /// A worker did not end by itself in time.
    Unclean = 70,
    /// The hook `on_worker_start` has failed.
    StartHook = 71,
    /// The time to wait was over.
    Timeout = 75,
    /// Ended by a second signal, before the work at hand was finished.
    Interrupted = 130,
}

impl ExitCode {
    const ALL: [Self; 9] = [
        Self::Success,
        Self::Failure,
        Self::Usage,
        Self::Configuration,
        Self::Diverged,
        Self::Unclean,
        Self::StartHook,
        Self::Timeout,
        Self::Interrupted,
    ];

    /// What the code says, in a few words.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Success => "done",
            Self::Failure => "failed",
            Self::Usage => "wrong command line",
            Self::Configuration => "wrong configuration or declaration",
            Self::Diverged => "the event store is not the one that was followed",
            Self::Unclean => "stopped, but a worker did not end by itself in time",
            Self::StartHook => "on_worker_start has failed",
            Self::Timeout => "the time to wait was over",
            Self::Interrupted => "interrupted before the work at hand was finished",
        }
    }
}

/// Describes how a process of espd's has ended: `exit code 64 (wrong configuration or declaration)`, `signal SIGKILL`.
pub(crate) fn describe_end(status: ExitStatus) -> String {
    let known = ExitCode::ALL.into_iter().find(|known| status.code() == Some(i32::from(*known as u8)));
    let meaning = known.map_or_else(String::new, |known| format!(" ({})", known.meaning()));
    describe_foreign_end(status) + &meaning
}

/// Describes how a process has ended whose exit codes espd does not know.
pub(crate) fn describe_foreign_end(status: ExitStatus) -> String {
    let signal = |number: i32| {
        Signal::try_from(number).map_or_else(|_| number.to_string(), |signal| signal.to_string())
    };
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(number)) => format!("signal {}", signal(number)),
        (None, None) => status.to_string(),
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// An error that says which exit code it leads to. Any other error leads to [`ExitCode::Failure`].
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Exit {
    /// The code to end with.
    pub code: ExitCode,
    /// What to print; may have several lines.
    pub message: String,
}

impl Exit {
    /// An error of the configuration or of a declaration.
    pub(crate) fn configuration(message: impl ToString) -> Self {
        Self { code: ExitCode::Configuration, message: message.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_the_same_table() {
        let documentation = include_str!("../../docs/lifecycle.md");
        for code in ExitCode::ALL {
            let row = format!("| {} | {}", code as u8, code.meaning());
            assert!(documentation.contains(&row), "{row}");
        }
    }

    #[test]
    fn an_end_is_described_by_its_code_or_signal() {
        for (raw, words) in [
            (0, "exit code 0 (done)"),
            (64 << 8, "exit code 64 (wrong configuration or declaration)"),
            (130 << 8, "exit code 130 (interrupted before the work at hand was finished)"),
            (3 << 8, "exit code 3"),
            (9, "signal SIGKILL"),
            (64, "signal 64"),
        ] {
            assert_eq!(describe_end(ExitStatus::from_raw(raw)), words);
        }
    }
}
