//! Which pending emissions a request is about. The query of a listing and the body of a change use the same names.

use hyper::HeaderMap;
use serde_json::{Map, Value};
use url::form_urlencoded;

use super::answer::ApiError;
use super::body::require_json;
use super::dead_letters::{parse_or, refuse, refuse_nul};
use crate::processing::emission::EmissionSelection;

/// The most emissions of an answer, unless the query has a `limit`; and the highest `limit`.
const LIMIT: i64 = 100;
const LIMIT_MAX: i64 = 1_000;

/// Which emissions to list, and how many at most.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) selection: EmissionSelection,
    pub(super) limit: i64,
}

const QUERY_REMEDY: &str = "use some of reactor, id, key, type, refused=true and limit";

const BODY_REMEDY: &str =
    "send {\"id\": ID}, some of \"key\", \"type\" and \"refused\": true, or {\"all\": true}";

/// Reads `?reactor=…&id=…&key=…&type=…&refused=true&limit=…`.
pub(super) fn of_query(query: Option<&str>) -> Result<Listing, ApiError> {
    let mut listing = Listing { selection: EmissionSelection::default(), limit: LIMIT };
    for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        refuse_nul(&key, &value)?;
        match &*key {
            "reactor" => listing.selection.reactor = Some(value.into_owned()),
            "limit" => {
                let limit: i64 = parse_or(QUERY_REMEDY, &key, &value)?;
                if !(1..=LIMIT_MAX).contains(&limit) {
                    return Err(refuse(format!("`limit` is not 1 to {LIMIT_MAX}"), QUERY_REMEDY));
                }
                listing.limit = limit;
            }
            _ if narrow(&mut listing.selection, &key, &value)? => {}
            _ => return Err(refuse(format!("unknown field `{key}`"), QUERY_REMEDY)),
        }
    }
    Ok(listing)
}

/// Reads `{"id": …}`, some of the other fields, or `{"all": true}`: a change has to name what it is about.
pub(super) fn of_body(headers: &HeaderMap, body: &[u8]) -> Result<EmissionSelection, ApiError> {
    let mut said = Map::new();
    if !body.is_empty() {
        require_json(headers)?;
        said = serde_json::from_slice(body).map_err(|error| refuse(error.to_string(), BODY_REMEDY))?;
    }
    let all = said.remove("all");
    let mut selection = EmissionSelection::default();
    for (key, value) in &said {
        let value = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(truth) => truth.to_string(),
            _ => return Err(refuse(format!("`{key}` cannot be of this kind"), BODY_REMEDY)),
        };
        if !narrow(&mut selection, key, &value)? {
            return Err(refuse(format!("unknown field `{key}`"), BODY_REMEDY));
        }
    }
    let is_everything = selection == EmissionSelection::default();
    match all {
        None if is_everything => Err(refuse("the body names no emissions".to_owned(), BODY_REMEDY)),
        Some(Value::Bool(true)) if !is_everything => {
            Err(refuse("`all` cannot be combined with another field".to_owned(), BODY_REMEDY))
        }
        None | Some(Value::Bool(true)) => Ok(selection),
        Some(_) => Err(refuse("`all` is not true".to_owned(), BODY_REMEDY)),
    }
}

/// Applies one field to the selection. Returns `false` if there is no such field.
fn narrow(selection: &mut EmissionSelection, key: &str, value: &str) -> Result<bool, ApiError> {
    refuse_nul(key, value)?;
    match key {
        "id" => selection.id = Some(parse_or(QUERY_REMEDY, key, value)?),
        "key" => selection.key = Some(value.to_owned()),
        "type" => selection.event_type = Some(value.to_owned()),
        "refused" => selection.only_refused = parse_or(QUERY_REMEDY, key, value)?,
        _ => return Ok(false),
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use hyper::header::{CONTENT_TYPE, HeaderValue};

    use super::*;

    #[test]
    fn a_query_selects_and_refuses_unknown_fields() {
        let all = of_query(None).unwrap();
        assert_eq!(all, Listing { selection: EmissionSelection::default(), limit: 100 });
        let some = of_query(Some("reactor=r&key=k%201&refused=true&limit=3")).unwrap().selection;
        assert_eq!((some.reactor.as_deref(), some.key.as_deref()), (Some("r"), Some("k 1")));
        assert!(some.only_refused);
        for wrong in ["x=1", "limit=0", "limit=1001", "id=a", "refused=maybe", "key=%00"] {
            assert!(of_query(Some(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_change_has_to_name_what_it_is_about() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let read = |body: &str| of_body(&headers, body.as_bytes());
        assert_eq!(read("{\"id\": 7}").unwrap().id, Some(7));
        assert_eq!(read("{\"all\": true}").unwrap(), EmissionSelection::default());
        for wrong in
            ["", "{}", "[]", "{\"all\": false}", "{\"all\": true, \"id\": 1}", "{\"reactor\": \"r\"}"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
