//! `espctl dead-letters list`.

use chrono::Utc;
use clap::Args;

use super::Criteria;
use crate::espctl::output;
use crate::event::Position;
use crate::operations::operator::Operator;
use crate::operations::status::text::{format_duration, table, thousands};
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
    /// Only events after this one, to go on where a list ended
    #[arg(long, value_name = "EVENT", requires = "name")]
    after: Option<Position>,
    /// At most this many
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=100_000))]
    limit: i64,
    /// An array of objects instead of a table
    #[arg(long)]
    json: bool,
}

/// Characters of an error that fit into a line.
const ERROR_CHARACTERS: usize = 70;

pub(crate) async fn run(arguments: Arguments, operator: &Operator<'_>) -> anyhow::Result<()> {
    let Arguments { name, criteria, after, limit, json } = arguments;
    let selection = Selection { processor: name, after, ..criteria.into_selection() };
    let letters = operator.dead_letters(&selection, limit).await?;
    if let (Some(name), true) = (&selection.processor, letters.is_empty()) {
        operator.require_known(name).await?;
    }
    if json {
        return output::print(&serde_json::to_string_pretty(&letters)?);
    }
    let Some(last) = letters.last() else {
        let which = if selection == Selection::default() { "" } else { " like this" };
        return output::print(&format!("no dead letters{which}"));
    };
    let mut text = render(&letters);
    if letters.len() as i64 == limit {
        let more = operator.count_dead_letters(&selection).await? - limit;
        if more > 0 {
            text.push_str(&format!("\n\n{} more: raise --limit, or say which you mean.", thousands(more)));
        }
    }
    text.push_str(&format!(
        "\n\n`espctl dead-letters show {} {}` tells all about one.",
        last.processor, last.event_id
    ));
    output::print(&text)
}

fn render(letters: &[DeadLetter]) -> String {
    let header = ["PROCESSOR", "EVENT", "TYPE", "AGGREGATE", "REASON", "TRIES", "AGE", "ERROR"];
    table(&header, letters.iter().map(row).collect(), &[1, 5, 6])
}

fn row(letter: &DeadLetter) -> Vec<String> {
    let asked = if letter.retry_requested_at.is_some() { ", retry asked for" } else { "" };
    vec![
        letter.processor.clone(),
        letter.event_id.to_string(),
        letter.event_type.clone(),
        letter.aggregate_id.to_string(),
        format!("{}{asked}", letter.reason),
        letter.attempts.to_string(),
        format_duration((Utc::now() - letter.set_aside_at).as_seconds_f64()),
        error(letter),
    ]
}

/// Why it is here, in one line.
fn error(letter: &DeadLetter) -> String {
    let Some(failure) = &letter.failure else {
        return "an earlier event of its aggregate is here".to_owned();
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
