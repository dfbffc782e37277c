//! The statuses as a table, with advice and a summary below it.

use chrono::{DateTime, Utc};

use super::format::{format_duration, shorten, table, thousands, width_of, wrap};
use super::groups::{Told, tell};
use super::{ProcessorState, ProcessorStatus};

/// The table; below it what needs attention as of `now`, told once where processors share it; and a summary. Processors in
/// trouble come first. Lines are at most `width` characters long, if it is given.
pub(crate) fn render(statuses: &[ProcessorStatus], now: DateTime<Utc>, width: Option<usize>) -> String {
    if statuses.is_empty() {
        return "no processors: none is declared, and none has run on this database".to_owned();
    }
    let mut parts = vec![columns(statuses, width)];
    for Told { problem, processors, times, remedy } in tell(statuses, now) {
        let details = [processors, times, Some(remedy)].into_iter().flatten();
        let lines = std::iter::once(wrap(&problem, width, ""));
        parts.push(lines.chain(details.map(|line| wrap(&line, width, "  "))).collect::<Vec<_>>().join("\n"));
    }
    parts.extend(describe_builds(statuses).map(|line| wrap(&line, width, "")));
    parts.extend(describe_pending_emissions(statuses, now).map(|line| wrap(&line, width, "")));
    parts.push(wrap(&summarise(statuses), width, ""));
    parts.join("\n\n")
}

/// A trouble that is of no single processor, as it stands below the table.
pub(crate) fn render_trouble(problem: &str, remedy: &str, width: Option<usize>) -> String {
    format!("{}\n{}", wrap(problem, width, ""), wrap(remedy, width, "  "))
}

/// A column, and what is left out first where the table is too wide.
struct Column {
    header: &'static str,
    values: Vec<String>,
    is_number: bool,
    /// The column with the lowest number is left out first; `None`: it always stays.
    dispensable: Option<u8>,
}

impl Column {
    fn width(&self) -> usize {
        let values = self.values.iter().map(|value| width_of(value)).max();
        values.unwrap_or(0).max(self.header.len()) + 2
    }

    /// When the column is left out: first of all if it says nothing.
    fn rank(&self) -> Option<u8> {
        let rank = self.dispensable?;
        Some(if self.values.iter().all(|value| value == "-") { 0 } else { rank })
    }
}

/// The table itself.
fn columns(statuses: &[ProcessorStatus], width: Option<usize>) -> String {
    let mut sorted: Vec<&ProcessorStatus> = statuses.iter().collect();
    sorted.sort_by_key(|status| status.state.trouble());
    let mut columns = all_columns(&sorted, statuses);
    if let Some(width) = width {
        fit(&mut columns, width);
    }
    let header: Vec<&str> = columns.iter().map(|column| column.header).collect();
    let right: Vec<usize> = (0..columns.len()).filter(|index| columns[*index].is_number).collect();
    let row = |index: usize| columns.iter().map(|column| column.values[index].clone()).collect();
    table(&header, (0..sorted.len()).map(row).collect(), &right)
}

fn all_columns(sorted: &[&ProcessorStatus], all: &[ProcessorStatus]) -> Vec<Column> {
    let column = |header, is_number, dispensable, value: &dyn Fn(&ProcessorStatus) -> String| Column {
        header,
        values: sorted.iter().map(|status| value(status)).collect(),
        is_number,
        dispensable,
    };
    let dash = || "-".to_owned();
    let age = |status: &ProcessorStatus| format_duration(status.lag_seconds);
    vec![
        column("NAME", false, None, &|status| status.shown_name(all)),
        column("KIND", false, Some(2), &|status| status.kind.clone()),
        column("STATE", false, None, &show_state),
        column("POSITION", true, None, &|status| thousands(status.position)),
        column("HEAD", true, Some(3), &|status| thousands(status.head)),
        column("LAG", true, None, &|status| thousands(status.lag_events)),
        column("AGE", true, Some(6), &|status| if status.lag_events == 0 { dash() } else { age(status) }),
        column("RATE/S", true, Some(4), &|status| {
            if status.rate >= 1.0 { thousands(status.rate as i64) } else { dash() }
        }),
        column("LEFT", true, Some(5), &|status| seconds_left(status).map_or_else(dash, format_duration)),
        column("DEAD", true, Some(7), &|status| {
            if status.dead_letters == 0 { dash() } else { thousands(status.dead_letters) }
        }),
        column("OWNER", false, Some(1), &show_owner),
    ]
}

fn show_state(status: &ProcessorStatus) -> String {
    let state = status.state.as_str();
    if status.synchronous.is_some() { format!("{state}, synchronous") } else { state.to_owned() }
}

/// What is said elsewhere as well goes before a name is shortened, the rest after that.
const SAID_ELSEWHERE: u8 = 3;

/// So much of a name stays while there is a column that can be left out, and so much in any case.
const NAME_MIN: usize = 20;
const NAME_LEAST: usize = 8;

/// Leaves columns out and shortens the names until the table fits.
fn fit(columns: &mut Vec<Column>, width: usize) {
    leave_out(columns, width, SAID_ELSEWHERE);
    shorten_names(columns, width, NAME_MIN);
    leave_out(columns, width, u8::MAX);
    shorten_names(columns, width, NAME_LEAST);
}

fn total(columns: &[Column]) -> usize {
    columns.iter().map(Column::width).sum()
}

/// Leaves out the most dispensable columns, up to this rank, while the table is too wide.
fn leave_out(columns: &mut Vec<Column>, width: usize, rank_max: u8) {
    while total(columns) > width {
        let ranks = columns.iter().enumerate().filter_map(|(index, column)| Some((column.rank()?, index)));
        let Some((_, index)) = ranks.filter(|(rank, _)| *rank <= rank_max).min() else { break };
        columns.remove(index);
    }
}

fn shorten_names(columns: &mut [Column], width: usize, least: usize) {
    let excess = total(columns).saturating_sub(width);
    if let (1.., Some(names)) = (excess, columns.first_mut()) {
        let longest = names.width().saturating_sub(2 + excess).max(least);
        names.values.iter_mut().for_each(|name| *name = shorten(name, longest));
    }
}

/// How far the versions are that are built beside those that serve, one line for each.
fn describe_builds(statuses: &[ProcessorStatus]) -> impl Iterator<Item = String> {
    statuses.iter().filter_map(|status| {
        let build = status.rebuild.as_ref()?;
        Some(format!("Version {} of {} {}.", build.version, status.shown_name(statuses), build.describe()))
    })
}

/// What reactors have emitted that is not in the event store yet, in one line; `None`: nothing.
fn describe_pending_emissions(statuses: &[ProcessorStatus], now: DateTime<Utc>) -> Option<String> {
    let describe = |status: &ProcessorStatus| {
        let left = status.next_emission_at.and_then(|at| at.to_utc()).map(|at| (at - now).as_seconds_f64());
        let next = match left {
            _ if status.state == ProcessorState::Paused => "held".to_owned(),
            Some(seconds) if seconds > 0.0 => format!("the next in {}", format_duration(seconds)),
            Some(_) => "due".to_owned(),
            None => "at no time".to_owned(),
        };
        format!("{} {} ({next})", status.shown_name(statuses), thousands(status.pending_emissions))
    };
    let pending = statuses.iter().filter(|status| status.pending_emissions > 0);
    let described: Vec<String> = pending.map(describe).collect();
    (!described.is_empty()).then(|| format!("Pending emissions: {}.", described.join(", ")))
}

/// How many processors are in which state, and how far the store is.
fn summarise(statuses: &[ProcessorStatus]) -> String {
    let mut states = ProcessorState::ALL;
    states.sort_by_key(|state| state.trouble());
    let count = |state: &ProcessorState| statuses.iter().filter(|status| status.state == *state).count();
    let counts = states.iter().map(|state| (count(state), state)).filter(|(count, _)| *count > 0);
    let counts: Vec<String> = counts.map(|(count, state)| format!("{count} {}", state.as_str())).collect();
    let plural = if statuses.len() == 1 { "" } else { "s" };
    let store = statuses.first().map_or_else(String::new, |status| {
        format!(" Head {}, settled up to {}.", thousands(status.head), thousands(status.horizon))
    });
    format!("{} processor{plural}: {}.{store}", statuses.len(), counts.join(", "))
}

/// The owner of a processor, and how many daemons stand by.
fn show_owner(status: &ProcessorStatus) -> String {
    let owner = status.owner.as_deref().unwrap_or("-");
    match status.standbys.len() {
        0 => owner.to_owned(),
        standbys => format!("{owner} (+{standbys})"),
    }
}

/// Seconds until a processor that is catching up has caught up, at its present rate; `None` while nothing moves.
pub(crate) fn seconds_left(status: &ProcessorStatus) -> Option<f64> {
    let catching_up = status.state == ProcessorState::CatchingUp && status.rate > 0.0;
    catching_up.then(|| status.lag_events as f64 / f64::from(status.rate))
}

#[cfg(test)]
mod tests {
    use super::super::advice::{Advice, SharedTrouble, Topic};
    use super::super::examples::live;
    use super::*;

    fn lines(text: &str) -> Vec<&str> {
        text.lines().collect()
    }

    #[test]
    fn processors_of_one_name_are_distinguished_and_shared_advice_is_shown_once() {
        let advice = Advice {
            topic: Topic::HorizonHeldBack,
            problem: "The settled horizon is held back.".into(),
            since: None,
            next_try_at: None,
            remedy: "End process 7.".into(),
            shared: None,
        };
        let old = ProcessorStatus { advice: vec![advice], ..live("notes") };
        let new = ProcessorStatus { version: 2, ..old.clone() };
        let text = render(&[old, new, live("other")], Utc::now(), None);
        assert!(text.contains("notes (version 2, partition 0)  projector"), "{text}");
        assert!(text.contains("\n other  "), "{text}");
        assert_eq!(text.matches("held back").count(), 1, "{text}");
    }

    /// Sixty processors at one event, each in a file of its own, and two that are well.
    fn in_trouble() -> Vec<ProcessorStatus> {
        let failing = |nth: i32| {
            let name = format!("projector_of_orders_{nth:02}");
            let shared = SharedTrouble {
                processor: name.clone(),
                predicate: "cannot handle event 6 (A): division by zero [22012].".into(),
                remedy: "`espctl retry --all` tries again now.".into(),
            };
            let advice = Advice {
                topic: Topic::Retrying,
                problem: format!(
                    "{name} cannot handle event 6 (A): division by zero [22012] at {name}.toml:8."
                ),
                since: None,
                next_try_at: None,
                remedy: format!("`espctl retry {name}` tries again now."),
                shared: Some(shared),
            };
            let state = ProcessorState::Retrying;
            ProcessorStatus { state, attempts: nth, advice: vec![advice], lag_events: 7, ..live(&name) }
        };
        [live("a"), live("z")].into_iter().chain((1..=60).map(failing)).collect()
    }

    #[test]
    fn what_many_processors_share_is_told_once_and_trouble_comes_first() {
        let text = render(&in_trouble(), Utc::now(), Some(80));
        let lines = lines(&text);
        assert!(lines.len() < 80, "{text}");
        assert!(lines[1].starts_with(" projector_of_orders_01") && lines[61].starts_with(" a "), "{text}");
        assert!(
            text.contains("60 processors cannot handle event 6 (A): division by zero [22012]."),
            "{text}"
        );
        assert!(text.contains("projector_of_orders_01, projector_of_orders_02, "), "{text}");
        assert_eq!(text.matches("tries again now").count(), 1, "{text}");
        assert!(lines.last().unwrap().starts_with("62 processors: 60 retrying, 2 live. Head 0,"), "{text}");
    }

    #[test]
    fn a_table_fits_into_eighty_columns_whatever_is_in_it() {
        let long = ProcessorStatus {
            state: ProcessorState::CatchingUp,
            position: 123_456_789.into(),
            head: 987_654_321.into(),
            lag_events: 864_197_532,
            lag_seconds: 90_000.0,
            rate: 22_740.0,
            dead_letters: 1_000,
            owner: Some("some-host-in-some-rack.example.com:1234567".into()),
            ..live("a_name_that_is_as_long_as_names_may_be_in_here_0")
        };
        let text = render(&[long, live("b")], Utc::now(), Some(80));
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("123,456,789") && text.contains("…") && text.contains("DEAD"), "{text}");
        let text = render(&in_trouble(), Utc::now(), Some(80));
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let text = render(&[live("b")], Utc::now(), None);
        assert!(text.lines().next().unwrap().contains("OWNER"), "{text}");
    }

    #[test]
    fn nothing_is_estimated_while_nothing_moves() {
        let behind = ProcessorStatus { lag_events: 100, rate: 10.0, ..live("notes") };
        let left = |state, rate| seconds_left(&ProcessorStatus { state, rate, ..behind.clone() });
        assert_eq!(left(ProcessorState::CatchingUp, 10.0), Some(10.0));
        assert_eq!(left(ProcessorState::CatchingUp, 0.0), None);
        assert_eq!(left(ProcessorState::Waiting, 10.0), None);
    }
}
