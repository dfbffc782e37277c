//! `espctl rebuild NAME --watch`: shows how far a version is that anybody builds, until that is over.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;

use crate::espctl::output;
use crate::operations::operator::{Operator, OperatorError};
use crate::operations::rebuild::Outcome;
use crate::operations::status::RebuildStatus;
use crate::postgres::error::chain;
use crate::process::exit_code::{Exit, ExitCode};
use crate::process::signal;
use crate::visible::in_one_line;

/// How often it is looked.
const INTERVAL: Duration = Duration::from_secs(1);

/// How often a line is printed where it cannot be rewritten.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// How long a daemon may take to begin what was declared just now.
const BEGINNING: Duration = Duration::from_secs(10);

/// Shows a build until the version is live, was given up, or waits for an operator. How it ended is the exit code.
pub(super) async fn watch(operator: Operator<'_>, name: &str, json: bool) -> anyhow::Result<()> {
    let mut requests = signal::requests().context("could not listen for signals")?;
    let mut line =
        Line { is_terminal: io::stdout().is_terminal() && !json, printed_at: None, last: String::new() };
    let begun = Instant::now();
    loop {
        match operator.look_at_rebuild(name).await {
            Ok((Some(build), outcome)) => {
                line.show(&build, name, json)?;
                if let Some(because) = &build.blocked_because {
                    line.end()?;
                    return Err(waits(name, &build, because).into());
                }
                if let Outcome::Ended { .. } = outcome {
                    return line.end().and_then(|()| tell(name, &outcome));
                }
            }
            // Whoever builds it has not written anything yet.
            Ok((None, Outcome::UnderWay)) => {}
            Ok((None, _)) if begun.elapsed() < BEGINNING && operator.is_newer_declared(name).await? => {}
            Ok((None, outcome)) => return line.end().and_then(|()| tell(name, &outcome)),
            Err(OperatorError::Database(error)) => {
                output::print_note(&format!("no answer: {}", chain(&error)))?;
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            _ = requests.recv() => return line.end(),
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

fn waits(name: &str, build: &RebuildStatus, because: &str) -> Exit {
    let remedy = build.remedy.as_deref().unwrap_or_default();
    let message = format!("version {} of {name} is not live: {because}. {remedy}", build.version);
    Exit { code: ExitCode::Failure, message }
}

/// Says how a rebuild that is over has ended.
fn tell(name: &str, outcome: &Outcome) -> anyhow::Result<()> {
    match outcome {
        Outcome::Ended { version, is_live: true } => {
            output::print(&format!("version {version} of {name} is live"))
        }
        Outcome::Ended { version, is_live: false } => {
            let message = format!("version {version} of {name} was given up");
            Err(Exit { code: ExitCode::Failure, message }.into())
        }
        Outcome::None | Outcome::UnderWay => {
            let message = format!("no version of {name} is being built");
            Err(Exit { code: ExitCode::Failure, message }.into())
        }
    }
}

/// Where the progress goes: a line that is rewritten, or lines.
struct Line {
    is_terminal: bool,
    printed_at: Option<Instant>,
    last: String,
}

impl Line {
    fn show(&mut self, build: &RebuildStatus, name: &str, json: bool) -> anyhow::Result<()> {
        let text = if json {
            serde_json::to_string(build)?
        } else {
            in_one_line(&format!("version {} of {name} {}", build.version, build.describe())).into_owned()
        };
        if self.is_terminal {
            let width = output::width().unwrap_or(usize::MAX).saturating_sub(1);
            let shown: String = text.chars().take(width).collect();
            let mut out = io::stdout().lock();
            write!(out, "\r\x1b[K{shown}")?;
            self.last = shown;
            return Ok(out.flush()?);
        }
        let is_due = self.printed_at.is_none_or(|at| at.elapsed() >= LINE_INTERVAL);
        if is_due && self.last != text {
            self.printed_at = Some(Instant::now());
            output::print_verbatim(&text)?;
            self.last = text;
        }
        Ok(())
    }

    /// Leaves the last line as it is.
    fn end(&self) -> anyhow::Result<()> {
        if self.is_terminal && !self.last.is_empty() {
            let mut out = io::stdout().lock();
            writeln!(out)?;
        }
        Ok(())
    }
}
