//! The answer of a receiver, and what it means for the event.

mod body;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use serde::de::IgnoredAny;

use crate::handlers::batch::Action;
use crate::processing::declaration::HiddenTexts;
use crate::processing::failure::Failure;
use body::{AnswerBody, find_mistyped};

/// The longest delay that a receiver can ask for with `Retry-After`.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

/// Characters of an answer's body, or of what is wrong with it, that are kept to explain a failure.
const EXCERPT_LENGTH: usize = 300;

/// An answer that has been received completely.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// What an attempt to deliver an event resulted in.
#[derive(Debug)]
pub(crate) enum DeliveryResult {
    /// The receiver has accepted the event, and wants these actions.
    Accepted(Vec<Action>),
    /// The delivery has failed. The next attempt has to wait for `wait` at least.
    Failed { failure: Box<Failure>, wait: Option<Duration> },
    /// The receiver accepts no events at all at the moment. No event is to blame.
    Busy { message: String, wait: Option<Duration> },
}

impl DeliveryResult {
    fn failed(message: impl Into<String>) -> Self {
        Self::Failed { failure: Box::new(Failure::of_processor(message)), wait: None }
    }
}

impl Answer {
    /// Decides what the answer means. `now` is when it arrived. A failure repeats nothing of what is `hidden`.
    pub(crate) fn classify(&self, now: DateTime<Utc>, hidden: &HiddenTexts) -> DeliveryResult {
        let Self { status, .. } = self;
        let wait = self.retry_after(now.into());
        match *status {
            status if status.is_success() => self.read_actions(hidden),
            StatusCode::TOO_MANY_REQUESTS => DeliveryResult::Busy { message: self.status_line(), wait },
            StatusCode::SERVICE_UNAVAILABLE if wait.is_some() => {
                DeliveryResult::Busy { message: self.status_line(), wait }
            }
            StatusCode::GONE => {
                let meaning =
                    "there will never be a receiver at this URL again; change the URL or remove the reactor";
                self.fail(format!("{}: {meaning}", self.status_line()), wait, hidden)
            }
            status
                if leads_elsewhere(status)
                    || self.headers.contains_key(LOCATION) && status.is_redirection() =>
            {
                self.fail(self.describe_redirect(hidden), wait, hidden)
            }
            _ => self.fail(self.status_line(), wait, hidden),
        }
    }

    fn status_line(&self) -> String {
        format!("the receiver answered {}", self.status)
    }

    fn describe_redirect(&self, hidden: &HiddenTexts) -> String {
        let location = self.headers.get(LOCATION).map(|url| excerpt(url.as_bytes(), hidden));
        let target = location.map_or(String::new(), |url| format!(" to {url}"));
        format!("{}: redirects{target} are not followed, `url` has to be the final one", self.status_line())
    }

    fn fail(&self, message: String, wait: Option<Duration>, hidden: &HiddenTexts) -> DeliveryResult {
        let detail = (!self.body.is_empty()).then(|| excerpt(&self.body, hidden));
        DeliveryResult::Failed {
            failure: Box::new(Failure { detail, ..Failure::of_processor(message) }),
            wait,
        }
    }

    /// The delay that `Retry-After` asks for, in seconds or as a date; an hour at most.
    fn retry_after(&self, now: SystemTime) -> Option<Duration> {
        let words = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        let is_number = !words.is_empty() && words.bytes().all(|byte| byte.is_ascii_digit());
        let wait = if is_number {
            // A number that is too large for one is a long delay.
            words.parse().map_or(RETRY_AFTER_MAX, Duration::from_secs)
        } else {
            httpdate::parse_http_date(words).ok()?.duration_since(now).unwrap_or_default()
        };
        Some(wait.min(RETRY_AFTER_MAX))
    }

    fn is_json(&self) -> bool {
        let content_type =
            self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        media_type == "application/json" || media_type.ends_with("+json")
    }

    /// Reads the actions that a 2xx answer asks for. Only a JSON object can ask for any; every other body is ignored, but what is
    /// said to be JSON has to be that.
    fn read_actions(&self, hidden: &HiddenTexts) -> DeliveryResult {
        let first = self.body.iter().find(|byte| !byte.is_ascii_whitespace());
        let (Some(first), true) = (first, self.is_json()) else {
            return DeliveryResult::Accepted(Vec::new());
        };
        let failed = |what: &str, why: String| {
            let why = excerpt(why.as_bytes(), hidden);
            DeliveryResult::failed(format!("{} {what}: {why}", self.status_line()))
        };
        let read = if *first == b'{' {
            serde_json::from_slice::<AnswerBody>(&self.body)
        } else {
            serde_json::from_slice::<IgnoredAny>(&self.body).map(|_| AnswerBody::default())
        };
        let actions = match read {
            Ok(body) => find_mistyped(&self.body).map_or_else(|| body.into_actions(), Err),
            Err(error) => return failed("with JSON that is not understood", error.to_string()),
        };
        match actions {
            Ok(actions) => DeliveryResult::Accepted(actions),
            Err(message) => failed("and wants something that is not possible", message),
        }
    }
}

/// Whether a status says that the receiver is somewhere else, with or without saying where. 304, for example, does not.
fn leads_elsewhere(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    )
}

/// The beginning of a text from the receiver, in one line. It is cut last: half a secret is not recognized.
fn excerpt(bytes: &[u8], hidden: &HiddenTexts) -> String {
    let text = hidden.conceal(&String::from_utf8_lossy(bytes));
    let escape = |character: char| match character {
        '"' | '\'' => vec![character],
        _ => character.escape_debug().collect(),
    };
    text.trim().chars().flat_map(escape).take(EXCERPT_LENGTH).collect()
}
