//! Bodies of requests: JSON, bounded in size and time.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE};
use hyper::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::answer::ApiError;

/// The most bytes of a request's body.
const BODY_BYTES: usize = 16 * 1024;

/// The most bytes that are read and discarded of a body that is too large, so that its sender reads the answer.
const DISCARDED_BYTES: usize = 1024 * 1024;

/// How long the body may take, from the end of the headers.
const BODY_TIME: Duration = Duration::from_secs(3);

/// Reads the whole body.
///
/// # Errors
/// The body is too large, late or incomplete.
pub(super) async fn read_body(headers: &HeaderMap, mut body: Incoming) -> Result<Vec<u8>, ApiError> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let too_large = announced.is_some_and(|length| length > BODY_BYTES as u64);
    let deadline = Instant::now() + BODY_TIME;
    let (mut read, mut kept) = (0, Vec::new());
    while !body.is_end_stream() && read <= DISCARDED_BYTES {
        let frame = match tokio::time::timeout_at(deadline, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => break,
            Ok(Some(Err(_))) => {
                return Err(ApiError::new(
                    StatusCode::BAD_REQUEST,
                    "the body is incomplete",
                    "send all of it",
                ));
            }
            Err(_) => return Err(late_body()),
        };
        let bytes = frame.into_data().unwrap_or_else(|_| Bytes::new());
        read += bytes.len();
        if read <= BODY_BYTES {
            kept.extend_from_slice(&bytes);
        }
    }
    if too_large || read > BODY_BYTES {
        let error = format!("the body has more than {BODY_BYTES} bytes");
        return Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            error,
            "send only what docs/admin.md names",
        ));
    }
    Ok(kept)
}

fn late_body() -> ApiError {
    let error = format!("the body has not arrived within {BODY_TIME:?}");
    ApiError::new(StatusCode::REQUEST_TIMEOUT, error, "send it at once")
}

/// Refuses a body whose `Content-Type` is not JSON.
pub(super) fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        let remedy = "send `Content-Type: application/json`";
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the `Content-Type` of the body is not JSON",
            remedy,
        ));
    }
    Ok(())
}
