//! `espctl dead-letters show`: everything about one event that was set aside.

use chrono::{DateTime, Utc};
use clap::Args;
use sqlx::types::Json;

use crate::espctl::output;
use crate::event::Position;
use crate::operations::operator::{ExaminedDeadLetter, Operator};
use crate::operations::status::format::{format_duration, thousands};
use crate::processing::dead_letters::DeadLetter;
use crate::visible::{in_block, in_one_line};

#[derive(Args)]
#[command(
    after_help = "The event is shown as it is in the store now, which may differ from when it failed.\n\n\
    Examples:\n  \
    espctl dead-letters show outstanding_todos 4711\n  \
    espctl dead-letters show outstanding_todos 4711 --json | jq .event.body"
)]
pub(crate) struct Arguments {
    /// Name of the processor
    name: String,
    /// Id of the event
    event: Position,
    /// Print an object instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments, operator: &Operator<'_>) -> anyhow::Result<()> {
    let examined = operator.examine(&arguments.name, arguments.event).await?;
    if arguments.json {
        return output::print_verbatim(&serde_json::to_string_pretty(&examined)?);
    }
    let mut lines = describe_failure(&examined);
    lines.extend(describe_queue(&examined));
    lines.extend(describe_event(&examined)?);
    lines.push(remedy(&examined));
    output::print(&lines.join("\n"))
}

/// Where the text of a field begins.
const FIELD_INDENT: usize = 10;

fn ago(time: DateTime<Utc>) -> String {
    format!("{} ago", format_duration((Utc::now() - time).as_seconds_f64()))
}

/// What happened to the event.
fn describe_failure(ExaminedDeadLetter { dead_letter, .. }: &ExaminedDeadLetter) -> Vec<String> {
    let mut lines = vec![format!(
        "event {} ({}) of aggregate {}, set aside for {} {}",
        dead_letter.event_id,
        in_one_line(&dead_letter.event_type),
        dead_letter.aggregate_id,
        dead_letter.processor,
        ago(dead_letter.set_aside_at)
    )];
    if let Some(failure) = &dead_letter.failure {
        let code = failure.sqlstate.as_ref().map_or_else(String::new, |code| format!(" [{code}]"));
        lines.push(format!("  error   {}{code}", in_one_line(&failure.message)));
        let further = [("detail", &failure.detail), ("hint  ", &failure.hint), ("place ", &failure.place)];
        lines.extend(further.iter().filter_map(|(name, text)| {
            Some(format!("  {name}  {}", in_block(text.as_ref()?, FIELD_INDENT)))
        }));
    }
    let last = dead_letter.tried_at.map_or_else(String::new, |at| format!(", last {}", ago(at)));
    lines.push(format!("  tried   {} times{last}", dead_letter.attempts));
    if dead_letter.replaying {
        lines.push(
            "  replay  the processor had passed it before a reset: a retry repeats no effects".to_owned(),
        );
    }
    lines.extend(
        dead_letter.retry_requested_at.map(|at| format!("  retry   requested {}, not done yet", ago(at))),
    );
    lines
}

/// What the event waits for, and what waits for it.
fn describe_queue(ExaminedDeadLetter { queue, .. }: &ExaminedDeadLetter) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(queue.waits_for.map(|first| format!("  waits   behind event {first}")));
    if queue.waiting > 0 {
        let shown: Vec<String> = queue.waiting_event_ids.iter().map(ToString::to_string).collect();
        let more = if (shown.len() as i64) < queue.waiting { ", …" } else { "" };
        let waiting = thousands(queue.waiting);
        lines.push(format!("  behind  {waiting} later of its aggregate: {}{more}", shown.join(", ")));
    }
    lines
}

fn describe_event(ExaminedDeadLetter { event, .. }: &ExaminedDeadLetter) -> anyhow::Result<Vec<String>> {
    Ok(match event {
        Some(event) => vec![String::new(), serde_json::to_string_pretty(event)?, String::new()],
        None => vec!["  event   no longer in the store".to_owned(), String::new()],
    })
}

/// What has failed: no handler has seen an event that cannot be read.
fn what_to_fix(dead_letter: &DeadLetter) -> &'static str {
    match &dead_letter.failure {
        Some(Json(failure)) if failure.is_unreadable => {
            "the upcast that reads the event (where none does, `jsonb` refuses its stored JSON, and no retry helps)"
        }
        _ => "the handler or the data it needs",
    }
}

fn remedy(ExaminedDeadLetter { dead_letter, queue, .. }: &ExaminedDeadLetter) -> String {
    let name = &dead_letter.processor;
    if let Some((processor, _)) = name.split_once('$') {
        return format!(
            "It is of a version of {processor} that is kept or being built, and one of {processor} once that serves."
        );
    }
    match queue.waits_for {
        Some(first) => {
            format!("`espctl dead-letters retry {name} {first}` has them handled in order, this one as well.")
        }
        None => format!(
            "Fix {what}, then run `espctl dead-letters retry {name} {0}`; or discard the event: \
             `espctl dead-letters discard {name} {0}`.",
            dead_letter.event_id,
            what = what_to_fix(dead_letter)
        ),
    }
}
