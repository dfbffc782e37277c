//! `espctl dead-letters skip` and `park`: set one event aside now, whatever the policy of its processor.

use clap::Args;

use crate::espctl::output;
use crate::event::Position;
use crate::operations::operator::Operator;

#[derive(Args)]
#[command(
    after_help = "Without --event, it is the event that the processor fails at now: `espctl status NAME` shows it. Another one is\n\
    set aside before the processor comes to it. `skip` lets later events of its aggregate go on without it; `park` has\n\
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
}

pub(crate) async fn run(arguments: Arguments, blocks: bool, operator: &Operator<'_>) -> anyhow::Result<()> {
    let Arguments { name, event } = arguments;
    let event = operator.set_aside(&name, event, blocks).await?;
    let others = if blocks { "wait behind it" } else { "go on" };
    output::print(&format!(
        "event {} ({}) is set aside for {name}, later events of its aggregate {others}: `espctl dead-letters retry {name} {0}` \
         has it handled",
        event.id, event.event_type
    ))
}
