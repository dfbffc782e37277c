//! `espctl dead-letters retry`: asks the owner of a processor to handle events again, and waits for the outcome.

use std::time::{Duration, Instant};

use clap::Args;

use super::{Target, count_dead_letters};
use crate::config::parse_duration;
use crate::espctl::output;
use crate::operations::operator::{Affected, Operator, OperatorError};
use crate::operations::status::format::thousands;
use crate::process::exit_code::{Exit, ExitCode};
use crate::processing::dead_letters::{Remaining, RetryRequest, Selection};
use crate::processing::tracker::TrackerRow;

#[derive(Args)]
#[command(
    after_help = "The daemon that runs the processor handles the events with its current handlers, ordered by id. Events that\n\
    wait behind one follow it. An event that fails again stays set aside, and so do those that wait behind it.\n\
    Exit code 0 if all were handled, 1 if some failed again, 75 if the time limit was exceeded before all were tried, or\n\
    nobody tries them now because the processor is paused or stopped, or no daemon runs it: the request is kept.\n\n\
    Examples:\n  \
    espctl dead-letters retry outstanding_todos 4711\n  \
    espctl dead-letters retry outstanding_todos --error 'due_date'\n  \
    espctl dead-letters retry outstanding_todos --all --yes --wait 5m"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// How long to wait for the outcome; the retry continues afterwards. 0s: do not wait, and end with 0
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    wait: Duration,
}

/// The time between two questions about what is left.
const INTERVAL: Duration = Duration::from_millis(100);

/// How long a processor of a running daemon may be without an owner before nobody seems to run it: a worker that a reload has
/// begun anew, or one that follows on another, owns it within seconds.
const OWNER_GRACE: Duration = Duration::from_secs(5);

/// The most failures that are shown.
const FAILURES_SHOWN: i64 = 10;

pub(crate) async fn run(arguments: Arguments, operator: &Operator<'_>) -> anyhow::Result<()> {
    let (name, yes) = (arguments.target.name.clone(), arguments.target.yes);
    let selection = arguments.target.selection();
    operator.find(&name).await?;
    if !yes && !confirm(operator, &name, &selection).await? {
        return output::print("nothing was done");
    }
    let (row, requested) = operator.retry_dead_letters(&name, &selection).await.map_err(advise)?;
    if requested.left_out > 0 {
        output::print_note(&format!(
            "{} of these wait behind earlier events of their aggregates, which are not selected: retry those, and these follow",
            thousands(requested.left_out)
        ))?;
    }
    if requested.events.is_empty() {
        return output::print(&format!("no dead letters of {name} to retry: nothing was done"));
    }
    let row = await_owner(operator, row, arguments.wait).await?;
    if let Some(obstacle) = find_obstacle(operator, &row).await? {
        let dead_letters = count_dead_letters(requested.events.len() as i64);
        let message = format!("requested a retry of {dead_letters} of {name}: {obstacle}");
        return if arguments.wait.is_zero() { output::print(&message) } else { Err(timed_out(message)) };
    }
    wait(operator, &name, &requested, arguments.wait).await
}

/// What ends the command where nobody has tried the events.
fn timed_out(message: String) -> anyhow::Error {
    Exit { code: ExitCode::Timeout, message }.into()
}

/// Why the processor does not handle the events now, also where no daemon has noticed that its store is another one.
async fn find_obstacle(operator: &Operator<'_>, row: &TrackerRow) -> anyhow::Result<Option<String>> {
    let name = &row.name;
    if operator.find_divergence(row).await?.is_some() {
        return Ok(Some(format!(
            "the processor has met another event store than the one that it has followed; `espctl status {name}` says what has to \
             happen first"
        )));
    }
    Ok(obstacle(row))
}

/// Asks for confirmation if more than one event is handled again.
async fn confirm(operator: &Operator<'_>, name: &str, selection: &Selection) -> anyhow::Result<bool> {
    let Affected { dead_letters, left_behind } = operator.count_affected(name, selection).await?;
    if dead_letters + left_behind <= 1 {
        return Ok(true);
    }
    let behind = match left_behind {
        0 => String::new(),
        waiting => format!(" and {} that wait behind them", thousands(waiting)),
    };
    output::confirm(&format!(
        "This lets {name} handle {}{behind} again. Continue?",
        count_dead_letters(dead_letters)
    ))
}

/// Adds the command that helps to an error.
fn advise(error: OperatorError) -> anyhow::Error {
    match error {
        OperatorError::OutOfOrder { ref name, first, .. } => {
            anyhow::anyhow!("{error}\n`espctl dead-letters retry {name} {first}` handles both, in order")
        }
        error => error.into(),
    }
}

/// The processor as it is when somebody owns it, or when nobody has for a while.
async fn await_owner(
    operator: &Operator<'_>,
    mut row: TrackerRow,
    wait: Duration,
) -> anyhow::Result<TrackerRow> {
    let deadline = Instant::now() + wait.min(OWNER_GRACE);
    while is_unowned(&row) && Instant::now() < deadline {
        let daemons = operator.daemons().await?;
        if !daemons.iter().any(|daemon| daemon.processors.contains(&row.name)) {
            break;
        }
        tokio::time::sleep(INTERVAL).await;
        row = operator.find(&row.name).await?;
    }
    Ok(row)
}

fn is_unowned(row: &TrackerRow) -> bool {
    !row.owned && row.standbys.is_empty() && row.paused_at.is_none() && row.failed_at.is_none()
}

/// Why the processor does not handle the events now.
fn obstacle(row: &TrackerRow) -> Option<String> {
    let name = &row.name;
    if row.paused_at.is_some() {
        Some(format!("the processor is paused; run `espctl resume {name}`"))
    } else if row.failed_at.is_some() {
        Some(format!(
            "the processor has stopped; fix what `espctl status {name}` shows, then run `espctl retry {name}`"
        ))
    } else if is_unowned(row) {
        Some("no daemon runs the processor now; the next one that does handles them".to_owned())
    } else {
        None
    }
}

async fn wait(
    operator: &Operator<'_>,
    name: &str,
    requested: &RetryRequest,
    time: Duration,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + time;
    while operator.count_pending(name, requested).await? > 0 && Instant::now() < deadline {
        tokio::time::sleep(INTERVAL).await;
    }
    let remaining = operator.remaining(name, requested, FAILURES_SHOWN).await?;
    let text = describe(name, requested, &remaining);
    let code = match remaining {
        Remaining { failed_count: 1.., .. } => ExitCode::Failure,
        Remaining { pending: 1.., .. } if !time.is_zero() => ExitCode::Timeout,
        _ => return output::print(&text),
    };
    Err(Exit { code, message: text }.into())
}

fn describe(name: &str, requested: &RetryRequest, remaining: &Remaining) -> String {
    let Remaining { failed, failed_count, waiting, pending } = remaining;
    let handled = requested.events.len() as i64 - failed_count - waiting - pending;
    let mut text = format!("{} of {name} handled", count_dead_letters(handled));
    for (count, what) in [
        (*failed_count, "failed again"),
        (*waiting, "still wait behind an event that failed again"),
        (*pending, "not tried yet: the daemon continues with them"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {} {what}", thousands(count)));
        }
    }
    for dead_letter in failed {
        let failure = dead_letter.failure.as_ref().map(|failure| failure.0.to_string());
        text.push_str(&format!("\n  {}", failure.unwrap_or_default()));
    }
    if (failed.len() as i64) < *failed_count {
        text.push_str("\n  …");
    }
    text
}
