//! `espctl status`: prints the statuses of processors, once or again and again.

mod watch;

use std::time::Duration;

use chrono::Utc;
use clap::Args;

use crate::config::{Config, parse_duration};
use crate::espctl::output;
use crate::operations::databases::Databases;
use crate::operations::operator::Operator;
use crate::operations::status::{ProcessorStatus, table};

#[derive(Args)]
#[command(after_help = "Below the table: what is wrong, since when, and what to do.\n\n\
    Examples:\n  \
    espctl status                         all processors\n  \
    espctl status outstanding_todos       one of them\n  \
    espctl status --watch --interval 5s   again every 5 s, until Ctrl-C\n  \
    espctl status --json | jq '.[].advice[] | .problem, .remedy'")]
pub(crate) struct Arguments {
    /// Only this processor
    name: Option<String>,
    /// An array of objects instead of a table
    #[arg(long)]
    json: bool,
    /// Show the status again and again: in place on a terminal, otherwise a line for each change
    #[arg(long, short)]
    watch: bool,
    /// Time between two updates: 500ms, 5s, 1m
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration, requires = "watch")]
    interval: Duration,
}

pub(crate) async fn run(arguments: Arguments, config: &Config, databases: &Databases) -> anyhow::Result<()> {
    if arguments.watch {
        return watch::run(&arguments, config, databases).await;
    }
    let statuses = collect(config, databases, arguments.name.as_deref()).await?;
    if let (Some(name), true) = (&arguments.name, statuses.is_empty()) {
        anyhow::bail!("no processor {name}: it is not declared, and it has never run on this database");
    }
    output::print(&if arguments.json {
        serde_json::to_string_pretty(&statuses)?
    } else {
        table::render(&statuses, Utc::now())
    })
}

/// The statuses as of now.
pub(crate) async fn collect(
    config: &Config,
    databases: &Databases,
    name: Option<&str>,
) -> anyhow::Result<Vec<ProcessorStatus>> {
    let operator = Operator { databases, declared: &config.processors, name: "" };
    Ok(operator.statuses(name).await?)
}
