//! Seals fields of bodies, and opens them.

use std::collections::{BTreeMap, HashSet};
use std::error::Error;

use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};
use uuid::Uuid;

use super::body::{Place, Pointer, members, replace_at, replace_everywhere};
use super::cipher::{open, seal};
use super::keys::{SubjectKey, SubjectState};
use super::personal::FORGOTTEN;
use crate::event::{Event, NewEvent};

/// Why a body could not be sealed or opened.
pub(super) type Trouble = Box<dyn Error + Send + Sync>;

/// The only key of what stands in the place of a sealed field.
const SEALED: &str = "$sealed";

/// Stands for the id of the aggregate where a pointer to the subject could be.
const AGGREGATE: &str = "aggregate_id";

/// A sealed field: `{"$sealed": …}`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapper {
    #[serde(rename = "$sealed")]
    sealed: Envelope,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    /// The subject.
    s: String,
    /// The number of the key.
    k: i32,
    /// Nonce, ciphertext and tag, in base64.
    c: String,
}

/// Fields of one event type that are about the same subject.
#[derive(Debug, Clone)]
pub(super) struct Sealing {
    fields: Vec<Pointer>,
    /// `None`: the aggregate.
    subject: Option<Pointer>,
}

/// The keys of a subject, by number.
pub(super) type KeysOf<'k> = dyn Fn(&str) -> Result<BTreeMap<i32, SubjectKey>, Trouble> + 'k;

impl Sealing {
    /// Fails with the text that is no pointer.
    pub(super) fn new(fields: &[&str], subject: &str) -> Result<Self, String> {
        let pointer = |text: &str| Pointer::parse(text).ok_or_else(|| text.to_owned());
        let fields = fields.iter().map(|field| pointer(field)).collect::<Result<_, _>>()?;
        Ok(Self { fields, subject: (subject != AGGREGATE).then(|| pointer(subject)).transpose()? })
    }

    /// The subjects of an event that is to be sealed.
    pub(super) fn subjects(&self, event: &NewEvent) -> Vec<String> {
        let mut subjects = Vec::new();
        for field in &self.fields {
            let mut edit = |place: &Place, value: &RawValue| -> Result<Option<Box<RawValue>>, ()> {
                if is_personal(value) {
                    subjects.extend(self.subject_at(event, place));
                }
                Ok(None)
            };
            let _ = replace_at(&event.body, field, &mut edit);
        }
        subjects
    }

    /// The body with these fields sealed; `None`: it has none of them. `body` is that of the event, with others sealed already.
    pub(super) fn seal(
        &self,
        event: &NewEvent,
        body: &RawValue,
        keys_of: &KeysOf<'_>,
    ) -> Result<Option<Box<RawValue>>, Trouble> {
        let mut sealed: Option<Box<RawValue>> = None;
        for field in &self.fields {
            let mut edit = |place: &Place, value: &RawValue| -> Result<Option<Box<RawValue>>, Trouble> {
                if !is_personal(value) {
                    return Ok(None);
                }
                let subject = self.subject_at(event, place);
                let subject = subject.ok_or_else(|| {
                    format!(
                        "the personal field {} has no subject: that is a text without NUL, or a number",
                        place.path
                    )
                })?;
                let keys = keys_of(&subject)?;
                let (number, key) =
                    keys.last_key_value().ok_or_else(|| format!("subject {subject} got no key"))?;
                let c = seal(&key.0, &associated(event.uuid, &place.path), value.get().as_bytes());
                Ok(Some(to_raw_value(&Wrapper { sealed: Envelope { s: subject, k: *number, c } })?))
            };
            if let Some(new) = replace_at(sealed.as_deref().unwrap_or(body), field, &mut edit)? {
                sealed = Some(new);
            }
        }
        Ok(sealed)
    }

    /// The subject of what is at a place.
    fn subject_at(&self, event: &NewEvent, place: &Place) -> Option<String> {
        let Some(pointer) = &self.subject else { return Some(event.aggregate_id.to_string()) };
        let found = pointer.find(&event.body, place)?;
        match serde_json::from_str(found.get()).ok()? {
            serde_json::Value::String(subject) if !subject.is_empty() && !subject.contains('\0') => {
                Some(subject)
            }
            serde_json::Value::Number(_) => Some(found.get().to_owned()),
            _ => None,
        }
    }
}

/// Whether there is something to seal: nothing and what is forgotten are not.
fn is_personal(value: &RawValue) -> bool {
    let is_forgotten =
        || members(value).is_some_and(|members| members.len() == 1 && members.contains_key(FORGOTTEN));
    value.get() != "null" && !is_forgotten()
}

/// Whether a body may have a sealed field. A key can be written with escapes.
pub(super) fn may_be_sealed(body: &RawValue) -> bool {
    body.get().contains(SEALED) || body.get().contains("\\u")
}

/// Whether a body has an object with the key of sealed fields.
pub(super) fn is_sealed_in(body: &RawValue) -> bool {
    let mut edit = |_: &Place, value: &RawValue| if read(value).is_some() { Err(()) } else { Ok(None) };
    may_be_sealed(body) && replace_everywhere(body, &Place::default(), &mut edit).is_err()
}

/// A sealed field, or why it is none although it has the key; `None`: it is another value.
fn read(value: &RawValue) -> Option<Result<Envelope, serde_json::Error>> {
    members(value)?
        .contains_key(SEALED)
        .then(|| serde_json::from_str(value.get()).map(|Wrapper { sealed }| sealed))
}

/// The subjects of the sealed fields of a body.
pub(super) fn subjects_of_sealed(body: &RawValue) -> HashSet<String> {
    let mut subjects = HashSet::new();
    if may_be_sealed(body) {
        let mut edit = |_: &Place, value: &RawValue| -> Result<Option<Box<RawValue>>, ()> {
            subjects.extend(read(value).and_then(Result::ok).map(|envelope| envelope.s));
            Ok(None)
        };
        let _ = replace_everywhere(body, &Place::default(), &mut edit);
    }
    subjects
}

/// Opens every sealed field of an event.
pub(super) fn open_all(
    event: &Event,
    state_of: &dyn Fn(&str) -> Result<SubjectState, Trouble>,
    fallback: &dyn Fn(&str) -> Option<Box<RawValue>>,
) -> Result<Box<RawValue>, Trouble> {
    let mut edit = |Place { path, .. }: &Place, value: &RawValue| -> Result<Option<Box<RawValue>>, Trouble> {
        let Some(read) = read(value) else { return Ok(None) };
        let Envelope { s, k, c } =
            read.map_err(|error| format!("what is sealed at {path} was changed: {error}"))?;
        let keys = match state_of(&s)? {
            SubjectState::Keys(keys) => keys,
            SubjectState::Forgotten => {
                let forgotten = || to_raw_value(&json!({ FORGOTTEN: s }));
                return Ok(Some(fallback(path).map_or_else(forgotten, Ok)?));
            }
        };
        let key =
            keys.get(&k).ok_or_else(|| format!("subject {s} has no key {k}: are these the right keys?"))?;
        let opened = open(&key.0, &associated(event.uuid, path), &c);
        let opened =
            opened.map_err(|_| format!("what is sealed at {path} was changed, or belongs elsewhere"))?;
        Ok(Some(RawValue::from_string(String::from_utf8(opened)?)?))
    };
    let opened = replace_everywhere(&event.body, &Place::default(), &mut edit)?;
    Ok(opened.unwrap_or_else(|| event.body.clone()))
}

/// What a sealed field belongs to: the event, and the place in it.
fn associated(event: Uuid, path: &str) -> Vec<u8> {
    [event.as_bytes().as_slice(), path.as_bytes()].concat()
}
