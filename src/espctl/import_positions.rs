//! `espctl import-positions`: processors of event_sourcery move to espd where they are.

use anyhow::bail;
use clap::Args;
use serde_json::json;

use crate::config::Config;
use crate::espctl::output;
use crate::operations::databases::Databases;
use crate::operations::import_positions::{Plan, Takeover, Takeovers};
use crate::operations::status::text::{table, thousands};

#[derive(Args)]
#[command(
    after_help = "With layout = \"event_sourcery\": each processor goes on where the framework's processor of the same name\n\
    stands in projector_tracker. The framework's processor has to be stopped. The tables that the projector declares\n\
    have to exist, and become its own: a later reset drops and makes them anew. Their columns are not compared.\n\n\
    Examples:\n  \
    espctl import-positions                                            all whose names are the same\n  \
    espctl import-positions outstanding_todos                          only this one\n  \
    espctl import-positions 'outstanding_todos=Todo::OutstandingTodos'  whose predecessor has another name"
)]
pub(crate) struct Arguments {
    /// Name of a processor, followed by = and the framework's name if that is another one
    #[arg(value_name = "NAME[=THEIRS]")]
    processors: Vec<String>,
    /// Move also those that have moved already
    #[arg(long)]
    overwrite: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Print an array of objects instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments, config: &Config, databases: &Databases) -> anyhow::Result<()> {
    let Some(positions) = &databases.layout.positions else {
        bail!("there are positions to take over only with layout = \"event_sourcery\" under [event_store]");
    };
    let named = arguments.processors.iter().map(|name| match name.split_once('=') {
        Some((processor, predecessor)) => (processor.to_owned(), predecessor.to_owned()),
        None => (name.clone(), name.clone()),
    });
    let takeovers = Takeovers {
        databases,
        declared: &config.processors,
        positions,
        wanted: named.collect(),
        overwrite: arguments.overwrite,
    };
    let plan = takeovers.plan().await?;
    output::print(&if arguments.json { as_json(&plan)? } else { render(&plan) })?;
    if plan.takeovers.is_empty() {
        bail!("nothing was done: no declared processor has a predecessor of its name");
    }
    if let Some(takeover) = plan.takeovers.iter().find(|takeover| takeover.obstacle.is_some()) {
        let obstacle = takeover.obstacle.as_deref().unwrap_or_default();
        bail!("nothing was done: {}: {obstacle}", takeover.processor);
    }
    let question = "This moves the positions and makes the tables the processors' own. Go on?";
    if !arguments.yes && !output::confirm(question)? {
        return output::print_note("nothing was done");
    }
    takeovers.carry_out(&plan, &output::operator()).await?;
    output::print_note(&format!("{} positions taken over; `espctl status` shows them", plan.takeovers.len()))
}

fn render(plan: &Plan) -> String {
    let header = ["NAME", "PREDECESSOR", "IS AT", "MOVES TO", "TABLES", "OBSTACLE"];
    let dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let row = |takeover: &Takeover| {
        vec![
            takeover.processor.clone(),
            takeover.predecessor.clone(),
            thousands(takeover.from),
            thousands(takeover.to),
            dash(takeover.tables.join(", ")),
            dash(takeover.obstacle.clone().unwrap_or_default()),
        ]
    };
    let mut text = table(&header, plan.takeovers.iter().map(row).collect(), &[2, 3]);
    if !plan.left_out.is_empty() {
        text.push_str(&format!("\n\nLeft out, as no processor has the name: {}", plan.left_out.join(", ")));
    }
    text
}

fn as_json(plan: &Plan) -> anyhow::Result<String> {
    let object = |takeover: &Takeover| {
        let Takeover { processor, predecessor, from, to, tables, obstacle } = takeover;
        json!({
            "name": processor, "predecessor": predecessor, "from_position": from, "to_position": to,
            "tables": tables, "obstacle": obstacle,
        })
    };
    Ok(serde_json::to_string_pretty(&plan.takeovers.iter().map(object).collect::<Vec<_>>())?)
}
