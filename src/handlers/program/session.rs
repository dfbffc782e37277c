//! A session with a program: from the handshake to the end of its process.

use std::io;
use std::time::{Duration, Instant};

use tracing::{Level, debug, error, info, trace, warn};

use super::lines::excerpt;
use super::log_limit::{LINE_MAX, LogDecision, LogLimit, log_suppressed, truncate};
use super::process::{ProcessError, ProgramProcess};
use super::protocol::{Handshake, IncomingMessage, OutgoingMessage, READY_AGAIN, VERSION};
use crate::process::exit_code::describe_foreign_end;
use crate::processing::declaration::{HiddenTexts, ProgramDeclaration};

/// How long every program may take to start, whatever `command_timeout` says: it loads more than it does for an answer.
const START_TIMEOUT_MIN: Duration = Duration::from_secs(10);

/// How long a program may take to end after its input was closed.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// A started program that has completed the handshake.
#[derive(Debug)]
pub(super) struct ProgramSession {
    processor: String,
    process: ProgramProcess,
    /// Limits how many of the program's `log` messages are logged.
    log_limit: LogLimit,
    /// What is not shown, also where the program repeats it.
    pub(super) hidden: HiddenTexts,
    /// Whether it has handled no batch yet.
    pub(super) is_new: bool,
}

/// Why no session could be started. No event is to blame.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(
        "could not start {program:?}: {error}; the program has to be executable, and in PATH or named from {folder}"
    )]
    NotStarted { program: String, folder: String, error: io::Error },
    #[error("{program:?} {what} before it said {{\"ready\":{VERSION}}}{}", describe_tail(stderr_tail.as_deref()))]
    NotReady { program: String, what: String, stderr_tail: Option<String> },
    #[error("{program:?} speaks version {theirs} of the protocol, this espd version {VERSION}")]
    OtherVersion { program: String, theirs: i64 },
}

fn describe_tail(stderr_tail: Option<&str>) -> String {
    stderr_tail.map(|lines| format!("; it wrote to standard error: {lines}")).unwrap_or_default()
}

impl ProgramSession {
    /// Starts the program and waits until it is ready.
    pub(super) async fn start(
        declaration: &ProgramDeclaration,
        handshake: &Handshake<'_>,
    ) -> Result<Self, StartError> {
        let program = declaration.command.first().cloned().unwrap_or_default();
        let process = ProgramProcess::start(handshake.processor, declaration).map_err(|error| {
            let folder = declaration.folder.display().to_string();
            StartError::NotStarted { program: program.clone(), folder, error }
        })?;
        let (processor, log_limit) = (handshake.processor.to_owned(), LogLimit::new(Instant::now()));
        let hidden = declaration.hidden();
        let mut session = Self { processor, process, log_limit, hidden, is_new: true };
        session.send(&OutgoingMessage::Handshake { hello: handshake });
        match session.wait_until_ready(declaration.timeout.max(START_TIMEOUT_MIN)).await {
            Ok(theirs) if theirs == i64::from(VERSION) => {
                let (processor, pid) = (&session.processor, session.process.pid());
                debug!(processor, command.pid = pid, "the program is ready");
                Ok(session)
            }
            Ok(theirs) => Err(StartError::OtherVersion { program, theirs }),
            Err(what) => {
                let what = session.hidden.conceal_excerpt(&what);
                Err(StartError::NotReady { program, what, stderr_tail: session.kill().await })
            }
        }
    }

    /// Returns the version of the protocol that the program speaks, or what it did instead of saying so.
    async fn wait_until_ready(&mut self, timeout: Duration) -> Result<i64, String> {
        let since = Instant::now();
        loop {
            let line = self.process.read_line(since, timeout).await.map_err(|error| error.to_string())?;
            match IncomingMessage::parse(line) {
                Ok(IncomingMessage::Ready(version)) => return Ok(version),
                Ok(IncomingMessage::Log { message, level }) => self.log(&message, level),
                Ok(_) => return Err(format!("wrote {}", excerpt(line.as_bytes()))),
                Err(violation) => return Err(violation.0),
            }
        }
    }

    /// What the program says after it was ready although it was sent nothing, if it says so within `time`.
    pub(super) async fn find_unasked(&mut self, time: Duration) -> Option<String> {
        let since = Instant::now();
        loop {
            match self.process.read_line(since, time).await.map(IncomingMessage::parse) {
                Ok(Ok(IncomingMessage::Log { .. })) => {}
                Ok(Ok(IncomingMessage::Ready(_))) => return Some(READY_AGAIN.to_owned()),
                Ok(Ok(_)) => return Some("answered before it was sent an event".to_owned()),
                Ok(Err(violation)) => return Some(self.hidden.conceal_excerpt(&violation.0)),
                // It waits, or has ended, as some do that were never sent anything.
                Err(_) => return None,
            }
        }
    }

    /// Queues a message. [`Self::read_line`] writes it while it waits for the program's next line.
    pub(super) fn send(&mut self, message: &OutgoingMessage<'_>) {
        self.process.send(message.to_line());
    }

    /// Does something while the program goes on with what it was sent.
    pub(super) async fn beside<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            done = work => done,
            never = self.process.keep_writing() => match never {},
        }
    }

    /// Whether the program has not read everything that was sent.
    pub(super) fn has_unread_input(&self) -> bool {
        self.process.has_unread_input()
    }

    /// Reads the next line, which has to arrive within `answer_timeout` of `since`.
    pub(super) async fn read_line(
        &mut self,
        since: Instant,
        answer_timeout: Duration,
    ) -> Result<&str, ProcessError> {
        self.process.read_line(since, answer_timeout).await
    }

    /// Whether the program can be sent a batch. Logs it if the process has ended since the last one.
    pub(super) fn is_alive(&mut self) -> bool {
        let Some(status) = self.process.exit_status() else { return true };
        let status = describe_foreign_end(status);
        warn!(processor = self.processor, status, "the program has ended while there was nothing to do");
        false
    }

    /// Logs a `log` message of the program.
    pub(super) fn log(&mut self, message: &str, level: Level) {
        let length = truncate(message, LINE_MAX).len();
        let LogDecision::Log { suppressed } = self.log_limit.decide(Instant::now(), length) else { return };
        let shown = self.hidden.conceal(message);
        let line = truncate(&shown, LINE_MAX);
        let processor = &self.processor;
        log_suppressed(processor, suppressed);
        match level {
            Level::ERROR => error!(processor, line, "the program says"),
            Level::WARN => warn!(processor, line, "the program says"),
            Level::INFO => info!(processor, line, "the program says"),
            Level::DEBUG => debug!(processor, line, "the program says"),
            Level::TRACE => trace!(processor, line, "the program says"),
        }
    }

    /// Asks the program to end, and kills it if it takes longer than two seconds. Returns the last lines of its standard
    /// error.
    pub(super) async fn stop(self) -> Option<String> {
        self.process.stop(STOP_GRACE).await
    }

    /// Kills the program at once, with all that it has started. Returns the last lines of its standard error.
    pub(super) async fn kill(self) -> Option<String> {
        self.process.kill().await
    }
}
