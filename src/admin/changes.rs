//! What operators change through the endpoint.

use std::time::Duration;

use chrono::{DateTime, Utc};
use hyper::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::answer::ApiError;
use super::route::{DeadLetterAction, ProcessorAction};
use super::{body, dead_letters};
use crate::event::Position;
use crate::operations::operator::{LockPatience, Operator};
use crate::processing::dead_letters::Selection;
use crate::processing::emission::{EmissionChange, EmissionSelection};
use crate::processing::processor::OthersObjects;
use crate::processing::tracker::ReplayEffects;

/// How long a reset waits for those who hold locks on the tables.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// A change to a processor, to its dead letters or to its emissions.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    Pause,
    Resume(ResumeBody),
    Retry,
    Reset(ResetBody),
    RetryDeadLetters(Selection),
    DiscardDeadLetters(Selection),
    Emissions(EmissionChange, EmissionSelection),
    /// Sets an event aside, the one that fails if none is named; whether later ones of its aggregate wait.
    SetAside(Option<Position>, bool),
}

/// The body of a request that has nothing to say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoFields {}

/// The body of a request to set an event aside.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetAsideBody {
    event: Option<Position>,
}

/// The body of a reset. Without `to` and `at` the processor starts over.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResetBody {
    to: Option<Position>,
    at: Option<DateTime<Utc>>,
    #[serde(default)]
    repeat_effects: bool,
    /// Also drops what others have made on the tables and what cannot be carried over.
    #[serde(default)]
    cascade: bool,
}

/// The body of a resumption.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResumeBody {
    #[serde(default)]
    accept_history: bool,
}

impl Change {
    /// Reads a change to a processor from a request.
    pub(super) fn of_processor(
        action: ProcessorAction,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Self, ApiError> {
        Ok(match action {
            ProcessorAction::Pause => {
                parse_body(headers, body, "send no body").map(|NoFields {}| Self::Pause)?
            }
            ProcessorAction::Resume => {
                Self::Resume(parse_body(headers, body, "send no body, or {\"accept_history\": true}")?)
            }
            ProcessorAction::Retry => {
                parse_body(headers, body, "send no body").map(|NoFields {}| Self::Retry)?
            }
            ProcessorAction::Reset => Self::Reset(parse_reset(headers, body)?),
        })
    }

    /// Reads a change to dead letters from a request.
    pub(super) fn of_dead_letters(
        action: DeadLetterAction,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Self, ApiError> {
        Ok(match action {
            DeadLetterAction::Retry => Self::RetryDeadLetters(dead_letters::of_body(headers, body)?),
            DeadLetterAction::Discard => Self::DiscardDeadLetters(dead_letters::of_body(headers, body)?),
            DeadLetterAction::Skip => Self::SetAside(parse_set_aside(headers, body)?, false),
            DeadLetterAction::Park => Self::SetAside(parse_set_aside(headers, body)?, true),
        })
    }

    /// The change in one word, for the log.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume(ResumeBody { accept_history: false }) => "resume",
            Self::Resume(ResumeBody { accept_history: true }) => "accept_history",
            Self::Retry => "retry",
            Self::Reset(_) => "reset",
            Self::RetryDeadLetters(_) => "retry_dead_letters",
            Self::DiscardDeadLetters(_) => "discard_dead_letters",
            Self::Emissions(change, _) => change.as_str(),
            Self::SetAside(_, false) => "skip_event",
            Self::SetAside(_, true) => "park_event",
        }
    }

    /// Makes the change and returns the body of the answer.
    pub(super) async fn carry_out(self, operator: &Operator<'_>, name: &str) -> Result<Value, ApiError> {
        let (row, changed) = match self {
            Self::Pause => operator.pause(name).await?,
            Self::Resume(ResumeBody { accept_history: false }) => operator.resume(name).await?,
            Self::Resume(ResumeBody { accept_history: true }) => (operator.accept_history(name).await?, true),
            Self::Retry => operator.retry(name).await?,
            Self::Reset(body) => return reset(operator, name, body).await,
            Self::RetryDeadLetters(selection) => return retry_dead_letters(operator, name, &selection).await,
            Self::DiscardDeadLetters(selection) => {
                return discard_dead_letters(operator, name, &selection).await;
            }
            Self::Emissions(change, selection) => {
                let changed = operator.change_emissions(change, name, &selection).await?;
                let word = match change {
                    EmissionChange::Cancel => "cancelled",
                    EmissionChange::Retry => "requested",
                };
                return Ok(json!({ "name": name, word: changed }));
            }
            Self::SetAside(event, blocks) => {
                let wanted = operator.find_to_set_aside(name, event).await?;
                let event = operator.set_aside(wanted, blocks).await?;
                return Ok(
                    json!({ "name": name, "set_aside": event.id, "type": event.event_type, "blocks": blocks }),
                );
            }
        };
        Ok(json!({ "name": name, "changed": changed, "position": row.position }))
    }
}

async fn reset(operator: &Operator<'_>, name: &str, body: ResetBody) -> Result<Value, ApiError> {
    let row = operator.find(name).await?;
    let to = operator.destination(row.position, body.to, body.at).await?;
    let effects = if body.repeat_effects { ReplayEffects::Repeat } else { ReplayEffects::Suppress };
    let others = if body.cascade { OthersObjects::Drop } else { OthersObjects::Keep };
    let patience = LockPatience { limit: LOCK_PATIENCE, tell: &|_| {} };
    operator.reset(name, to, effects, others, patience).await?;
    let (from, position) = operator.last_reset(name).await?;
    Ok(json!({ "name": name, "changed": true, "from": from, "position": position }))
}

async fn retry_dead_letters(
    operator: &Operator<'_>,
    name: &str,
    selection: &Selection,
) -> Result<Value, ApiError> {
    let (row, requested) = operator.retry_dead_letters(name, selection).await?;
    Ok(json!({
        "name": name, "requested": requested.events.len(), "left_out": requested.left_out,
        "requested_at": requested.at, "owned": row.owned,
    }))
}

async fn discard_dead_letters(
    operator: &Operator<'_>,
    name: &str,
    selection: &Selection,
) -> Result<Value, ApiError> {
    let discarded = operator.discard_dead_letters(name, selection).await?;
    Ok(json!({
        "name": name, "discarded": discarded.dead_letters, "left_behind": discarded.left_behind
    }))
}

/// Reads a body, which may be left out; `remedy`: what it may be.
fn parse_body<B: DeserializeOwned + Default>(
    headers: &HeaderMap,
    body: &[u8],
    remedy: &str,
) -> Result<B, ApiError> {
    if body.is_empty() {
        return Ok(B::default());
    }
    body::require_json(headers)?;
    let refuse = |error: String| ApiError::new(StatusCode::BAD_REQUEST, error, remedy);
    // An array would be read as the fields in order.
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(refuse("the body is no object".to_owned()));
    }
    serde_json::from_slice(body).map_err(|error| refuse(error.to_string()))
}

fn parse_set_aside(headers: &HeaderMap, body: &[u8]) -> Result<Option<Position>, ApiError> {
    parse_body(headers, body, "send {\"event\": ID}, or no body").map(|body: SetAsideBody| body.event)
}

fn parse_reset(headers: &HeaderMap, body: &[u8]) -> Result<ResetBody, ApiError> {
    let remedy = "send {}, {\"to\": POSITION} with a position from 0, or {\"at\": \"2026-01-31T12:00:00Z\"}; \
                  each may have {\"repeat_effects\": true}, and the first one {\"cascade\": true}";
    let refuse = |error: String| ApiError::new(StatusCode::BAD_REQUEST, error, remedy);
    let reset: ResetBody = parse_body(headers, body, remedy)?;
    if reset.to.is_some() && reset.at.is_some() {
        return Err(refuse("`to` cannot be combined with `at`".into()));
    }
    if reset.to.is_some_and(|to| to < Position::START) {
        return Err(refuse("the position `to` is negative".into()));
    }
    Ok(reset)
}

#[cfg(test)]
mod tests {
    use hyper::header::{CONTENT_TYPE, HeaderValue};

    use super::*;

    #[test]
    fn what_a_body_says_beyond_its_fields_is_refused() {
        let mut headers = HeaderMap::new();
        let read = |headers: &HeaderMap, body: &str| {
            Change::of_processor(ProcessorAction::Pause, headers, body.as_bytes())
                .map_err(|error| error.status)
        };
        assert_eq!(read(&headers, ""), Ok(Change::Pause));
        assert_eq!(read(&headers, "{}"), Err(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        assert_eq!(read(&headers, "{}"), Ok(Change::Pause));
        for wrong in ["junk", "{\"foo\": 1}", "[]"] {
            assert_eq!(read(&headers, wrong), Err(StatusCode::BAD_REQUEST), "{wrong}");
        }
        let array = Change::of_processor(ProcessorAction::Resume, &headers, b"[true]");
        assert_eq!(array.unwrap_err().status, StatusCode::BAD_REQUEST);
    }
}
