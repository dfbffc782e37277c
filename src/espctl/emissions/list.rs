//! `espctl emissions list`: a table of the events that are still to be appended.

use clap::Args;

use super::Criteria;
use crate::espctl::output;
use crate::operations::operator::{ListedEmission, Operator};
use crate::operations::status::format::{table_within, thousands, wrap};
use crate::processing::emission::{EmissionSelection, EmissionState};

#[derive(Args)]
#[command(
    after_help = "States: later (its time has not come), due (about to be moved), refused (the event store has refused it;\n\
    it is tried again), held (its reactor is paused, or is behind, and what has a key waits). Nobody moves those of a reactor that is not declared.\n\n\
    Examples:\n  \
    espctl emissions list                       of all reactors\n  \
    espctl emissions list reminders --refused   of one, what the event store has refused\n  \
    espctl emissions list -                     what applications have scheduled (`espctl append --at`)\n  \
    espctl emissions list --json | jq '.[] | [.reactor, .type, .due_at, .state]'"
)]
pub(crate) struct Arguments {
    /// Only those of this reactor; `-`: only what applications have scheduled
    name: Option<String>,
    #[command(flatten)]
    criteria: Criteria,
    /// Show at most this many
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = LIMIT, value_parser = clap::value_parser!(i64).range(1..=100_000))]
    limit: i64,
    /// Print an array of objects instead of a table
    #[arg(long)]
    json: bool,
}

const LIMIT: i64 = 100;

/// The most characters of an error in the table.
const ERROR_CHARACTERS: usize = 70;

impl Default for Arguments {
    fn default() -> Self {
        Self { name: None, criteria: Criteria::default(), limit: LIMIT, json: false }
    }
}

pub(super) async fn run(arguments: Arguments, operator: &Operator<'_>) -> anyhow::Result<()> {
    let Arguments { name, criteria, limit, json } = arguments;
    let selection = criteria.into_selection(name, None);
    let emissions = operator.emissions(&selection, limit).await?;
    if json {
        return output::print_verbatim(&serde_json::to_string_pretty(&emissions)?);
    }
    if emissions.is_empty() {
        let which = if selection == EmissionSelection::default() { "" } else { " match" };
        return output::print(&format!("no pending emissions{which}"));
    }
    let mut text = render(&emissions);
    if emissions.len() as i64 == limit {
        let more = operator.count_emissions(&selection).await? - limit;
        if more > 0 {
            text.push_str(&paragraph(&format!("{} more: raise --limit, or select fewer.", thousands(more))));
        }
    }
    if let Some(orphan) = emissions.iter().find(|listed| !listed.declared) {
        text.push_str(&paragraph(&format!(
            "The configuration declares no reactor {0} that emits, so nobody moves what it has emitted: declare it \
             again, or remove them with `espctl emissions cancel {0} --all`.",
            orphan.emission.reactor
        )));
    }
    output::print(&text)
}

fn paragraph(text: &str) -> String {
    format!("\n\n{}", wrap(text, output::width(), ""))
}

fn render(emissions: &[ListedEmission]) -> String {
    let header = ["ID", "REACTOR", "TYPE", "KEY", "DUE", "STATE", "TRIES", "ERROR"];
    let dispensable = [6, 3, 2, 4];
    table_within(output::width(), &header, emissions.iter().map(row).collect(), &[0, 6], &dispensable)
}

fn row(ListedEmission { emission, declared }: &ListedEmission) -> Vec<String> {
    let undeclared = if *declared { "" } else { ", not declared" };
    let tries = if emission.attempts == 0 { "-".to_owned() } else { emission.attempts.to_string() };
    vec![
        emission.id.to_string(),
        emission.reactor.clone(),
        emission.event_type.clone(),
        emission.key.clone().unwrap_or_else(|| "-".to_owned()),
        show_due(emission.due_at),
        format!("{}{undeclared}", emission.state.as_str()),
        tries,
        error(emission.state, emission.sqlstate.as_deref(), emission.last_error.as_deref()),
    ]
}

/// The time to the second; anything stranger as the database writes it.
fn show_due(time: crate::event::StoredTime) -> String {
    let utc = time.to_utc();
    utc.map_or_else(|| time.to_string(), |utc| utc.format("%Y-%m-%d %H:%M:%SZ").to_string())
}

/// Why it was refused, or what it waits for, in one line.
fn error(state: EmissionState, code: Option<&str>, message: Option<&str>) -> String {
    let Some(message) = message else { return "-".to_owned() };
    let words: Vec<&str> = message.split_whitespace().collect();
    let mut text = words.join(" ");
    if let Some((end, _)) = text.char_indices().nth(ERROR_CHARACTERS) {
        text.truncate(end);
        text.push('…');
    }
    let code = code.map_or_else(String::new, |code| format!(" [{code}]"));
    if state == EmissionState::Due { format!("waits: {text}") } else { format!("{text}{code}") }
}
