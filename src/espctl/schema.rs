//! `espctl schema events`: what the events of each type look like. `espctl schema apply`: what they have to look like.

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::config::Config;
use crate::espctl::output;
use crate::operations::databases::Databases;
use crate::operations::declared_events::{self, Difference};
use crate::operations::event_schema::{EventSchemas, infer};

#[derive(Subcommand)]
pub(crate) enum SchemaCommand {
    /// Show the JSON Schemas of the types of events: inferred from what is stored, and declared
    Events(Arguments),
    /// Tell the event store what [[event]] declares: it checks what is appended by that
    Apply(ApplyArguments),
}

#[derive(Args)]
#[command(
    after_help = "An inferred schema says what events look like as they are stored: what is required was in every event that was\n\
    looked at; `x-espd` says how many these were, how many there are, and since when. Where a type is declared, by\n\
    [[event]] of the configuration or in the event store, it also says which events depart from that, the newest first.\n\n\
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

#[derive(Args)]
#[command(
    after_help = "`espctl migrate` does the same. From then on an append is refused that departs from the schema of a type with\n\
    check = \"append\", whoever appends. What is stored already is not looked at: `espctl schema events` does that.\n\n\
    Types that another configuration has declared stay as they are, unless --forget-others is given.\n\n\
    Example:\n  espctl schema apply --dry-run && espctl schema apply"
)]
pub(crate) struct ApplyArguments {
    /// Have the event store forget the types that this configuration does not declare
    #[arg(long)]
    forget_others: bool,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(
    command: SchemaCommand,
    config: &Config,
    databases: &Databases,
) -> anyhow::Result<()> {
    match command {
        SchemaCommand::Events(arguments) => show(arguments, config, databases).await,
        SchemaCommand::Apply(arguments) => apply(arguments, config, databases).await,
    }
}

async fn apply(arguments: ApplyArguments, config: &Config, databases: &Databases) -> anyhow::Result<()> {
    let ApplyArguments { forget_others, dry_run } = arguments;
    if !declared_events::are_told(&databases.layout) {
        anyhow::bail!(
            "espd only reads a store of this layout, and tells it nothing: `espctl schema events` shows what departs from what is declared"
        );
    }
    declared_events::require_right(databases, &config.events).await?;
    let differences = if dry_run {
        declared_events::compare(&databases.events, &databases.layout, &config.events).await?
    } else {
        declared_events::apply(databases, &config.events, forget_others).await?
    };
    for (name, difference) in &differences {
        let what = match difference {
            Difference::NotDeclared if forget_others => "forgotten",
            Difference::NotDeclared => "not declared here: left as it is, --forget-others removes it",
            difference => difference.as_str(),
        };
        output::print(&format!("{name}: {what}"))?;
    }
    if differences.is_empty() {
        output::print(&format!("up to date: {} declared", config.events.len()))?;
    }
    Ok(())
}

async fn show(arguments: Arguments, config: &Config, databases: &Databases) -> anyhow::Result<()> {
    let Arguments { event_type, sample, json } = arguments;
    let layout = &databases.layout;
    let EventSchemas { mut by_type, is_partial } =
        infer(&databases.events, layout, event_type.as_deref(), sample).await?;
    let layout = layout.clone().with_upcasts(&config.upcasts);
    let wanted = event_type.as_deref();
    declared_events::add_declared(&mut by_type, &databases.events, &layout, &config.events, wanted, sample)
        .await?;
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

/// A type for people: its numbers, what is declared, and a line for each key of the body. Keys with `?` are not in all of the
/// events.
fn describe(name: &str, schema: &Value) -> String {
    let about = &schema["x-espd"];
    let mut text = match about["since"].as_str() {
        Some(since) => {
            format!("{name}  {} events since {since}, {} looked at", about["events"], about["sampled"])
        }
        None => format!("{name}  no events are stored"),
    };
    text += &describe_declared(&about["declared"], &about["sampled"]).unwrap_or_default();
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (key, shape) in schema["properties"].as_object().into_iter().flatten() {
        let mark = if required.contains(&key.as_str().into()) { "" } else { "?" };
        let kind = match &shape["type"] {
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
            kind => kind.as_str().unwrap_or("?").to_owned(),
        };
        text += &format!("\n  {key}{mark}: {kind}");
    }
    text
}

/// The line about what is declared; `None`: nothing is. `sampled` of the events are stored under the type itself; others are read as it.
fn describe_declared(declared: &Value, sampled: &Value) -> Option<String> {
    let checked = match declared["check"].as_str()? {
        "append" => "declared, checked when appended",
        _ => "declared",
    };
    let newest = &declared["newest_departing"];
    let departure = &newest["departure"];
    let path = departure["path"].as_str().filter(|path| !path.is_empty()).unwrap_or("the body");
    let looked_at = declared["looked_at"].as_i64().unwrap_or(0);
    let these = match looked_at == sampled.as_i64().unwrap_or(0) {
        true => "these".to_owned(),
        false => format!("the {looked_at} that are read as this type"),
    };
    Some(match declared["departing"].as_i64() {
        None => format!("\n  ({checked}; not compared: espd only reads this store)"),
        Some(0) => format!("\n  ({checked}: none of {these} departs)"),
        Some(count) => format!(
            "\n  ({checked}: {count} of {these} depart, the newest is event {}: {path}: expected {}, found {})",
            newest["event"],
            departure["expected"],
            departure["found"].as_str().unwrap_or("?")
        ),
    })
}
