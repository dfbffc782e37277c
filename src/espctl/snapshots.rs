//! `espctl snapshots`: lists and removes the snapshots that applications keep of their aggregates.

use clap::{ArgGroup, Args, Subcommand};
use uuid::Uuid;

use crate::espctl::output;
use crate::event::StoredTime;
use crate::operations::databases::Databases;
use crate::operations::snapshots::{self, SnapshotGroup, SnapshotSelection};
use crate::operations::status::format::{table_within, thousands};

#[derive(Subcommand)]
pub(crate) enum SnapshotsCommand {
    /// List the snapshots of aggregates, by name and format
    #[command(
        after_help = "Snapshots stay until they are dropped, also those that no program uses any more: of an older format, or of other event types.\n\
        OUTDATED: the event that a snapshot was folded up to is gone; it is not used.\n\n\
        Example:\n  espctl snapshots list --json"
    )]
    List {
        /// Print an array of objects instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Remove snapshots; applications write new ones when they load the aggregates next
    Drop(DropArguments),
}

#[derive(Args)]
#[command(
    group(ArgGroup::new("selected").required(true).multiple(true).args(["name", "format", "aggregate", "all"])),
    after_help = "Nothing is lost but time: the next load reads the whole stream, and writes a new snapshot if the stream is long.\n\n\
    Examples:\n  \
    espctl snapshots drop account --format 1      of a format that no program uses any more\n  \
    espctl snapshots drop account                 all of a name, for example after an error in the fold\n  \
    espctl snapshots drop --aggregate 149d5c70-a373-4857-91e2-1d5ea90c27e4"
)]
pub(crate) struct DropArguments {
    /// What the state is called
    name: Option<String>,
    /// Only those of this format
    #[arg(long, value_name = "NUMBER")]
    format: Option<i64>,
    /// Only those of this aggregate
    #[arg(long, value_name = "ID")]
    aggregate: Option<Uuid>,
    /// All snapshots
    #[arg(long, conflicts_with_all = ["name", "format", "aggregate"])]
    all: bool,
}

pub(crate) async fn run(command: SnapshotsCommand, databases: &Databases) -> anyhow::Result<()> {
    match command {
        SnapshotsCommand::List { json } => list(json, databases).await,
        SnapshotsCommand::Drop(arguments) => drop_snapshots(arguments, databases).await,
    }
}

async fn list(json: bool, databases: &Databases) -> anyhow::Result<()> {
    let groups = snapshots::list(&databases.events, &databases.layout).await?;
    if json {
        return output::print_verbatim(&serde_json::to_string_pretty(&groups)?);
    }
    if groups.is_empty() {
        return output::print("no snapshots");
    }
    let header = ["NAME", "FORMAT", "EVENT TYPES", "SNAPSHOTS", "OUTDATED", "BYTES", "OLDEST", "NEWEST"];
    let rows = groups.iter().map(row).collect();
    output::print(&table_within(output::width(), &header, rows, &[1, 3, 4, 5], &[2, 6]))
}

fn row(group: &SnapshotGroup) -> Vec<String> {
    vec![
        group.name.clone(),
        group.format.to_string(),
        format!("{:016x}", group.event_types),
        thousands(group.snapshots),
        thousands(group.outdated),
        thousands(group.bytes),
        show_time(group.oldest),
        show_time(group.newest),
    ]
}

/// The time to the second; anything stranger as the database writes it.
fn show_time(time: StoredTime) -> String {
    let utc = time.to_utc();
    utc.map_or_else(|| time.to_string(), |utc| utc.format("%Y-%m-%d %H:%M:%SZ").to_string())
}

async fn drop_snapshots(arguments: DropArguments, databases: &Databases) -> anyhow::Result<()> {
    let DropArguments { name, format, aggregate, all: _ } = arguments;
    let selection = SnapshotSelection { name, format, aggregate_id: aggregate };
    let removed = snapshots::remove(&databases.events, &databases.layout, &selection).await?;
    anyhow::ensure!(removed > 0, "there is no such snapshot: `espctl snapshots list` shows which there are");
    let removed = i64::try_from(removed).unwrap_or(i64::MAX);
    output::print(&format!("dropped {} snapshot{}", thousands(removed), if removed == 1 { "" } else { "s" }))
}
