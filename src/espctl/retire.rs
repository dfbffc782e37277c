//! `espctl drop` and `rename`: a processor that is no longer wanted, or wanted under another name.

use clap::Args;

use crate::config::Config;
use crate::espctl::output;
use crate::operations::databases::Databases;
use crate::operations::operator::{Operator, Remains, Retirement};

#[derive(Args)]
#[command(
    after_help = "For a processor that no daemon runs any more: its tables, its position, its dead letters and what it was\n\
    to emit later are removed for good. Events that it has emitted stay.\n\n\
    Example:\n  espctl drop outstanding_todos"
)]
pub(crate) struct DropArguments {
    /// Name of the processor
    name: String,
    /// Also drop what others have made on its tables, such as views and foreign keys
    #[arg(long)]
    cascade: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

#[derive(Args)]
#[command(
    after_help = "For a projector that no daemon runs: take it out of the configuration, rename it, and declare it under its new\n\
    name. It keeps its position, its tables and its dead letters. A reactor cannot be renamed, because the identity of\n\
    what it emits follows from its name: declare the new one with its position as `start`, and drop the old one.\n\n\
    Example:\n  espctl rename outstanding_todos open_todos"
)]
pub(crate) struct RenameArguments {
    /// Name of the projector
    name: String,
    /// Its new name
    new: String,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn drop_processor(
    arguments: DropArguments,
    config: &Config,
    databases: &Databases,
) -> anyhow::Result<()> {
    let DropArguments { name, cascade, yes } = arguments;
    let me = output::operator();
    let operator = Operator { databases, declared: &config.processors, name: &me, native: None };
    if !yes {
        let remains = operator.drop_processor(&name, Retirement::Preview).await?;
        if !output::confirm(&describe(&name, &remains))? {
            return output::print("nothing was done");
        }
    }
    let retirement = if cascade { Retirement::Cascade } else { Retirement::Careful };
    let remains = operator.drop_processor(&name, retirement).await?;
    output::print(&format!("{name} was dropped, with {}", parts(&remains)))
}

pub(crate) async fn rename(
    arguments: RenameArguments,
    config: &Config,
    databases: &Databases,
) -> anyhow::Result<()> {
    let RenameArguments { name, new, yes } = arguments;
    let me = output::operator();
    let operator = Operator { databases, declared: &config.processors, name: &me, native: None };
    if !yes {
        // Fails before the confirmation if it cannot be renamed.
        operator.rename(&name, &new, Retirement::Preview).await?;
        let question =
            format!("This renames {name} to {new}; a declaration of {name} would start anew. Continue?");
        if !output::confirm(&question)? {
            return output::print("nothing was done");
        }
    }
    let row = operator.rename(&name, &new, Retirement::Careful).await?;
    output::print(&format!("{name} is {new} now, at position {}", row.position))
}

fn describe(name: &str, remains: &Remains) -> String {
    let others = match remains.others.as_slice() {
        [] => String::new(),
        others => format!(" Others have made {}, which goes only with --cascade.", others.join("; ")),
    };
    format!("This removes {name} for good, with {}.{others} Continue?", parts(remains))
}

/// What goes with a processor, in words.
fn parts(remains: &Remains) -> String {
    let Remains { position, tables, dead_letters, pending_emissions, .. } = remains;
    let tables = if tables.is_empty() { "no tables".to_owned() } else { tables.join(", ") };
    let count = |number: i64, one: &str| format!("{number} {one}{}", if number == 1 { "" } else { "s" });
    format!(
        "its position {position}, {tables}, {} and {}",
        count(*dead_letters, "dead letter"),
        count(*pending_emissions, "pending emission")
    )
}
