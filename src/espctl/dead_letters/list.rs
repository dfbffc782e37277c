//! `espctl dead-letters list`: a table of the events that were set aside.

use chrono::Utc;
use clap::Args;

use super::Criteria;
use crate::espctl::output;
use crate::event::Position;
use crate::operations::operator::Operator;
use crate::operations::status::format::{format_duration, table_within, thousands, wrap};
use crate::processing::dead_letters::{DeadLetter, Selection};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    espctl dead-letters list                                       of all processors\n  \
    espctl dead-letters list outstanding_todos --type TodoAdded    of one, of one type\n  \
    espctl dead-letters list --error 'due_date' --older-than 1h\n  \
    espctl dead-letters list --error 22012                         by SQLSTATE\n  \
    espctl dead-letters list --json | jq '.[] | [.event_id, .failure.message]'")]
pub(crate) struct Arguments {
    /// Only those of this processor
    name: Option<String>,
    #[command(flatten)]
    criteria: Criteria,
    /// Only events after this one, to continue where a list ended
    #[arg(long, value_name = "EVENT", requires = "name")]
    after: Option<Position>,
    /// Show at most this many
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=100_000))]
    limit: i64,
    /// Print an array of objects instead of a table
    #[arg(long)]
    json: bool,
}

/// The most characters of an error in the table.
const ERROR_CHARACTERS: usize = 70;

pub(crate) async fn run(arguments: Arguments, operator: &Operator<'_>) -> anyhow::Result<()> {
    let Arguments { name, criteria, after, limit, json } = arguments;
    let selection = Selection { processor: name, after, ..criteria.into_selection() };
    let dead_letters = operator.dead_letters(&selection, limit).await?;
    if let (Some(name), true) = (&selection.processor, dead_letters.is_empty()) {
        operator.require_known(name).await?;
    }
    if json {
        return output::print_verbatim(&serde_json::to_string_pretty(&dead_letters)?);
    }
    let Some(last) = dead_letters.last() else {
        let which = if selection == Selection::default() { "" } else { " match" };
        return output::print(&format!("no dead letters{which}"));
    };
    let mut text = render(&dead_letters);
    if dead_letters.len() as i64 == limit {
        let more = operator.count_dead_letters(&selection).await? - limit;
        if more > 0 {
            text.push_str(&paragraph(&format!("{} more: raise --limit, or select fewer.", thousands(more))));
        }
    }
    text.push_str(&paragraph(&format!(
        "`espctl dead-letters show {} {}` shows everything about one.",
        last.processor, last.event_id
    )));
    output::print(&text)
}

fn paragraph(text: &str) -> String {
    format!("\n\n{}", wrap(text, output::width(), ""))
}

fn render(dead_letters: &[DeadLetter]) -> String {
    let header = ["PROCESSOR", "EVENT", "TYPE", "AGGREGATE", "REASON", "TRIES", "AGE", "ERROR"];
    // What `dead-letters show` tells as well goes first.
    let dispensable = [3, 5, 6, 4, 2];
    table_within(output::width(), &header, dead_letters.iter().map(row).collect(), &[1, 5, 6], &dispensable)
}

fn row(dead_letter: &DeadLetter) -> Vec<String> {
    let requested = if dead_letter.retry_requested_at.is_some() { ", retry requested" } else { "" };
    vec![
        dead_letter.processor.clone(),
        dead_letter.event_id.to_string(),
        dead_letter.event_type.clone(),
        dead_letter.aggregate_id.to_string(),
        format!("{}{requested}", dead_letter.reason),
        dead_letter.attempts.to_string(),
        format_duration((Utc::now() - dead_letter.set_aside_at).as_seconds_f64()),
        error(dead_letter),
    ]
}

/// Why the event was set aside, in one line.
fn error(dead_letter: &DeadLetter) -> String {
    let Some(failure) = &dead_letter.failure else {
        return "waits behind an earlier event of its aggregate".to_owned();
    };
    let code = failure.sqlstate.as_ref().map_or_else(String::new, |code| format!(" [{code}]"));
    let words: Vec<&str> = failure.message.split_whitespace().collect();
    let mut message = words.join(" ");
    if let Some((end, _)) = message.char_indices().nth(ERROR_CHARACTERS) {
        message.truncate(end);
        message.push('…');
    }
    format!("{message}{code}")
}
