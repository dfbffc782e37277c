//! `espctl dead-letters retry`: asks the owner of a processor, and waits for what comes of it.

use std::time::{Duration, Instant};

use clap::Args;

use super::{Target, count_letters};
use crate::config::parse_duration;
use crate::espctl::output;
use crate::operations::operator::{Meant, Operator, OperatorError};
use crate::operations::status::text::thousands;
use crate::process::exit_code::{Exit, ExitCode};
use crate::processing::dead_letters::{Remaining, RetryAsked, Selection};
use crate::processing::tracker::TrackerRow;

#[derive(Args)]
#[command(
    after_help = "The daemon that runs the processor does it, with the handlers that it has now, in order of the ids. What waits \
    behind\nan event follows it. An event that fails again stays, and so do those behind it.\n\
    Ends with 0 when all were handled or no daemon is there to do it now, with 1 when some failed again, with 75 when\n\
    the time is over before all were tried.\n\n\
    Examples:\n  \
    espctl dead-letters retry outstanding_todos 4711\n  \
    espctl dead-letters retry outstanding_todos --error 'due_date'\n  \
    espctl dead-letters retry outstanding_todos --all --yes --wait 5m"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// How long to wait for the outcome; it happens all the same. 0s: not at all
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    wait: Duration,
}

/// Between two looks at what is left.
const INTERVAL: Duration = Duration::from_millis(100);

/// Failures that are told one by one.
const FAILURES_SHOWN: i64 = 10;

pub(crate) async fn run(arguments: Arguments, operator: &Operator<'_>) -> anyhow::Result<()> {
    let (name, yes) = (arguments.target.name.clone(), arguments.target.yes);
    let selection = arguments.target.selection();
    operator.find(&name).await?;
    if !yes && !confirm(operator, &name, &selection).await? {
        return output::print("nothing was done");
    }
    let (row, asked) = operator.retry_dead_letters(&name, &selection).await.map_err(advise)?;
    if asked.left_out > 0 {
        output::print_note(&format!(
            "{} of these wait behind earlier events of their aggregates, which you do not mean: retry those, and they follow",
            thousands(asked.left_out)
        ))?;
    }
    if asked.events.is_empty() {
        return output::print(&format!("no dead letters of {name} to retry: nothing was done"));
    }
    if let Some(obstacle) = obstacle(&row) {
        let letters = count_letters(asked.events.len() as i64);
        return output::print(&format!("asked for a retry of {letters} of {name}: {obstacle}"));
    }
    wait(operator, &name, &asked, arguments.wait).await
}

/// Asks, where it is about more than one.
async fn confirm(operator: &Operator<'_>, name: &str, selection: &Selection) -> anyhow::Result<bool> {
    let Meant { letters, left_behind } = operator.weigh(name, selection).await?;
    if letters + left_behind <= 1 {
        return Ok(true);
    }
    let behind = match left_behind {
        0 => String::new(),
        waiting => format!(" and {} that wait behind", thousands(waiting)),
    };
    output::confirm(&format!("This lets {name} handle {}{behind} again. Go on?", count_letters(letters)))
}

/// An error with the command that helps.
fn advise(error: OperatorError) -> anyhow::Error {
    match error {
        OperatorError::Waits { ref name, first, .. } => {
            anyhow::anyhow!("{error}\n`espctl dead-letters retry {name} {first}` handles both, in order")
        }
        error => error.into(),
    }
}

/// What keeps the processor from doing it now.
fn obstacle(row: &TrackerRow) -> Option<String> {
    let name = &row.name;
    if row.paused_at.is_some() {
        Some(format!("it is paused, and does it once `espctl resume {name}` lets it go on"))
    } else if row.failed_at.is_some() {
        Some(format!("it has stopped, and does it once `espctl retry {name}` lets it go on"))
    } else if !row.owned && row.standbys.is_empty() {
        Some("no daemon runs it now, and it happens when one does".to_owned())
    } else {
        None
    }
}

async fn wait(operator: &Operator<'_>, name: &str, asked: &RetryAsked, time: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + time;
    while operator.pending(name, asked).await? > 0 && Instant::now() < deadline {
        tokio::time::sleep(INTERVAL).await;
    }
    let remaining = operator.remaining(name, asked, FAILURES_SHOWN).await?;
    let said = describe(name, asked, &remaining);
    let code = match remaining {
        Remaining { failed_count: 1.., .. } => ExitCode::Failure,
        Remaining { pending: 1.., .. } if !time.is_zero() => ExitCode::Timeout,
        _ => return output::print(&said),
    };
    Err(Exit { code, message: said }.into())
}

fn describe(name: &str, asked: &RetryAsked, remaining: &Remaining) -> String {
    let Remaining { failed, failed_count, waiting, pending } = remaining;
    let handled = asked.events.len() as i64 - failed_count - waiting - pending;
    let mut said = format!("{} of {name} handled", count_letters(handled));
    for (count, what) in [
        (*failed_count, "failed again"),
        (*waiting, "still wait behind an event that failed again"),
        (*pending, "not tried yet: the daemon goes on with them"),
    ] {
        if count > 0 {
            said.push_str(&format!(", {} {what}", thousands(count)));
        }
    }
    for letter in failed {
        let failure = letter.failure.as_ref().map(|failure| failure.0.to_string());
        said.push_str(&format!("\n  {}", failure.unwrap_or_default()));
    }
    if (failed.len() as i64) < *failed_count {
        said.push_str("\n  …");
    }
    said
}
