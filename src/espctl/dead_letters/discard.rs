//! `espctl dead-letters discard`: removes events for good.

use clap::Args;

use super::{Target, count_dead_letters};
use crate::espctl::output;
use crate::operations::operator::{Affected, Operator};

#[derive(Args)]
#[command(
    after_help = "The events stay in the store and other processors handle them; only this one never will. Events that\n\
    wait behind a discarded one stay set aside: `espctl dead-letters retry` has them handled.\n\n\
    Examples:\n  \
    espctl dead-letters discard outstanding_todos 4711\n  \
    espctl dead-letters discard outstanding_todos --type TodoImported --older-than 7d\n  \
    espctl dead-letters discard outstanding_todos --all --yes"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
}

pub(crate) async fn run(arguments: Arguments, operator: &Operator<'_>) -> anyhow::Result<()> {
    let (name, yes) = (arguments.target.name.clone(), arguments.target.yes);
    let selection = arguments.target.selection();
    let Affected { dead_letters, left_behind } = operator.count_affected(&name, &selection).await?;
    if let (0, Some(event_id)) = (dead_letters, selection.event_id) {
        operator.examine(&name, event_id).await?;
    }
    if dead_letters == 0 {
        operator.require_known(&name).await?;
        return output::print(&format!("no dead letters of {name} match: nothing was done"));
    }
    let question = format!(
        "This discards {} of {name} for good: the processor never handles these events.{} Continue?",
        count_dead_letters(dead_letters),
        match left_behind {
            0 => String::new(),
            waiting => format!(" {} that wait behind them stay.", count_dead_letters(waiting)),
        }
    );
    if !yes && !output::confirm(&question)? {
        return output::print("nothing was done");
    }
    let Affected { dead_letters, left_behind } = operator.discard_dead_letters(&name, &selection).await?;
    output::print(&format!("discarded {} of {name}", count_dead_letters(dead_letters)))?;
    match left_behind {
        0 => Ok(()),
        waiting => output::print(&format!(
            "still set aside behind these: {}. `espctl dead-letters list {name}` shows them, `espctl dead-letters retry \
             {name} …` has them handled",
            count_dead_letters(waiting)
        )),
    }
}
