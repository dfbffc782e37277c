//! What is wrong with pending emissions.

use chrono::{DateTime, TimeDelta, Utc};

use super::{Advice, Topic, count};
use crate::operations::status::format::thousands;
use crate::operations::status::{ProcessorState, ProcessorStatus};

/// How long an emission may be due before somebody has to look. The relay needs milliseconds.
const OVERDUE_SECONDS: i64 = 30;

/// The emissions that the event store has refused.
pub(super) fn of_refused(status: &ProcessorStatus) -> Option<Advice> {
    let (name, refused) = (&status.name, status.refused_emissions);
    if refused == 0 {
        return None;
    }
    let last =
        status.emission_error.as_ref().map_or_else(String::new, |error| format!(", lately because: {error}"));
    let problem = format!(
        "The event store refuses {} of {name}{last}. The others are moved.",
        count(refused, "emission")
    );
    let remedy = format!(
        "`espctl emissions list {name} --refused` shows them. They are tried again by themselves; `espctl emissions retry \
         {name} --all` does so now, `espctl emissions cancel {name} ID` removes one for good."
    );
    Some(Advice::new(Topic::RefusedEmissions, problem, None, remedy))
}

/// The emissions that are due and stay where they are.
pub(super) fn of_overdue(status: &ProcessorStatus, now: DateTime<Utc>) -> Option<Advice> {
    let since =
        status.emissions_overdue_since.filter(|since| now - *since > TimeDelta::seconds(OVERDUE_SECONDS))?;
    if status.state == ProcessorState::Paused {
        return None;
    }
    if let Some(waiting) = of_waiting_for_reactor(status, since) {
        return Some(waiting);
    }
    let name = &status.name;
    let why = match &status.emission_error {
        Some(error) if status.refused_emissions == 0 => format!(" They wait: {error}."),
        _ => String::new(),
    };
    let problem = format!("Emissions of {name} are due and not in the event store.{why} None is lost.");
    let remedy = format!(
        "Let a daemon run whose configuration declares {name} with `emits`, and see its log; `espctl emissions list {name}` \
         shows them."
    );
    Some(Advice::new(Topic::OverdueEmissions, problem, Some(since), remedy))
}

/// Those of a reactor that is behind and at work: what has a key waits until it has handled what was in the store when its daemon began.
fn of_waiting_for_reactor(status: &ProcessorStatus, since: DateTime<Utc>) -> Option<Advice> {
    let is_behind = status.position < status.horizon && status.owner.is_some();
    let at_work = matches!(
        status.state,
        ProcessorState::CatchingUp
            | ProcessorState::Running
            | ProcessorState::Retrying
            | ProcessorState::Waiting
    );
    if !is_behind || !at_work || status.emission_error.is_some() {
        return None;
    }
    let (name, position, horizon) = (&status.name, thousands(status.position), thousands(status.horizon));
    let problem = format!(
        "Emissions of {name} are due and held: what has a key waits until {name} has handled the events that were in the store when \
         its daemon began, because one of them may cancel it. {name} is at {position} of {horizon}. None is lost."
    );
    let remedy = format!(
        "They go by themselves once {name} has caught up; `espctl emissions list {name}` shows them."
    );
    Some(Advice::new(Topic::OverdueEmissions, problem, Some(since), remedy))
}

/// What a pause means for the emissions of a reactor, as a sentence behind others; empty if there are none.
pub(super) fn held(status: &ProcessorStatus) -> String {
    match status.pending_emissions {
        0 => String::new(),
        1 => " Its pending emission is held until it is resumed.".to_owned(),
        _ => format!(
            " Its {} are held until it is resumed.",
            count(status.pending_emissions, "pending emission")
        ),
    }
}

/// What it means for the emissions of a reactor that it has stopped, as a sentence behind others; empty if there are none.
pub(super) fn held_by_stop(status: &ProcessorStatus) -> &'static str {
    match status.pending_emissions {
        0 => "",
        _ => " Those of its pending emissions that have a key are held until then.",
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::examples::live;
    use super::*;

    #[test]
    fn refused_overdue_and_held_emissions_are_told() {
        let now = Utc::now();
        let status = ProcessorStatus {
            pending_emissions: 3,
            refused_emissions: 1,
            emission_error: Some("no such customer".into()),
            emissions_overdue_since: Some(now - TimeDelta::seconds(31)),
            ..live("reminders")
        };
        let refused = of_refused(&status).unwrap().problem;
        assert!(
            refused.contains("refuses 1 emission of reminders, lately because: no such customer"),
            "{refused}"
        );
        assert!(
            of_overdue(&status, now).is_some() && of_overdue(&status, now - TimeDelta::seconds(5)).is_none()
        );
        assert_eq!(held(&status), " Its 3 pending emissions are held until it is resumed.");
        let paused = ProcessorStatus { state: ProcessorState::Paused, ..status };
        assert!(of_overdue(&paused, now).is_none());
        let behind = ProcessorStatus {
            state: ProcessorState::CatchingUp,
            owner: Some("web-1:4711".into()),
            position: 7.into(),
            horizon: 9.into(),
            emission_error: None,
            refused_emissions: 0,
            emissions_overdue_since: Some(now - TimeDelta::seconds(31)),
            ..live("reminders")
        };
        let held_back = of_overdue(&behind, now).unwrap().problem;
        assert!(held_back.contains("due and held") && held_back.contains("is at 7 of 9"), "{held_back}");
        let well = live("reminders");
        assert!(of_refused(&well).is_none() && of_overdue(&well, now).is_none() && held(&well).is_empty());
    }
}
