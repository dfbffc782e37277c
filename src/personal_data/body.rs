//! Replaces parts of JSON texts. What is not replaced stays as it is written: no number becomes another one.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::value::{RawValue, to_raw_value};

/// A pointer into a body (RFC 6901). `*` stands for every element of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pointer(Vec<String>);

/// Where in a body something is.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    /// The pointer to it.
    pub(super) path: String,
    /// What each `*` stands for.
    elements: Vec<usize>,
}

impl Pointer {
    /// Reads a pointer such as `/customer/name`. Fails with what to write instead.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix('/') else { return Err(format!("write /{text}")) };
        let parts: Vec<&str> = path.split('/').collect();
        if parts.contains(&"") {
            return Err("no field has an empty name: write /name, without a slash more".to_owned());
        }
        Ok(Self(parts.iter().map(|part| part.replace("~1", "/").replace("~0", "~")).collect()))
    }

    /// Whether both may lead to the same value of a body, or one of them into what the other leads to.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let mut parts = self.0.iter().zip(&other.0);
        parts.all(|(one, two)| stands_for(one, two) || stands_for(two, one))
    }

    /// Whether all that the other one leads to is what this one leads to, or lies in it.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let mut parts = self.0.iter().zip(&other.0);
        self.0.len() <= other.0.len() && parts.all(|(one, two)| stands_for(one, two))
    }

    /// What is there, with each `*` as at `place`.
    pub(super) fn find(&self, body: &RawValue, place: &Place) -> Option<Box<RawValue>> {
        let mut elements = place.elements.iter();
        let mut found = body.to_owned();
        for part in &self.0 {
            found = match (part.as_str(), self::elements(&found)) {
                ("*", Some(mut items)) => {
                    let index = *elements.next()?;
                    (index < items.len()).then(|| items.swap_remove(index))?
                }
                (part, Some(mut items)) => {
                    let index: usize = part.parse().ok()?;
                    (index < items.len()).then(|| items.swap_remove(index))?
                }
                (part, None) => members(&found)?.remove(part)?,
            };
        }
        Some(found)
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| write!(f, "/{}", escape(part)))
    }
}

fn escape(part: &str) -> String {
    part.replace('~', "~0").replace('/', "~1")
}

/// Whether a part of a pointer leads wherever the other one does. The number of an element may be written in several ways.
fn stands_for(part: &str, other: &str) -> bool {
    let (index, other_index): (Option<usize>, Option<usize>) = (part.parse().ok(), other.parse().ok());
    part == other || other_index.is_some() && (part == "*" || index == other_index)
}

/// Replaces whatever `pointer` leads to by what `edit` makes of it; `None`: nothing has changed.
pub(super) fn replace_at<E>(
    body: &RawValue,
    pointer: &Pointer,
    edit: &mut Edit<'_, E>,
) -> Result<Option<Box<RawValue>>, E> {
    replace_below(body, &pointer.0, &Place::default(), edit)
}

/// Makes something of the value at a place; `None`: it stays.
pub(super) type Edit<'e, E> = dyn FnMut(&Place, &RawValue) -> Result<Option<Box<RawValue>>, E> + 'e;

fn replace_below<E>(
    value: &RawValue,
    parts: &[String],
    place: &Place,
    edit: &mut Edit<'_, E>,
) -> Result<Option<Box<RawValue>>, E> {
    let Some((part, rest)) = parts.split_first() else { return edit(place, value) };
    if let Some(mut items) = elements(value) {
        let mut is_changed = false;
        for (index, item) in items.iter_mut().enumerate() {
            let is_every = part == "*";
            if is_every || part.parse() == Ok(index) {
                let place = place.below(&index.to_string(), is_every.then_some(index));
                if let Some(new) = replace_below(item, rest, &place, edit)? {
                    (*item, is_changed) = (new, true);
                }
            }
        }
        return Ok(is_changed.then(|| write(&items)));
    }
    let Some(mut members) = members(value) else { return Ok(None) };
    let Some(member) = members.get_mut(part) else { return Ok(None) };
    let Some(new) = replace_below(member, rest, &place.below(part, None), edit)? else { return Ok(None) };
    *member = new;
    Ok(Some(write(&members)))
}

/// Replaces every value that `edit` makes something of, from the outside in; `None`: nothing has changed.
pub(super) fn replace_everywhere<E>(
    value: &RawValue,
    place: &Place,
    edit: &mut Edit<'_, E>,
) -> Result<Option<Box<RawValue>>, E> {
    if let Some(new) = edit(place, value)? {
        return Ok(Some(new));
    }
    let mut is_changed = false;
    if let Some(mut items) = elements(value) {
        for (index, item) in items.iter_mut().enumerate() {
            if let Some(new) = replace_everywhere(item, &place.below(&index.to_string(), None), edit)? {
                (*item, is_changed) = (new, true);
            }
        }
        return Ok(is_changed.then(|| write(&items)));
    }
    let Some(mut members) = members(value) else { return Ok(None) };
    for (name, member) in &mut members {
        if let Some(new) = replace_everywhere(member, &place.below(name, None), edit)? {
            (*member, is_changed) = (new, true);
        }
    }
    Ok(is_changed.then(|| write(&members)))
}

impl Place {
    fn below(&self, part: &str, element: Option<usize>) -> Self {
        let path = format!("{}/{}", self.path, escape(part));
        Self { path, elements: self.elements.iter().copied().chain(element).collect() }
    }
}

/// The members of an object; `None` if it is none.
pub(super) fn members(value: &RawValue) -> Option<BTreeMap<String, Box<RawValue>>> {
    value.get().starts_with('{').then(|| serde_json::from_str(value.get()).ok()).flatten()
}

fn elements(value: &RawValue) -> Option<Vec<Box<RawValue>>> {
    value.get().starts_with('[').then(|| serde_json::from_str(value.get()).ok()).flatten()
}

fn write(value: &impl serde::Serialize) -> Box<RawValue> {
    to_raw_value(value).expect("what was read as JSON is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).expect("JSON")
    }

    fn replaced(body: &str, pointer: &str) -> (String, Vec<String>) {
        let mut paths = Vec::new();
        let mut edit = |place: &Place, _: &RawValue| -> Result<_, ()> {
            paths.push(place.path.clone());
            Ok(Some(raw("0")))
        };
        let pointer = Pointer::parse(pointer).expect("a pointer");
        let new = replace_at(&raw(body), &pointer, &mut edit).expect("no error");
        (new.map_or_else(|| body.to_owned(), |new| new.get().to_owned()), paths)
    }

    #[test]
    fn only_what_the_pointer_leads_to_is_replaced() {
        let body = r#"{"a":{"b":1.00000000000000000001,"c/d":2},"e":[{"f":1},{"g":2},{"f":3}]}"#;
        for (pointer, new, paths) in [
            ("/a/c~1d", body.replace("\"c/d\":2", "\"c/d\":0"), vec!["/a/c~1d"]),
            (
                "/e/*/f",
                body.replace("\"f\":1", "\"f\":0").replace("\"f\":3", "\"f\":0"),
                vec!["/e/0/f", "/e/2/f"],
            ),
            ("/e/1/g", body.replace("\"g\":2", "\"g\":0"), vec!["/e/1/g"]),
            ("/a/x", body.to_owned(), vec![]),
            ("/e/9", body.to_owned(), vec![]),
            ("/a/b/c", body.to_owned(), vec![]),
        ] {
            let (found, at) = replaced(body, pointer);
            assert_eq!((found, at), (new, paths.iter().map(ToString::to_string).collect()), "{pointer}");
        }
    }

    #[test]
    fn a_place_tells_what_a_star_stands_for() {
        let body = raw(r#"{"p":[{"id":"x","n":1},{"id":"y","n":2}]}"#);
        let (names, ids) = (Pointer::parse("/p/*/n").expect("one"), Pointer::parse("/p/*/id").expect("one"));
        let mut found = Vec::new();
        let mut edit = |place: &Place, _: &RawValue| -> Result<_, ()> {
            found.push(ids.find(&body, place).expect("an id").get().to_owned());
            Ok(None)
        };
        replace_at(&body, &names, &mut edit).expect("no error");
        assert_eq!(found, ["\"x\"", "\"y\""]);
    }

    #[test]
    fn a_pointer_that_leads_nowhere_is_refused() {
        for (text, words) in
            [("name", "write /name"), ("", "write /"), ("/name/", "empty"), ("/a//b", "empty")]
        {
            let refused = Pointer::parse(text).expect_err(text);
            assert!(refused.contains(words), "{text}: {refused}");
        }
        assert_eq!(Pointer::parse("/a~1b/*").map(|pointer| pointer.to_string()), Ok("/a~1b/*".to_owned()));
    }

    #[test]
    fn pointers_meet_where_they_may_lead_to_the_same_value_or_into_it() {
        let pointer = |text| Pointer::parse(text).expect("a pointer");
        for (one, two, meet, covers) in [
            ("/a", "/a", true, true),
            ("/a", "/a/b", true, true),
            ("/a/b", "/a", true, false),
            ("/a/b", "/a/c", false, false),
            ("/a/*/b", "/a/3", true, false),
            ("/a/*", "/a/3/b", true, true),
            ("/a/*/b", "/a/*/c", false, false),
            ("/a/1", "/a/01/b", true, true),
            ("/a/1", "/a/2", false, false),
            ("/a/*", "/a/b", false, false),
        ] {
            let (one, two) = (pointer(one), pointer(two));
            assert_eq!((one.meets(&two), two.meets(&one)), (meet, meet), "{one} {two}");
            assert_eq!(one.covers(&two), covers, "{one} {two}");
        }
    }
}
