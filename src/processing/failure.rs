//! What went wrong while a batch was handled, and whether the handler is to blame.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::event::Position;

/// SQLSTATEs (`like` patterns) that say something about the server or the moment, never about an event:
/// connections, serialization and deadlock, read-only mode, resources such as memory, disk and
/// connections, locks, shutdown and cancellation, system errors.
///
/// They are retried for ever and never count as an attempt. The list is compiled into the projector
/// functions as well, so that both sides judge alike.
pub const INFRASTRUCTURE_SQLSTATES: [&str; 8] =
    ["08%", "25006", "25P03", "40%", "53%", "55P03", "57%", "58%"];

/// Characters of each text of an error that are kept: it may quote a body of megabytes.
pub const TEXT_MAX: usize = 2_000;

/// Whether an error with this SQLSTATE is infrastructure's, not the handler's.
pub fn is_infrastructure(sqlstate: &str) -> bool {
    INFRASTRUCTURE_SQLSTATES.iter().any(|pattern| match pattern.strip_suffix('%') {
        Some(class) => sqlstate.starts_with(class),
        None => sqlstate == *pattern,
    })
}

/// Whether this error leaves the handler innocent; anything that is not a database's answer does.
pub fn is_infrastructure_error(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(answer) => answer.code().is_some_and(|code| is_infrastructure(&code)),
        _ => true,
    }
}

/// What went wrong, without what only the database's developers need: where it answered, its own words.
pub(crate) fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(answer) => answer.message().to_owned(),
        other => other.to_string(),
    }
}

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
        let message = describe(error).chars().take(TEXT_MAX).collect::<String>();
        Self { sqlstate: code.map(|code| code.into_owned()), ..Self::of_processor(message) }
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
            message: message.into(),
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

#[cfg(test)]
mod tests {
    use super::is_infrastructure;

    #[test]
    fn infrastructure_is_told_from_handlers() {
        for state in
            ["08006", "40001", "40P01", "25006", "53100", "53300", "55P03", "57P01", "57014", "58030"]
        {
            assert!(is_infrastructure(state), "{state}");
        }
        for state in
            ["22P02", "23505", "42P01", "P0001", "2D000", "XX000", "54000", "54001", "25001", "55006"]
        {
            assert!(!is_infrastructure(state), "{state}");
        }
    }
}
