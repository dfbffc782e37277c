//! A worker that has greeted us.

use std::io;
use std::time::{Duration, Instant};

use tracing::{Level, debug, error, info, trace, warn};

use super::exchange::Trouble;
use super::lines::LineError;
use super::process::{Broken, Child};
use super::protocol::{Hello, Message, Order, VERSION};
use super::stderr::{self, Allowance, Verdict, confess, cut};
use crate::processing::declaration::ProgramDeclaration;

/// How long a program may always take to begin: it loads more than it does for an answer.
const START_MIN: Duration = Duration::from_secs(10);

/// A process that speaks the protocol.
#[derive(Debug)]
pub(super) struct Worker {
    processor: String,
    child: Child,
    /// How much more of its messages to people is logged.
    allowance: Allowance,
}

/// Why there is no worker. No event is to blame.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(
        "could not start {program:?}: {error}; the program has to be executable, and in PATH or named from {folder}"
    )]
    NotStarted { program: String, folder: String, error: io::Error },
    #[error("{program:?} {what} before it said {{\"ready\":{VERSION}}}{}", words(last_words.as_deref()))]
    NotReady { program: String, what: String, last_words: Option<String> },
    #[error("{program:?} speaks version {theirs} of the protocol, this espd version {VERSION}")]
    OtherVersion { program: String, theirs: i64 },
}

fn words(last_words: Option<&str>) -> String {
    last_words.map(|words| format!("; its last words: {words}")).unwrap_or_default()
}

impl Worker {
    /// Starts the program and waits until it is ready.
    pub(super) async fn start(
        declaration: &ProgramDeclaration,
        hello: &Hello<'_>,
    ) -> Result<Self, StartError> {
        let program = declaration.command.first().cloned().unwrap_or_default();
        let child = Child::start(hello.processor, declaration).map_err(|error| {
            let folder = declaration.folder.display().to_string();
            StartError::NotStarted { program: program.clone(), folder, error }
        })?;
        let (processor, allowance) = (hello.processor.to_owned(), Allowance::new(Instant::now()));
        let mut worker = Self { processor, child, allowance };
        worker.tell(&Order::Hello { hello });
        match worker.greet(declaration.timeout.max(START_MIN)).await {
            Ok(theirs) if theirs == i64::from(VERSION) => {
                debug!(
                    processor = worker.processor,
                    command.pid = worker.child.pid(),
                    "the program is ready"
                );
                Ok(worker)
            }
            Ok(theirs) => Err(StartError::OtherVersion { program, theirs }),
            Err(what) => Err(StartError::NotReady { program, what, last_words: worker.end().await }),
        }
    }

    /// The version that it speaks, or what it did instead of saying so.
    async fn greet(&mut self, patience: Duration) -> Result<i64, String> {
        let since = Instant::now();
        loop {
            let line = self.child.hear(since, patience).await.map_err(|broken| broken.to_string())?;
            match Message::parse(line) {
                Ok(Message::Ready(version)) => return Ok(version),
                Ok(Message::Log { message, level }) => self.log(&message, level),
                Ok(_) => return Err(format!("wrote {}", super::lines::excerpt(line.as_bytes()))),
                Err(wrong) => return Err(wrong.0),
            }
        }
    }

    /// Has it told something while it is listened to.
    pub(super) fn tell(&mut self, order: &Order<'_>) {
        self.child.tell(&order.to_line());
    }

    pub(super) fn is_behind(&self) -> bool {
        self.child.is_behind()
    }

    /// The next line that it writes, within `patience` from `since` on.
    pub(super) async fn hear(&mut self, since: Instant, patience: Duration) -> Result<&str, Broken> {
        self.child.hear(since, patience).await
    }

    /// Whether it can be given a batch. One that has ended since the last one says so in the log.
    pub(super) fn is_alive(&mut self) -> bool {
        let Some(status) = self.child.end_of() else { return true };
        let status = crate::process::exit_code::describe_foreign_end(status);
        warn!(processor = self.processor, status, "the program has ended while there was nothing to do");
        false
    }

    /// Passes on what it says to people.
    pub(super) fn log(&mut self, message: &str, level: Level) {
        let line = cut(message, stderr::LINE_MAX);
        let Verdict::Logged { left_out } = self.allowance.ask(Instant::now(), line.len()) else { return };
        let processor = &self.processor;
        confess(processor, left_out);
        match level {
            Level::ERROR => error!(processor, line, "the program says"),
            Level::WARN => warn!(processor, line, "the program says"),
            Level::INFO => info!(processor, line, "the program says"),
            Level::DEBUG => debug!(processor, line, "the program says"),
            Level::TRACE => trace!(processor, line, "the program says"),
        }
    }

    /// Lets it end in order.
    pub(super) async fn dismiss(self, grace: Duration) {
        self.child.dismiss(grace).await;
    }

    /// Ends it at once, with all that it has started. Returns its last words.
    pub(super) async fn end(self) -> Option<String> {
        self.child.end().await
    }
}

impl From<Broken> for Trouble {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Line(LineError::TooLong | LineError::NotText(_)) => Self::Wrong(broken.to_string()),
            _ => Self::Broken(broken.to_string()),
        }
    }
}
