//! `espctl trace`: the tree of events that one of them belongs to.

use anyhow::Context as _;
use chrono::TimeDelta;
use clap::Args;
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::espctl::events::show_time;
use crate::espctl::output;
use crate::event::{Event, Position};
use crate::operations::databases::Databases;
use crate::operations::trace::{Letter, OpenEffect, Pending, WholeTrace};
use crate::store::{EventStore as _, TraceLimits};
use crate::visible::in_one_line;

#[derive(Args)]
#[command(
    after_help = "An event names its cause by causation_id. The tree begins with the first cause, whichever event of it is named, and\n\
    has what waits as well: emissions for later, dead letters, and what handlers have asked for after their commit. Times\n\
    of effects count from the event that stands first.\n\n\
    Effects are looked for in the conversation of the events (correlation_id), which an index serves. Reactors hand it on.\n\
    Where an application has set a cause without it, --everywhere finds the effects; that reads the whole store.\n\n\
    Examples:\n  \
    espctl trace 4711\n  \
    espctl trace 149d5c70-a373-4857-91e2-1d5ea90c27e4 --json | jq '.events[].type'"
)]
pub(crate) struct Arguments {
    /// Uuid or position of the event; or the uuid of an emission that is still pending
    #[arg(value_name = "EVENT")]
    event: String,
    /// Show at most this many events
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Show at most this many levels of causes above the event, and below the first cause
    #[arg(long, value_name = "LEVELS", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    depth: u32,
    /// Also look for effects in other conversations: reads the whole store
    #[arg(long)]
    everywhere: bool,
    /// Print one object instead of a tree
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments, databases: &Databases) -> anyhow::Result<()> {
    let Arguments { event, limit, depth, everywhere, json } = arguments;
    let uuid = identify(&event, databases).await?;
    let limits = TraceLimits { events: limit as usize, depth: depth as usize, everywhere };
    let trace = WholeTrace::find(databases, uuid, limits).await?.with_context(|| {
        format!(
            "no event has the uuid {uuid}, and nothing that is pending and was caused by an event: `espctl events \
             --correlation {uuid}` lists a conversation"
        )
    })?;
    if json {
        return output::print_verbatim(&serde_json::to_string_pretty(&trace)?);
    }
    output::print(&render(&trace).join("\n"))
}

/// The uuid that is given, or that of the event at the position that is given.
async fn identify(event: &str, databases: &Databases) -> anyhow::Result<Uuid> {
    if let Ok(uuid) = event.parse() {
        return Ok(uuid);
    }
    let position = event.parse().map(Position::new).ok().filter(|position| *position > Position::START);
    let position = position.with_context(|| format!("{event} is neither a uuid nor a position"))?;
    let store = databases.stored_events();
    let found = store.read_after(position.previous(), Some(position), None, 1).await?;
    let found = found.first().with_context(|| format!("there is no event at position {position}"))?;
    Ok(found.uuid)
}

/// The lines of the tree.
fn render(whole: &WholeTrace) -> Vec<String> {
    let mut lines = Vec::new();
    let is_caused = whole.trace.cause.is_some();
    if let Some(cause) = whole.trace.cause {
        lines.push(format!("{cause}  no event of this store: a command, or an event that was deleted"));
    }
    let above = usize::from(is_caused);
    lines.extend(waiting_for(whole, whole.trace.cause, 1));
    for traced in &whole.trace.events {
        let depth = traced.depth + above;
        lines.push(branch(depth, &describe(whole, &traced.event)));
        lines.extend(waiting_for(whole, Some(traced.event.uuid), depth + 1));
    }
    if whole.trace.is_cut {
        lines.push("There is more: raise --limit or --depth.".to_owned());
    }
    lines
}

/// A line below others.
fn branch(depth: usize, text: &str) -> String {
    let text = in_one_line(text);
    if depth == 0 { text.into_owned() } else { format!("{}└ {text}", "  ".repeat(depth - 1)) }
}

fn describe(whole: &WholeTrace, event: &Event) -> String {
    let Event { id, event_type, aggregate_id, version, .. } = event;
    let emitter = reactor_of(&event.metadata).map_or_else(String::new, |name| format!("  emitted by {name}"));
    let asked = mark(whole, event.uuid);
    format!("{id}  {event_type}  {}  {aggregate_id} {version}{emitter}{asked}", moment(whole, event))
}

fn mark(whole: &WholeTrace, uuid: Uuid) -> &'static str {
    if uuid == whole.trace.asked { "  <- this" } else { "" }
}

/// The reactor that has emitted an event, as espd notes it in the metadata.
fn reactor_of(metadata: &RawValue) -> Option<String> {
    let metadata: Value = serde_json::from_str(metadata.get()).ok()?;
    metadata.pointer("/espd/reactor")?.as_str().map(str::to_owned)
}

/// The time of the first event, and of others how long after that one.
fn moment(whole: &WholeTrace, event: &Event) -> String {
    let first = whole.trace.events.first().filter(|first| first.event.uuid != event.uuid);
    let times = first.and_then(|first| first.event.created_at.to_utc().zip(event.created_at.to_utc()));
    times.map_or_else(|| show_time(event.created_at), |(from, to)| show_span(to - from))
}

/// `+1.250 s`, `+3 days 02:00:00`.
fn show_span(span: TimeDelta) -> String {
    let (sign, span) = if span < TimeDelta::zero() { ('-', -span) } else { ('+', span) };
    let seconds = span.num_seconds();
    if seconds < 600 {
        return format!("{sign}{seconds}.{:03} s", span.subsec_nanos() / 1_000_000);
    }
    let clock = format!("{:02}:{:02}:{:02}", seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    match span.num_days() {
        0 => format!("{sign}{clock}"),
        1 => format!("{sign}1 day {clock}"),
        days => format!("{sign}{days} days {clock}"),
    }
}

/// What waits because of an event, below it.
fn waiting_for(whole: &WholeTrace, cause: Option<Uuid>, depth: usize) -> Vec<String> {
    let Some(cause) = cause else { return Vec::new() };
    let letters = whole.dead_letters.iter().filter(|letter| letter.event_uuid == cause).map(describe_letter);
    let effects = whole.effects.iter().filter(|effect| effect.event_uuid == cause).map(describe_effect);
    let pending = whole.pending.iter().filter(|pending| pending.causation_id == cause);
    let pending =
        pending.map(|pending| format!("{}{}", describe_pending(pending), mark(whole, pending.uuid)));
    letters.chain(effects).chain(pending).map(|text| branch(depth, &text)).collect()
}

fn describe_letter(Letter { processor, reason, message, .. }: &Letter) -> String {
    let why = message.as_deref().map_or_else(String::new, |message| format!(": {message}"));
    format!("dead letter of {processor}, {reason}{why}")
}

fn describe_effect(OpenEffect { processor, attempts, .. }: &OpenEffect) -> String {
    format!("{processor} has work to do after its commit, begun {attempts} times")
}

fn describe_pending(Pending { event_type, reactor, due_at, last_error, .. }: &Pending) -> String {
    let by = match reactor {
        Some(reactor) => format!("emitted by {reactor}"),
        None => "scheduled by an application".to_owned(),
    };
    let refused = last_error.as_deref().map_or_else(String::new, |error| format!(", refused: {error}"));
    format!("pending  {event_type}  due {}  {by}{refused}", show_time(*due_at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_shown_with_the_precision_that_people_read() {
        for (milliseconds, shown) in [
            (0, "+0.000 s"),
            (1_250, "+1.250 s"),
            (-40, "-0.040 s"),
            (3_600_000, "+01:00:00"),
            (90_000_000, "+1 day 01:00:00"),
            (200_000_000, "+2 days 07:33:20"),
        ] {
            assert_eq!(show_span(TimeDelta::milliseconds(milliseconds)), shown);
        }
    }
}
