//! `espctl wait`: waits until a processor has reached a position, for scripts and deployments.

use std::time::{Duration, Instant};

use clap::Args;

use crate::config::parse_duration;
use crate::espctl::output;
use crate::event::Position;
use crate::operations::databases::Databases;
use crate::process::exit_code::{Exit, ExitCode};
use crate::processing::history::find_divergence;
use crate::processing::tracker::{TrackerRow, Trackers};
use crate::store::{EventStore as _, PostgresEventStore};

#[derive(Args)]
#[command(
    after_help = "Exit code 0 once the position is reached, 75 if the time limit is exceeded, 65 if the event store is not the one\n\
    that the processor has followed.\n\n\
    Example, to read what was just written:\n  espctl wait outstanding_todos --timeout 5s && psql -c 'table outstanding_todos'"
)]
pub(crate) struct Arguments {
    /// Name of the processor
    name: String,
    /// The position to wait for; without it, that of the last event now
    #[arg(long, value_name = "POSITION")]
    position: Option<Position>,
    /// How long to wait: 500ms, 30s, 5m
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
}

/// The time between two reads of the tracker.
const INTERVAL: Duration = Duration::from_millis(50);

pub(crate) async fn run(arguments: Arguments, databases: &Databases) -> anyhow::Result<()> {
    let store = PostgresEventStore::new(databases.events.clone(), databases.layout.clone());
    let wanted = match arguments.position {
        Some(position) => position,
        None => store.latest_id(None).await?,
    };
    let trackers = Trackers::new(databases.layout.schema());
    let deadline = Instant::now() + arguments.timeout;
    loop {
        // A processor with several trackers is as far as the last of them.
        let rows = trackers.list(&databases.projections, Some(&arguments.name)).await?;
        refuse_another_store(&rows, databases, &trackers).await?;
        let row = rows.into_iter().min_by_key(|row| row.position);
        let position = row.as_ref().map_or(Position::START, |row| row.position);
        if row.is_some() && position >= wanted {
            return output::print(&format!("{} is at {position}", arguments.name));
        }
        if Instant::now() >= deadline {
            let message =
                format!("{} has not reached {wanted} in time: {}", arguments.name, describe(row.as_ref()));
            return Err(Exit { code: ExitCode::Timeout, message }.into());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Refuses a position that was reached in another store. A daemon may not have noticed yet.
async fn refuse_another_store(
    rows: &[TrackerRow],
    databases: &Databases,
    trackers: &Trackers,
) -> anyhow::Result<()> {
    let (mut events, mut projections) =
        (databases.events.acquire().await?, databases.projections.acquire().await?);
    for row in rows {
        let found = find_divergence(trackers, row, &mut events, &mut projections, &databases.layout).await?;
        if let Some(found) = found {
            let message = format!("{}\n{}", found.describe(&row.name), found.remedy(&row.name));
            return Err(Exit { code: ExitCode::Diverged, message }.into());
        }
    }
    Ok(())
}

fn describe(row: Option<&TrackerRow>) -> String {
    let Some(row) = row else { return "it has never run on this database".to_owned() };
    let why = match &row.last_error {
        _ if row.paused_at.is_some() => ", paused".to_owned(),
        Some(error) => format!(", {}", error.0),
        None if !row.owned => ", no worker owns it".to_owned(),
        None => String::new(),
    };
    format!("it is at {}{why}", row.position)
}
