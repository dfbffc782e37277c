//! `espctl emissions cancel` and `retry`.

use clap::{ArgGroup, Args};

use super::{Criteria, count_emissions};
use crate::espctl::output;
use crate::operations::operator::Operator;
use crate::operations::status::format::thousands;
use crate::processing::emission::{EmissionChange, EmissionSelection, EmissionState};

/// The name under which the events are listed that applications have scheduled.
const APPLICATIONS: &str = "-";

/// What a change is about. At least one option has to select it, if only `--all`.
#[derive(Args)]
#[command(group(ArgGroup::new("selected").required(true).multiple(true).args(["id", "event_type", "key", "refused", "all"])))]
struct Target {
    /// Name of the reactor; `-`: what applications have scheduled
    #[arg(value_name = "NAME|-")]
    name: String,
    /// Id of one emission, as `espctl emissions list` shows it
    id: Option<i64>,
    #[command(flatten)]
    criteria: Criteria,
    /// All pending emissions of the reactor
    #[arg(long, conflicts_with_all = ["id", "event_type", "key", "refused"])]
    all: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

#[derive(Args)]
#[command(
    after_help = "The events are never appended. What the reactor has done otherwise stays. The removal is recorded.\n\n\
    Examples:\n  \
    espctl emissions cancel reminders 4711\n  \
    espctl emissions cancel reminders --key todo-17\n  \
    espctl emissions cancel - --key invoice-4       what an application has scheduled\n  \
    espctl emissions cancel retired_reactor --all --yes"
)]
pub(crate) struct CancelArguments {
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
#[command(
    after_help = "espd tries a refused emission again by itself, after a second, doubling to five minutes.\n\n\
    Examples:\n  \
    espctl emissions retry reminders 4711\n  \
    espctl emissions retry reminders --all\n  \
    espctl emissions retry - --all                  what applications have scheduled"
)]
pub(crate) struct RetryArguments {
    #[command(flatten)]
    target: Target,
}

impl Target {
    fn selection(self) -> EmissionSelection {
        self.criteria.into_selection(Some(self.name), self.id)
    }
}

pub(super) async fn cancel(arguments: CancelArguments, operator: &Operator<'_>) -> anyhow::Result<()> {
    let (name, yes) = (arguments.target.name.clone(), arguments.target.yes);
    let selection = arguments.target.selection();
    let selected = operator.count_emissions(&selection).await?;
    let question = format!(
        "This cancels {} for good: the events are never appended. Continue?",
        count_of(&name, selected)
    );
    if selected > 0 && !yes && !output::confirm(&question)? {
        return output::print("nothing was done");
    }
    match operator.change_emissions(EmissionChange::Cancel, &name, &selection).await? {
        0 if name == APPLICATIONS => output::print("no scheduled events match: nothing was done"),
        0 => output::print(&format!("no pending emissions of {name} match: nothing was done")),
        cancelled => output::print(&format!("cancelled {}", count_of(&name, cancelled))),
    }
}

pub(super) async fn retry(arguments: RetryArguments, operator: &Operator<'_>) -> anyhow::Result<()> {
    let name = arguments.target.name.clone();
    let selection = arguments.target.selection();
    let requested = operator.change_emissions(EmissionChange::Retry, &name, &selection).await?;
    if requested == 0 && name == APPLICATIONS {
        return output::print("no refused scheduled events match: nothing was done");
    }
    if requested == 0 {
        return output::print(&format!("no refused emissions of {name} match: nothing was done"));
    }
    let obstacle = obstacle(operator, &name, &selection).await?;
    output::print(&format!("requested a retry of {}{obstacle}", count_of(&name, requested)))
}

/// `3 emissions of reminders`, `1 scheduled event`.
fn count_of(name: &str, count: i64) -> String {
    if name == APPLICATIONS {
        return format!("{} scheduled event{}", thousands(count), if count == 1 { "" } else { "s" });
    }
    format!("{} of {name}", count_emissions(count))
}

/// Why nobody moves the emissions now.
async fn obstacle(
    operator: &Operator<'_>,
    name: &str,
    selection: &EmissionSelection,
) -> anyhow::Result<String> {
    if !operator.is_declared_to_emit(name) {
        return Ok(": the configuration declares no such reactor that emits, so nobody moves them".to_owned());
    }
    let first = operator.emissions(selection, 1).await?;
    let is_held = first.first().is_some_and(|listed| listed.emission.state == EmissionState::Held);
    let held = || {
        format!(
            ": the reactor is paused (run `espctl resume {name}`), or not yet where it was before its reset"
        )
    };
    Ok(if is_held { held() } else { String::new() })
}
