//! `espctl reset`: a processor starts over, beside its tables where it can, or moves to another position.

use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args;
use clap::builder::TypedValueParser as _;
use serde::Serialize;

use crate::config::{Config, parse_duration};
use crate::espctl::moment::parse_moment;
use crate::espctl::operate::Target;
use crate::espctl::{output, rebuild};
use crate::event::Position;
use crate::handlers::native::Registry;
use crate::operations::databases::Databases;
use crate::operations::operator::{Destination, LockPatience, Operator};
use crate::operations::rebuild::Way;
use crate::operations::status::format::thousands;
use crate::processing::declaration::{Handling, ProcessorDeclaration};
use crate::processing::processor::OthersObjects;
use crate::processing::tracker::{ReplayEffects, TrackerRow};

#[derive(Args)]
#[command(
    after_help = "A projector is built again beside its tables, as `espctl rebuild` does it: those go on serving, nobody who\n\
    reads misses a row, and what was built goes live once it has caught up, whatever differs. Grants, views and foreign\n\
    keys of others stay. If it is killed, run it again: it goes on where it was.\n\n\
    With --in-place the tables are dropped and created again, and the processor starts over: until it has caught up they\n\
    lack rows that an application reads. What cannot be built beside is reset in place without being asked to, and told\n\
    why: reactors, projectors in Rust by another program than theirs, synchronous projectors, and a projector that has met\n\
    another event store. What others have made on the tables is carried over to the new ones: grants, comments, row level\n\
    security and policies, options, publications. Where something else of theirs would be lost, nothing is done without --cascade.\n\
    While others have locks on the tables, the reset says who they are, and tries again and again until --wait is over.\n\n\
    With --to or --at only the position moves and the tables stay as they are: events after the new position are handled\n\
    (again), events before it are not.\n\n\
    Examples:\n  \
    espctl reset outstanding_todos\n  \
    espctl reset outstanding_todos --in-place --yes\n  \
    espctl reset outstanding_todos --to 1000"
)]
pub(crate) struct ResetArguments {
    #[command(flatten)]
    target: Target,
    /// Move to this position instead, and keep the tables
    #[arg(long, value_name = "POSITION", conflicts_with = "at", value_parser = clap::value_parser!(i64).range(0..).map(Position::new))]
    to: Option<Position>,
    /// Move to the last position at or before this time instead, and keep the tables: RFC 3339, or how long ago, like 2h
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    at: Option<DateTime<Utc>>,
    /// Drop and recreate the tables, also where a projector could be built beside them: rows are missing until it has caught up
    #[arg(long, conflicts_with_all = ["to", "at"])]
    in_place: bool,
    /// Let a reactor emit again for events that it has handled before, and handlers in Rust act after their commits again; an event
    /// that is stored already is not stored twice
    #[arg(long)]
    repeat_effects: bool,
    /// In place: also drop what others have made on the tables and what cannot be carried over, such as views and foreign keys
    #[arg(long, conflicts_with_all = ["to", "at"])]
    cascade: bool,
    /// In place: how long to wait for others who use the tables: 5s, 1m
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration, conflicts_with_all = ["to", "at"])]
    wait: Duration,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

/// What was done to a processor. The field names are an interface: `--json` prints them.
#[derive(Debug, Serialize)]
struct Done {
    name: String,
    /// `beside`, `in_place` or `position`.
    way: &'static str,
    /// Why it was done in place, where nobody has asked for that.
    in_place_because: Option<String>,
    version: i32,
    /// The position before.
    from: Position,
    position: Position,
    /// Beside: how many rows of the tables were changed, if they stay.
    changed_rows: Option<u64>,
    /// Beside: the schema of the former tables, if they were exchanged.
    archived_in: Option<String>,
    /// In place: what others had made and is gone.
    dropped: Vec<String>,
    /// The same for people.
    #[serde(skip)]
    said: String,
}

pub(crate) async fn reset(
    arguments: ResetArguments,
    config: &Config,
    databases: &Databases,
    native: Option<&Registry>,
) -> anyhow::Result<()> {
    let me = output::operator();
    // Whoever builds a version reads old events as new ones.
    let databases = databases.with_upcasts(&config.upcasts);
    let operator = Operator { databases: &databases, declared: &config.processors, name: &me, native };
    let mut done = Vec::new();
    for name in operator.targets(arguments.target.names()).await? {
        match reset_one(&name, &arguments, &operator).await? {
            Some(one) if !arguments.json => output::print(&one.said)?,
            None if !arguments.json => output::print("nothing was done")?,
            one => done.extend(one),
        }
    }
    if arguments.json { output::print_verbatim(&serde_json::to_string_pretty(&done)?) } else { Ok(()) }
}

/// Resets a processor; `None`: the operator did not agree.
async fn reset_one(
    name: &str,
    arguments: &ResetArguments,
    operator: &Operator<'_>,
) -> anyhow::Result<Option<Done>> {
    let row = operator.find(name).await?;
    operator.require_effects(&row.name, effects_of(arguments))?;
    let to = operator.destination(row.position, arguments.to, arguments.at).await?;
    let because = match to {
        Destination::Start if !arguments.in_place => {
            let because = operator.why_in_place(&row.name).await?;
            because.or(why_effects_in_place(operator.declaration(&row.name)?, arguments))
        }
        // Fails before the confirmation if the reset cannot be done.
        Destination::Start => operator.declaration(&row.name).map(|_| None)?,
        Destination::Position(_) => None,
    };
    if to == Destination::Start && !arguments.in_place && because.is_none() {
        return reset_beside(&row, arguments, operator).await;
    }
    reset_in_place(&row, to, because, arguments, operator).await
}

fn effects_of(arguments: &ResetArguments) -> ReplayEffects {
    if arguments.repeat_effects { ReplayEffects::Repeat } else { ReplayEffects::Suppress }
}

/// Why a projector is reset in place whose handlers may do something outside of the database, if that is to be done again.
fn why_effects_in_place(declaration: &ProcessorDeclaration, arguments: &ResetArguments) -> Option<String> {
    let has_effects = !matches!(declaration.handling, Handling::Sql(_));
    (arguments.repeat_effects && has_effects)
        .then(|| "--repeat-effects has effects repeated, and what is built beside has none".to_owned())
}

/// Builds the declared version again beside the one that serves, and has it go live.
async fn reset_beside(
    row: &TrackerRow,
    arguments: &ResetArguments,
    operator: &Operator<'_>,
) -> anyhow::Result<Option<Done>> {
    let name = &row.name;
    if arguments.cascade {
        anyhow::bail!(
            "nothing was done: {name} is built again beside its tables, where nothing of others is dropped: leave --cascade out, \
             or add --in-place"
        );
    }
    let version = operator.declaration(name)?.version;
    let tables = operator.owned_tables(name).await?.join(", ");
    let what =
        format!("builds version {version} of {name} from {} ids beside {tables}", thousands(row.position));
    let in_place = "--in-place drops and recreates them instead";
    if arguments.yes {
        note(&format!("{what}, which serve until it goes live; {in_place}"));
    } else {
        let question = format!(
            "This {what}. Those serve until it has caught up; then it goes live, whatever differs. {in_place}. Continue?"
        );
        if !output::confirm(&question)? {
            return Ok(None);
        }
    }
    let (version, way) = rebuild::build_again(*operator, name).await?;
    let position = operator.find(name).await?.position;
    let (changed_rows, archived_in) = match &way {
        Way::Merged(rows) => (Some(*rows), None),
        Way::Swapped(archive) => (None, Some(archive.clone())),
    };
    Ok(Some(Done {
        said: rebuild::describe_live(name, row.version, version, &way),
        changed_rows,
        archived_in,
        version,
        ..Done::of(row, "beside", position)
    }))
}

async fn reset_in_place(
    row: &TrackerRow,
    to: Destination,
    in_place_because: Option<String>,
    arguments: &ResetArguments,
    operator: &Operator<'_>,
) -> anyhow::Result<Option<Done>> {
    let effects = effects_of(arguments);
    let others = if arguments.cascade { OthersObjects::Drop } else { OthersObjects::Keep };
    let patience = LockPatience { limit: arguments.wait, tell: &note };
    if let Some(because) = &in_place_because {
        note(&format!("{} is reset in place: {because}", row.name));
    }
    if !arguments.yes {
        let question = match to {
            Destination::Start => describe_rebuild(row, operator, arguments.cascade, patience).await?,
            Destination::Position(to) => describe_move(row, to),
        };
        if !output::confirm(&question)? {
            return Ok(None);
        }
    }
    let replaced = operator.reset(&row.name, to, effects, others, patience).await?;
    if !replaced.lost.is_empty() && !arguments.json {
        output::print_note(&format!("dropped: {}", replaced.lost.join("; ")))?;
    }
    let now = operator.find(&row.name).await?;
    let way = if to == Destination::Start { "in_place" } else { "position" };
    Ok(Some(Done {
        in_place_because,
        version: now.version,
        dropped: replaced.lost,
        ..Done::of(row, way, now.position)
    }))
}

impl Done {
    fn of(row: &TrackerRow, way: &'static str, position: Position) -> Self {
        Self {
            name: row.name.clone(),
            way,
            in_place_because: None,
            version: row.version,
            from: row.position,
            position,
            changed_rows: None,
            archived_in: None,
            dropped: Vec::new(),
            said: format!("{} was at {}, is at {position}", row.name, row.position),
        }
    }
}

/// Says something while a command goes on. That it cannot be said is no reason to stop.
fn note(text: &str) {
    let _ = output::print_note(text);
}

async fn describe_rebuild(
    row: &TrackerRow,
    operator: &Operator<'_>,
    cascade: bool,
    patience: LockPatience<'_>,
) -> anyhow::Result<String> {
    let TrackerRow { name, position, .. } = row;
    let tables = operator.owned_tables(name).await?;
    let tables = if tables.is_empty() { "no tables".to_owned() } else { tables.join(", ") };
    let mut question = format!(
        "This drops and recreates {tables} and lets {name} handle {} ids again from the start.",
        thousands(*position)
    );
    // Fails before the confirmation if something of others would be lost.
    let replaced =
        operator.start_over(name, ReplayEffects::Suppress, OthersObjects::Preview, patience).await?;
    if let (Some(refusal), false) = (replaced.refusal(name), cascade) {
        anyhow::bail!("nothing was done: {refusal}");
    }
    for (what, items) in [("carries over", &replaced.carried_over), ("drops for good", &replaced.lost)] {
        if !items.is_empty() {
            question += &format!(" It {what} {}.", items.join("; "));
        }
    }
    if row.kind == "projector" {
        question += " Until it has caught up, rows are missing.";
    }
    Ok(question + " Continue?")
}

fn describe_move(row: &TrackerRow, to: Position) -> String {
    let TrackerRow { name, position, .. } = row;
    if to < *position {
        format!(
            "This lets {name} handle {} ids again and keeps its tables as they are. Continue?",
            thousands(to.distance_to(*position))
        )
    } else {
        format!("This lets {name} skip {} ids for good. Continue?", thousands(position.distance_to(to)))
    }
}
