//! `espctl pause`, `resume`, `retry` and `reset`: what operators do to a processor.

use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args;
use clap::builder::TypedValueParser as _;

use crate::config::{Config, parse_duration};
use crate::espctl::output;
use crate::event::Position;
use crate::operations::databases::Databases;
use crate::operations::operator::{Destination, LockPatience, Operator};
use crate::operations::status::format::thousands;
use crate::processing::processor::OthersObjects;
use crate::processing::tracker::{ReplayEffects, TrackerRow};

/// The processors that a command is about.
#[derive(Args)]
pub(crate) struct Target {
    /// Names of the processors
    #[arg(value_name = "NAME", required_unless_present = "all")]
    names: Vec<String>,
    /// All processors that have run on this database
    #[arg(long, conflicts_with = "names")]
    all: bool,
}

impl Target {
    /// The names; `None`: all.
    pub(crate) fn names(&self) -> Option<&[String]> {
        (!self.all).then_some(&self.names)
    }
}

#[derive(Args)]
#[command(
    after_help = "A processor in state `diverged` has met an event store that is not the one that it has followed, after a\n\
    failover, a restore, or because its last event was deleted. `espctl status` says what was found. --accept-history\n\
    lets it continue from its position in the store as it is: events that have come at or below the position are left\n\
    out, and what it has done for events that are gone stays. `espctl reset` is the way where that is not wanted.\n\n\
    Example:\n  espctl resume outstanding_todos && espctl wait outstanding_todos"
)]
pub(crate) struct ResumeArguments {
    #[command(flatten)]
    target: Target,
    /// Accept that the event store is not the one that the processors have followed
    #[arg(long, conflicts_with = "all")]
    accept_history: bool,
}

#[derive(Args)]
#[command(
    after_help = "Without --to and --at the projector's tables are dropped and created again, and it starts over from the\n\
    first event. With one of them only the position moves and the tables stay as they are: events after the new\n\
    position are handled (again), events before it are not.\n\n\
    Until then the tables lack rows that an application reads: `espctl rebuild` builds a projector in SQL beside the tables\n\
    that serve, and then exchanges them.\n\n\
    What others have made on the tables is carried over to the new ones: grants, comments, row level security and policies,\n\
    options, publications. Where something else of theirs would be lost, nothing is done without --cascade.\n\n\
    While others have locks on the tables, the reset says who they are, and tries again and again until --wait is over."
)]
pub(crate) struct ResetArguments {
    #[command(flatten)]
    target: Target,
    /// Move to this position instead, and keep the tables
    #[arg(long, value_name = "POSITION", conflicts_with = "at", value_parser = clap::value_parser!(i64).range(0..).map(Position::new))]
    to: Option<Position>,
    /// Move to the last position at or before this time (RFC 3339) instead, and keep the tables
    #[arg(long, value_name = "TIME")]
    at: Option<DateTime<Utc>>,
    /// Let a reactor emit again for events that it has handled before; an event that is stored already is not stored twice
    #[arg(long)]
    repeat_effects: bool,
    /// Also drop what others have made on the tables and what cannot be carried over, such as views and foreign keys
    #[arg(long, conflicts_with_all = ["to", "at"])]
    cascade: bool,
    /// How long to wait for others who use the tables: 5s, 1m
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration, conflicts_with_all = ["to", "at"])]
    wait: Duration,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn pause(target: Target, config: &Config, databases: &Databases) -> anyhow::Result<()> {
    act(target, config, databases, "nothing to pause", async |operator, name| {
        let (row, changed) = operator.pause(name).await?;
        let said = if changed { "paused" } else { "was paused already" };
        let held = match row.pending_emissions {
            0 => String::new(),
            1 => "; its pending emission is held".to_owned(),
            pending => format!("; its {} pending emissions are held", thousands(pending)),
        };
        Ok((changed, format!("{} {said} at position {}{held}", row.name, row.position)))
    })
    .await
}

pub(crate) async fn retry(target: Target, config: &Config, databases: &Databases) -> anyhow::Result<()> {
    act(target, config, databases, "no processor has a failure", async |operator, name| {
        let (row, changed) = operator.retry(name).await?;
        let said = match (changed, row.paused_at) {
            (true, _) => "tries again now, from",
            (false, Some(_)) => "is paused (run `espctl resume` first), at",
            (false, None) => "had no failure, at",
        };
        if row.dead_letters > 0 {
            let hint = format!(
                "events are set aside: `espctl dead-letters retry {} --all` has them handled again",
                row.name
            );
            output::print_note(&format!("{} {hint}", row.dead_letters))?;
        }
        Ok((changed, format!("{} {said} position {}", row.name, row.position)))
    })
    .await
}

pub(crate) async fn resume(
    arguments: ResumeArguments,
    config: &Config,
    databases: &Databases,
) -> anyhow::Result<()> {
    let ResumeArguments { target, accept_history } = arguments;
    act(target, config, databases, "no processor is paused or has failed", async |operator, name| {
        if accept_history {
            let (events, common) = operator.taken_as_handled(name).await?;
            let row = operator.accept_history(name).await?;
            if events > 0 {
                let hint = format!(
                    "events beyond {common} are in the store now and count as handled: `espctl reset {name} --to {common}` \
                     has them handled, and `espctl reset {name}` builds the tables anew"
                );
                output::print_note(&format!("{events} {hint}"))?;
            }
            let said = "accepts the event store as it is and resumes from position";
            return Ok((true, format!("{} {said} {}", row.name, row.position)));
        }
        let (row, changed) = operator.resume(name).await?;
        let said = if changed { "resumes from" } else { "was neither paused nor failed, at" };
        Ok((changed, format!("{} {said} position {}", row.name, row.position)))
    })
    .await
}

/// Does something to each processor and says of each what became of it; where it is done to all, only of those that it
/// has changed.
async fn act(
    target: Target,
    config: &Config,
    databases: &Databases,
    nothing: &str,
    each: impl AsyncFn(&Operator<'_>, &str) -> anyhow::Result<(bool, String)>,
) -> anyhow::Result<()> {
    let me = output::operator();
    let operator = operator(config, databases, &me);
    let mut has_spoken = false;
    for name in operator.targets(target.names()).await? {
        let (changed, said) = each(&operator, &name).await?;
        if changed || !target.all {
            output::print(&said)?;
            has_spoken = true;
        }
    }
    if has_spoken { Ok(()) } else { output::print(nothing) }
}

pub(crate) async fn reset(
    arguments: ResetArguments,
    config: &Config,
    databases: &Databases,
) -> anyhow::Result<()> {
    let me = output::operator();
    let operator = operator(config, databases, &me);
    for name in operator.targets(arguments.target.names()).await? {
        reset_one(&name, &arguments, &operator).await?;
    }
    Ok(())
}

async fn reset_one(name: &str, arguments: &ResetArguments, operator: &Operator<'_>) -> anyhow::Result<()> {
    let row = operator.find(name).await?;
    let to = operator.destination(row.position, arguments.to, arguments.at).await?;
    let effects = if arguments.repeat_effects { ReplayEffects::Repeat } else { ReplayEffects::Suppress };
    let others = if arguments.cascade { OthersObjects::Drop } else { OthersObjects::Keep };
    let patience = LockPatience { limit: arguments.wait, tell: &note };
    if to == Destination::Start {
        // Fails before the confirmation if the reset cannot be done.
        operator.declaration(&row.name)?;
    }
    if !arguments.yes {
        let question = match to {
            Destination::Start => describe_rebuild(&row, operator, arguments.cascade, patience).await?,
            Destination::Position(to) => describe_move(&row, to),
        };
        if !output::confirm(&question)? {
            return output::print("nothing was done");
        }
    }
    let replaced = operator.reset(&row.name, to, effects, others, patience).await?;
    if !replaced.lost.is_empty() {
        output::print_note(&format!("dropped: {}", replaced.lost.join("; ")))?;
    }
    let now = operator.find(&row.name).await?.position;
    output::print(&format!("{} was at {}, is at {now}", row.name, row.position))
}

/// Says something while a command goes on. That it cannot be said is no reason to stop.
fn note(text: &str) {
    let _ = output::print_note(text);
}

fn operator<'o>(config: &'o Config, databases: &'o Databases, name: &'o str) -> Operator<'o> {
    Operator { databases, declared: &config.processors, name }
}

async fn describe_rebuild(
    row: &TrackerRow,
    operator: &Operator<'_>,
    cascade: bool,
    patience: LockPatience<'_>,
) -> anyhow::Result<String> {
    let TrackerRow { name, position, .. } = row;
    let tables = operator.owned_tables(name).await?;
    let tables = if tables.is_empty() { "no tables".to_owned() } else { tables.join(", ") };
    let mut question = format!(
        "This drops and recreates {tables} and lets {name} handle {} ids again from the start.",
        thousands(*position)
    );
    // Fails before the confirmation if something of others would be lost.
    let replaced =
        operator.start_over(name, ReplayEffects::Suppress, OthersObjects::Preview, patience).await?;
    if let (Some(refusal), false) = (replaced.refusal(name), cascade) {
        anyhow::bail!("nothing was done: {refusal}");
    }
    for (what, items) in [("carries over", &replaced.carried_over), ("drops for good", &replaced.lost)] {
        if !items.is_empty() {
            question += &format!(" It {what} {}.", items.join("; "));
        }
    }
    if row.kind == "projector" {
        question += &format!(
            " Until it has caught up, rows are missing: `espctl rebuild {name}` builds them beside those that serve."
        );
    }
    Ok(question + " Continue?")
}

fn describe_move(row: &TrackerRow, to: Position) -> String {
    let TrackerRow { name, position, .. } = row;
    if to < *position {
        format!(
            "This lets {name} handle {} ids again and keeps its tables as they are. Continue?",
            thousands(to.distance_to(*position))
        )
    } else {
        format!("This lets {name} skip {} ids for good. Continue?", thousands(position.distance_to(to)))
    }
}
