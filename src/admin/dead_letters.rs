//! Which dead letters a request is about: the same words in the query of a look and in the body of a change.

use hyper::{HeaderMap, StatusCode};
use serde_json::{Map, Value};
use url::form_urlencoded;

use super::answer::Refusal;
use super::body::require_json;
use crate::config::parse_duration;
use crate::processing::dead_letters::Selection;

/// Letters of an answer, unless the query says otherwise.
const LIMIT: i64 = 100;

/// Letters of an answer at most.
const LIMIT_MAX: i64 = 1_000;

/// What a look is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) selection: Selection,
    pub(super) limit: i64,
}

/// Reads `?processor=…&event=…&type=…&aggregate=…&error=…&older_than=…&after=…&limit=…`.
pub(super) fn of_query(query: Option<&str>) -> Result<Wanted, Refusal> {
    let mut wanted = Wanted { selection: Selection::default(), limit: LIMIT };
    for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        match &*key {
            "processor" => wanted.selection.processor = Some(value.into_owned()),
            "after" => wanted.selection.after = Some(parse(&key, &value)?),
            "limit" => {
                let limit = parse(&key, &value)?;
                let range = format!("1 to {LIMIT_MAX}");
                wanted.limit = Some(limit)
                    .filter(|limit| (1..=LIMIT_MAX).contains(limit))
                    .ok_or_else(|| refuse(format!("`limit` is not {range}"), LOOK))?;
            }
            _ if narrow(&mut wanted.selection, &key, &value)? => {}
            _ => return Err(refuse(format!("unknown field `{key}`"), LOOK)),
        }
    }
    Ok(wanted)
}

/// Reads `{"event": …}` or some of the other words, or `{"all": true}`: a change has to say what it is about.
pub(super) fn of_body(headers: &HeaderMap, body: &[u8]) -> Result<Selection, Refusal> {
    let mut said = Map::new();
    if !body.is_empty() {
        require_json(headers)?;
        said = serde_json::from_slice(body).map_err(|error| refuse(error.to_string(), CHANGE))?;
    }
    let all = said.remove("all");
    let mut selection = Selection::default();
    for (key, value) in &said {
        let value = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => return Err(refuse(format!("`{key}` is neither a text nor a number"), CHANGE)),
        };
        if !narrow(&mut selection, key, &value)? {
            return Err(refuse(format!("unknown field `{key}`"), CHANGE));
        }
    }
    match all {
        None if selection.is_everything() => Err(refuse("it says no letters".to_owned(), CHANGE)),
        Some(Value::Bool(true)) if !selection.is_everything() => {
            Err(refuse("there is something beside `all`".to_owned(), CHANGE))
        }
        None | Some(Value::Bool(true)) => Ok(selection),
        Some(_) => Err(refuse("`all` is not true".to_owned(), CHANGE)),
    }
}

const LOOK: &str = "say some of processor, event, type, aggregate, error, older_than, after and limit";

const CHANGE: &str =
    "send {\"event\": ID}, some of \"type\", \"aggregate\", \"error\" and \"older_than\", or {\"all\": true}";

/// Applies one word to the selection. `false`: there is no such word.
fn narrow(selection: &mut Selection, key: &str, value: &str) -> Result<bool, Refusal> {
    match key {
        "event" => selection.event_id = Some(parse(key, value)?),
        "type" => selection.event_type = Some(value.to_owned()),
        "aggregate" => selection.aggregate_id = Some(parse(key, value)?),
        "error" => selection.error = Some(value.to_owned()),
        "older_than" => {
            let age =
                parse_duration(value).map_err(|error| refuse(format!("`older_than`: {error}"), LOOK))?;
            selection.older_than = Some(age);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn parse<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, Refusal> {
    let wrong = || refuse(format!("`{key}` cannot be `{}`", value.escape_debug()), LOOK);
    value.parse().map_err(|_| wrong())
}

fn refuse(error: String, remedy: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, error, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{CONTENT_TYPE, HeaderValue};
    use std::time::Duration;

    #[test]
    fn a_query_narrows_and_what_it_does_not_know_is_refused() {
        let all = of_query(None).unwrap();
        assert_eq!(all, Wanted { selection: Selection::default(), limit: 100 });
        let some =
            of_query(Some("processor=a&type=T%20x&error=it%27s+so&older_than=1h&after=7&limit=3")).unwrap();
        let expected = Selection {
            processor: Some("a".into()),
            event_type: Some("T x".into()),
            error: Some("it's so".into()),
            older_than: Some(Duration::from_secs(3_600)),
            after: Some(7.into()),
            ..Selection::default()
        };
        assert_eq!(some, Wanted { selection: expected, limit: 3 });
        for wrong in
            ["types=a", "limit=0", "limit=1001", "limit=x", "event=1.5", "aggregate=7", "older_than=soon"]
        {
            let refusal = of_query(Some(wrong)).unwrap_err();
            assert!(refusal.status == StatusCode::BAD_REQUEST && !refusal.remedy.is_empty(), "{wrong}");
        }
    }

    #[test]
    fn a_change_says_what_it_is_about() {
        let mut headers = HeaderMap::new();
        assert_eq!(of_body(&headers, b"{}").unwrap_err().status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let read = |body: &str| of_body(&headers, body.as_bytes());
        assert_eq!(
            read("{\"event\": 7}"),
            Ok(Selection { event_id: Some(7.into()), ..Selection::default() })
        );
        assert_eq!(read("{\"event\": \"7\"}"), read("{\"event\": 7}"));
        assert_eq!(read("{\"all\": true}"), Ok(Selection::default()));
        for wrong in [
            "",
            "{}",
            "[]",
            "7",
            "{\"all\": false}",
            "{\"all\": 1}",
            "{\"all\": true, \"event\": 7}",
            "{\"limit\": 7}",
            "{\"processor\": \"b\", \"event\": 1}",
            "{\"type\": null}",
            "{\"event\": 9223372036854775808}",
        ] {
            assert_eq!(read(wrong).unwrap_err().status, StatusCode::BAD_REQUEST, "{wrong}");
        }
    }
}
