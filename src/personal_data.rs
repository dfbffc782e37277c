//! Personal data in events: marked fields are encrypted with a key of the person whom they are about, and forgetting the person is
//! deleting the key. The events stay, in every copy and backup; the fields cannot be read any more.
//!
//! Whom a field is about, its *subject*, is an id in the event, which must not be personal itself: the id of a customer, not his e-mail
//! address. One event may have fields of several subjects.
//!
//! ```
//! use espd::personal_data::{MemoryKeys, Personal, PersonalData};
//! use espd::prelude::*;
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct CustomerRegistered { customer_id: String, name: Personal<String>, email: Personal<String> }
//! espd::event_type!(CustomerRegistered, personal = ["/name", "/email"] of "/customer_id");
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let keys = MemoryKeys::new(); // in production: PostgresKeys
//! let personal = PersonalData::new(keys.clone()).of::<CustomerRegistered>();
//! let store = MemoryEventStore::new().with_codec(personal.clone());
//!
//! let ada = CustomerRegistered { customer_id: "c1".into(), name: "Ada".to_owned().into(), email: "ada@example.com".to_owned().into() };
//! let id = Uuid::new_v4();
//! store.append(&[NewEvent::of(id, &ada)?]).await?;
//!
//! keys.forget("c1"); // in production: espctl forget c1, or PostgresKeys::forget
//! personal.clear();  // running programs remember keys for a minute
//! let event = store.read_after(Position::START, None, None, 1).await?.remove(0);
//! let read = event.read::<CustomerRegistered>()?.expect("it is one");
//! assert_eq!(read.name, Personal::Forgotten { subject: "c1".into() });
//! # Ok(()) }
//! ```
//!
//! A store without this codec refuses an event of such a type, and so does a reactor that was registered without it.
//!
//! Handlers in Rust read the fields where they are registered with the same value: `Registration::codec(personal)`. Handlers in SQL,
//! programs, webhooks and `espctl events` see what is stored: `{"$sealed": {"s": SUBJECT, "k": NUMBER, "c": TEXT}}`.
//! `docs/personal-data.md` has the details.

mod body;
mod cipher;
mod key_table;
mod keyring;
mod keys;
mod personal;
mod seal;

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::value::{RawValue, to_raw_value};

use self::body::Pointer;
pub use self::key_table::{ForgottenSubject, PostgresKeys};
pub(crate) use self::key_table::{KEY_SCHEMA, KeyTable};
use self::keyring::{Keyring, Missing};
pub use self::keys::{KeyError, MasterKey, MemoryKeys, SubjectKey, SubjectKeys, SubjectState};
pub use self::personal::Personal;
use self::seal::{Sealing, is_sealed_in, may_be_sealed, open_all, subjects_of_sealed};
use crate::event::{Event, EventType, NewEvent, PersonalFields};
use crate::postgres::sqlstate::may_succeed_later;
use crate::store::BodyCodec;

/// Which fields of which events are personal, and the keys: a codec for stores and processors. Clones share the keys.
#[derive(Debug, Clone)]
pub struct PersonalData {
    keyring: Keyring,
    /// By type.
    sealings: HashMap<String, Vec<Sealing>>,
    /// By type and path: what a reader gets in place of a field that is forgotten.
    fallbacks: HashMap<(String, String), Box<RawValue>>,
}

impl PersonalData {
    /// No field is personal yet. The keys are fetched by a thread, which ends with the last clone.
    pub fn new(keys: impl SubjectKeys) -> Self {
        let keyring = Keyring::start(Arc::new(keys));
        Self { keyring, sealings: HashMap::new(), fallbacks: HashMap::new() }
    }

    /// Seals what the type `E` declares as personal: `event_type!(…, personal = […] of …)`. To say it twice changes nothing.
    ///
    /// # Panics
    /// As [`Self::fields`].
    #[must_use]
    pub fn of<E: EventType>(mut self) -> Self {
        for name in std::iter::once(&E::NAME).chain(E::WAS) {
            for PersonalFields { fields, subject } in E::PERSONAL {
                self = self.fields(name, fields, subject);
            }
        }
        self
    }

    /// Seals fields of an event type. They are named by JSON pointers, in which `*` stands for every element of an array. `subject`
    /// is the pointer to the id of whom they are about, or `aggregate_id`; each `*` in it stands for the same element. To say it twice
    /// changes nothing.
    ///
    /// A pointer that leads to nothing in an event seals nothing, because a field may be missing: that it is written as the
    /// field is nobody checks.
    ///
    /// # Panics
    /// A text is no pointer: it does not begin with `/`, or has an empty part. Or a field lies in another one that is sealed, or is about
    /// two subjects: no field is sealed twice.
    #[must_use]
    pub fn fields(mut self, event_type: &str, fields: &[&str], subject: &str) -> Self {
        let known = self.sealings.entry(event_type.to_owned()).or_default();
        for field in fields {
            let sealing = Sealing::new(field, subject).unwrap_or_else(|fault| {
                panic!("a field or a subject of {event_type} is no JSON pointer: {fault}")
            });
            match known.iter().find(|other| other.field.meets(&sealing.field)) {
                None => known.push(sealing),
                Some(other) if *other == sealing => {}
                Some(Sealing { field: other, .. }) if *other == sealing.field => {
                    panic!("the field {field} of {event_type} is about two subjects: name one of them")
                }
                Some(Sealing { field: other, .. }) => {
                    panic!(
                        "the fields {other} and {field} of {event_type} lie in one another: name one of them"
                    )
                }
            }
        }
        self
    }

    /// What a reader gets in place of a field, at this path, that is forgotten. Without it, that is `{"$forgotten": SUBJECT}`,
    /// which [`Personal`] reads.
    #[must_use]
    pub fn fallback(mut self, event_type: &str, path: &str, value: &serde_json::Value) -> Self {
        let value = to_raw_value(value).expect("a JSON value is JSON");
        self.fallbacks.insert((event_type.to_owned(), path.to_owned()), value);
        self
    }

    /// Forgets the keys that are at hand. A subject that was forgotten is so at once, instead of within a minute.
    pub fn clear(&self) {
        self.keyring.clear();
    }

    fn sealings(&self, event_type: &str) -> &[Sealing] {
        self.sealings.get(event_type).map_or(&[], Vec::as_slice)
    }
}

/// The error of a codec: whether repeating may help is said by its kind.
fn as_it_lasts(error: Arc<KeyError>) -> Box<dyn Error + Send + Sync> {
    match &*error {
        KeyError::Database(answer) if may_succeed_later(answer) => Box::new(error),
        _ => Box::new(sqlx::Error::Configuration(Box::new(error))),
    }
}

#[async_trait]
impl BodyCodec for PersonalData {
    fn encode(&self, event: &NewEvent) -> Result<Box<RawValue>, Box<dyn Error + Send + Sync>> {
        if is_sealed_in(&event.body) {
            return Err("the body has the key \"$sealed\", which sealed fields alone have".into());
        }
        let mut sealed = event.body.clone();
        for sealing in self.sealings(&event.event_type) {
            let key_of = |subject: &str| {
                match self.keyring.get(subject, Missing::Create)? {
                Some(SubjectState::Keys(keys)) => Ok(keys),
                Some(SubjectState::Forgotten) => Err(format!(
                    "subject {subject} was forgotten: who comes back gets another id, so that nothing of before can be read"
                )
                .into()),
                None => Err(format!("subject {subject} got no key").into()),
            }
            };
            if let Some(new) = sealing.seal(event, &sealed, &key_of)? {
                sealed = new;
            }
        }
        Ok(sealed)
    }

    fn seals(&self, event_type: &str, fields: &PersonalFields) -> bool {
        let is_sealed =
            |field: &Pointer| self.sealings(event_type).iter().any(|sealing| sealing.field.covers(field));
        fields.fields.iter().all(|field| Pointer::parse(field).is_ok_and(|field| is_sealed(&field)))
    }

    fn decode(&self, event: &Event) -> Result<Box<RawValue>, Box<dyn Error + Send + Sync>> {
        if !may_be_sealed(&event.body) {
            return Ok(event.body.clone());
        }
        let fallback = |path: &str| self.fallbacks.get(&(event.event_type.clone(), path.to_owned())).cloned();
        let state_of = |subject: &str| {
            let state = self.keyring.get(subject, Missing::Leave)?;
            state.ok_or_else(|| {
                let lost = "has no key, and was never forgotten: are these the right keys?";
                format!("subject {subject} {lost}").into()
            })
        };
        open_all(event, &state_of, &fallback)
    }

    async fn before_encoding(&self, events: &[NewEvent]) -> Result<(), Box<dyn Error + Send + Sync>> {
        let subjects: HashSet<String> = events
            .iter()
            .flat_map(|event| {
                self.sealings(&event.event_type).iter().flat_map(|sealing| sealing.subjects(event))
            })
            .collect();
        self.keyring.fetch(subjects, Missing::Create).await.map_err(as_it_lasts)
    }

    async fn before_decoding(&self, events: &[&Event]) -> Result<(), Box<dyn Error + Send + Sync>> {
        let subjects = events.iter().flat_map(|event| subjects_of_sealed(&event.body)).collect();
        Ok(self.keyring.fetch(subjects, Missing::Leave).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody() -> PersonalData {
        PersonalData::new(MemoryKeys::new())
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    struct Joined {}
    crate::event_type!(Joined, was = ["Member"], personal = ["/name", "/name"] of "/id", personal = ["/a/*"] of "aggregate_id");

    #[derive(serde::Serialize, serde::Deserialize)]
    struct Left {}
    crate::event_type!(Left, was = ["Member"], personal = ["/name"] of "/id");

    #[test]
    fn to_say_it_twice_changes_nothing() {
        let personal = nobody().of::<Joined>().of::<Joined>().of::<Left>().fields("Left", &["/name"], "/id");
        let counts = ["Joined", "Member", "Left"].map(|name| personal.sealings(name).len());
        assert_eq!(counts, [2, 2, 1]);
    }

    #[test]
    fn what_seals_a_field_twice_or_nothing_is_refused() {
        type Said = (&'static [&'static str], &'static str);
        let cases: [(&[Said], &str); 7] = [
            (&[(&["/a/b", "/a"], "/id")], "the fields /a/b and /a of T lie in one another"),
            (&[(&["/a"], "/id"), (&["/a/b"], "/id")], "the fields /a and /a/b of T lie in one another"),
            (
                &[(&["/a/*/b"], "/id"), (&["/a/0"], "/id")],
                "the fields /a/*/b and /a/0 of T lie in one another",
            ),
            (&[(&["/a"], "/id"), (&["/a"], "/other")], "the field /a of T is about two subjects"),
            (&[(&["/a"], "/id"), (&["/a"], "aggregate_id")], "the field /a of T is about two subjects"),
            (&[(&["/name/"], "/id")], "\"/name/\": no field has an empty name"),
            (&[(&["/name"], "id")], "\"id\": write /id"),
        ];
        for (said, words) in cases {
            let say = || {
                said.iter()
                    .fold(nobody(), |personal, (fields, subject)| personal.fields("T", fields, subject))
            };
            let panic = std::panic::catch_unwind(say).expect_err(words);
            let panic = panic.downcast_ref::<String>().map_or("", String::as_str);
            assert!(panic.contains(words), "{panic}");
        }
    }
}
