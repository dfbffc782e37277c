//! Telling the advice of all processors: what is the same is told once.

use chrono::{DateTime, Utc};

use super::ProcessorStatus;
use super::advice::{Advice, SharedTrouble, Topic};
use super::format::format_duration;

/// So many processors in the same trouble are told of together.
const TOGETHER_MIN: usize = 3;

/// So many of their names are told.
const NAMES_MAX: usize = 10;

/// Advice as it is told: of one processor, or of several that are in the same trouble.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(super) problem: String,
    /// Which processors, where they are several.
    pub(super) processors: Option<String>,
    /// Since when, and when espd tries again.
    pub(super) times: Option<String>,
    pub(super) remedy: String,
}

/// The advice of all processors, the most urgent first, each once.
pub(crate) fn tell(statuses: &[ProcessorStatus], now: DateTime<Utc>) -> Vec<Told> {
    groups(statuses).iter().flat_map(|group| tell_group(group, now)).collect()
}

/// Equal advice, and advice about the same trouble of several processors, by urgency.
pub(crate) fn groups(statuses: &[ProcessorStatus]) -> Vec<Vec<&Advice>> {
    let mut groups: Vec<Vec<&Advice>> = Vec::new();
    for advice in statuses.iter().flat_map(|status| &status.advice) {
        match groups.iter_mut().find(|group| is_same(group[0], advice)) {
            Some(group) if group.contains(&advice) => {}
            Some(group) => group.push(advice),
            None => groups.push(vec![advice]),
        }
    }
    groups.sort_by_key(|group| group[0].topic);
    groups
}

/// What is wrong with a group, and what to do about it: once for all where they are many, else of each.
pub(crate) fn describe(group: &[&Advice]) -> Vec<(String, String)> {
    match &group[0].shared {
        Some(SharedTrouble { predicate, remedy, .. }) if group.len() >= TOGETHER_MIN => {
            vec![(format!("{} processors {predicate}", group.len()), remedy.clone())]
        }
        _ => group.iter().map(|advice| (advice.problem.clone(), advice.remedy.clone())).collect(),
    }
}

/// Whether two pieces of advice tell of the same trouble.
fn is_same(one: &Advice, other: &Advice) -> bool {
    match (&one.shared, &other.shared) {
        (Some(a), Some(b)) => one.topic == other.topic && a.predicate == b.predicate && a.remedy == b.remedy,
        _ => one == other,
    }
}

fn tell_group(group: &[&Advice], now: DateTime<Utc>) -> Vec<Told> {
    let described = describe(group);
    let together = described.len() < group.len();
    let told = |(index, (problem, remedy)): (usize, (String, String))| {
        let (processors, times) = if together {
            (Some(names(group)), times(group, now))
        } else {
            (None, times(&group[index..=index], now))
        };
        Told { problem, processors, times, remedy }
    };
    described.into_iter().enumerate().map(told).collect()
}

fn names(group: &[&Advice]) -> String {
    let names: Vec<&str> =
        group.iter().filter_map(|advice| Some(advice.shared.as_ref()?.processor.as_str())).collect();
    let shown = names[..names.len().min(NAMES_MAX)].join(", ");
    match names.len().saturating_sub(NAMES_MAX) {
        0 => format!("{shown}."),
        more => format!("{shown}, and {more} more."),
    }
}

/// Since when, as of the latest of the group, and when the first of them is tried again.
fn times(group: &[&Advice], now: DateTime<Utc>) -> Option<String> {
    let topic = group[0].topic;
    let since = group.iter().filter_map(|advice| advice.since).max().map(|since| {
        let age = format_duration((now - since).as_seconds_f64());
        match topic {
            Topic::Failed | Topic::Diverged => format!("Stopped {age} ago"),
            Topic::Paused => format!("Paused {age} ago"),
            Topic::HandlersChanged | Topic::ReloadRefused | Topic::RowsDiffer => format!("{age} ago"),
            Topic::WorkerDown => format!("Ended {age} ago"),
            Topic::Retrying => format!("Last attempt {age} ago"),
            Topic::Stopped | Topic::Standby => format!("Last sign of life {age} ago"),
            Topic::DeadLetters => format!("The oldest {age} ago"),
            Topic::RefusedEmissions | Topic::OverdueEmissions => format!("Due {age} ago"),
            Topic::Outage
            | Topic::Locked
            | Topic::StandingStill
            | Topic::HorizonHeldBack
            | Topic::RebuildWaits
            | Topic::NotVerified
            | Topic::OtherVersion => {
                format!("For {age}")
            }
        }
    });
    let next = group.iter().filter_map(|advice| advice.next_try_at).min().map(|at| {
        let what = if topic == Topic::WorkerDown { "Next start" } else { "Next attempt" };
        // A time that has passed is one that has not been written down anew.
        match (at - now).as_seconds_f64() {
            seconds if seconds < 0.1 => format!("{what} now"),
            seconds => format!("{what} in {}", format_duration(seconds)),
        }
    });
    let times: Vec<String> = [since, next].into_iter().flatten().map(|time| format!("{time}.")).collect();
    (!times.is_empty()).then(|| times.join("  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retrying(now: DateTime<Utc>) -> Advice {
        Advice {
            topic: Topic::Retrying,
            problem: "notes cannot handle event 6.".into(),
            since: Some(now - chrono::TimeDelta::seconds(200)),
            next_try_at: Some(now + chrono::TimeDelta::seconds(12)),
            remedy: "Fix the handler.".into(),
            shared: None,
        }
    }

    #[test]
    fn advice_is_told_with_its_age_and_the_next_attempt() {
        let now = Utc::now();
        let advice = retrying(now);
        assert_eq!(times(&[&advice], now).as_deref(), Some("Last attempt 3m 20s ago.  Next attempt in 12s."));
        let past = Advice { next_try_at: Some(now), since: None, ..advice.clone() };
        assert_eq!(times(&[&past], now).as_deref(), Some("Next attempt now."));
        let timeless = Advice { since: None, next_try_at: None, ..advice };
        assert_eq!(tell_group(&[&timeless], now)[0].times, None);
    }
}
