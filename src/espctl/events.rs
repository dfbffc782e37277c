//! `espctl events`: prints the events of the store, ordered by id.

use std::time::Duration;

use chrono::Datelike as _;
use clap::Args;
use futures_util::TryStreamExt as _;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::espctl::output;
use crate::event::{Event, Position, StoredTime, Version};
use crate::operations::databases::Databases;
use crate::store::horizon::{ObserveError, Observer};
use crate::store::{EventStore as _, PostgresEventStore};
use crate::visible::in_one_line;

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    espctl events --after 1200 --type TodoAdded --limit 20\n  \
    espctl events --aggregate 149d5c70-a373-4857-91e2-1d5ea90c27e4 --json\n  \
    espctl events --follow --json | jq .type")]
pub(crate) struct Arguments {
    /// Only events after this position
    #[arg(long, default_value_t = Position::START, value_name = "POSITION")]
    after: Position,
    /// Only events of this type (repeatable)
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Only the events of this aggregate, ordered by version
    #[arg(long, value_name = "ID", conflicts_with_all = ["follow", "types", "after"])]
    aggregate: Option<Uuid>,
    /// Print at most this many events
    #[arg(long, short = 'n', value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Continue as events arrive, in order and without gaps, until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

/// Events read at a time.
const PAGE_EVENTS: i64 = 500;

/// The time between two reads while waiting for new events.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

pub(crate) async fn run(arguments: Arguments, databases: &Databases) -> anyhow::Result<()> {
    let store = PostgresEventStore::new(databases.events.clone(), databases.layout.clone());
    let mut printer = Printer { json: arguments.json, left: arguments.limit.unwrap_or(u64::MAX) };
    if let Some(aggregate_id) = arguments.aggregate {
        let mut events = store.read_aggregate(aggregate_id.into(), Version::FIRST, None);
        while let Some(event) = events.try_next().await? {
            if !printer.print(&event)? {
                break;
            }
        }
        return Ok(());
    }
    follow(&arguments, databases, &store, &mut printer).await
}

/// Prints page by page. With `--follow` it stops at the settled horizon, so that no event can appear before one that is
/// printed already.
async fn follow(
    arguments: &Arguments,
    databases: &Databases,
    store: &PostgresEventStore,
    printer: &mut Printer,
) -> anyhow::Result<()> {
    let mut watch = if arguments.follow { Some(Follower::new(databases).await?) } else { None };
    let types = (!arguments.types.is_empty()).then_some(arguments.types.as_slice());
    let mut position = arguments.after;
    loop {
        let upto = match &mut watch {
            Some(follower) => Some(follower.settled().await?),
            None => None,
        };
        let page = store.read_after(position, upto, types, PAGE_EVENTS).await?;
        for event in &page {
            position = event.id;
            if !printer.print(event)? {
                return Ok(());
            }
        }
        if (page.len() as i64) < PAGE_EVENTS {
            if !arguments.follow {
                return Ok(());
            }
            position = upto.unwrap_or(position).max(position);
            tokio::time::sleep(FOLLOW_INTERVAL).await;
        }
    }
}

/// Observes the settled horizon, again and again on one connection: what one observation tells counts for the next.
struct Follower<'d> {
    databases: &'d Databases,
    connection: PgConnection,
    observer: Observer,
}

impl<'d> Follower<'d> {
    async fn new(databases: &'d Databases) -> Result<Self, sqlx::Error> {
        let connection = databases.events.acquire().await?.detach();
        Ok(Self { databases, connection, observer: Observer::new(&databases.layout) })
    }

    async fn settled(&mut self) -> Result<Position, ObserveError> {
        if self.observer.observe(&mut self.connection).await.is_err() {
            *self = Self::new(self.databases).await?;
            self.observer.observe(&mut self.connection).await?;
        }
        Ok(self.observer.horizon().settled)
    }
}

/// The time to the millisecond, or as the database writes it where the program's own type does not have it.
fn show_time(time: StoredTime) -> String {
    match time.to_utc() {
        Some(utc) if (1..=9_999).contains(&utc.year()) => utc.format("%Y-%m-%d %H:%M:%S%.3f").to_string(),
        _ => time.to_string(),
    }
}

struct Printer {
    json: bool,
    left: u64,
}

impl Printer {
    /// Prints one event. Returns whether the limit allows more.
    fn print(&mut self, event: &Event) -> anyhow::Result<bool> {
        if self.json {
            output::print_verbatim(&serde_json::to_string(event)?)?;
        } else {
            let time = show_time(event.created_at);
            let Event { id, event_type, aggregate_id, version, body, .. } = event;
            output::print(&in_one_line(&format!(
                "{id:>10}  {time}  {event_type}  {aggregate_id} {version}  {}",
                body.get()
            )))?;
        }
        self.left -= 1;
        Ok(self.left > 0)
    }
}
