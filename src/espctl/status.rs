//! `espctl status`: prints the statuses of processors, once or again and again.

mod filter;
mod watch;

use std::time::Duration;

use chrono::Utc;
use clap::Args;

use crate::config::{Config, parse_duration};
use crate::espctl::output;
use crate::operations::backlog::Backlog;
use crate::operations::databases::Databases;
use crate::operations::operator::Operator;
use crate::operations::status::{ProcessorStatus, table};
use filter::Filter;

#[derive(Args)]
#[command(
    after_help = "Processors in trouble come first. Below the table: what is wrong, since when, and what to do; what several\n\
    processors share is told once. On a terminal the table is as wide as that (COLUMNS overrides it): columns that say\n\
    nothing or that do not fit are left out. `--json` always has everything.\n\n\
    Examples:\n  \
    espctl status                         all processors\n  \
    espctl status outstanding_todos       one of them, or several\n  \
    espctl status --state retrying,failed those that need you\n  \
    espctl status --name 'todo*'          those whose names match\n  \
    espctl status --watch --interval 5s   again every 5 s, until Ctrl-C\n  \
    espctl status --json | jq '.[].advice[] | .problem, .remedy'"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    filter: Filter,
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
    let all = collect(config, databases).await?;
    arguments.filter.require_known(&all)?;
    let is_filtered_out = !all.is_empty();
    let statuses = arguments.filter.apply(all);
    if arguments.json {
        return output::print_verbatim(&serde_json::to_string_pretty(&statuses)?);
    }
    if statuses.is_empty() && is_filtered_out {
        return output::print("no processor is like this");
    }
    let mut text = table::render(&statuses, Utc::now(), output::width());
    for (problem, remedy) in Backlog::read(databases).await?.troubles() {
        text = format!("{text}\n\n{}", table::render_trouble(&problem, &remedy, output::width()));
    }
    output::print(&text)
}

/// The statuses as of now, of all processors.
pub(crate) async fn collect(config: &Config, databases: &Databases) -> anyhow::Result<Vec<ProcessorStatus>> {
    let operator = Operator { databases, declared: &config.processors, name: "", native: None };
    Ok(operator.statuses(None).await?)
}
