//! `espctl dead-letters show`.

use chrono::{DateTime, Utc};
use clap::Args;

use crate::espctl::output;
use crate::event::Position;
use crate::operations::operator::{ExaminedLetter, Operator};
use crate::operations::status::text::{format_duration, thousands};

#[derive(Args)]
#[command(
    after_help = "The event is shown as it is in the store now, which may be otherwise than when it failed.\n\n\
    Examples:\n  \
    espctl dead-letters show outstanding_todos 4711\n  \
    espctl dead-letters show outstanding_todos 4711 --json | jq .event.body"
)]
pub(crate) struct Arguments {
    /// Name of the processor
    name: String,
    /// Id of the event
    event: Position,
    /// An object instead of a text
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments, operator: &Operator<'_>) -> anyhow::Result<()> {
    let examined = operator.examine(&arguments.name, arguments.event).await?;
    if arguments.json {
        return output::print(&serde_json::to_string_pretty(&examined)?);
    }
    let mut lines = tell_letter(&examined);
    lines.extend(tell_line(&examined));
    lines.extend(tell_event(&examined)?);
    lines.push(what_to_do(&examined));
    output::print(&lines.join("\n"))
}

fn ago(time: DateTime<Utc>) -> String {
    format!("{} ago", format_duration((Utc::now() - time).as_seconds_f64()))
}

/// What happened to the event.
fn tell_letter(ExaminedLetter { letter, .. }: &ExaminedLetter) -> Vec<String> {
    let mut lines = vec![format!(
        "event {} ({}) of aggregate {}, set aside for {} {}",
        letter.event_id,
        letter.event_type,
        letter.aggregate_id,
        letter.processor,
        ago(letter.set_aside_at)
    )];
    if let Some(failure) = &letter.failure {
        let code = failure.sqlstate.as_ref().map_or_else(String::new, |code| format!(" [{code}]"));
        lines.push(format!("  error   {}{code}", failure.message));
        let further = [("detail", &failure.detail), ("hint  ", &failure.hint), ("place ", &failure.place)];
        lines.extend(further.iter().filter_map(|(name, text)| Some(format!("  {name}  {}", text.as_ref()?))));
    }
    let last = letter.tried_at.map_or_else(String::new, |at| format!(", last {}", ago(at)));
    lines.push(format!("  tried   {} times{last}", letter.attempts));
    if letter.replaying {
        lines.push(
            "  effects it was handled before a reset: a retry does not repeat what it led to then".to_owned(),
        );
    }
    lines.extend(
        letter.retry_requested_at.map(|at| format!("  retry   asked for {}, has not happened yet", ago(at))),
    );
    lines
}

/// Its place in the line of its aggregate.
fn tell_line(ExaminedLetter { behind, .. }: &ExaminedLetter) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(behind.waits_for.map(|first| format!("  waits   behind event {first}")));
    if behind.waiting > 0 {
        let shown: Vec<String> = behind.waiting_event_ids.iter().map(ToString::to_string).collect();
        let more = if (shown.len() as i64) < behind.waiting { ", …" } else { "" };
        let waiting = thousands(behind.waiting);
        lines.push(format!("  behind  {waiting} later of its aggregate: {}{more}", shown.join(", ")));
    }
    lines
}

fn tell_event(ExaminedLetter { event, .. }: &ExaminedLetter) -> anyhow::Result<Vec<String>> {
    Ok(match event {
        Some(event) => vec![String::new(), serde_json::to_string_pretty(event)?, String::new()],
        None => vec!["  event   is not in the store any more".to_owned(), String::new()],
    })
}

fn what_to_do(ExaminedLetter { letter, behind, .. }: &ExaminedLetter) -> String {
    let name = &letter.processor;
    match behind.waits_for {
        Some(first) => {
            format!("`espctl dead-letters retry {name} {first}` handles them in order, this one as well.")
        }
        None => format!(
            "Mend the handler or what it needs, then `espctl dead-letters retry {name} {0}`; or `espctl dead-letters \
             discard {name} {0}`.",
            letter.event_id
        ),
    }
}
