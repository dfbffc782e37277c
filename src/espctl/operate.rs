//! `espctl pause`, `resume` and `retry`: what operators do to a processor.

use clap::Args;

use crate::config::Config;
use crate::espctl::output;
use crate::operations::databases::Databases;
use crate::operations::operator::{Operator, TakenAsHandled};
use crate::operations::status::format::thousands;

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
            let taken = operator.taken_as_handled(name).await?;
            let row = operator.accept_history(name).await?;
            if let Some(taken) = taken {
                output::print_note(&describe_taken(name, taken))?;
            }
            let said = "accepts the event store as it is and resumes";
            return Ok((
                true,
                match row.synchronous {
                    Some(_) => format!("{} {said} behind the last event", row.name),
                    None => format!("{} {said} from position {}", row.name, row.position),
                },
            ));
        }
        let (row, changed) = operator.resume(name).await?;
        let said = if changed { "resumes from" } else { "was neither paused nor failed, at" };
        Ok((changed, format!("{} {said} position {}", row.name, row.position)))
    })
    .await
}

/// What an operator has decided by accepting the store.
fn describe_taken(name: &str, TakenAsHandled { events, common, missed }: TakenAsHandled) -> String {
    match missed {
        true => format!(
            "{events} events beyond {common} count as handled, whether or not they have met the trigger: `espctl reset {name}` builds \
             the tables anew"
        ),
        false => format!(
            "{events} events beyond {common} are in the store now and count as handled: `espctl reset {name} --to {common}` \
             has them handled, and `espctl reset {name}` builds the tables anew"
        ),
    }
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

fn operator<'o>(config: &'o Config, databases: &'o Databases, name: &'o str) -> Operator<'o> {
    Operator { databases, declared: &config.processors, name, native: None }
}
