//! `espctl explain`: which path the batches of a SQL projector take, and why not the fast one.

use clap::Args;

use crate::config::Config;
use crate::espctl::output;
use crate::operations::databases::Databases;
use crate::operations::explain::explain;
use crate::process::exit_code::Exit;
use crate::processing::declaration::ProcessorDeclaration;

#[derive(Args)]
#[command(
    after_help = "A batch of a SQL projector is folded into its net effect on each row if every handler that it meets is a plain\n\
    statement on one row by its key, and its table has nothing that could see the difference; otherwise, and whenever\n\
    anything is in doubt, its events are handled one by one. The rows are the same. Needs no running daemon.\n\n\
    Examples:\n  \
    espctl explain outstanding_todos\n  \
    espctl explain --json | jq '.[] | {name, slow: [.handlers[] | select(.path == \"loop\")]}'"
)]
pub(crate) struct Arguments {
    /// Names of processors; without any, all of them
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// An array of objects instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments, config: &Config, databases: &Databases) -> anyhow::Result<()> {
    let is_declared = |name: &&String| config.processors.iter().any(|declared| declared.name == **name);
    if let Some(unknown) = arguments.names.iter().find(|name| !is_declared(name)) {
        return Err(Exit::configuration(format!(
            "{unknown} is not declared: name the configuration that declares it with --config"
        ))
        .into());
    }
    let is_asked_for = |declared: &&ProcessorDeclaration| {
        arguments.names.is_empty() || arguments.names.contains(&declared.name)
    };
    let mut explanations = Vec::new();
    for declaration in config.processors.iter().filter(is_asked_for) {
        explanations.push(explain(declaration, config, databases).await?);
    }
    if arguments.json {
        return output::print_verbatim(&serde_json::to_string_pretty(&explanations)?);
    }
    let texts: Vec<String> = explanations.iter().map(|explanation| explanation.as_text()).collect();
    output::print(&texts.join("\n"))
}
