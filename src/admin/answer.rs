//! Answers. Errors are JSON as well, with what is wrong and what to do.

use std::convert::Infallible;

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
}

impl ApiError {
    pub(super) fn new(status: StatusCode, error: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (error, remedy) = (error.into(), remedy.into());
        Self { status, error: in_own_name(&error).into_owned(), remedy: in_own_name(&remedy).into_owned() }
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
        let said = chain(&error);
        match error {
            OperatorError::Unknown { .. } => {
                Self::new(StatusCode::NOT_FOUND, said, "GET /api/v1/processors lists all of them")
            }
            OperatorError::Several { .. } => {
                Self::new(StatusCode::CONFLICT, said, "GET /api/v1/processors lists all of them")
            }
            OperatorError::NotSettled { settled, .. } => {
                Self::new(StatusCode::CONFLICT, said, format!("choose a position of at most {settled}"))
            }
            OperatorError::Diverged { .. } => Self::new(
                StatusCode::CONFLICT,
                said,
                "reset it, or resume it with {\"accept_history\": true}; docs/operations.md says which",
            ),
            OperatorError::NotDiverged { .. } => {
                Self::new(StatusCode::CONFLICT, said, "resume it without `accept_history`")
            }
            OperatorError::BeyondHead { head, .. } => {
                Self::new(StatusCode::CONFLICT, said, format!("reset it to a position of at most {head}"))
            }
            OperatorError::NotADeadLetter { name, .. } => {
                let remedy = format!("GET /api/v1/processors/{name}/dead-letters lists them");
                Self::new(StatusCode::NOT_FOUND, said, remedy)
            }
            OperatorError::NotPending { .. } => {
                Self::new(StatusCode::NOT_FOUND, said, "GET /api/v1/emissions lists them")
            }
            OperatorError::OutOfOrder { first, .. } => {
                Self::new(StatusCode::CONFLICT, said, format!("retry event {first}; the others follow"))
            }
            OperatorError::NothingFails { name } => Self::new(
                StatusCode::CONFLICT,
                format!("{name} fails at no event now"),
                "name the event: {\"event\": ID}",
            ),
            OperatorError::NoSuchEvent { .. } => {
                Self::new(StatusCode::NOT_FOUND, said, "name an event that is in the store")
            }
            OperatorError::AlreadyHandled { .. } => {
                Self::new(StatusCode::CONFLICT, said, "name an event beyond the processor's position")
            }
            OperatorError::Rebuild(_) => {
                Self::new(StatusCode::CONFLICT, said, "`espctl rebuild` goes on where it was")
            }
            OperatorError::Building { .. } => {
                Self::new(StatusCode::CONFLICT, said, "wait until it is live, or give it up")
            }
            OperatorError::Locked { .. } => {
                Self::new(StatusCode::CONFLICT, said, "do what it says, then try again")
            }
            OperatorError::Owned { .. } => Self::new(StatusCode::CONFLICT, said, "stop its daemon first"),
            OperatorError::NotDeclared { name } => Self::new(
                StatusCode::CONFLICT,
                format!("{name} is not declared, so its tables cannot be created again"),
                "declare it in the daemon's configuration, or only move its position with `to` or `at`",
            ),
            OperatorError::Declaration(_) | OperatorError::Blocked(_) => Self::new(
                StatusCode::CONFLICT,
                said,
                "do what it says: `espctl check` finds what is wrong with a declaration, and {\"cascade\": true} is --cascade",
            ),
            OperatorError::Database(error) => Self::unavailable(describe(&error)),
            OperatorError::Horizon(_) | OperatorError::Events(_) => Self::unavailable(said),
        }
    }
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
