use std::time::Duration;

use super::*;
use crate::processing::emission::Due;

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
    match answer(status, &headers, "").classify(now(), &HiddenTexts::default()) {
        DeliveryResult::Accepted(_) => ("accepted", None),
        DeliveryResult::Failed { wait, .. } => ("failed", wait.map(|wait| wait.as_secs())),
        DeliveryResult::Busy { wait, .. } => ("busy", wait.map(|wait| wait.as_secs())),
    }
}

#[test]
fn the_status_decides() {
    for (status, result) in [
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
        assert_eq!(classify(status, None), (result, None), "{status}");
    }
}

#[test]
fn retry_after_is_honored_for_an_hour_at_most() {
    for (words, seconds) in [
        ("0", Some(0)),
        ("120", Some(120)),
        (" 7 ", Some(7)),
        ("86400", Some(3600)),
        ("18446744073709551615", Some(3600)),
        ("99999999999999999999999", Some(3600)),
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
        let result = if seconds.is_some() { "busy" } else { "failed" };
        assert_eq!(classify(503, Some(words)), (result, seconds), "{words}");
        assert_eq!(classify(500, Some(words)), ("failed", seconds), "{words}");
    }
}

fn actions(content_type: &str, body: &str) -> Result<Vec<Action>, String> {
    match answer(200, &[("content-type", content_type)], body).classify(now(), &HiddenTexts::default()) {
        DeliveryResult::Accepted(actions) => Ok(actions),
        DeliveryResult::Failed { failure, .. } => Err(failure.message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_answer_may_want_nothing() {
    for body in [
        "",
        " \n",
        "null",
        "[]",
        "[{\"emit\":1}]",
        "\"ok\"",
        "{}",
        "{\"ok\":true}",
        "{\"emit\":[]}",
        "{\"emit\":null,\"cancel\":null}",
        "{\"exit\":0,\"cancelled\":[],\"events\":[]}",
    ] {
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
    for content_type in ["application/json", "Application/JSON; charset=utf-8", "application/problem+json"] {
        let actions = actions(content_type, body).unwrap();
        let [Action::Cancel { key }, Action::Emit(first), Action::Emit(second), Action::Emit(third)] =
            actions.as_slice()
        else {
            panic!("{actions:?}");
        };
        assert_eq!(key, "old");
        assert_eq!(
            (first.event_type.as_str(), first.expected_version, first.due),
            ("A", Some(3.into()), Due::AtOnce)
        );
        assert_eq!(first.body.get(), r#"{"n": 12345678901234567890.10}"#);
        assert_eq!((second.due, second.key.as_deref()), (Due::After(Duration::from_secs(90)), Some("k")));
        assert_eq!(third.due, Due::At("2026-02-01T00:00:00Z".parse().unwrap()));
    }
}

#[test]
fn what_is_not_understood_is_a_failure_that_says_why() {
    let event = |more: &str| {
        format!(r#"{{"emit":[{{"type":"A","aggregate_id":"00000000-0000-0000-0000-000000000001"{more}}}]}}"#)
    };
    for (body, words) in [
        ("{", "EOF"),
        ("{\"emit\":{}}", "expected a sequence"),
        ("{\"emit\":[1]}", "an event to emit"),
        (&event(""), "body"),
        (&event(r#","body":1,"typ":2"#), "typ"),
        (&event(r#","body":1,"t\n\u001b[31m":2"#), "`t\\n\\u{1b}[31m`"),
        (&event(r#","body":1,"at":"tomorrow""#), "input"),
        (&event(r#","body":1,"after":-1"#), "after -1 seconds"),
        (&event(r#","body":1,"after":1e300"#), "after 1"),
        (&event(r#","body":1,"key":"k""#), "A has `key` without `at` or `after`"),
        ("this is no json", "expected ident"),
        ("OK", "expected value"),
        (r#"{"emits":[]}"#, r#""emits" means nothing, "emit" does"#),
        (r#"{"emit":[],"Cancle":["k"]}"#, r#""Cancle" means nothing, "cancel" does"#),
        (&event(r#","body":1,"after":1,"at":"2026-02-01T00:00:00Z""#), "one of them"),
    ] {
        let message = actions("application/json", body).unwrap_err();
        assert!(message.contains(words), "{body}: {message}");
    }
}

#[test]
fn a_failure_shows_the_beginning_of_the_answer_on_one_line() {
    let body = format!("line 1\nline\t2 \u{1b}[31m{}", "x".repeat(5_000));
    let DeliveryResult::Failed { failure, .. } =
        answer(422, &[], &body).classify(now(), &HiddenTexts::default())
    else {
        panic!()
    };
    assert_eq!(failure.message, "the receiver answered 422 Unprocessable Entity");
    let detail = failure.detail.unwrap();
    assert!(detail.starts_with("line 1\\nline\\t2 \\u{1b}[31mxx") && detail.len() < 400, "{detail}");
    let DeliveryResult::Failed { failure, .. } =
        answer(302, &[("location", "https://a.example/")], "").classify(now(), &HiddenTexts::default())
    else {
        panic!()
    };
    assert!(failure.message.contains("https://a.example/"), "{failure}");
    for (status, is_redirect) in [(301, true), (308, true), (300, false), (304, false)] {
        let DeliveryResult::Failed { failure, .. } =
            answer(status, &[], "").classify(now(), &HiddenTexts::default())
        else {
            panic!()
        };
        assert_eq!(failure.message.contains("redirects are not followed"), is_redirect, "{failure}");
    }
    let DeliveryResult::Failed { failure, .. } =
        answer(410, &[], "").classify(now(), &HiddenTexts::default())
    else {
        panic!()
    };
    assert!(failure.message.contains("never"), "{failure}");
}
