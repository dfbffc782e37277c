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

/// How many times a value may have been sealed, one around the other.
const LAYERS_MAX: u32 = 16;

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

/// A field of one event type, and whom it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sealing {
    pub(super) field: Pointer,
    /// `None`: the aggregate.
    subject: Option<Pointer>,
}

/// The keys of a subject, by number.
pub(super) type KeysOf<'k> = dyn Fn(&str) -> Result<BTreeMap<i32, SubjectKey>, Trouble> + 'k;

impl Sealing {
    /// Fails with the text that is no pointer, and what to write instead.
    pub(super) fn new(field: &str, subject: &str) -> Result<Self, String> {
        let pointer = |text: &str| Pointer::parse(text).map_err(|fault| format!("{text:?}: {fault}"));
        let subject = (subject != AGGREGATE).then(|| pointer(subject)).transpose()?;
        Ok(Self { field: pointer(field)?, subject })
    }

    /// The subjects of an event that is to be sealed.
    pub(super) fn subjects(&self, event: &NewEvent) -> Vec<String> {
        let mut subjects = Vec::new();
        let mut edit = |place: &Place, value: &RawValue| -> Result<Option<Box<RawValue>>, ()> {
            let subject = self.subject_at(event, place);
            subjects.extend(subject.filter(|subject| is_personal(value, Some(subject))));
            Ok(None)
        };
        let _ = replace_at(&event.body, &self.field, &mut edit);
        subjects
    }

    /// The body with this field sealed; `None`: it does not have it. `body` is that of the event, with others sealed already.
    pub(super) fn seal(
        &self,
        event: &NewEvent,
        body: &RawValue,
        keys_of: &KeysOf<'_>,
    ) -> Result<Option<Box<RawValue>>, Trouble> {
        let mut edit = |place: &Place, value: &RawValue| -> Result<Option<Box<RawValue>>, Trouble> {
            let subject = self.subject_at(event, place);
            if !is_personal(value, subject.as_deref()) {
                return Ok(None);
            }
            let subject = subject.ok_or_else(|| {
                format!(
                    "the personal field {} has no subject: that is a text without NUL, or a number as a database writes it",
                    place.path
                )
            })?;
            let keys = keys_of(&subject)?;
            let (number, key) =
                keys.last_key_value().ok_or_else(|| format!("subject {subject} got no key"))?;
            let c = seal(&key.0, &associated(event.uuid, &place.path), value.get().as_bytes());
            Ok(Some(to_raw_value(&Wrapper { sealed: Envelope { s: subject, k: *number, c } })?))
        };
        replace_at(body, &self.field, &mut edit)
    }

    /// The subject of what is at a place.
    fn subject_at(&self, event: &NewEvent, place: &Place) -> Option<String> {
        let Some(pointer) = &self.subject else { return Some(event.aggregate_id.to_string()) };
        let found = pointer.find(&event.body, place)?;
        match serde_json::from_str(found.get()).ok()? {
            serde_json::Value::String(subject) if !subject.is_empty() && !subject.contains('\0') => {
                Some(subject)
            }
            // What is stored as another text could not be forgotten by what people see of it.
            serde_json::Value::Number(_) if !found.get().contains(['e', 'E']) && found.get() != "-0" => {
                Some(found.get().to_owned())
            }
            _ => None,
        }
    }
}

/// Whether there is something to seal: nothing is not, and neither is what says no more than that this subject is forgotten.
fn is_personal(value: &RawValue, subject: Option<&str>) -> bool {
    let is_forgotten = || {
        let members = members(value).filter(|members| members.len() == 1)?;
        let told: String = serde_json::from_str(members.get(FORGOTTEN)?.get()).ok()?;
        (Some(told.as_str()) == subject).then_some(())
    };
    value.get() != "null" && is_forgotten().is_none()
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
    state_of: &StateOf<'_>,
    fallback: &Fallback<'_>,
) -> Result<Box<RawValue>, Trouble> {
    let opened = Opening { event, state_of, fallback }.open_in(&event.body, &Place::default(), LAYERS_MAX)?;
    Ok(opened.unwrap_or_else(|| event.body.clone()))
}

/// What the keys of a subject are, or that it was forgotten.
type StateOf<'s> = dyn Fn(&str) -> Result<SubjectState, Trouble> + 's;

/// What stands in the place of a field that is forgotten, by path.
type Fallback<'f> = dyn Fn(&str) -> Option<Box<RawValue>> + 'f;

/// An event whose fields are opened.
struct Opening<'o> {
    event: &'o Event,
    state_of: &'o StateOf<'o>,
    fallback: &'o Fallback<'o>,
}

/// What was sealed.
enum Opened {
    Known(Box<RawValue>),
    Forgotten(Box<RawValue>),
}

impl Opening<'_> {
    /// Opens what is sealed in a value; `None`: nothing is.
    ///
    /// A type that was registered twice was once sealed twice, and what lay in a sealed field sealed before: both are opened too.
    fn open_in(
        &self,
        value: &RawValue,
        place: &Place,
        layers: u32,
    ) -> Result<Option<Box<RawValue>>, Trouble> {
        let mut edit = |place: &Place, value: &RawValue| -> Result<Option<Box<RawValue>>, Trouble> {
            match self.open(place, value)? {
                None => Ok(None),
                Some(Opened::Forgotten(said)) => Ok(Some(said)),
                Some(Opened::Known(known)) if !may_be_sealed(&known) => Ok(Some(known)),
                Some(Opened::Known(_)) if layers == 0 => Err(format!(
                    "what is sealed at {} is sealed too often, more than {LAYERS_MAX} times",
                    place.path
                )
                .into()),
                Some(Opened::Known(known)) => {
                    Ok(Some(self.open_in(&known, place, layers - 1)?.unwrap_or(known)))
                }
            }
        };
        replace_everywhere(value, place, &mut edit)
    }

    /// What a value was before it was sealed; `None`: it is not sealed.
    fn open(&self, Place { path, .. }: &Place, value: &RawValue) -> Result<Option<Opened>, Trouble> {
        let Some(read) = read(value) else { return Ok(None) };
        let Envelope { s, k, c } =
            read.map_err(|error| format!("what is sealed at {path} was changed: {error}"))?;
        let keys = match (self.state_of)(&s)? {
            SubjectState::Keys(keys) => keys,
            SubjectState::Forgotten => {
                let forgotten = || to_raw_value(&json!({ FORGOTTEN: s }));
                let said = (self.fallback)(path).map_or_else(forgotten, Ok)?;
                return Ok(Some(Opened::Forgotten(said)));
            }
        };
        let key =
            keys.get(&k).ok_or_else(|| format!("subject {s} has no key {k}: are these the right keys?"))?;
        let opened = open(&key.0, &associated(self.event.uuid, path), &c);
        let opened =
            opened.map_err(|_| format!("what is sealed at {path} was changed, or belongs elsewhere"))?;
        Ok(Some(Opened::Known(RawValue::from_string(String::from_utf8(opened)?)?)))
    }
}

/// What a sealed field belongs to: the event, and the place in it.
fn associated(event: Uuid, path: &str) -> Vec<u8> {
    [event.as_bytes().as_slice(), path.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> BTreeMap<i32, SubjectKey> {
        BTreeMap::from([(1, SubjectKey([7; 32]))])
    }

    fn new_event(body: &str) -> NewEvent {
        let body = RawValue::from_string(body.to_owned()).expect("JSON");
        NewEvent::new(Uuid::from_u128(7), "T", body)
    }

    /// The body after each of these fields was sealed in turn, as an earlier version did it, also where one lies in another.
    fn sealed(event: &NewEvent, fields: &[&str]) -> Event {
        let mut body = event.body.clone();
        for field in fields {
            let sealing = Sealing::new(field, "/id").expect("a pointer");
            body = sealing.seal(event, &body, &|_| Ok(keys())).expect("it is sealed").unwrap_or(body);
        }
        Event {
            id: 1.into(),
            uuid: event.uuid,
            aggregate_id: event.aggregate_id.clone(),
            event_type: event.event_type.clone(),
            version: 1.into(),
            body,
            metadata: event.metadata.clone(),
            correlation_id: None,
            causation_id: None,
            created_at: chrono::Utc::now().into(),
        }
    }

    fn opened(event: &Event, state: &SubjectState) -> Result<String, Trouble> {
        open_all(event, &|_| Ok(state.clone()), &|_| None).map(|body| body.get().to_owned())
    }

    #[test]
    fn what_was_sealed_twice_or_in_one_another_is_read_again() {
        let event = new_event(r#"{"a":{"b":"Ada","c":[{"d":1.50}]},"id":"x"}"#);
        let known = SubjectState::Keys(keys());
        for fields in
            [&["/a/b"][..], &["/a/b", "/a/b"], &["/a/b", "/a"], &["/a/c/*/d", "/a/c/0", "/a/c", "/a", "/a"]]
        {
            let stored = sealed(&event, fields);
            assert!(!stored.body.get().contains("Ada") || fields[0] != "/a/b", "{}", stored.body);
            assert_eq!(opened(&stored, &known).expect("it is opened"), event.body.get(), "{fields:?}");
        }
        let forgotten = opened(&sealed(&event, &["/a/b", "/a"]), &SubjectState::Forgotten).expect("no error");
        assert_eq!(forgotten, r#"{"a":{"$forgotten":"x"},"id":"x"}"#);
    }

    #[test]
    fn what_is_sealed_again_and_again_is_refused_at_some_time() {
        let (event, known) = (new_event(r#"{"a":1,"id":"x"}"#), SubjectState::Keys(keys()));
        assert!(opened(&sealed(&event, &["/a"; 17]), &known).is_ok());
        let refused = opened(&sealed(&event, &["/a"; 18]), &known).expect_err("it is refused").to_string();
        assert!(refused.contains("/a is sealed too often"), "{refused}");
    }
}
