//! The statuses as a table, with advice below it.

use chrono::{DateTime, Utc};

use super::advice::{Advice, Topic};
use super::format::{format_duration, table, thousands};
use super::{ProcessorState, ProcessorStatus};

/// The table and, below it, what needs attention as of `now`. Advice that several processors share is told once.
pub(crate) fn render(statuses: &[ProcessorStatus], now: DateTime<Utc>) -> String {
    if statuses.is_empty() {
        return "no processors: none is declared, and none has run on this database".to_owned();
    }
    let header =
        ["NAME", "KIND", "STATE", "POSITION", "HEAD", "LAG", "AGE", "RATE/S", "LEFT", "DEAD", "OWNER"];
    let mut text =
        table(&header, statuses.iter().map(|status| row(status, statuses)).collect(), &[3, 4, 5, 6, 7, 8, 9]);
    for advice in advice_of_all(statuses) {
        text.push_str("\n\n");
        text.push_str(&show_advice(advice, now));
    }
    text
}

/// The advice of all processors, the most urgent first, each once.
fn advice_of_all(statuses: &[ProcessorStatus]) -> Vec<&Advice> {
    let mut all: Vec<&Advice> = Vec::new();
    for advice in statuses.iter().flat_map(|status| &status.advice) {
        if !all.contains(&advice) {
            all.push(advice);
        }
    }
    all.sort_by_key(|advice| advice.topic);
    all
}

fn show_advice(advice: &Advice, now: DateTime<Utc>) -> String {
    let since = advice.since.map(|since| {
        let age = format_duration((now - since).as_seconds_f64());
        match advice.topic {
            Topic::Failed => format!("Stopped {age} ago"),
            Topic::Paused => format!("Paused {age} ago"),
            Topic::WorkerDown => format!("Ended {age} ago"),
            Topic::Retrying => format!("Last attempt {age} ago"),
            Topic::Stopped | Topic::Standby => format!("Last sign of life {age} ago"),
            Topic::DeadLetters => format!("The oldest {age} ago"),
            Topic::Outage | Topic::HorizonHeldBack => format!("For {age}"),
        }
    });
    let next = advice.next_try_at.map(|at| {
        let what = if advice.topic == Topic::WorkerDown { "Next start" } else { "Next attempt" };
        format!("{what} in {}", format_duration((at - now).as_seconds_f64()))
    });
    let times: String = [since, next].into_iter().flatten().map(|time| format!("  {time}.")).collect();
    let times = if times.is_empty() { times } else { format!("\n{times}") };
    format!("{}{times}\n  {}", advice.problem, advice.remedy)
}

fn row(status: &ProcessorStatus, all: &[ProcessorStatus]) -> Vec<String> {
    let dash = || "-".to_owned();
    vec![
        status.shown_name(all),
        status.kind.clone(),
        status.state.as_str().to_owned(),
        thousands(status.position),
        thousands(status.head),
        thousands(status.lag_events),
        if status.lag_events == 0 { dash() } else { format_duration(status.lag_seconds) },
        if status.rate > 0.0 { thousands(status.rate as i64) } else { dash() },
        seconds_left(status).map_or_else(dash, format_duration),
        if status.dead_letters == 0 { dash() } else { thousands(status.dead_letters) },
        show_owner(status),
    ]
}

/// The owner of a processor, and how many daemons stand by.
fn show_owner(status: &ProcessorStatus) -> String {
    let owner = status.owner.as_deref().unwrap_or("-");
    match status.standbys.len() {
        0 => owner.to_owned(),
        standbys => format!("{owner} (+{standbys})"),
    }
}

/// Seconds until a processor that is catching up has caught up, at its present rate.
pub(crate) fn seconds_left(status: &ProcessorStatus) -> Option<f64> {
    let catching_up = status.state == ProcessorState::CatchingUp && status.rate > 0.0;
    catching_up.then(|| status.lag_events as f64 / f64::from(status.rate))
}

#[cfg(test)]
mod tests {
    use super::super::examples::live;
    use super::*;

    #[test]
    fn processors_of_one_name_are_distinguished_and_shared_advice_is_shown_once() {
        let advice = Advice {
            topic: Topic::HorizonHeldBack,
            problem: "The settled horizon is held back.".into(),
            since: None,
            next_try_at: None,
            remedy: "End process 7.".into(),
        };
        let old = ProcessorStatus { advice: vec![advice], ..live("notes") };
        let new = ProcessorStatus { version: 2, ..old.clone() };
        let text = render(&[old, new, live("other")], Utc::now());
        assert!(text.contains("notes (version 2, partition 0)  projector"), "{text}");
        assert!(text.contains("\n other  "), "{text}");
        assert_eq!(text.matches("held back").count(), 1, "{text}");
    }

    #[test]
    fn advice_is_shown_with_its_age_and_the_next_attempt() {
        let now = Utc::now();
        let advice = Advice {
            topic: Topic::Retrying,
            problem: "notes cannot handle event 6.".into(),
            since: Some(now - chrono::TimeDelta::seconds(200)),
            next_try_at: Some(now + chrono::TimeDelta::seconds(12)),
            remedy: "Fix the handler.".into(),
        };
        assert_eq!(
            show_advice(&advice, now),
            "notes cannot handle event 6.\n  Last attempt 3m 20s ago.  Next attempt in 12s.\n  Fix the handler."
        );
        let timeless = Advice { since: None, next_try_at: None, ..advice };
        assert_eq!(show_advice(&timeless, now), "notes cannot handle event 6.\n  Fix the handler.");
    }
}
