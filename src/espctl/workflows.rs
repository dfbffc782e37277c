//! `espctl workflows`: lists the instances of workflows, and what they wait for.

use clap::Args;

use crate::config::Config;
use crate::espctl::output;
use crate::event::StoredTime;
use crate::operations::databases::Databases;
use crate::operations::operator::Operator;
use crate::operations::status::format::{table_within, thousands};
use crate::operations::workflows::{self, Awaited, InstanceSelection, ListedInstance};

#[derive(Args)]
#[command(
    after_help = "STEPS: what is done of an event that is not handled yet, because its handler is at work or has failed.\n\
    WAITS FOR: the time-outs that will come; `now` is in the event store already.\n\n\
    Examples:\n  \
    espctl workflows\n  \
    espctl workflows shipping --instance 149d5c70-a373-4857-91e2-1d5ea90c27e4 --json"
)]
pub(crate) struct Arguments {
    /// Only the instances of this workflow
    name: Option<String>,
    /// Only this instance
    #[arg(long, value_name = "ID")]
    instance: Option<String>,
    /// Also instances that have ended
    #[arg(long)]
    all: bool,
    /// The most instances, those that have changed last
    #[arg(long, value_name = "COUNT", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Print an array of objects instead of a table, with the states
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments, config: &Config, databases: &Databases) -> anyhow::Result<()> {
    let Arguments { name, instance, all, limit, json } = arguments;
    if let Some(name) = &name {
        // A slip in the name is no workflow without instances.
        let me = output::operator();
        let operator = Operator { databases, declared: &config.processors, name: &me, native: None };
        operator.find(name).await?;
    }
    let ended = all || instance.is_some();
    let selection = InstanceSelection { workflow: name, instance, ended, limit: limit.into() };
    let instances = workflows::list(&databases.projections, &databases.layout, &selection).await?;
    if json {
        return output::print_verbatim(&serde_json::to_string_pretty(&instances)?);
    }
    if instances.is_empty() {
        return output::print("no instances");
    }
    let header = ["WORKFLOW", "INSTANCE", "EVENTS", "LAST EVENT", "SINCE", "CHANGED", "WAITS FOR", "STEPS"];
    let rows = instances.iter().map(row).collect();
    output::print(&table_within(output::width(), &header, rows, &[2], &[4, 5]))
}

fn row(instance: &ListedInstance) -> Vec<String> {
    let waits_for: Vec<String> = instance.waits_for.iter().map(show_awaited).collect();
    let waits_for = match instance.ended_at {
        Some(ended) => format!("ended {}", show_time(Some(ended))),
        None => waits_for.join(", "),
    };
    vec![
        instance.workflow.clone(),
        instance.instance.clone(),
        thousands(instance.events),
        instance.last_event_type.clone().unwrap_or_default(),
        show_time(instance.began_at),
        show_time(instance.updated_at),
        waits_for,
        instance.steps.join(", "),
    ]
}

fn show_awaited(awaited: &Awaited) -> String {
    let due = awaited.due_at.map_or_else(|| "now".to_owned(), |due| show_time(Some(due.into())));
    format!("{} {due}", awaited.event_type)
}

/// The time to the second; anything stranger as the database writes it.
fn show_time(time: Option<StoredTime>) -> String {
    let Some(time) = time else { return String::new() };
    let utc = time.to_utc();
    utc.map_or_else(|| time.to_string(), |utc| utc.format("%Y-%m-%d %H:%M:%SZ").to_string())
}
