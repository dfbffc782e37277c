//! What hooks are told about processors that fail.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::process::condition::Condition;

/// The most bytes of JSON that a failure or a divergence has: with the rest of a report it has to fit into a pipe in one piece.
const BYTES_MAX: usize = 3_500;

/// One failure of a processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureFacts {
    /// What the processor does now: `Retrying`, `Waiting`, `Failed`, `Diverged`; `None` where it has set the event aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<Condition>,
    /// What happened, in one sentence: the error, or how a program has ended. A long one is cut.
    pub error: String,
    /// The database's error code, where the database raised it.
    pub sqlstate: Option<String>,
    /// File and line of the statement that failed, as far as known.
    pub place: Option<String>,
    /// The last line that a program wrote to its standard error before.
    pub stderr: Option<String>,
    /// The id of the event that could not be handled; `None` where no single event can be named.
    pub event_id: Option<i64>,
    /// The uuid of that event.
    pub event_uuid: Option<Uuid>,
    /// The type of that event, as the processor saw it.
    pub event_type: Option<String>,
    /// The aggregate that the event belongs to.
    pub aggregate_id: Option<String>,
    /// How often it was tried; 0 where trying again would not help.
    pub attempt: u32,
    /// When it is tried again, by the clock of this host; `None`: not before an operator acts.
    pub next_try_at: Option<DateTime<Utc>>,
    /// Whether nothing has happened now: a worker has started and found the failure in the tracker.
    pub resumed: bool,
}

/// A failure of a processor, as hooks are told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProcessorFailure {
    /// The worker that the processor lives in.
    pub worker: String,
    /// The processor's name.
    pub processor: String,
    /// What has failed.
    #[serde(flatten)]
    pub failure: FailureFacts,
    /// How many other failures were left out since the last time, because they came too fast.
    pub left_out: u64,
}

/// Events that a processor has set aside, as hooks are told of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SetAsideEvents {
    /// The worker that the processor lives in.
    pub worker: String,
    /// The processor's name.
    pub processor: String,
    /// How many events since the last time.
    pub events: u64,
    /// The id of the last of these events.
    pub last_event_id: i64,
    /// Why the last of them could not be handled.
    #[serde(flatten)]
    pub failure: Option<FailureFacts>,
}

/// How an event store differs from the one that a processor has followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DivergenceFacts {
    /// What was found, as `espctl status --json` names it: `event_gone`, `beyond_head`.
    pub kind: String,
    /// What was found, in words.
    pub error: String,
    /// What an operator can do.
    pub remedy: String,
    /// The processor's position.
    pub position: i64,
    /// The last event that the processor has read; `None`: not known.
    pub event_id: Option<i64>,
    /// The uuid of that event.
    pub event_uuid: Option<Uuid>,
    /// The last event that is known to be in the store as it was read; 0 if none is known.
    pub last_common: i64,
    /// The last id of the store.
    pub head: i64,
}

/// A divergence of a processor, as hooks are told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoreDivergence {
    /// The worker that the processor lives in.
    pub worker: String,
    /// The processor's name.
    pub processor: String,
    /// How the store differs.
    #[serde(flatten)]
    pub divergence: DivergenceFacts,
}

impl FailureFacts {
    /// Whether this is the `last` failure again: nothing is different but that it was tried once more.
    pub(crate) fn repeats(&self, last: &Self) -> bool {
        let what = |facts: &Self| (facts.condition, facts.event_id, facts.sqlstate.clone());
        let is_same = what(self) == what(last) && self.error == last.error;
        is_same && (self.resumed || self.attempt > last.attempt)
    }

    /// The same failure, with texts so short that it fits into a report.
    pub(crate) fn bounded(mut self) -> Self {
        while bytes(&self) > BYTES_MAX {
            let optional = [&mut self.stderr, &mut self.place, &mut self.aggregate_id, &mut self.event_type];
            let texts = optional.into_iter().flatten().chain([&mut self.error]);
            halve_longest(texts);
        }
        self
    }
}

impl DivergenceFacts {
    /// The same divergence, with texts so short that it fits into a report.
    pub(crate) fn bounded(mut self) -> Self {
        while bytes(&self) > BYTES_MAX {
            halve_longest([&mut self.error, &mut self.remedy].into_iter());
        }
        self
    }
}

fn bytes(facts: &impl Serialize) -> usize {
    serde_json::to_string(facts).map_or(0, |json| json.len())
}

fn halve_longest<'t>(texts: impl Iterator<Item = &'t mut String>) {
    let Some(longest) = texts.max_by_key(|text| text.len()) else { return };
    let kept = longest.chars().count() / 2;
    *longest = longest.chars().take(kept).chain(['…']).collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(event_id: i64, attempt: u32) -> FailureFacts {
        FailureFacts {
            condition: Some(Condition::Retrying),
            error: "division by zero".into(),
            sqlstate: Some("22012".into()),
            place: None,
            stderr: None,
            event_id: Some(event_id),
            event_uuid: None,
            event_type: Some("A".into()),
            aggregate_id: None,
            attempt,
            next_try_at: None,
            resumed: false,
        }
    }

    #[test]
    fn only_one_more_attempt_with_the_same_outcome_is_a_repetition() {
        let last = failure(7, 2);
        let resumed = FailureFacts { resumed: true, ..failure(7, 2) };
        let cases = [
            (failure(7, 3), true),
            (resumed, true),
            // An operator has had it tried from the beginning.
            (failure(7, 1), false),
            (failure(8, 3), false),
            (FailureFacts { error: "no".into(), ..failure(7, 3) }, false),
            (FailureFacts { sqlstate: None, ..failure(7, 3) }, false),
            (FailureFacts { condition: Some(Condition::Failed), ..failure(7, 3) }, false),
        ];
        for (next, expected) in cases {
            assert_eq!(next.repeats(&last), expected, "{next:?}");
        }
    }

    #[test]
    fn whatever_the_texts_are_a_failure_fits_into_a_report() {
        for text in ["\u{1}".repeat(9_000), "é".repeat(9_000), "x".repeat(100_000)] {
            let long = FailureFacts {
                error: text.clone(),
                event_type: Some(text.clone()),
                stderr: Some(text),
                ..failure(7, 1)
            };
            let bounded = long.bounded();
            assert!(bytes(&bounded) <= BYTES_MAX && bounded.error.ends_with('…'), "{bounded:?}");
            assert_eq!((bounded.event_id, bounded.attempt), (Some(7), 1));
        }
        assert_eq!(failure(7, 1).bounded(), failure(7, 1));
    }
}
