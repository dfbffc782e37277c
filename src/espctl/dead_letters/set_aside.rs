//! `espctl dead-letters skip` and `park`: set one event aside now, whatever the policy of its processor.

use clap::Args;

use crate::espctl::output;
use crate::event::Position;
use crate::operations::operator::Operator;

#[derive(Args)]
#[command(
    after_help = "Without --event, it is the event that the processor fails at now: `espctl status NAME` shows it.\n\
    Of a webhook several may fail: it is the first of them. Another one is set aside before the\n\
    processor comes to it. `skip` lets later events of its aggregate go on without it; `park` has\n\
    them wait behind it. The event becomes a dead letter: `espctl dead-letters retry` has it handled later.\n\n\
    Examples:\n  \
    espctl dead-letters skip outstanding_todos\n  \
    espctl dead-letters park outstanding_todos --event 4711"
)]
pub(crate) struct Arguments {
    /// Name of the processor
    name: String,
    /// Id of the event, if it is not the one that the processor fails at
    #[arg(long, value_name = "EVENT")]
    event: Option<Position>,
    /// Do not ask for confirmation; only a terminal is asked
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn run(arguments: Arguments, blocks: bool, operator: &Operator<'_>) -> anyhow::Result<()> {
    let Arguments { name, event, yes } = arguments;
    let wanted = operator.find_to_set_aside(&name, event).await?;
    let others = if blocks { "wait behind it" } else { "go on" };
    let question = format!(
        "This sets event {} ({}) aside for {name}: it is not handled, and later events of its aggregate {others}. Continue?",
        wanted.event.id, wanted.event.event_type
    );
    // It can be handled later, so a script need not say --yes.
    if !yes && output::has_terminal() && !output::confirm(&question)? {
        return output::print("nothing was done");
    }
    let event = operator.set_aside(wanted, blocks).await?;
    output::print(&format!(
        "event {} ({}) is set aside for {name}, later events of its aggregate {others}: `espctl dead-letters retry {name} {0}` \
         has it handled",
        event.id, event.event_type
    ))
}
