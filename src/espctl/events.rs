//! `espctl events`: prints the events of the store that are asked for.

use std::time::Duration;

use anyhow::bail;
use chrono::{DateTime, Datelike as _, Utc};
use clap::Args;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::config::Config;
use crate::espctl::moment::parse_moment;
use crate::espctl::output;
use crate::event::{Event, Position, StoredTime, Tag, Version};
use crate::operations::databases::Databases;
use crate::postgres::sqlstate::may_succeed_later;
use crate::store::horizon::{ObserveError, Observer};
use crate::store::upcast::{Upcast, stored_types};
use crate::store::{Direction, PostgresEventStore, ReadError, Selection, TagQuery};
use crate::visible::in_one_line;

#[derive(Args)]
#[command(
    after_help = "Times are those of `created_at`, which the appender may have chosen; no index serves them. With --aggregate, --until \
    reads\nthe aggregate as it was: all events up to the last one of that time.\n\nExamples:\n  \
    espctl events --after 1200 --type TodoAdded --limit 20\n  \
    espctl events --last 20 --follow\n  \
    espctl events --aggregate 149d5c70-a373-4857-91e2-1d5ea90c27e4 --to-version 7 --json\n  \
    espctl events --aggregate 149d5c70-a373-4857-91e2-1d5ea90c27e4 --until 2026-01-31T18:00:00Z\n  \
    espctl events --correlation 0b0f5a5e-9a1c-4c3e-8a54-2f1f6b3f0f4d\n  \
    espctl events --tag course:1 --tag student:2\n  \
    espctl events --since 2026-01-31T00:00:00Z --reverse --limit 50\n  \
    espctl events --since 1h\n  \
    espctl events --follow --json | jq .type"
)]
pub(crate) struct Arguments {
    /// Only events after this position
    #[arg(long, default_value_t = Position::START, value_name = "POSITION")]
    after: Position,
    /// Only events of this type, also under the names that an `[[upcast]]` reads as it (repeatable)
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Only the events of this aggregate, ordered by version
    #[arg(long, value_name = "ID", conflicts_with = "follow")]
    aggregate: Option<Uuid>,
    /// Only from this version of the aggregate on
    #[arg(long, value_name = "VERSION", requires = "aggregate")]
    from_version: Option<Version>,
    /// Only up to this version of the aggregate
    #[arg(long, value_name = "VERSION", requires = "aggregate")]
    to_version: Option<Version>,
    /// Only events with this tag (repeatable: with all of them)
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Print no events, but the condition that no more come with these tags and types, for `espctl append --if`. Take it first, and
    /// read the events then
    #[arg(long, requires = "tags")]
    condition: bool,
    /// Only events of this correlation, with the event that it began with
    #[arg(long, value_name = "ID")]
    correlation: Option<Uuid>,
    /// Only events that happened at or after this time: 2026-01-31T18:00:00Z, or so long ago: 1h, 7d
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    since: Option<DateTime<Utc>>,
    /// Only events that happened at or before this time: 2026-01-31T18:00:00Z, or so long ago: 1h, 7d
    #[arg(long, value_name = "TIME", conflicts_with = "follow", value_parser = parse_moment)]
    until: Option<DateTime<Utc>>,
    /// Print at most this many events
    #[arg(long, short = 'n', value_name = "COUNT", value_parser = clap::value_parser!(i64).range(1..))]
    limit: Option<i64>,
    /// Only the last ones, this many
    #[arg(long, value_name = "COUNT", conflicts_with = "limit", value_parser = clap::value_parser!(i64).range(1..))]
    last: Option<i64>,
    /// Print the newest first
    #[arg(long, short, conflicts_with = "follow")]
    reverse: bool,
    /// Continue as events arrive, in order and without gaps, until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// What is asked for. A type has the names that `[[upcast]]` reads as it as well.
    fn selection(&self, upcasts: &[Upcast]) -> Selection {
        let names = stored_types(upcasts, self.types.iter().map(String::as_str));
        Selection {
            after: self.after,
            types: (!self.types.is_empty()).then(|| names.into_iter().map(str::to_owned).collect()),
            tags: self.tags.iter().map(|tag| Tag::new(tag.as_str())).collect(),
            correlation_id: self.correlation,
            since: self.since,
            until: self.until,
            aggregate_id: self.aggregate,
            versions: (self.from_version, self.to_version),
            by_version: self.aggregate.is_some(),
        }
    }
}

/// Events read at a time.
const PAGE_EVENTS: i64 = 500;

/// The time between two reads while waiting for new events.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

/// The time between two attempts to read from a database that cannot be reached.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(500);

pub(crate) async fn run(arguments: Arguments, config: &Config, databases: &Databases) -> anyhow::Result<()> {
    let store = databases.stored_events();
    if arguments.condition {
        return print_condition(&arguments, &store).await;
    }
    if !arguments.tags.is_empty() && !databases.layout.has_tags() {
        bail!("the events of this store have no tags: espd only reads it");
    }
    let mut reader = Reader {
        selection: arguments.selection(&config.upcasts),
        direction: if arguments.reverse { Direction::Backward } else { Direction::Forward },
        beyond: None,
        left: arguments.limit.unwrap_or(i64::MAX),
        json: arguments.json,
        store,
    };
    let mut follower = if arguments.follow { Some(Follower::new(databases).await?) } else { None };
    if let Some(count) = arguments.last {
        let upto = settled(&mut follower).await?;
        reader.begin_with_last(count, upto).await?;
    }
    match follower {
        Some(follower) => follow(reader, follower).await,
        None => reader.print_until(None).await.map(drop),
    }
}

/// Prints events as they arrive, until enough are printed. It waits for a database that cannot be reached, and says so.
async fn follow(mut reader: Reader, mut follower: Follower<'_>) -> anyhow::Result<()> {
    let mut is_out = false;
    loop {
        let pause = match follow_on(&mut reader, &mut follower).await {
            Ok(Printed::Enough) => return Ok(()),
            Ok(Printed::All) => {
                is_out = false;
                FOLLOW_INTERVAL
            }
            Err(error) if is_passing(&error) => {
                if !is_out {
                    let place = reader.place();
                    output::print_note(&format!(
                        "events after {place} cannot be read, and are tried again: {error:#}"
                    ))?;
                }
                is_out = true;
                RECONNECT_INTERVAL
            }
            Err(error) if is_of_store(&error) => {
                let place = reader.place();
                return Err(error.context(format!(
                    "events after {place} cannot be read; `--after {place}` goes on there"
                )));
            }
            Err(error) => return Err(error),
        };
        tokio::time::sleep(pause).await;
    }
}

/// Prints what is there.
async fn follow_on(reader: &mut Reader, follower: &mut Follower<'_>) -> anyhow::Result<Printed> {
    let upto = follower.settled().await?;
    let head = follower.observer.horizon().head;
    if head < reader.place() {
        bail!(
            "the event store has gone back: events up to {} were there, and its last id is {head}",
            reader.place()
        );
    }
    let printed = reader.print_until(Some(upto)).await?;
    reader.pass_over(upto);
    Ok(printed)
}

/// Whether the database could not do it at the moment.
fn is_passing(error: &anyhow::Error) -> bool {
    let is_replaced =
        |error: &ObserveError| matches!(error, ObserveError::Standby | ObserveError::ServerReplaced);
    find_cause::<sqlx::Error>(error).is_some_and(may_succeed_later)
        || find_cause::<ObserveError>(error).is_some_and(is_replaced)
}

/// Whether it is about reading, and not about what takes the output.
fn is_of_store(error: &anyhow::Error) -> bool {
    find_cause::<ReadError>(error).is_some() || find_cause::<ObserveError>(error).is_some()
}

fn find_cause<E: std::error::Error + Send + Sync + 'static>(error: &anyhow::Error) -> Option<&E> {
    error.chain().find_map(|cause| cause.downcast_ref::<E>())
}

async fn print_condition(arguments: &Arguments, store: &PostgresEventStore) -> anyhow::Result<()> {
    let mut query = TagQuery::all_of(arguments.tags.iter().map(String::as_str));
    if !arguments.types.is_empty() {
        query = query.of_types(&arguments.types);
    }
    let token = store.read_token(&query).await?;
    output::print_verbatim(&serde_json::to_string(&query.unchanged_since(token))?)
}

/// How far a follower may print: up to the settled horizon, so that no event can appear before one that is printed already.
async fn settled(follower: &mut Option<Follower<'_>>) -> anyhow::Result<Option<Position>> {
    match follower {
        Some(follower) => Ok(Some(follower.settled().await?)),
        None => Ok(None),
    }
}

/// Whether more may be printed.
#[derive(PartialEq, Eq)]
enum Printed {
    /// All that there is now.
    All,
    /// As many as were asked for.
    Enough,
}

/// Reads a selection page by page, and prints it.
struct Reader {
    store: PostgresEventStore,
    selection: Selection,
    direction: Direction,
    /// The place, in the order of the selection, of the last event that was printed.
    beyond: Option<i64>,
    /// How many more may be printed.
    left: i64,
    json: bool,
}

impl Reader {
    /// Has only the last events printed.
    async fn begin_with_last(&mut self, count: i64, upto: Option<Position>) -> anyhow::Result<()> {
        match self.direction {
            Direction::Backward => self.left = count,
            Direction::Forward => {
                let first = self.store.find_first_of_last(&self.selection, upto, count).await?;
                self.beyond = first.map(|first| first - 1);
            }
        }
        Ok(())
    }

    async fn print_until(&mut self, upto: Option<Position>) -> anyhow::Result<Printed> {
        loop {
            let limit = self.left.min(PAGE_EVENTS);
            let page = self.store.select(&self.selection, self.direction, self.beyond, upto, limit).await?;
            for event in &page {
                self.beyond = Some(self.selection.key_of(event));
                self.left -= 1;
                print(event, self.json)?;
            }
            if self.left == 0 {
                return Ok(Printed::Enough);
            }
            if (page.len() as i64) < limit {
                return Ok(Printed::All);
            }
        }
    }

    /// Goes on after what was looked at.
    fn pass_over(&mut self, upto: Position) {
        self.beyond = self.beyond.max(Some(upto.get()));
    }

    /// How far it has come.
    fn place(&self) -> Position {
        self.beyond.map_or(self.selection.after, |beyond| self.selection.after.max(Position::new(beyond)))
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
pub(super) fn show_time(time: StoredTime) -> String {
    match time.to_utc() {
        Some(utc) if (1..=9_999).contains(&utc.year()) => utc.format("%Y-%m-%d %H:%M:%S%.3f").to_string(),
        _ => time.to_string(),
    }
}

fn print(event: &Event, json: bool) -> anyhow::Result<()> {
    if json {
        return output::print_verbatim(&serde_json::to_string(event)?);
    }
    let time = show_time(event.created_at);
    let Event { id, event_type, aggregate_id, version, body, .. } = event;
    let body = body.get();
    output::print(&in_one_line(&format!("{id:>10}  {time}  {event_type}  {aggregate_id} {version}  {body}")))
}
