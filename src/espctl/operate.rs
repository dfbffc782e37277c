//! `espctl pause`, `resume` and `reset`: what operators do to a processor. Each is recorded.

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};
use clap::Args;
use sqlx::Connection as _;

use crate::config::Config;
use crate::database::Databases;
use crate::espctl::output::{self, thousands};
use crate::event::Position;
use crate::event_store::{EventStore as _, PostgresEventStore};
use crate::processor::ProcessorError;
use crate::projector::{Events, SqlProjector};
use crate::tracker::{TrackerRow, Trackers};

#[derive(Args)]
pub(crate) struct Target {
    /// Name of the processor
    name: String,
}

#[derive(Args)]
#[command(
    after_help = "Without --to and --at the projector's tables are dropped and made anew, and it starts over from the\n\
    first event. With them only the position moves and the tables stay as they are: events after the new position are\n\
    handled (again), events before it are not."
)]
pub(crate) struct ResetArguments {
    /// Name of the processor
    name: String,
    /// Move to this position instead, and keep the tables
    #[arg(long, value_name = "POSITION", conflicts_with = "at", value_parser = clap::value_parser!(i64).range(0..))]
    to: Option<Position>,
    /// Move to the last position at or before this time (RFC 3339) instead, and keep the tables
    #[arg(long, value_name = "TIME")]
    at: Option<DateTime<Utc>>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn pause(target: Target, databases: &Databases) -> anyhow::Result<()> {
    let row = find(&target.name, databases).await?;
    let mut connection = databases.projections.acquire().await?;
    let changed = Trackers::new(databases.layout.schema())
        .pause(&mut connection, &row.name, &output::operator())
        .await?;
    databases.ring().await;
    let said = if changed { "paused" } else { "was paused already" };
    output::print(&format!("{} {said} at position {}", row.name, row.position))
}

pub(crate) async fn resume(target: Target, databases: &Databases) -> anyhow::Result<()> {
    let row = find(&target.name, databases).await?;
    let mut connection = databases.projections.acquire().await?;
    let changed = Trackers::new(databases.layout.schema())
        .resume(&mut connection, &row.name, &output::operator())
        .await?;
    databases.ring().await;
    let said = if changed { "goes on from" } else { "was neither paused nor failed, at" };
    output::print(&format!("{} {said} position {}", row.name, row.position))
}

pub(crate) async fn reset(
    arguments: ResetArguments,
    config: &Config,
    databases: &Databases,
) -> anyhow::Result<()> {
    let row = find(&arguments.name, databases).await?;
    let to = destination(&arguments, databases).await?;
    if !arguments.yes && !output::confirm(&describe(&row, to, databases).await?)? {
        return output::print("nothing was done");
    }
    match to {
        Some(to) => move_position(&row, to, databases).await?,
        None => start_over(&row, config, databases).await?,
    }
    databases.ring().await;
    output::print(&format!("{} was at {}, is at {}", row.name, row.position, to.unwrap_or(0)))
}

async fn find(name: &str, databases: &Databases) -> anyhow::Result<TrackerRow> {
    let trackers = Trackers::new(databases.layout.schema());
    let mut rows = trackers.list(&databases.projections, None).await?;
    let known: Vec<String> = rows.iter().map(|row| row.name.clone()).collect();
    rows.retain(|row| row.name == name);
    rows.pop().with_context(|| match known.as_slice() {
        [] => format!("no processor {name}: none has run on this database yet"),
        known => format!("no processor {name}; there are {}", known.join(", ")),
    })
}

/// Where to move the position to; `None`: start over with new tables.
async fn destination(arguments: &ResetArguments, databases: &Databases) -> anyhow::Result<Option<Position>> {
    let (to, at) = (arguments.to, arguments.at);
    if to.is_none() && at.is_none() {
        return Ok(None);
    }
    let settled = super::status::horizon(databases).await?.settled;
    if let Some(time) = at {
        let store = PostgresEventStore::new(databases.events.clone(), databases.layout.clone());
        return Ok(Some(store.position_at(time).await?.min(settled)));
    }
    match to {
        Some(to) if to > settled => {
            bail!(
                "the last settled position is {settled}: events up to {to} would be skipped before they are there"
            )
        }
        to => Ok(to),
    }
}

async fn describe(row: &TrackerRow, to: Option<Position>, databases: &Databases) -> anyhow::Result<String> {
    let TrackerRow { name, position, .. } = row;
    let Some(to) = to else {
        let tables = owned_tables(name, databases).await?;
        let tables = if tables.is_empty() { "no tables".to_owned() } else { tables.join(", ") };
        return Ok(format!(
            "This drops and recreates {tables} and lets {name} handle {} ids again from the start. Go on?",
            thousands(*position)
        ));
    };
    Ok(if to < *position {
        format!(
            "This lets {name} handle {} ids again and keeps its tables as they are. Go on?",
            thousands(position - to)
        )
    } else {
        format!("This lets {name} skip {} ids for good. Go on?", thousands(to - position))
    })
}

async fn owned_tables(name: &str, databases: &Databases) -> anyhow::Result<Vec<String>> {
    let statement = format!(
        "-- list_owned_tables
         select table_schema || '.' || table_name from {}.projection_tables where processor = $1 order by 1",
        databases.layout.quoted_schema()
    );
    Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(statement))
        .bind(name)
        .fetch_all(&databases.projections)
        .await?)
}

async fn move_position(row: &TrackerRow, to: Position, databases: &Databases) -> anyhow::Result<()> {
    let trackers = Trackers::new(databases.layout.schema());
    let mut connection = databases.projections.acquire().await?;
    let mut transaction = connection.begin().await?;
    trackers.reset(&mut transaction, &row.name, &output::operator(), to, false).await?;
    Ok(transaction.commit().await?)
}

async fn start_over(row: &TrackerRow, config: &Config, databases: &Databases) -> anyhow::Result<()> {
    let declaration =
        config.projectors.iter().find(|projector| projector.name == row.name).with_context(|| {
            format!("{} is not declared: name the configuration that declares it with --config", row.name)
        })?;
    let events = Events::SameDatabase(databases.layout.clone());
    let projector = SqlProjector::new(
        declaration.clone(),
        databases.layout.schema(),
        &databases.projections_schema,
        events,
    )?;
    let mut connection = databases.projections.acquire().await?;
    match projector.reset(&mut connection, &output::operator()).await {
        Ok(_) => Ok(()),
        Err(error @ ProcessorError::Blocked(_)) => bail!("nothing was done: {error}"),
        Err(error) => Err(error.into()),
    }
}
