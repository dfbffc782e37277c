//! The body of an accepted answer: the events that the receiver wants emitted, and the emissions it cancels.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::event::Version;
use crate::handlers::batch::Action;
use crate::processing::emission::Emission;

/// The keys of an answer that espd reads. A receiver may add others.
#[derive(Debug, Default, Deserialize)]
pub(super) struct AnswerBody {
    #[serde(default)]
    emit: Vec<EventToEmit>,
    #[serde(default)]
    cancel: Vec<String>,
}

/// An event that the receiver wants emitted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an event to emit")]
struct EventToEmit {
    #[serde(rename = "type")]
    event_type: String,
    aggregate_id: Uuid,
    body: Box<RawValue>,
    expected_version: Option<Version>,
    at: Option<DateTime<Utc>>,
    /// Seconds, counted from the arrival of the answer.
    after: Option<f64>,
    key: Option<String>,
}

impl AnswerBody {
    /// The actions that the receiver wants. Delays count from `now`.
    pub(super) fn into_actions(self, now: DateTime<Utc>) -> Result<Vec<Action>, String> {
        // Cancelling comes first: it is meant for earlier emissions, not for those of this answer.
        let cancelled = self.cancel.into_iter().map(|key| Ok(Action::Cancel { key }));
        let emitted = self.emit.into_iter().map(|event| event.into_emission(now).map(Action::Emit));
        cancelled.chain(emitted).collect()
    }
}

impl EventToEmit {
    fn into_emission(self, now: DateTime<Utc>) -> Result<Emission, String> {
        let due_at = self.due_at(now)?;
        let Self { event_type, aggregate_id, body, expected_version, key, .. } = self;
        Ok(Emission { event_type, aggregate_id: aggregate_id.into(), body, expected_version, due_at, key })
    }

    fn due_at(&self, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, String> {
        let event_type = &self.event_type;
        match (self.at, self.after) {
            (Some(_), Some(_)) => Err(format!("{event_type} has `at` and `after`: one of them")),
            (at, None) => Ok(at),
            (None, Some(seconds)) => match in_seconds(now, seconds) {
                Some(time) => Ok(Some(time)),
                None => Err(format!("{event_type} cannot be emitted after {seconds} seconds")),
            },
        }
    }
}

fn in_seconds(now: DateTime<Utc>, seconds: f64) -> Option<DateTime<Utc>> {
    let delay = Duration::try_from_secs_f64(seconds).ok()?;
    now.checked_add_signed(TimeDelta::from_std(delay).ok()?)
}
