//! `espctl wait`: waits until processors have reached a position, for scripts and deployments.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use clap::Args;

use super::operate::Target;
use crate::config::{Config, parse_duration};
use crate::espctl::output;
use crate::event::Position;
use crate::operations::databases::Databases;
use crate::operations::operator::{Operator, OperatorError, RunningDaemon};
use crate::process::exit_code::{Exit, ExitCode};
use crate::processing::history::find_divergence;
use crate::processing::tracker::{TrackerRow, Trackers};
use crate::store::{EventStore as _, PostgresEventStore};

#[derive(Args)]
#[command(
    after_help = "Exit code 0 once the position is reached, 1 if a name is unknown, 75 if the time limit is exceeded, 65 if the event\n\
    store is not the one that the processor has followed.\n\n\
    Examples, to read what was just written:\n  \
    espctl wait outstanding_todos --timeout 5s && psql -c 'table outstanding_todos'\n  \
    espctl wait --all"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// The position to wait for; without it, that of the last event now
    #[arg(long, value_name = "POSITION")]
    position: Option<Position>,
    /// How long to wait: 500ms, 30s, 5m
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
}

/// The time between two reads of the trackers.
const INTERVAL: Duration = Duration::from_millis(50);

pub(crate) async fn run(arguments: Arguments, config: &Config, databases: &Databases) -> anyhow::Result<()> {
    let operator = Operator { databases, declared: &config.processors, name: "" };
    let mut left = names(&arguments.target, &operator).await?;
    let store = PostgresEventStore::new(databases.events.clone(), databases.layout.clone());
    let wanted = match arguments.position {
        Some(position) => position,
        None => store.latest_id(None).await?,
    };
    let trackers = Trackers::new(databases.layout.schema());
    let deadline = Instant::now() + arguments.timeout;
    loop {
        let mut rows = trackers.list(&databases.projections, None).await?;
        rows.retain(|row| left.contains(&row.name));
        refuse_another_store(&rows, databases, &trackers).await?;
        left.retain(|name| !reached(name, &rows, wanted));
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let daemons = operator.daemons().await?;
            let complaint = |name: &String| {
                let why = describe(name, slowest(name, &rows), &daemons);
                format!("{name} has not reached {wanted} in time: {why}")
            };
            let message = left.iter().map(complaint).collect::<Vec<_>>().join("\n");
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

/// The processors to wait for. One may be declared and not have run yet, and is waited for as well; one that nobody knows is
/// probably mistyped.
async fn names(target: &Target, operator: &Operator<'_>) -> Result<Vec<String>, OperatorError> {
    let known: BTreeSet<String> = operator.known_names().await?;
    let Some(names) = target.names() else { return Ok(known.into_iter().collect()) };
    match names.iter().find(|name| !known.contains(*name)) {
        None => Ok(names.to_vec()),
        Some(unknown) => {
            Err(OperatorError::Unknown { name: unknown.clone(), known: known.into_iter().collect() })
        }
    }
}

/// The tracker of a processor; where it has several, the last of them, because it is as far as that.
fn slowest<'r>(name: &str, rows: &'r [TrackerRow]) -> Option<&'r TrackerRow> {
    rows.iter().filter(|row| row.name == name).min_by_key(|row| row.position)
}

/// Whether a processor is there; says so if it is.
fn reached(name: &str, rows: &[TrackerRow], wanted: Position) -> bool {
    let position = slowest(name, rows).map(|row| row.position).filter(|position| *position >= wanted);
    position.is_some_and(|position| output::print(&format!("{name} is at {position}")).is_ok())
}

fn describe(name: &str, row: Option<&TrackerRow>, daemons: &[RunningDaemon]) -> String {
    let unowned = why_unowned(name, daemons);
    let Some(row) = row else { return format!("it has never run on this database{unowned}") };
    let why = match (&row.last_error, &row.outage) {
        _ if row.paused_at.is_some() => ", paused".to_owned(),
        (Some(error), _) => format!(", {}", error.0),
        (None, Some(outage)) if row.owned => format!(", waiting: {}", outage.0.message),
        _ if !row.owned && unowned.is_empty() => ", no worker owns it".to_owned(),
        _ if !row.owned => unowned,
        _ => String::new(),
    };
    format!("it is at {}{why}", row.position)
}

/// What to do where daemons run and none has the processor in its configuration.
fn why_unowned(name: &str, daemons: &[RunningDaemon]) -> String {
    if daemons.is_empty() || daemons.iter().any(|daemon| daemon.processors.iter().any(|one| one == name)) {
        return String::new();
    }
    let labels: Vec<&str> = daemons.iter().map(|daemon| daemon.label.as_str()).collect();
    format!(", not in the running configuration of {}: reload it with `espctl reload`", labels.join(", "))
}
