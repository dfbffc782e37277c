//! What the answer of a receiver means for the event.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, TimeDelta, Utc};
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::handlers::batch::Action;
use crate::processing::emission::Emission;
use crate::processing::failure::Failure;

/// The longest that a receiver can make itself be waited for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

/// Characters of an answer that are kept to explain a failure.
const EXCERPT_LENGTH: usize = 300;

/// An answer, received completely.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// What becomes of the event.
#[derive(Debug)]
pub(crate) enum DeliveryResult {
    /// It has been received, and this is to be done.
    Accepted(Vec<Action>),
    /// It has failed; `wait`: how long to wait at least before the next try.
    Failed { failure: Box<Failure>, wait: Option<Duration> },
    /// The receiver wants no events now, whichever they are.
    Busy { message: String, wait: Option<Duration> },
}

impl DeliveryResult {
    fn failed(message: impl Into<String>) -> Self {
        Self::Failed { failure: Box::new(Failure::of_processor(message)), wait: None }
    }
}

impl Answer {
    /// Judges the answer. `now` is when it came.
    pub(crate) fn classify(&self, now: DateTime<Utc>) -> DeliveryResult {
        let Self { status, .. } = self;
        let wait = self.retry_after(now.into());
        match *status {
            status if status.is_success() => self.read_actions(now),
            StatusCode::TOO_MANY_REQUESTS => DeliveryResult::Busy { message: self.name(), wait },
            StatusCode::SERVICE_UNAVAILABLE if wait.is_some() => {
                DeliveryResult::Busy { message: self.name(), wait }
            }
            StatusCode::GONE => {
                let meaning =
                    "there will never be a receiver at this URL again; change the URL or remove the reactor";
                self.refuse(format!("{}: {meaning}", self.name()), wait)
            }
            status if status.is_redirection() => self.refuse(self.describe_redirect(), wait),
            _ => self.refuse(self.name(), wait),
        }
    }

    fn name(&self) -> String {
        format!("the receiver answered {}", self.status)
    }

    fn describe_redirect(&self) -> String {
        let whither = self.headers.get(LOCATION).map(|url| excerpt(url.as_bytes()));
        let whither = whither.map_or(String::new(), |url| format!(" to {url}"));
        format!("{}: redirects{whither} are not followed, `url` has to be the final one", self.name())
    }

    fn refuse(&self, message: String, wait: Option<Duration>) -> DeliveryResult {
        let detail = (!self.body.is_empty()).then(|| excerpt(&self.body));
        DeliveryResult::Failed {
            failure: Box::new(Failure { detail, ..Failure::of_processor(message) }),
            wait,
        }
    }

    /// `Retry-After`, in seconds or as a date.
    fn retry_after(&self, now: SystemTime) -> Option<Duration> {
        let words = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        let wait = match words.parse() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => httpdate::parse_http_date(words).ok()?.duration_since(now).unwrap_or_default(),
        };
        Some(wait.min(RETRY_AFTER_MAX))
    }

    fn is_json(&self) -> bool {
        let content_type =
            self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        media_type == "application/json" || media_type.ends_with("+json")
    }

    /// What a 2xx answer wants done. Receivers may answer what they like; only a JSON object can say what to do.
    fn read_actions(&self, now: DateTime<Utc>) -> DeliveryResult {
        let first = self.body.iter().find(|byte| !byte.is_ascii_whitespace());
        if !self.is_json() || first != Some(&b'{') {
            return DeliveryResult::Accepted(Vec::new());
        }
        let wanted: AnswerBody = match serde_json::from_slice(&self.body) {
            Ok(wanted) => wanted,
            Err(error) => {
                return DeliveryResult::failed(format!(
                    "{} with JSON that is not understood: {error}",
                    self.name()
                ));
            }
        };
        match wanted.actions(now) {
            Ok(actions) => DeliveryResult::Accepted(actions),
            Err(message) => {
                DeliveryResult::failed(format!("{} and wants the impossible: {message}", self.name()))
            }
        }
    }
}

/// The beginning of what a receiver has said, on one line.
fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * EXCERPT_LENGTH)]);
    text.trim().chars().take(EXCERPT_LENGTH).flat_map(|c| c.escape_debug().collect::<Vec<_>>()).collect()
}

/// The part of an answer that is for us.
#[derive(Debug, Default, Deserialize)]
struct AnswerBody {
    #[serde(default)]
    emit: Vec<EventToEmit>,
    #[serde(default)]
    cancel: Vec<String>,
}

/// An event to be emitted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventToEmit {
    #[serde(rename = "type")]
    event_type: String,
    aggregate_id: Uuid,
    body: Box<RawValue>,
    expected_version: Option<i64>,
    at: Option<DateTime<Utc>>,
    /// Seconds from the answer.
    after: Option<f64>,
    key: Option<String>,
}

impl AnswerBody {
    fn actions(self, now: DateTime<Utc>) -> Result<Vec<Action>, String> {
        // What is cancelled was wanted earlier, so it does not hit what is emitted now.
        let cancelled = self.cancel.into_iter().map(|key| Ok(Action::Cancel { key }));
        cancelled.chain(self.emit.into_iter().map(|event| event.emission(now).map(Action::Emit))).collect()
    }
}

impl EventToEmit {
    fn emission(self, now: DateTime<Utc>) -> Result<Emission, String> {
        let due_at =
            match (self.at, self.after) {
                (Some(_), Some(_)) => {
                    return Err(format!("{} has `at` and `after`: one of them", self.event_type));
                }
                (at, None) => at,
                (None, Some(seconds)) => Some(in_seconds(now, seconds).ok_or_else(|| {
                    format!("{} cannot be emitted after {seconds} seconds", self.event_type)
                })?),
            };
        let Self { event_type, aggregate_id, body, expected_version, key, .. } = self;
        Ok(Emission { event_type, aggregate_id, body, expected_version, due_at, key })
    }
}

fn in_seconds(now: DateTime<Utc>, seconds: f64) -> Option<DateTime<Utc>> {
    let delay = Duration::try_from_secs_f64(seconds).ok()?;
    now.checked_add_signed(TimeDelta::from_std(delay).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &str)], body: &str) -> Answer {
        let headers =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers,
            body: Bytes::copy_from_slice(body.as_bytes()),
        }
    }

    fn now() -> DateTime<Utc> {
        "2026-01-31T12:00:00Z".parse().unwrap()
    }

    /// In a word, with how long to wait.
    fn classify(status: u16, retry_after: Option<&str>) -> (&'static str, Option<u64>) {
        let headers: Vec<_> = retry_after.map(|value| ("retry-after", value)).into_iter().collect();
        match answer(status, &headers, "").classify(now()) {
            DeliveryResult::Accepted(_) => ("accepted", None),
            DeliveryResult::Failed { wait, .. } => ("failed", wait.map(|wait| wait.as_secs())),
            DeliveryResult::Busy { wait, .. } => ("busy", wait.map(|wait| wait.as_secs())),
        }
    }

    #[test]
    fn the_status_decides() {
        for (status, verdict) in [
            (200, "accepted"),
            (201, "accepted"),
            (202, "accepted"),
            (204, "accepted"),
            (299, "accepted"),
            (301, "failed"),
            (302, "failed"),
            (304, "failed"),
            (307, "failed"),
            (308, "failed"),
            (400, "failed"),
            (401, "failed"),
            (404, "failed"),
            (408, "failed"),
            (409, "failed"),
            (410, "failed"),
            (422, "failed"),
            (429, "busy"),
            (500, "failed"),
            (502, "failed"),
            (503, "failed"),
            (504, "failed"),
            (599, "failed"),
        ] {
            assert_eq!(classify(status, None), (verdict, None), "{status}");
        }
    }

    #[test]
    fn whoever_says_when_to_come_again_is_heeded_for_an_hour() {
        for (words, seconds) in [
            ("0", Some(0)),
            ("120", Some(120)),
            (" 7 ", Some(7)),
            ("86400", Some(3600)),
            ("18446744073709551615", Some(3600)),
            ("Sat, 31 Jan 2026 12:01:30 GMT", Some(90)),
            ("Saturday, 31-Jan-26 12:01:30 GMT", Some(90)),
            ("Sat Jan 31 12:01:30 2026", Some(90)),
            ("Sat, 31 Jan 2026 11:00:00 GMT", Some(0)),
            ("Sun, 31 Jan 2027 12:00:00 GMT", Some(3600)),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(classify(429, Some(words)), ("busy", seconds), "{words}");
            let verdict = if seconds.is_some() { "busy" } else { "failed" };
            assert_eq!(classify(503, Some(words)), (verdict, seconds), "{words}");
            assert_eq!(classify(500, Some(words)), ("failed", seconds), "{words}");
        }
    }

    fn actions(content_type: &str, body: &str) -> Result<Vec<Action>, String> {
        match answer(200, &[("content-type", content_type)], body).classify(now()) {
            DeliveryResult::Accepted(actions) => Ok(actions),
            DeliveryResult::Failed { failure, .. } => Err(failure.message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_may_want_nothing() {
        for body in
            ["", " \n", "null", "[]", "[{\"emit\":1}]", "\"ok\"", "{}", "{\"ok\":true}", "{\"emit\":[]}"]
        {
            assert!(actions("application/json", body).unwrap().is_empty(), "{body}");
        }
        assert!(actions("text/html", "<p>thank you").unwrap().is_empty());
        assert!(actions("text/plain", "{\"emit\":1}").unwrap().is_empty());
    }

    #[test]
    fn an_answer_may_want_events() {
        let body = r#"{"ok": true, "cancel": ["old"], "emit": [
            {"type": "A", "aggregate_id": "00000000-0000-0000-0000-000000000001", "body": {"n": 12345678901234567890.10},
             "expected_version": 3},
            {"type": "B", "aggregate_id": "00000000-0000-0000-0000-000000000002", "body": null, "after": 90, "key": "k"},
            {"type": "B", "aggregate_id": "00000000-0000-0000-0000-000000000002", "body": 1, "at": "2026-02-01T00:00:00Z"}]}"#;
        for content_type in
            ["application/json", "Application/JSON; charset=utf-8", "application/problem+json"]
        {
            let actions = actions(content_type, body).unwrap();
            let [Action::Cancel { key }, Action::Emit(first), Action::Emit(second), Action::Emit(third)] =
                actions.as_slice()
            else {
                panic!("{actions:?}");
            };
            assert_eq!(key, "old");
            assert_eq!(
                (first.event_type.as_str(), first.expected_version, first.due_at),
                ("A", Some(3), None)
            );
            assert_eq!(first.body.get(), r#"{"n": 12345678901234567890.10}"#);
            assert_eq!(
                (second.due_at, second.key.as_deref()),
                (Some(now() + TimeDelta::seconds(90)), Some("k"))
            );
            assert_eq!(third.due_at, Some("2026-02-01T00:00:00Z".parse().unwrap()));
        }
    }

    #[test]
    fn what_is_not_understood_is_a_failure_that_says_why() {
        let event = |more: &str| {
            format!(
                r#"{{"emit":[{{"type":"A","aggregate_id":"00000000-0000-0000-0000-000000000001"{more}}}]}}"#
            )
        };
        for (body, words) in [
            ("{", "EOF"),
            ("{\"emit\":{}}", "expected a sequence"),
            ("{\"emit\":[1]}", "EventToEmit"),
            (&event(""), "body"),
            (&event(r#","body":1,"typ":2"#), "typ"),
            (&event(r#","body":1,"at":"tomorrow""#), "input"),
            (&event(r#","body":1,"after":-1"#), "after -1 seconds"),
            (&event(r#","body":1,"after":1e300"#), "after 1"),
            (&event(r#","body":1,"after":1,"at":"2026-02-01T00:00:00Z""#), "one of them"),
        ] {
            let message = actions("application/json", body).unwrap_err();
            assert!(message.contains(words), "{body}: {message}");
        }
    }

    #[test]
    fn a_failure_shows_the_beginning_of_the_answer_on_one_line() {
        let body = format!("line 1\nline\t2 \u{1b}[31m{}", "x".repeat(5_000));
        let DeliveryResult::Failed { failure, .. } = answer(422, &[], &body).classify(now()) else {
            panic!()
        };
        assert_eq!(failure.message, "the receiver answered 422 Unprocessable Entity");
        let detail = failure.detail.unwrap();
        assert!(detail.starts_with("line 1\\nline\\t2 \\u{1b}[31mxx") && detail.len() < 400, "{detail}");
        let DeliveryResult::Failed { failure, .. } =
            answer(302, &[("location", "https://a.example/")], "").classify(now())
        else {
            panic!()
        };
        assert!(failure.message.contains("https://a.example/"), "{failure}");
        let DeliveryResult::Failed { failure, .. } = answer(410, &[], "").classify(now()) else { panic!() };
        assert!(failure.message.contains("never"), "{failure}");
    }
}
