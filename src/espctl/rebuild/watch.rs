//! `espctl rebuild NAME --watch`: shows how far a version is that anybody builds, until that is over.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;

use crate::espctl::output;
use crate::operations::operator::{Operator, OperatorError};
use crate::operations::rebuild::{Look, Outcome};
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
            Ok(look) => {
                let begins = may_begin(&look);
                let is_over = is_over(&look);
                // What a daemon has found out about an earlier declaration is no answer while it begins with this one.
                if !is_over || !begins || begun.elapsed() >= BEGINNING {
                    look.build.as_ref().map_or(Ok(()), |build| line.show(build, name, json))?;
                    if is_over {
                        return line.end().and_then(|()| tell(name, &look));
                    }
                }
            }
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

/// Whether a daemon may be about to begin, or to give up, what the last look was about.
fn may_begin(look: &Look) -> bool {
    let is_unbegun = look.unbegun.is_some() && look.left_out.is_none();
    // What was built before the declaration has gone back.
    let is_abandoned = look.settled.is_some() && look.build.is_some() && look.outcome == Outcome::UnderWay;
    is_unbegun || is_abandoned || look.is_from_before_reload
}

/// Whether nothing more happens by itself, unless somebody begins it.
fn is_over(look: &Look) -> bool {
    match (&look.build, look.outcome) {
        (Some(build), Outcome::UnderWay | Outcome::None) => build.blocked_because.is_some(),
        // Whoever builds it has not written anything yet.
        (None, Outcome::UnderWay) => false,
        (_, Outcome::Ended { .. } | Outcome::None) => true,
    }
}

/// Says how a rebuild that is over has ended.
fn tell(name: &str, look: &Look) -> anyhow::Result<()> {
    let unbegun = look.unbegun.map(|version| match look.left_out {
        Some(left_out) => left_out.describe(name, version),
        None => format!(
            "nobody has begun to build version {version} of {name} as it is declared now (`espctl reload` has daemons follow the \
             configuration, `espctl plan` says what becomes of it)"
        ),
    });
    let waits = look.build.as_ref().and_then(|build| Some((build, build.blocked_because.as_ref()?)));
    let ended = match (waits, look.outcome) {
        (Some((build, because)), _) => {
            let remedy = build.remedy.as_deref().unwrap_or_default();
            let message = format!("version {} of {name} is not live: {because}. {remedy}", build.version);
            return Err(failure(match (unbegun, look.settled) {
                (Some(unbegun), _) => {
                    format!("{message} That may be about an earlier declaration: {unbegun}")
                }
                // An operator's, or that of a daemon with another declaration.
                (None, Some(serves)) => {
                    format!("{message} It is not what the configuration declares: version {serves} serves")
                }
                (None, None) => message,
            }));
        }
        (None, Outcome::Ended { version, is_live: true }) => {
            let message = format!("version {version} of {name} is live");
            if look.is_live_otherwise {
                return Err(failure(format!(
                    "{message}, and was built from another declaration than that of this configuration: `espctl rebuild {name} \
                     --dry-run` shows what differs, `espctl rebuild {name}` makes its rows as they are declared here"
                )));
            }
            if unbegun.is_none() {
                return output::print(&message);
            }
            message
        }
        (None, Outcome::Ended { version, is_live: false }) => {
            let given_up = format!("version {version} of {name} was given up");
            if let Some(serves) = look.settled {
                return output::print(&format!(
                    "version {serves} of {name} is live, and nothing newer is declared ({given_up})"
                ));
            }
            given_up
        }
        (None, Outcome::None | Outcome::UnderWay) => format!("no version of {name} is being built"),
    };
    Err(failure(match unbegun {
        Some(unbegun) => format!("{ended}, and {unbegun}"),
        None => ended,
    }))
}

fn failure(message: String) -> anyhow::Error {
    Exit { code: ExitCode::Failure, message }.into()
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
