//! What went wrong while a batch was handled, and whether the handler is to blame.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::event::Position;
use crate::postgres::sqlstate::{describe, shorten};
pub use crate::postgres::sqlstate::{is_infrastructure, is_infrastructure_error};

/// Why a processor could not handle an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The event that could not be handled; `None` where no single event can be named.
    pub event_id: Option<Position>,
    /// Its identity.
    pub event_uuid: Option<Uuid>,
    /// Its type.
    pub event_type: Option<String>,
    /// Its aggregate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregate_id: Option<Uuid>,
    /// The database's error code, where the database raised it.
    pub sqlstate: Option<String>,
    /// What happened, in one sentence.
    pub message: String,
    /// The database's further words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The database's advice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// File and line of the statement that failed, as far as known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// When it last happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<DateTime<Utc>>,
}

impl Failure {
    /// What the database did not like, whatever it was about.
    pub fn of_database(error: &sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|answer| answer.code());
        Self { sqlstate: code.map(|code| code.into_owned()), ..Self::of_processor(describe(error)) }
    }

    /// The same, at this event.
    #[must_use]
    pub fn at(self, id: Position, uuid: Uuid, event_type: &str, aggregate_id: Uuid) -> Self {
        Self {
            event_id: Some(id),
            event_uuid: Some(uuid),
            event_type: Some(event_type.to_owned()),
            aggregate_id: Some(aggregate_id),
            ..self
        }
    }

    /// A failure that no event can be blamed for.
    pub fn of_processor(message: impl Into<String>) -> Self {
        Self {
            event_id: None,
            event_uuid: None,
            event_type: None,
            aggregate_id: None,
            sqlstate: None,
            message: shorten(&message.into()),
            detail: None,
            hint: None,
            place: None,
            at: None,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(id) = self.event_id {
            write!(f, "event {id} ({}): ", self.event_type.as_deref().unwrap_or("?"))?;
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
