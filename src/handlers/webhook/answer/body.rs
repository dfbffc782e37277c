//! The body of an accepted answer: the events that the receiver wants emitted, and the emissions it cancels.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::event::Version;
use crate::handlers::batch::Action;
use crate::processing::emission::{Due, Emission};

/// The longest delay of an emission: a hundred years, as for programs.
const AFTER_MAX: Duration = Duration::from_secs(100 * 366 * 86_400);

/// The keys of an answer that espd reads. A receiver may add others.
#[derive(Debug, Default, Deserialize)]
pub(super) struct AnswerBody {
    emit: Option<Vec<EventToEmit>>,
    cancel: Option<Vec<String>>,
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
    /// Seconds, counted from when the answer is stored.
    after: Option<f64>,
    key: Option<String>,
    metadata: Option<Box<RawValue>>,
}

/// What a receiver wants, but by another name.
pub(super) fn find_mistyped(body: &[u8]) -> Option<String> {
    let members: BTreeMap<String, &RawValue> = serde_json::from_slice(body).ok()?;
    let lists = members.into_iter().filter(|(_, value)| value.get().starts_with(['[', '{']));
    let mistyped = lists.filter_map(|(name, _)| nearest(&name).map(|known| (name, known)));
    mistyped.map(|(name, known)| format!("{name:?} means nothing, {known:?} does")).next()
}

/// The key that was probably meant, by a list or an object under another one.
fn nearest(name: &str) -> Option<&'static str> {
    let is_near = |(known, most): &(&str, usize)| {
        name != *known && strsim::osa_distance(&name.to_lowercase(), known) <= *most
    };
    [("emit", 1), ("cancel", 2)].into_iter().find(is_near).map(|(known, _)| known)
}

impl AnswerBody {
    /// The actions that the receiver wants.
    pub(super) fn into_actions(self) -> Result<Vec<Action>, String> {
        // Cancelling comes first: it is meant for earlier emissions, not for those of this answer.
        let cancelled = self.cancel.into_iter().flatten().map(|key| Ok(Action::Cancel { key }));
        let emitted = self.emit.into_iter().flatten().map(|event| event.into_emission().map(Action::Emit));
        cancelled.chain(emitted).collect()
    }
}

impl EventToEmit {
    fn into_emission(self) -> Result<Emission, String> {
        let due = self.due()?;
        if self.key.is_some() && due == Due::AtOnce {
            let event_type = &self.event_type;
            return Err(format!(
                "{event_type} has `key` without `at` or `after`: it would be emitted at once"
            ));
        }
        let Self { event_type, aggregate_id, body, expected_version, key, metadata, .. } = self;
        let aggregate_id = aggregate_id.into();
        Ok(Emission { event_type, aggregate_id, body, expected_version, due, key, metadata })
    }

    fn due(&self) -> Result<Due, String> {
        let event_type = &self.event_type;
        match (self.at, self.after) {
            (Some(_), Some(_)) => Err(format!("{event_type} has `at` and `after`: one of them")),
            (Some(time), None) => Ok(Due::At(time)),
            (None, None) => Ok(Due::AtOnce),
            (None, Some(seconds)) => match Duration::try_from_secs_f64(seconds) {
                Ok(delay) if delay <= AFTER_MAX => Ok(Due::After(delay)),
                _ => Err(format!("{event_type} cannot be emitted after {seconds} seconds")),
            },
        }
    }
}
