//! `espctl reload`: asks the running daemons to read their configuration again, and says what came of it.

use std::time::{Duration, Instant};

use clap::Args;

use crate::config::{Config, parse_duration};
use crate::espctl::output;
use crate::operations::databases::Databases;
use crate::operations::operator::{Operator, OperatorError, ReloadRequest};
use crate::postgres::sqlstate::may_succeed_later;
use crate::process::exit_code::{Exit, ExitCode};

#[derive(Args)]
#[command(
    after_help = "The request goes through the database, so it reaches daemons on other hosts. Each reads the files that it was\n\
    started with, as after SIGHUP: workers whose configuration has changed are restarted, all others go on, and an event\n\
    that is tried again later is tried at once. A daemon whose files are wrong says why and keeps what it has.\n\
    Where `url` was changed it finds none in the new database: send the daemon SIGHUP then.\n\
    Exit code 0 if all have answered, 1 if the files of one are wrong or no daemon runs, 75 if one has not answered in\n\
    time.\n\n\
    Example:\n  espctl check && espctl reload"
)]
pub(crate) struct Arguments {
    /// How long to wait for the answers: 500ms, 30s, 5m
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
}

/// The time between two looks for answers.
const INTERVAL: Duration = Duration::from_millis(100);

/// How long a daemon is waited for that has been silent for long: one that was frozen shows within ten seconds that it lives.
const SILENCE_MAX: Duration = Duration::from_secs(15);

pub(crate) async fn run(arguments: Arguments, config: &Config, databases: &Databases) -> anyhow::Result<()> {
    let me = output::operator();
    let operator = Operator { databases, declared: &config.processors, name: &me, native: None };
    let mut requests = operator.request_reload().await?;
    let patience = Instant::now() + SILENCE_MAX.min(arguments.timeout);
    let mut may_come = true;
    while requests.is_empty() && may_come && Instant::now() < patience {
        // It is asked once more afterwards: one that wakes in between is silent no longer.
        may_come = operator.may_have_daemon().await?;
        if may_come {
            tokio::time::sleep(INTERVAL).await;
        }
        requests = operator.request_reload().await?;
    }
    if requests.is_empty() {
        anyhow::bail!(
            "no daemon runs on the database of this configuration: start `espd run`; where a daemon still works on another database, because \
             `url` was changed, `kill -HUP` its process"
        );
    }
    let ids: Vec<i64> = requests.iter().map(|request| request.id).collect();
    let deadline = Instant::now() + arguments.timeout;
    while requests.iter().any(|request| request.answered_at.is_none()) && Instant::now() < deadline {
        tokio::time::sleep(INTERVAL).await;
        requests = match operator.reload_requests(&ids).await {
            // The database may be back within the time.
            Err(OperatorError::Database(error)) if may_succeed_later(&error) => requests,
            looked => looked?,
        };
    }
    let (failed, followed): (Vec<_>, Vec<_>) =
        requests.iter().partition(|request| matches!(request.outcome.as_deref(), None | Some("refused")));
    let text = |requests: &[&ReloadRequest]| {
        requests.iter().map(|request| describe(request)).collect::<Vec<_>>().join("\n")
    };
    if !followed.is_empty() {
        output::print(&text(&followed))?;
    }
    let code = match () {
        () if failed.is_empty() => return Ok(()),
        () if failed.iter().any(|request| request.outcome.is_some()) => ExitCode::Failure,
        () => ExitCode::Timeout,
    };
    Err(Exit { code, message: text(&failed) }.into())
}

fn describe(request: &ReloadRequest) -> String {
    let daemon = &request.daemon;
    let what = match request.outcome.as_deref() {
        Some("changed") => "has read its configuration again, and follows the new one",
        Some("unchanged") => "has read its configuration again: nothing has changed",
        Some(_) => "has read its configuration again: it is wrong, and the old one is kept",
        None => {
            let (host, pid) = daemon.rsplit_once(':').unwrap_or((daemon, "PID"));
            return format!(
                "{daemon} has not answered: if it was killed, nobody waits for it any more in half a minute; if it is of an older \
                 version, `kill -HUP {pid}` on {host} does the same"
            );
        }
    };
    let report = request.report.iter().flatten().flat_map(|entry| entry.lines());
    std::iter::once(format!("{daemon} {what}"))
        .chain(report.map(|line| format!("  {line}")))
        .collect::<Vec<_>>()
        .join("\n")
}
