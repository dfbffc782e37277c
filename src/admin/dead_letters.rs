//! Which dead letters a request is about. The query of a listing and the body of a change use the same names.

use hyper::{HeaderMap, StatusCode};
use serde_json::{Map, Value};
use url::form_urlencoded;
use uuid::Uuid;

use super::answer::ApiError;
use super::body::require_json;
use crate::config::parse_duration;
use crate::processing::dead_letters::Selection;

/// The most dead letters of an answer, unless the query has a `limit`.
const LIMIT: i64 = 100;

/// The highest `limit`.
const LIMIT_MAX: i64 = 1_000;

/// Which dead letters to list, and how many at most.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) selection: Selection,
    pub(super) limit: i64,
}

/// Reads `?processor=…&event=…&type=…&aggregate=…&error=…&older_than=…&after=…&limit=…`.
pub(super) fn of_query(query: Option<&str>) -> Result<Listing, ApiError> {
    let mut listing = Listing { selection: Selection::default(), limit: LIMIT };
    for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        refuse_nul(&key, &value)?;
        match &*key {
            "processor" => listing.selection.processor = Some(value.into_owned()),
            "after" => listing.selection.after = Some(parse(&key, &value)?),
            "limit" => {
                let limit = parse(&key, &value)?;
                let range = format!("1 to {LIMIT_MAX}");
                listing.limit = Some(limit)
                    .filter(|limit| (1..=LIMIT_MAX).contains(limit))
                    .ok_or_else(|| refuse(format!("`limit` is not {range}"), QUERY_REMEDY))?;
            }
            _ if narrow(&mut listing.selection, &key, &value)? => {}
            _ => return Err(refuse(format!("unknown field `{key}`"), QUERY_REMEDY)),
        }
    }
    if listing.selection.after.is_some() && listing.selection.processor.is_none() {
        let remedy = "name the processor: dead letters of several are not in the order of their events";
        return Err(refuse("`after` needs `processor`".to_owned(), remedy));
    }
    Ok(listing)
}

/// Reads `{"event": …}`, some of the other fields, or `{"all": true}`: a change has to name what it is about.
pub(super) fn of_body(headers: &HeaderMap, body: &[u8]) -> Result<Selection, ApiError> {
    let mut said = Map::new();
    if !body.is_empty() {
        require_json(headers)?;
        said = serde_json::from_slice(body).map_err(|error| refuse(error.to_string(), BODY_REMEDY))?;
    }
    let all = said.remove("all");
    let mut selection = Selection::default();
    for (key, value) in &said {
        let value = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => return Err(refuse(format!("`{key}` is neither a string nor a number"), BODY_REMEDY)),
        };
        if !narrow(&mut selection, key, &value)? {
            return Err(refuse(format!("unknown field `{key}`"), BODY_REMEDY));
        }
    }
    match all {
        None if selection.is_everything() => {
            Err(refuse("the body names no dead letters".to_owned(), BODY_REMEDY))
        }
        Some(Value::Bool(true)) if !selection.is_everything() => {
            Err(refuse("`all` cannot be combined with another field".to_owned(), BODY_REMEDY))
        }
        None | Some(Value::Bool(true)) => Ok(selection),
        Some(_) => Err(refuse("`all` is not true".to_owned(), BODY_REMEDY)),
    }
}

const QUERY_REMEDY: &str =
    "use some of processor, event, type, aggregate, error, older_than, after and limit";

const BODY_REMEDY: &str =
    "send {\"event\": ID}, some of \"type\", \"aggregate\", \"error\" and \"older_than\", or {\"all\": true}";

/// Refuses a value that no column has and no statement can carry.
pub(super) fn refuse_nul(key: &str, value: &str) -> Result<(), ApiError> {
    let wrong = || {
        let message = format!("`{}` contains a NUL character", key.escape_debug());
        refuse(message, "send text without it")
    };
    if value.contains('\0') { Err(wrong()) } else { Ok(()) }
}

/// Applies one field to the selection. Returns `false` if there is no such field.
fn narrow(selection: &mut Selection, key: &str, value: &str) -> Result<bool, ApiError> {
    refuse_nul(key, value)?;
    match key {
        "event" => selection.event_id = Some(parse(key, value)?),
        "type" => selection.event_type = Some(value.to_owned()),
        "aggregate" => selection.aggregate_id = Some(parse::<Uuid>(key, value)?.into()),
        "error" => selection.error = Some(value.to_owned()),
        "older_than" => {
            let age = parse_duration(value)
                .map_err(|error| refuse(format!("`older_than`: {error}"), QUERY_REMEDY))?;
            selection.older_than = Some(age);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn parse<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, ApiError> {
    parse_or(QUERY_REMEDY, key, value)
}

/// Reads a parameter of a query; `remedy` says which ones there are.
pub(super) fn parse_or<T: std::str::FromStr>(remedy: &str, key: &str, value: &str) -> Result<T, ApiError> {
    let wrong = || refuse(format!("`{key}` cannot be `{}`", value.escape_debug()), remedy);
    value.parse().map_err(|_| wrong())
}

pub(super) fn refuse(error: String, remedy: &str) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, error, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{CONTENT_TYPE, HeaderValue};
    use std::time::Duration;

    #[test]
    fn a_query_selects_and_refuses_unknown_fields() {
        let all = of_query(None).unwrap();
        assert_eq!(all, Listing { selection: Selection::default(), limit: 100 });
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
        assert_eq!(some, Listing { selection: expected, limit: 3 });
        for wrong in [
            "type=a%00",
            "processor=%00",
            "types=a",
            "limit=0",
            "limit=1001",
            "limit=x",
            "event=1.5",
            "aggregate=7",
            "older_than=soon",
            "after=7",
        ] {
            let error = of_query(Some(wrong)).unwrap_err();
            assert!(error.status == StatusCode::BAD_REQUEST && !error.remedy.is_empty(), "{wrong}");
        }
    }

    #[test]
    fn a_change_has_to_name_what_it_is_about() {
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
            "{\"type\": \"a\\u0000\"}",
        ] {
            assert_eq!(read(wrong).unwrap_err().status, StatusCode::BAD_REQUEST, "{wrong}");
        }
    }
}
