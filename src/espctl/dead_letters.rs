//! `espctl dead-letters`: lists, shows, retries and discards the events that processors have set aside, and sets events aside.

mod discard;
mod list;
mod retry;
mod set_aside;
mod show;

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use uuid::Uuid;

use crate::config::{Config, parse_duration};
use crate::espctl::output;
use crate::event::Position;
use crate::operations::databases::Databases;
use crate::operations::operator::Operator;
use crate::operations::status::format::thousands;
use crate::processing::dead_letters::Selection;

#[derive(Subcommand)]
pub(crate) enum DeadLettersCommand {
    /// List the events that were set aside, for all processors or for one
    List(list::Arguments),
    /// Show one event: why and where it failed, what is in the store now, and what waits behind it
    Show(show::Arguments),
    /// Have events handled again by the current handlers, in order, with those that wait behind them
    Retry(retry::Arguments),
    /// Set the event aside that a processor fails at; later events of its aggregate go on without it
    Skip(set_aside::Arguments),
    /// Set the event aside that a processor fails at; later events of its aggregate wait behind it
    Park(set_aside::Arguments),
    /// Discard events for good: the processor never handles them
    Discard(discard::Arguments),
}

pub(crate) async fn run(
    command: DeadLettersCommand,
    config: &Config,
    databases: &Databases,
) -> anyhow::Result<()> {
    let me = output::operator();
    let operator = Operator { databases, declared: &config.processors, name: &me, native: None };
    match command {
        DeadLettersCommand::List(arguments) => list::run(arguments, &operator).await,
        DeadLettersCommand::Show(arguments) => show::run(arguments, &operator).await,
        DeadLettersCommand::Retry(arguments) => retry::run(arguments, &operator).await,
        DeadLettersCommand::Skip(arguments) => set_aside::run(arguments, false, &operator).await,
        DeadLettersCommand::Park(arguments) => set_aside::run(arguments, true, &operator).await,
        DeadLettersCommand::Discard(arguments) => discard::run(arguments, &operator).await,
    }
}

/// Options that select dead letters.
#[derive(Args)]
struct Criteria {
    /// Only events of this type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Only events of this aggregate
    #[arg(long, value_name = "ID")]
    aggregate: Option<Uuid>,
    /// Only those whose error contains this text, or has this SQLSTATE
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// Only those that were set aside longer ago than this: 10m, 1h, 7d
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    older_than: Option<Duration>,
}

impl Criteria {
    fn into_selection(self) -> Selection {
        let Self { event_type, aggregate, error, older_than } = self;
        Selection {
            event_type,
            aggregate_id: aggregate.map(Into::into),
            error,
            older_than,
            ..Selection::default()
        }
    }
}

/// What a change is about. At least one option has to select it, if only `--all`.
#[derive(Args)]
#[command(group(ArgGroup::new("selected").required(true).multiple(true)
    .args(["event", "event_type", "aggregate", "error", "older_than", "all"])))]
struct Target {
    /// Name of the processor
    name: String,
    /// Id of one event
    event: Option<Position>,
    #[command(flatten)]
    criteria: Criteria,
    /// All dead letters of the processor
    #[arg(long, conflicts_with_all = ["event", "event_type", "aggregate", "error", "older_than"])]
    all: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

impl Target {
    fn selection(self) -> Selection {
        let Self { name, event, criteria, .. } = self;
        Selection { processor: Some(name), event_id: event, ..criteria.into_selection() }
    }
}

/// `1 dead letter`, `12,345 dead letters`.
fn count_dead_letters(count: i64) -> String {
    let noun = if count == 1 { "dead letter" } else { "dead letters" };
    format!("{} {noun}", thousands(count))
}
