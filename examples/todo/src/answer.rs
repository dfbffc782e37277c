//! What a command has come to, as HTTP.

use std::error::Error;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use espd::prelude::*;
use serde_json::json;

/// Why the rules do not allow a command. The code is for programs and translations, the message for people.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    pub code: &'static str,
    pub message: String,
}

impl Refusal {
    pub fn new(code: &'static str, message: &str) -> Self {
        Self { code, message: message.to_owned() }
    }

    /// There is no such thing.
    pub fn unknown(what: &str) -> Self {
        Self::new("unknown", &format!("there is no such {what}"))
    }
}

/// A failed request: its status, a code and a message.
pub struct Failure {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Failure {
    pub fn new(status: StatusCode, code: &'static str, message: impl ToString) -> Self {
        Self { status, code, message: message.to_string() }
    }

    /// Something that the service needs is not there now. Why is in the log: it is not for clients.
    pub fn unavailable(error: &(dyn Error + 'static)) -> Self {
        tracing::error!(error, "a request has failed: unavailable");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "the service is not available: try again")
    }

    /// Something is wrong with the service. What is in the log.
    pub fn internal(error: &(dyn Error + 'static)) -> Self {
        tracing::error!(error, "a request has failed: internal");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the service has failed: its log says why")
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "code": self.code, "message": self.message }))).into_response()
    }
}

impl From<ExecuteError<Refusal>> for Failure {
    fn from(error: ExecuteError<Refusal>) -> Self {
        match error {
            ExecuteError::Refused(Refusal { code: "unknown", message }) => {
                Self::new(StatusCode::NOT_FOUND, "unknown", message)
            }
            ExecuteError::Refused(Refusal { code, message }) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message)
            }
            ExecuteError::Conflict { .. } => Self::new(StatusCode::CONFLICT, "conflict", error),
            ExecuteError::CommandIdReused { .. } => Self::new(StatusCode::CONFLICT, "key_reused", error),
            // A text with a zero character, a body that departs from what is declared of it.
            ExecuteError::Append(AppendError::Invalid { reason, .. }) => {
                Self::new(StatusCode::BAD_REQUEST, "invalid", reason)
            }
            error if error.is_transient() => Self::unavailable(&error),
            error => Self::internal(&error),
        }
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::unavailable(&error)
    }
}

/// What a command has led to: where a client can read it, and from which position on tables show it.
pub fn executed<A: Aggregate>(id: &Id<A>, executed: &Executed<A>) -> Response {
    let position = executed.appended.last().map(|last| last.id);
    let body = json!({
        "id": id, "version": executed.version, "position": position, "repeated": executed.is_repeated,
    });
    let status = if executed.version == Version::FIRST { StatusCode::CREATED } else { StatusCode::OK };
    (status, Json(body)).into_response()
}
