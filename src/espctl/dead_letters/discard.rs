//! `espctl dead-letters discard`.

use clap::Args;

use super::{Target, count_letters};
use crate::espctl::output;
use crate::operations::operator::{Meant, Operator};

#[derive(Args)]
#[command(
    after_help = "The events stay in the store, and other processors handle them; only this one never will. What waits \
    behind a\ndiscarded event stays where it is: `espctl dead-letters retry` lets it go on.\n\n\
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
    let Meant { letters, left_behind } = operator.weigh(&name, &selection).await?;
    if let (0, Some(event_id)) = (letters, selection.event_id) {
        operator.examine(&name, event_id).await?;
    }
    if letters == 0 {
        operator.require_known(&name).await?;
        return output::print(&format!("no dead letters of {name} like this: nothing was done"));
    }
    let question = format!(
        "This discards {} of {name} for good: it never handles these events.{} Go on?",
        count_letters(letters),
        match left_behind {
            0 => String::new(),
            waiting => format!(" {} that wait behind stay.", count_letters(waiting)),
        }
    );
    if !yes && !output::confirm(&question)? {
        return output::print("nothing was done");
    }
    let Meant { letters, left_behind } = operator.discard_dead_letters(&name, &selection).await?;
    output::print(&format!("discarded {} of {name}", count_letters(letters)))?;
    match left_behind {
        0 => Ok(()),
        waiting => output::print(&format!(
            "{} of their aggregates still wait: `espctl dead-letters list {name}` shows them, `espctl dead-letters retry \
             {name} …` lets them go on",
            count_letters(waiting)
        )),
    }
}
