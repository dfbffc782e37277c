//! `espctl status --watch`: rewrites the table on a terminal; elsewhere prints a line for each processor that changes.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use chrono::{SecondsFormat, Utc};
use sqlx::error::Error as DatabaseError;

use super::{Arguments, collect};
use crate::config::Config;
use crate::espctl::output;
use crate::operations::databases::Databases;
use crate::operations::status::ProcessorStatus;
use crate::operations::status::format::format_duration;
use crate::operations::status::table::{render, seconds_left};
use crate::postgres::error::chain;
use crate::process::signal;
use crate::processing::tracker::ProcessorKey;
use crate::visible::in_lines;

/// Moves the cursor to the upper left corner.
const HOME: &str = "\x1b[H";

/// Clears the rest of the line, and the rest of the screen.
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// Shows the statuses until interrupted. A database that does not answer is reported and waited for.
pub(super) async fn run(arguments: &Arguments, config: &Config, databases: &Databases) -> anyhow::Result<()> {
    let mut requests = signal::requests().context("could not listen for signals")?;
    let mut screen = Screen::new(arguments);
    loop {
        let collected = tokio::select! {
            _ = requests.recv() => return Ok(()),
            collected = collect(config, databases) => collected,
        };
        match collected {
            Ok(statuses) => screen.show(&arguments.filter.apply(statuses))?,
            Err(error) if is_of_database(&error) => screen.report_outage(&chain(&*error))?,
            Err(error) => return Err(error),
        }
        tokio::select! {
            _ = requests.recv() => return Ok(()),
            () = tokio::time::sleep(arguments.interval) => {}
        }
    }
}

fn is_of_database(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<DatabaseError>())
}

/// Where the statuses go.
enum Screen {
    /// A terminal, rewritten each time.
    Terminal { interval: Duration, fresh: bool },
    /// Lines for people, with the last line of each processor.
    Lines(BTreeMap<ProcessorKey, String>),
    /// An array of objects per line.
    Json,
}

impl Screen {
    fn new(arguments: &Arguments) -> Self {
        if arguments.json {
            Self::Json
        } else if io::stdout().is_terminal() {
            Self::Terminal { interval: arguments.interval, fresh: true }
        } else {
            Self::Lines(BTreeMap::new())
        }
    }

    fn show(&mut self, statuses: &[ProcessorStatus]) -> anyhow::Result<()> {
        match self {
            Self::Terminal { .. } => self.rewrite(&render(statuses, Utc::now(), output::width())),
            Self::Lines(printed) => {
                for status in statuses {
                    let line = describe(status, statuses);
                    let last = printed.insert(status.key(), line.clone());
                    if last.as_ref() != Some(&line) {
                        output::print(&format!("{} {line}", now()))?;
                    }
                }
                Ok(())
            }
            Self::Json => output::print_verbatim(&serde_json::to_string(statuses)?),
        }
    }

    fn report_outage(&mut self, problem: &str) -> anyhow::Result<()> {
        match self {
            Self::Terminal { .. } => self.rewrite(&format!("The database does not answer: {problem}")),
            Self::Lines(_) | Self::Json => output::print_note(&format!("{} no answer: {problem}", now())),
        }
    }

    fn rewrite(&mut self, text: &str) -> anyhow::Result<()> {
        let Self::Terminal { interval, fresh } = self else { return Ok(()) };
        let start = if std::mem::take(fresh) { "\x1b[2J" } else { "" };
        let interval = format_duration(interval.as_secs_f64());
        let head = format!("{}, every {interval}; press Ctrl-C to end", now());
        let visible = in_lines(text);
        let lines: Vec<String> = head
            .lines()
            .chain([""])
            .chain(visible.lines())
            .map(|line| format!("{line}{CLEAR_LINE}\n"))
            .collect();
        let mut out = io::stdout().lock();
        write!(out, "{start}{HOME}{}{CLEAR_BELOW}", lines.concat())?;
        Ok(out.flush()?)
    }
}

fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// The status in one line, without anything that changes while nothing happens.
fn describe(status: &ProcessorStatus, all: &[ProcessorStatus]) -> String {
    let ProcessorStatus { position, head, lag_events, .. } = status;
    let name = status.shown_name(all);
    let mut line =
        format!("{name} {} position={position} head={head} lag={lag_events}", status.state.as_str());
    if let Some(left) = seconds_left(status) {
        line.push_str(&format!(" rate={:.0}/s left={}", status.rate, format_duration(left)));
    }
    if status.attempts > 0 {
        line.push_str(&format!(" attempts={}", status.attempts));
    }
    if let Some(error) = &status.last_error {
        line.push_str(&format!(" error={:?}", error.to_string()));
    }
    line
}
