//! `espctl schema events`: what the events of each type look like.

use clap::{Args, Subcommand};

use crate::espctl::output;
use crate::operations::databases::Databases;
use crate::operations::event_schema::{EventSchemas, infer};

#[derive(Subcommand)]
pub(crate) enum SchemaCommand {
    /// Infer JSON Schemas of the types of events from events that are stored
    Events(Arguments),
}

#[derive(Args)]
#[command(
    after_help = "Says what events look like as they are stored, not what they have to look like: nothing is checked when\n\
    events are appended. What is required was in every event that was looked at; `x-espd` says how many\n\
    these were, how many there are, and since when.\n\n\
    Examples:\n  \
    espctl schema events\n  \
    espctl schema events --type TodoAdded --json > todo_added.schema.json"
)]
pub(crate) struct Arguments {
    /// Only this type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// How many events of each type to look at, the newest ones
    #[arg(long, default_value_t = 1_000, value_name = "COUNT", value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
    sample: i64,
    /// Print JSON Schemas: of one type with --type, otherwise an object with all of them by type
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(command: SchemaCommand, databases: &Databases) -> anyhow::Result<()> {
    let SchemaCommand::Events(Arguments { event_type, sample, json }) = command;
    let layout = &databases.layout;
    let EventSchemas { mut by_type, is_partial } =
        infer(&databases.events, layout, event_type.as_deref(), sample).await?;
    if let (Some(name), true) = (&event_type, by_type.is_empty()) {
        anyhow::bail!("there is no event of type {name}");
    }
    if is_partial {
        output::print_note("the store is large: only its newest events were searched for types")?;
    }
    if json {
        let one = event_type.and_then(|name| by_type.remove(&name));
        let schemas = one
            .map_or_else(|| serde_json::to_string_pretty(&by_type), |one| serde_json::to_string_pretty(&one));
        return output::print_verbatim(&schemas?);
    }
    let texts: Vec<String> = by_type.iter().map(|(name, schema)| describe(name, schema)).collect();
    output::print(&if texts.is_empty() { "no events are stored".to_owned() } else { texts.join("\n") })
}

/// A type for people: its numbers, and a line for each key of the body. Keys with `?` are not in all of the events.
fn describe(name: &str, schema: &serde_json::Value) -> String {
    let about = &schema["x-espd"];
    let since = about["since"].as_str().unwrap_or("?");
    let mut text =
        format!("{name}  {} events since {since}, {} looked at", about["events"], about["sampled"]);
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (key, shape) in schema["properties"].as_object().into_iter().flatten() {
        let mark = if required.contains(&key.as_str().into()) { "" } else { "?" };
        let kind = match &shape["type"] {
            serde_json::Value::Array(kinds) => {
                kinds.iter().filter_map(serde_json::Value::as_str).collect::<Vec<_>>().join(" or ")
            }
            kind => kind.as_str().unwrap_or("?").to_owned(),
        };
        text += &format!("\n  {key}{mark}: {kind}");
    }
    text
}
