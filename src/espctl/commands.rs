//! `espctl commands`: lists the commands that applications have recorded, and removes old ones.

use std::time::Duration;

use chrono::Utc;
use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use crate::config::parse_duration;
use crate::espctl::output;
use crate::operations::commands::{self, CommandSelection, RecordedCommand};
use crate::operations::databases::Databases;
use crate::operations::status::format::{table_within, thousands};

#[derive(Args)]
#[command(after_help = "Applications record their commands if they are told to: docs/commands.md.\n\n\
    Examples:\n  \
    espctl commands\n  \
    espctl commands list --outcome refused --since 1h\n  \
    espctl commands list --metadata user=ada --json\n  \
    espctl commands prune --older-than 90d")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<CommandsCommand>,
    #[command(flatten)]
    list: ListArguments,
}

#[derive(Subcommand)]
enum CommandsCommand {
    /// List commands, the newest first
    List(ListArguments),
    /// Remove the records of old commands
    #[command(
        after_help = "A command whose record is gone is still recognised when it is repeated if it has led to events.\n\n\
        Example:\n  espctl commands prune --older-than 90d"
    )]
    Prune {
        /// Only those that were recorded longer ago than this: 12h, 90d
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        older_than: Duration,
    },
}

#[derive(Args)]
struct ListArguments {
    /// Only commands of this name
    #[arg(long)]
    name: Option<String>,
    /// Only those for this aggregate
    #[arg(long, value_name = "ID")]
    aggregate: Option<String>,
    /// Only those that ended so
    #[arg(long, value_parser = ["executed", "refused"])]
    outcome: Option<String>,
    /// Only those of the last hours or days: 1h, 7d
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    since: Option<Duration>,
    /// Only those that were sent with this: user=ada (several times: with all of them)
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    metadata: Vec<(String, Value)>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..))]
    limit: i64,
    /// Print an array of objects, with fields and answers, instead of a table
    #[arg(long)]
    json: bool,
}

/// A value that is JSON is taken as that, anything else as a text.
fn parse_pair(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("write a name, = and a value: user=ada")?;
    Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()))))
}

pub(crate) async fn run(arguments: Arguments, databases: &Databases) -> anyhow::Result<()> {
    match arguments.command {
        None => list(arguments.list, databases).await,
        Some(CommandsCommand::List(arguments)) => list(arguments, databases).await,
        Some(CommandsCommand::Prune { older_than }) => prune(older_than, databases).await,
    }
}

async fn list(arguments: ListArguments, databases: &Databases) -> anyhow::Result<()> {
    let ListArguments { name, aggregate, outcome, since, metadata, limit, json } = arguments;
    let since =
        since.and_then(|since| Utc::now().checked_sub_signed(chrono::TimeDelta::from_std(since).ok()?));
    let metadata: Map<String, Value> = metadata.into_iter().collect();
    let selection = CommandSelection { name, aggregate_id: aggregate, outcome, since, metadata, limit };
    let found = commands::list(&databases.events, &databases.layout, &selection).await?;
    if json {
        return output::print_verbatim(&serde_json::to_string_pretty(&found)?);
    }
    if found.is_empty() {
        return output::print("no commands are recorded that match");
    }
    let header = ["AT", "COMMAND", "AGGREGATE", "OUTCOME", "SENT WITH"];
    output::print(&table_within(output::width(), &header, found.iter().map(row).collect(), &[], &[3, 4]))
}

fn row(command: &RecordedCommand) -> Vec<String> {
    let metadata = command.metadata.0.as_object().filter(|fields| !fields.is_empty());
    vec![
        command.at.format("%Y-%m-%d %H:%M:%SZ").to_string(),
        command.name.clone(),
        command.aggregate_id.clone(),
        outcome(command),
        metadata.map_or_else(String::new, |fields| Value::Object(fields.clone()).to_string()),
    ]
}

/// `executed: BookLent (17)`, `refused: lent_to_another`.
fn outcome(command: &RecordedCommand) -> String {
    let answer = &command.answer.0;
    let events = answer["events"].as_array().into_iter().flatten();
    let shown = |event: &Value| format!("{} ({})", event["type"].as_str().unwrap_or("event"), event["id"]);
    let what = match answer["error"]["code"].as_str() {
        Some(code) => code.to_owned(),
        None => events.map(shown).collect::<Vec<_>>().join(", "),
    };
    if what.is_empty() {
        format!("{}: nothing", command.outcome)
    } else {
        format!("{}: {what}", command.outcome)
    }
}

async fn prune(older_than: Duration, databases: &Databases) -> anyhow::Result<()> {
    let before =
        chrono::TimeDelta::from_std(older_than).ok().and_then(|age| Utc::now().checked_sub_signed(age));
    let Some(before) = before else { anyhow::bail!("nothing is as old as that") };
    let removed = commands::prune(&databases.events, &databases.layout, before).await?;
    let removed = i64::try_from(removed).unwrap_or(i64::MAX);
    output::print(&format!("removed {} command{}", thousands(removed), if removed == 1 { "" } else { "s" }))
}
