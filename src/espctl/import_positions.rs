//! `espctl import-positions`: processors continue where those of event_sourcery have stopped.

use anyhow::bail;
use clap::Args;
use serde_json::json;

use crate::config::Config;
use crate::espctl::output;
use crate::operations::databases::Databases;
use crate::operations::import_positions::{ImportedPosition, Plan, PositionImport};
use crate::operations::status::format::{table, thousands};

#[derive(Args)]
#[command(
    after_help = "With layout = \"event_sourcery\": each processor continues at the position that projector_tracker has for the\n\
    framework's processor of the same name. The framework's processor has to be stopped. The tables that the projector\n\
    declares have to exist, and become its own: a later reset drops and recreates them. Their columns are not compared.\n\n\
    Examples:\n  \
    espctl import-positions                                            all whose names are the same\n  \
    espctl import-positions outstanding_todos                          only this one\n  \
    espctl import-positions 'outstanding_todos=Todo::OutstandingTodos'  whose predecessor has another name"
)]
pub(crate) struct Arguments {
    /// Name of a processor, followed by = and the framework's name if it differs
    #[arg(value_name = "NAME[=THEIRS]")]
    processors: Vec<String>,
    /// Move also processors that have moved already
    #[arg(long)]
    overwrite: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
    /// Print an array of objects instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments, config: &Config, databases: &Databases) -> anyhow::Result<()> {
    let Some(positions) = &databases.layout.positions else {
        bail!("positions can be imported only with layout = \"event_sourcery\" under [event_store]");
    };
    let named = arguments.processors.iter().map(|name| match name.split_once('=') {
        Some((processor, predecessor)) => (processor.to_owned(), predecessor.to_owned()),
        None => (name.clone(), name.clone()),
    });
    let import = PositionImport {
        databases,
        declared: &config.processors,
        positions,
        wanted: named.collect(),
        overwrite: arguments.overwrite,
    };
    let plan = import.plan().await?;
    if arguments.json {
        output::print_verbatim(&as_json(&plan)?)?;
    } else {
        output::print(&render(&plan))?;
    }
    if plan.imports.is_empty() {
        bail!("nothing was done: no declared processor has a predecessor of its name");
    }
    if let Some(position) = plan.imports.iter().find(|position| position.obstacle.is_some()) {
        let obstacle = position.obstacle.as_deref().unwrap_or_default();
        bail!("nothing was done: {}: {obstacle}", position.processor);
    }
    let question = "This moves the positions and makes the tables the processors' own. Continue?";
    if !arguments.yes && !output::confirm(question)? {
        return output::print_note("nothing was done");
    }
    import.carry_out(&plan, &output::operator()).await?;
    output::print_note(&format!("{} positions imported; `espctl status` shows them", plan.imports.len()))
}

fn render(plan: &Plan) -> String {
    let header = ["NAME", "PREDECESSOR", "IS AT", "MOVES TO", "TABLES", "OBSTACLE"];
    let dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let row = |position: &ImportedPosition| {
        vec![
            position.processor.clone(),
            position.predecessor.clone(),
            thousands(position.from),
            thousands(position.to),
            dash(position.tables.join(", ")),
            dash(position.obstacle.clone().unwrap_or_default()),
        ]
    };
    let mut text = table(&header, plan.imports.iter().map(row).collect(), &[2, 3]);
    if !plan.left_out.is_empty() {
        text.push_str(&format!(
            "\n\nLeft out, because no processor has the name: {}",
            plan.left_out.join(", ")
        ));
    }
    text
}

fn as_json(plan: &Plan) -> anyhow::Result<String> {
    let object = |position: &ImportedPosition| {
        let ImportedPosition { processor, predecessor, from, to, tables, obstacle } = position;
        json!({
            "name": processor, "predecessor": predecessor, "from_position": from, "to_position": to,
            "tables": tables, "obstacle": obstacle,
        })
    };
    Ok(serde_json::to_string_pretty(&plan.imports.iter().map(object).collect::<Vec<_>>())?)
}
