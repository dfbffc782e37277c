//! `espctl plan`: what a deploy of this configuration would do.

use clap::Args;

use crate::config::Config;
use crate::espctl::output;
use crate::operations::databases::Databases;
use crate::operations::plan::{Planned, plan};
use crate::process::exit_code::{Exit, ExitCode};

#[derive(Args)]
#[command(
    after_help = "Compares the configuration with what has run on the database, and changes nothing. Exit code 2 if a processor\n\
    would stop, would not be run any more, or would have its tables emptied. Whether the handlers can be run, `espctl check`\n\
    finds out: a configuration with mistakes is not followed.\n\n\
    Example, before a deployment:\n  espctl plan --config espd.toml"
)]
pub(crate) struct Arguments {
    /// Print an array of objects (processor, action, description) instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments, config: &Config, databases: &Databases) -> anyhow::Result<()> {
    let planned = plan(config, databases).await?;
    if arguments.json {
        output::print_verbatim(&serde_json::to_string_pretty(&planned)?)?;
    } else if planned.is_empty() {
        output::print("no processor is declared, and none has run on this database")?;
    } else {
        output::print(&planned.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    }
    match describe_loss(&planned) {
        None => Ok(()),
        Some(message) => Err(Exit { code: ExitCode::Usage, message }.into()),
    }
}

/// What a deploy would lose, and what it would not start; `None`: nothing.
fn describe_loss(planned: &[Planned]) -> Option<String> {
    let list = |has_run: bool| {
        let names = planned.iter().filter(|one| one.action.loses() && one.has_run == has_run);
        names.map(|one| one.processor.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (lost, unstarted) = (list(true), list(false));
    match (lost.as_str(), unstarted.as_str()) {
        ("", "") => None,
        (lost, "") => Some(format!("a deploy would stop or empty what works now: {lost}")),
        ("", unstarted) => Some(format!("a deploy would not get this to run: {unstarted}")),
        (lost, unstarted) => Some(format!(
            "a deploy would stop or empty what works now: {lost}; and it would not get this to run: {unstarted}"
        )),
    }
}
