//! `espctl graph`: which processor is connected with which events and tables.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};

use crate::config::Config;
use crate::espctl::{output, status};
use crate::operations::databases::Databases;
use crate::operations::graph;
use crate::operations::lock_watch::say_who_locks;

#[derive(Args)]
#[command(
    after_help = "Needs no database, except for --state. A native processor says in its own program what it handles.\n\n\
    Examples:\n  \
    espctl graph                                      for people\n  \
    espctl graph --state                              with the state of each processor\n  \
    espctl graph --format dot | dot -Tsvg > graph.svg\n  \
    espctl graph --format mermaid                     for Markdown\n  \
    espctl graph --json | jq '.[] | select(.emits != []).name'"
)]
pub(crate) struct Arguments {
    /// The language to write
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// An array of objects instead
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Add the state of each processor, if the database can be asked
    #[arg(long)]
    state: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Dot,
    Mermaid,
}

/// How long a line is where the output goes to no terminal.
const WIDTH: usize = 80;

pub(crate) async fn run(arguments: Arguments, config: &Config) -> anyhow::Result<()> {
    let states = if arguments.state { read_states(config).await? } else { BTreeMap::new() };
    let nodes = graph::nodes(&config.processors, &states);
    if arguments.json {
        return output::print_verbatim(&serde_json::to_string_pretty(&nodes)?);
    }
    match arguments.format {
        Format::Dot => output::print_verbatim(&graph::as_dot(&nodes)),
        Format::Mermaid => output::print_verbatim(&graph::as_mermaid(&nodes)),
        Format::Text if nodes.is_empty() => output::print("no processor is declared"),
        Format::Text => output::print(&graph::as_text(&nodes, output::width().unwrap_or(WIDTH))),
    }
}

/// The state of each processor by name; none, and a note why, if the database cannot be asked.
async fn read_states(config: &Config) -> anyhow::Result<BTreeMap<String, String>> {
    match ask(config).await {
        Ok(states) => Ok(states),
        Err(error) => {
            output::print_note(&format!("without states, because the database cannot be asked: {error:#}"))?;
            Ok(BTreeMap::new())
        }
    }
}

async fn ask(config: &Config) -> anyhow::Result<BTreeMap<String, String>> {
    let databases = Databases::connect_to_look(config, "espctl").await?;
    let asking = async {
        databases.check_schema().await?;
        status::collect(config, &databases).await
    };
    let statuses = say_who_locks(&databases, |_| {}, asking).await?;
    databases.close().await;
    Ok(statuses.into_iter().map(|status| (status.name, status.state.as_str().to_owned())).collect())
}
