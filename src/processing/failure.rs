//! Why an event, or a processor as a whole, could not be handled.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::event::{AggregateId, Position};
use crate::postgres::row::from_row;
use crate::postgres::sqlstate::{describe, is_of_session, shorten};
pub use crate::postgres::sqlstate::{is_infrastructure, is_infrastructure_error};
use crate::process::hook::FailureFacts;
use crate::process::report::Condition;

/// What is said of an event that is noted before it is handed over, and stays so if nobody is left to say more.
const NOT_RETURNED: &str = "the handler has not returned from this event: its worker ended or was ended meanwhile, or it is at work now";

/// Why a processor could not handle an event. In JSON the fields of `event` stand beside the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "FlatFailure", into = "FlatFailure")]
pub struct Failure {
    /// The event that could not be handled; `None` where no single event can be named.
    pub event: Option<FailedEvent>,
    /// The instance of a workflow that the event belongs to: its later events wait behind this one, if it is parked.
    pub instance: Option<String>,
    /// The database's error code, where the database raised it.
    pub sqlstate: Option<String>,
    /// What happened, in one sentence.
    pub message: String,
    /// The database's further words.
    pub detail: Option<String>,
    /// The database's advice.
    pub hint: Option<String>,
    /// File and line of the statement that failed, as far as known.
    pub place: Option<String>,
    /// The last line that a program wrote to its standard error before.
    pub stderr: Option<String>,
    /// When it last happened.
    pub at: Option<DateTime<Utc>>,
    /// Whether the event could not even be read, so that no handler has seen it: an upcast has failed, or its JSON is one that `jsonb`
    /// refuses.
    pub is_unreadable: bool,
}

/// The event that a failure is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedEvent {
    /// The event's position.
    pub id: Position,
    /// The event's identity.
    pub uuid: Uuid,
    /// The event's type, as the processor saw it.
    pub event_type: String,
    /// The aggregate that the event belongs to.
    pub aggregate_id: AggregateId,
}

from_row!(FailedEvent { id, uuid, event_type, aggregate_id });

impl Failure {
    /// What the database did not like, whatever event it was about.
    pub fn of_database(error: &sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|answer| answer.code());
        Self { sqlstate: code.map(|code| code.into_owned()), ..Self::of_processor(describe(error)) }
    }

    /// That nobody has come back from an event that was handed to a handler.
    pub(crate) fn not_returned() -> Self {
        Self::of_processor(NOT_RETURNED)
    }

    /// Whether it is [`Self::not_returned`].
    pub(crate) fn is_not_returned(&self) -> bool {
        self.message == NOT_RETURNED
    }

    /// A failure that no event is known to have caused. A long message is cut.
    pub fn of_processor(message: impl Into<String>) -> Self {
        Self {
            event: None,
            instance: None,
            sqlstate: None,
            message: shorten(&message.into()),
            detail: None,
            hint: None,
            place: None,
            stderr: None,
            at: None,
            is_unreadable: false,
        }
    }

    /// The same failure, as one of reading the event.
    #[must_use]
    pub(crate) fn of_reading(self) -> Self {
        Self { is_unreadable: true, ..self }
    }

    /// The same failure, attributed to this event.
    #[must_use]
    pub fn attribute(self, event: FailedEvent) -> Self {
        Self { event: Some(event), ..self }
    }

    /// What hooks are told: the failure, what the processor does now (`None`: it has set the event aside), how often it was tried
    /// and when it is tried again (`None`: not before an operator acts).
    pub(crate) fn facts(
        &self,
        condition: Option<Condition>,
        attempt: u32,
        retry_in: Option<Duration>,
    ) -> FailureFacts {
        let next_try_at =
            retry_in.and_then(|delay| Utc::now().checked_add_signed(TimeDelta::from_std(delay).ok()?));
        let event = self.event.as_ref();
        FailureFacts {
            condition,
            error: self.message.clone(),
            sqlstate: self.sqlstate.clone(),
            place: self.place.clone(),
            stderr: self.stderr.clone(),
            event_id: event.map(|event| event.id.get()),
            event_uuid: event.map(|event| event.uuid),
            event_type: event.map(|event| event.event_type.clone()),
            aggregate_id: event.map(|event| event.aggregate_id.to_string()),
            attempt,
            next_try_at,
            resumed: false,
        }
    }

    /// Whether the session, or a plan in it, may be to blame.
    pub(crate) fn is_of_session(&self) -> bool {
        self.sqlstate.as_deref().is_some_and(is_of_session)
    }

    /// The position of the event that could not be handled, if it is known.
    pub fn event_id(&self) -> Option<Position> {
        self.event.as_ref().map(|event| event.id)
    }

    /// The type of the event that could not be handled, if it is known.
    pub fn event_type(&self) -> Option<&str> {
        self.event.as_ref().map(|event| event.event_type.as_str())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(event) = &self.event {
            let what = if self.is_unreadable { ", which cannot be read" } else { "" };
            write!(f, "event {} ({}){what}: ", event.id, event.event_type)?;
        }
        f.write_str(&self.message)?;
        if let Some(sqlstate) = &self.sqlstate {
            write!(f, " [{sqlstate}]")?;
        }
        if let Some(place) = &self.place {
            write!(f, " at {place}")?;
        }
        Ok(())
    }
}

/// A failure as it is stored and printed. The field names are an interface: the generated functions write them, and
/// `espctl status --json` prints them.
#[derive(Serialize, Deserialize)]
struct FlatFailure {
    event_id: Option<Position>,
    event_uuid: Option<Uuid>,
    event_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    aggregate_id: Option<AggregateId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    sqlstate: Option<String>,
    message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    place: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stderr: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not", rename = "unreadable")]
    is_unreadable: bool,
}

impl From<FlatFailure> for Failure {
    fn from(flat: FlatFailure) -> Self {
        let FlatFailure { event_id, event_uuid, event_type, aggregate_id, .. } = flat;
        // Half an identity is none: the event could not be set aside.
        let event = match (event_id, event_uuid, event_type, aggregate_id) {
            (Some(id), Some(uuid), Some(event_type), Some(aggregate_id)) => {
                Some(FailedEvent { id, uuid, event_type, aggregate_id })
            }
            _ => None,
        };
        let FlatFailure {
            instance, sqlstate, message, detail, hint, place, stderr, at, is_unreadable, ..
        } = flat;
        Self { event, instance, sqlstate, message, detail, hint, place, stderr, at, is_unreadable }
    }
}

impl From<Failure> for FlatFailure {
    fn from(failure: Failure) -> Self {
        let Failure { event, instance, sqlstate, message, detail, hint, place, stderr, at, is_unreadable } =
            failure;
        let (event_id, event_uuid, event_type, aggregate_id) = match event {
            Some(event) => {
                (Some(event.id), Some(event.uuid), Some(event.event_type), Some(event.aggregate_id))
            }
            None => (None, None, None, None),
        };
        Self {
            event_id,
            event_uuid,
            event_type,
            aggregate_id,
            instance,
            sqlstate,
            message,
            detail,
            hint,
            place,
            stderr,
            at,
            is_unreadable,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_has_the_event_beside_the_rest() {
        let event = FailedEvent {
            id: 7.into(),
            uuid: Uuid::nil(),
            event_type: "A".to_owned(),
            aggregate_id: Uuid::nil().into(),
        };
        let failure = Failure::of_processor("no").attribute(event);
        let json = serde_json::to_value(&failure).unwrap();
        let nil = Uuid::nil();
        assert_eq!(
            json,
            json!({ "event_id": 7, "event_uuid": nil, "event_type": "A", "aggregate_id": nil, "sqlstate": null,
                    "message": "no" })
        );
        assert_eq!(serde_json::from_value::<Failure>(json).unwrap(), failure);
    }

    #[test]
    fn json_of_no_event_says_so() {
        let json = serde_json::to_value(Failure::of_processor("no")).unwrap();
        assert_eq!((&json["event_id"], json.get("aggregate_id")), (&json!(null), None));
        assert!(json.as_object().unwrap().contains_key("event_id"));
    }

    #[test]
    fn an_event_of_which_only_half_is_known_is_none() {
        let json = json!({ "event_id": 7, "event_uuid": null, "event_type": "A", "sqlstate": null, "message": "no" });
        assert_eq!(serde_json::from_value::<Failure>(json).unwrap().event, None);
    }
}
