//! `espctl status`: a table, and under it what is wrong, since when, and what to do.

mod watch;

use std::time::Duration;

use clap::Args;

use crate::config::{Config, parse_duration};
use crate::espctl::output::{self, span, thousands};
use crate::operations::databases::Databases;
use crate::operations::operator::Operator;
use crate::operations::status::{HeldBy, ProcessorStatus, State, WorkerStatus};

#[derive(Args)]
#[command(after_help = "Under the table stands what is wrong with whom, since when, and what to do.\n\n\
    Examples:\n  \
    espctl status                         all processors\n  \
    espctl status outstanding_todos       one of them\n  \
    espctl status --watch --interval 5s   again and again, until Ctrl-C\n  \
    espctl status --json | jq '.[] | select(.state != \"live\") | .name'")]
pub(crate) struct Arguments {
    /// Only this processor
    name: Option<String>,
    /// An array of objects instead of a table
    #[arg(long)]
    json: bool,
    /// Look again and again: in place on a terminal, otherwise a line for each change
    #[arg(long, short)]
    watch: bool,
    /// Time between two looks: 500ms, 5s, 1m
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration, requires = "watch")]
    interval: Duration,
}

pub(crate) async fn run(arguments: Arguments, config: &Config, databases: &Databases) -> anyhow::Result<()> {
    if arguments.watch {
        return watch::run(&arguments, config, databases).await;
    }
    let statuses = look(config, databases, arguments.name.as_deref()).await?;
    if let (Some(name), true) = (&arguments.name, statuses.is_empty()) {
        anyhow::bail!("no processor {name}: it is not declared, and it has never run on this database");
    }
    output::print(&if arguments.json { serde_json::to_string_pretty(&statuses)? } else { render(&statuses) })
}

/// The statuses as of now.
pub(crate) async fn look(
    config: &Config,
    databases: &Databases,
    name: Option<&str>,
) -> anyhow::Result<Vec<ProcessorStatus>> {
    let operator = Operator { databases, declared: &config.processors, name: "" };
    Ok(operator.look(name).await?)
}

/// The table and what needs attention.
pub(crate) fn render(statuses: &[ProcessorStatus]) -> String {
    if statuses.is_empty() {
        return "no processors: none is declared, and none has run on this database".to_owned();
    }
    let header =
        ["NAME", "KIND", "STATE", "POSITION", "HEAD", "LAG", "AGE", "RATE/S", "LEFT", "DEAD", "OWNER"];
    let rows = statuses.iter().map(row).collect();
    let mut text = output::table(&header, rows, &[3, 4, 5, 6, 7, 8, 9]);
    let troubles = statuses
        .iter()
        .filter_map(trouble)
        .chain(statuses.iter().filter_map(set_aside))
        .chain(statuses.iter().filter_map(down_worker))
        .chain(statuses.first().and_then(held_back));
    for trouble in troubles {
        text.push_str("\n\n");
        text.push_str(&trouble);
    }
    text
}

fn row(status: &ProcessorStatus) -> Vec<String> {
    vec![
        status.name.clone(),
        status.kind.clone(),
        status.state.as_str().to_owned(),
        thousands(status.position),
        thousands(status.head),
        thousands(status.lag_events),
        if status.lag_events == 0 { "-".to_owned() } else { span(status.lag_seconds) },
        if status.rate > 0.0 { thousands(status.rate as i64) } else { "-".to_owned() },
        time_left(status).map_or_else(|| "-".to_owned(), span),
        if status.dead_letters == 0 { "-".to_owned() } else { thousands(status.dead_letters) },
        show_owner(status),
    ]
}

/// Who owns a processor, and how many stand by.
fn show_owner(status: &ProcessorStatus) -> String {
    let owner = status.owner.as_deref().unwrap_or("-");
    match status.standbys.len() {
        0 => owner.to_owned(),
        spare => format!("{owner} (+{spare})"),
    }
}

/// Seconds until a processor that is catching up has caught up, at its present pace.
fn time_left(status: &ProcessorStatus) -> Option<f64> {
    let catching_up = status.state == State::CatchingUp && status.rate > 0.0;
    catching_up.then(|| status.lag_events as f64 / f64::from(status.rate))
}

/// What is wrong with a processor, since when, and what to do; `None`: nothing.
fn trouble(status: &ProcessorStatus) -> Option<String> {
    let name = &status.name;
    let error = status.last_error.as_ref();
    let since = |time: Option<chrono::DateTime<chrono::Utc>>| match time {
        Some(time) => format!("{} ago", span((chrono::Utc::now() - time).as_seconds_f64())),
        None => "never".to_owned(),
    };
    match status.state {
        State::Paused => Some(format!(
            "{name} was paused {} by {}.\n  `espctl resume {name}` lets it go on.{}",
            since(status.paused_at),
            status.paused_by.as_deref().unwrap_or("?"),
            error.map_or_else(String::new, |error| format!(" It could not handle {error}"))
        )),
        State::Failed => Some(format!(
            "{name} stopped {}: {}\n  {}Mend that, then `espctl retry {name}` lets it go on.",
            since(error.and_then(|error| error.at)),
            error.map_or_else(|| "for an unknown reason".to_owned(), ToString::to_string),
            match status.attempts {
                0 => String::new(),
                tries => format!("Tried {tries} times. Events before this one are handled; later ones wait. "),
            }
        )),
        State::Retrying => {
            let left = status.next_retry_at.map(|at| (at - chrono::Utc::now()).as_seconds_f64().max(0.0));
            Some(format!(
                "{name} cannot handle {}\n  Tried {} times, last {}; next try in {}. Mend the handler and reload \
                 (SIGHUP) or restart, or correct what it needs; `espctl retry {name}` tries now.\n  Events before this one are handled; later ones wait.",
                error.map_or_else(|| "an event".to_owned(), ToString::to_string),
                status.attempts,
                since(error.and_then(|error| error.at)),
                left.map_or_else(|| "?".to_owned(), span),
            ))
        }
        State::Standby => Some(format!(
            "{name} is owned by nobody (last sign of it: {}); {} is about to take it over.{}",
            since(status.updated_at),
            status.standbys.join(", "),
            held_tracker(status)
        )),
        State::Stopped if status.holder_pid.is_some() => Some(format!(
            "{name}: its owner gives no sign of life (last one: {}).{}\n  Start `espd run` with a configuration that \
             declares it.",
            since(status.updated_at),
            held_tracker(status)
        )),
        // What keeps its worker down is told instead.
        State::Stopped if status.worker.as_ref().is_some_and(WorkerStatus::is_down) => None,
        State::Stopped => Some(format!(
            "{name} is run by no daemon (last sign of it: {}).\n  Start `espd run` with a configuration that declares it.",
            since(status.updated_at)
        )),
        State::Running | State::CatchingUp | State::Live => status.outage.as_ref().map(|outage| {
            let code = outage.sqlstate.as_ref().map_or_else(String::new, |code| format!(" [{code}]"));
            format!(
                "{name} is kept from going on since {}: {}{code}\n  Tried {} time(s), next try in {}. \
                 No event is to blame and none is lost: it goes on by itself once that is over; `espctl retry {name}` tries at once.",
                since(Some(outage.since)),
                outage.message,
                outage.tries,
                span((outage.next_try_at - chrono::Utc::now()).as_seconds_f64().max(0.0)),
            )
        }),
    }
}

/// The events that a processor has not handled and does not try by itself.
fn set_aside(status: &ProcessorStatus) -> Option<String> {
    let name = &status.name;
    let oldest = status.oldest_dead_letter_at?;
    let (events, have) = if status.dead_letters == 1 { ("event", "was") } else { ("events", "were") };
    Some(format!(
        "{} {events} of {name} {have} set aside as dead letters, the oldest {} ago.\n  `espctl dead-letters list {name}` \
         shows them. Mend the handler, reload, then `espctl dead-letters retry {name} --all`; or `… discard` what nobody \
         needs.",
        thousands(status.dead_letters),
        span((chrono::Utc::now() - oldest).as_seconds_f64()),
    ))
}

/// Why the processor's worker is not alive, and what to do.
fn down_worker(status: &ProcessorStatus) -> Option<String> {
    let worker = status.worker.as_ref().filter(|worker| worker.is_down())?;
    let seconds = |from: chrono::DateTime<chrono::Utc>, to: chrono::DateTime<chrono::Utc>| {
        (from - to).as_seconds_f64().max(0.0)
    };
    let ended = worker.last_end_at.map_or(0.0, |at| seconds(chrono::Utc::now(), at));
    let next = worker.next_start_at.map_or(0.0, |at| seconds(at, chrono::Utc::now()));
    let how = if worker.state == "crash_looping" { "keeps ending" } else { "has ended" };
    Some(format!(
        "The worker {} of {} {how}: {}, {} ago; started {} times, next start in {}.\n  The daemon's log says why \
         (`journalctl -u espd`); `espctl check` and `espctl doctor` find what is wrong with declarations and databases.",
        worker.worker,
        worker.owner,
        worker.last_end.as_deref().unwrap_or("?"),
        span(ended),
        worker.starts,
        span(next),
    ))
}

/// What to do where a frozen owner keeps the tracker from others.
fn held_tracker(status: &ProcessorStatus) -> String {
    status.holder_pid.map_or_else(String::new, |pid| {
        format!(
            "\n  Process {pid} of the database still holds its tracker for the last owner. A daemon that may do so ends \
             it; `select pg_terminate_backend({pid})` does, too."
        )
    })
}

/// Who holds the settled horizon back, if anybody does.
fn held_back(status: &ProcessorStatus) -> Option<String> {
    if status.held_by.is_empty() {
        return None;
    }
    let holders: Vec<String> = status.held_by.iter().map(describe_holder).collect();
    Some(format!(
        "The settled horizon is held back at {} (head {}): events beyond it wait for open transactions that may still \
         add earlier ones.\n{}",
        thousands(status.horizon),
        thousands(status.head),
        holders.join("\n")
    ))
}

fn describe_holder(holder: &HeldBy) -> String {
    let word = |word: &Option<String>| word.clone().unwrap_or_else(|| "?".to_owned());
    let age = holder.seconds.map_or_else(|| "some time".to_owned(), span);
    match (&holder.prepared, holder.pid) {
        (Some(name), _) => {
            format!(
                "  prepared transaction '{name}' of {}, {age} old; `rollback prepared '{name}'` ends it",
                word(&holder.user)
            )
        }
        (None, pid) => {
            let pid = pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string());
            format!(
                "  process {pid} ({}, user {}), {}, open for {age}: {}\n    `select pg_terminate_backend({pid})` ends it",
                word(&holder.application_name),
                word(&holder.user),
                word(&holder.state),
                word(&holder.query)
            )
        }
    }
}
