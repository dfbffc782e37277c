//! `espctl wait`: waits until processors have reached a position, or have nothing left to do, for scripts and deployments.

use std::time::Duration;

use clap::Args;

use super::operate::Target;
use crate::config::{Config, parse_duration};
use crate::espctl::output;
use crate::event::Position;
use crate::operations::databases::Databases;
use crate::operations::operator::Operator;
use crate::operations::waiting::{Idle, LaterEmission, Waiting};
use crate::process::exit_code::{Exit, ExitCode};
use crate::processors::WaitError;
use crate::store::{EventStore as _, PostgresEventStore};

#[derive(Args)]
#[command(
    after_help = "With --idle it waits until nothing is left to do: every event is handled, also what reactors have emitted meanwhile,\n\
    handlers in Rust have done what they do after their commits, and nothing that is due is pending. What is emitted for a later time is listed and not waited for.\n\n\
    Exit code 0 once the position is reached, 1 if a name is unknown, or at once if a processor is paused or has stopped at an event\n\
    before the position, 75 if the time limit is exceeded, 65 if the event\n\
    store is not the one that the processor has followed.\n\n\
    Examples, to read what was just written:\n  \
    espctl wait outstanding_todos --timeout 5s && psql -c 'table outstanding_todos'\n  \
    espctl wait --all\n  \
    espctl wait --all --idle              and whatever follows from it"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// The position to wait for; without it, that of the last event now
    #[arg(long, value_name = "POSITION")]
    position: Option<Position>,
    /// Wait until nothing is left to do, also for what reactors emit meanwhile
    #[arg(long, conflicts_with = "position")]
    idle: bool,
    /// How long to wait: 500ms, 30s, 5m
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
}

pub(crate) async fn run(arguments: Arguments, config: &Config, databases: &Databases) -> anyhow::Result<()> {
    let operator = Operator { databases, declared: &config.processors, name: "", native: None };
    let waiting = Waiting::of(operator, arguments.target.names()).await.map_err(ending)?;
    if arguments.idle {
        let idle = waiting.until_idle(arguments.timeout).await.map_err(ending)?;
        for emission in &idle.later {
            output::print_note(&describe(emission))?;
        }
        return output::print(&summarize(&idle));
    }
    let store = PostgresEventStore::new(databases.events.clone(), databases.layout.clone());
    let wanted = match arguments.position {
        Some(position) => position,
        None => store.latest_id(None).await?,
    };
    let mut printed = Ok(());
    let reached = |name: &str, position| {
        if printed.is_ok() {
            printed = output::print(&format!("{name} is at {position}"));
        }
    };
    waiting.until_at(wanted, arguments.timeout, reached).await.map_err(ending)?;
    printed
}

fn summarize(idle: &Idle) -> String {
    let Idle { position, dead_letters, .. } = idle;
    match dead_letters {
        0 => format!("idle: everything is handled up to {position}"),
        count => format!(
            "idle: everything up to {position} is handled or set aside as a dead letter ({count}: `espctl dead-letters list`)"
        ),
    }
}

fn describe(emission: &LaterEmission) -> String {
    let LaterEmission { reactor, event_type, due_at, key, .. } = emission;
    let key = key.as_ref().map(|key| format!(", key {key}")).unwrap_or_default();
    format!("not waited for: {event_type} of {reactor} at {due_at}{key}")
}

/// The exit code that belongs to the end of a wait.
fn ending(error: WaitError) -> anyhow::Error {
    let code = match &error {
        WaitError::TimedOut { .. } => ExitCode::Timeout,
        WaitError::Diverged { .. } => ExitCode::Diverged,
        _ => return error.into(),
    };
    Exit { code, message: error.to_string() }.into()
}
