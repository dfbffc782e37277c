//! Answers. Errors are JSON as well, with what is wrong and what to do.

use std::borrow::Cow;
use std::convert::Infallible;
use std::error::Error;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::operations::operator::OperatorError;
use crate::own_name::in_own_name;
use crate::postgres::error::chain;
use crate::postgres::sqlstate::describe;

/// The body of an answer: complete, or a stream.
pub(super) type AnswerBody = UnsyncBoxBody<Bytes, Infallible>;

/// An answer.
pub(super) type Answer = Response<AnswerBody>;

/// Why a request is refused or fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    /// What is wrong.
    pub(super) error: String,
    /// What to do about it.
    pub(super) remedy: String,
    /// Whether there was no connection in time, which has a reason that the pool does not know.
    pub(super) lacks_connection: bool,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, error: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (error, remedy) = (error.into(), remedy.into());
        let (error, remedy) = (in_own_name(&error).into_owned(), in_own_name(&remedy).into_owned());
        Self { status, error, remedy, lacks_connection: false }
    }

    /// Something that the request needs, mostly the database, is not available now.
    pub(super) fn unavailable(error: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error, "try again; /readyz says what is missing")
    }
}

impl From<ApiError> for Answer {
    fn from(error: ApiError) -> Self {
        let body = serde_json::json!({ "error": error.error, "remedy": error.remedy });
        let mut answer = json(error.status, &body);
        let header = match error.status {
            StatusCode::UNAUTHORIZED => Some((hyper::header::WWW_AUTHENTICATE, "Bearer")),
            StatusCode::METHOD_NOT_ALLOWED => Some((hyper::header::ALLOW, "GET, HEAD, POST")),
            _ => None,
        };
        if let Some((name, value)) = header {
            answer.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        answer
    }
}

impl From<OperatorError> for ApiError {
    fn from(error: OperatorError) -> Self {
        let said = match &error {
            OperatorError::NothingFails { name } => format!("{name} fails at no event now"),
            OperatorError::NotDeclared { name } => {
                format!("{name} is not declared, so its tables cannot be created again")
            }
            OperatorError::Database(error) => describe(error),
            _ => chain(&error),
        };
        let answer = match remedy_of(&error) {
            Some(remedy) => Self::new(status_of(&error), said, remedy),
            None => Self::unavailable(said),
        };
        Self { lacks_connection: lacks_connection(&error), ..answer }
    }
}

/// Whether an error comes from a pool that could give no connection in time.
pub(super) fn lacks_connection(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if matches!(error.downcast_ref(), Some(sqlx::Error::PoolTimedOut)) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The status of an answer to what cannot be done as it was asked for.
fn status_of(error: &OperatorError) -> StatusCode {
    match error {
        OperatorError::Unknown { .. }
        | OperatorError::NotADeadLetter { .. }
        | OperatorError::NotPending { .. }
        | OperatorError::NoSuchEvent { .. } => StatusCode::NOT_FOUND,
        _ => StatusCode::CONFLICT,
    }
}

/// What to do in words of the API; `None`: the request may be right, and the database was not there for it.
fn remedy_of(error: &OperatorError) -> Option<Cow<'static, str>> {
    let remedy = match error {
        OperatorError::Unknown { .. } | OperatorError::Several { .. } => {
            "GET /api/v1/processors lists all of them"
        }
        OperatorError::NotSettled { settled, .. } => {
            return Some(format!("choose a position of at most {settled}").into());
        }
        OperatorError::Diverged { .. } => {
            "reset it, or resume it with {\"accept_history\": true}; docs/operations.md says which"
        }
        OperatorError::NotDiverged { .. } => "resume it without `accept_history`",
        OperatorError::BeyondHead { head, .. } => {
            return Some(format!("reset it to a position of at most {head}").into());
        }
        OperatorError::NotADeadLetter { name, .. } => {
            return Some(format!("GET /api/v1/processors/{name}/dead-letters lists them").into());
        }
        OperatorError::NoEffects { .. } => "send it without `repeat_effects`",
        OperatorError::NotPending { .. } => "GET /api/v1/emissions lists them",
        OperatorError::OutOfOrder { first, .. } => {
            return Some(format!("retry event {first}; the others follow").into());
        }
        OperatorError::NothingFails { .. } => "name the event: {\"event\": ID}",
        OperatorError::NoSuchEvent { .. } => "name an event that is in the store",
        OperatorError::AlreadyHandled { .. } => "name an event beyond the processor's position",
        OperatorError::Rebuild(_) => "`espctl rebuild` goes on where it was",
        OperatorError::Building { .. } => "wait until it is live, or give it up",
        OperatorError::Locked { .. } => "do what it says, then try again",
        OperatorError::Owned { .. } => "stop its daemon first",
        OperatorError::NotDeclared { .. } => {
            "declare it in the daemon's configuration, or only move its position with `to` or `at`"
        }
        OperatorError::Declaration(_) | OperatorError::Blocked(_) | OperatorError::NotApart { .. } => {
            "do what it says: `espctl check` finds what is wrong with a declaration, and {\"cascade\": true} is --cascade"
        }
        OperatorError::Database(_) | OperatorError::Horizon(_) | OperatorError::Events(_) => return None,
    };
    Some(remedy.into())
}

/// An answer in JSON, with a final line break for terminals.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_string_pretty(value) {
        Ok(body) => text(status, "application/json", body + "\n"),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", error.to_string()),
    }
}

/// An answer in text. Its headers forbid browsers to store it, to guess its type and to run it.
pub(super) fn text(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut answer = stream(content_type, Full::new(Bytes::from(body)).boxed_unsync());
    *answer.status_mut() = status;
    answer
}

/// As [`text`], with a body that may go on.
pub(super) fn stream(content_type: &'static str, body: AnswerBody) -> Answer {
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'"));
    answer
}
