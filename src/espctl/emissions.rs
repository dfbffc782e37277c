//! `espctl emissions`: lists, cancels and retries what reactors have emitted, or applications have scheduled, and the event
//! store does not have yet.

mod change;
mod list;

use clap::{Args, Subcommand};

use crate::config::Config;
use crate::espctl::output;
use crate::operations::databases::Databases;
use crate::operations::operator::Operator;
use crate::operations::status::format::thousands;
use crate::processing::emission::EmissionSelection;

#[derive(Subcommand)]
pub(crate) enum EmissionsCommand {
    /// List pending emissions, of all reactors and applications or of one, also of reactors that are no longer declared
    List(list::Arguments),
    /// Remove pending emissions for good: the events are never appended
    Cancel(change::CancelArguments),
    /// Have emissions that the event store has refused tried again now
    Retry(change::RetryArguments),
}

/// Runs a command; without one, lists everything.
pub(crate) async fn run(
    command: Option<EmissionsCommand>,
    config: &Config,
    databases: &Databases,
) -> anyhow::Result<()> {
    let me = output::operator();
    let operator = Operator { databases, declared: &config.processors, name: &me, native: None };
    match command.unwrap_or_else(|| EmissionsCommand::List(list::Arguments::default())) {
        EmissionsCommand::List(arguments) => list::run(arguments, &operator).await,
        EmissionsCommand::Cancel(arguments) => change::cancel(arguments, &operator).await,
        EmissionsCommand::Retry(arguments) => change::retry(arguments, &operator).await,
    }
}

/// Options that select emissions.
#[derive(Args, Default)]
struct Criteria {
    /// Only events of this type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Only the emission of this key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Only those that the event store has refused
    #[arg(long)]
    refused: bool,
}

impl Criteria {
    fn into_selection(self, reactor: Option<String>, id: Option<i64>) -> EmissionSelection {
        let Self { event_type, key, refused } = self;
        EmissionSelection { reactor, id, key, event_type, only_refused: refused }
    }
}

/// `1 emission`, `12,345 emissions`.
fn count_emissions(count: i64) -> String {
    format!("{} emission{}", thousands(count), if count == 1 { "" } else { "s" })
}
