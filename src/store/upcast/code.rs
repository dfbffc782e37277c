//! Upcasts whose bodies are made by Rust.
//!
//! The layer of such an upcast marks the body instead of changing it: with a word that nothing outside of this process knows,
//! and with its place among the layers. Whoever reads in Rust takes the mark off and has the body made. So a reader that
//! cannot do that, such as SQL, never sees an old body under a new name without noticing.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, LazyLock};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use thiserror::Error;
use uuid::Uuid;

use super::Upcast;
use crate::event::{Event, Position};
use crate::postgres::quote::quote_literal;

type Convert = dyn Fn(&RawValue) -> Result<Box<RawValue>, Box<dyn Error + Send + Sync>> + Send + Sync;

/// Makes a new body of an old one, in Rust.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct BodyCode {
    /// Its place among those that the program has.
    pub(crate) number: usize,
    /// `None` in a process that has only been told of it.
    #[serde(skip)]
    convert: Option<Arc<Convert>>,
}

/// What a program says of its closures is compared by their places: nothing else is known of two closures.
impl PartialEq for BodyCode {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for BodyCode {}

impl fmt::Debug for BodyCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BodyCode({})", self.number)
    }
}

/// A body that an upcast could not make.
#[derive(Debug, Error)]
#[error("the upcast of event {event_id} has failed: {source}")]
pub(crate) struct UpcastFailure {
    event_id: Position,
    source: Box<dyn Error + Send + Sync>,
}

impl UpcastFailure {
    /// Whether this is what has kept events from being read.
    pub(crate) fn is_cause_of(error: &sqlx::Error) -> bool {
        Self::find_event(error).is_some()
    }

    /// The event that could not be read, if this is what has kept events from being read.
    pub(crate) fn find_event(error: &sqlx::Error) -> Option<Position> {
        let sqlx::Error::Decode(source) = error else { return None };
        source.downcast_ref::<Self>().map(|failure| failure.event_id)
    }
}

/// Begins the mark of a body. Only this process knows it, so no stored body has it.
static MARK: LazyLock<String> = LazyLock::new(|| format!("upcast {}", Uuid::new_v4().simple()));

impl BodyCode {
    pub(super) fn new<Old, New, E>(convert: impl Fn(Old) -> Result<New, E> + Send + Sync + 'static) -> Self
    where
        Old: DeserializeOwned,
        New: Serialize,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let convert = move |old: &RawValue| {
            let old: Old = serde_json::from_str(old.get())?;
            Ok(to_raw_value(&convert(old).map_err(Into::into)?)?)
        };
        Self { number: 0, convert: Some(Arc::new(convert)) }
    }

    /// An SQL expression that marks the body of `event` for the layer at this place.
    pub(super) fn marking(place: usize) -> String {
        format!("jsonb_build_array({}, {place}, event.body)", quote_literal(&MARK))
    }

    fn convert(&self, body: &RawValue) -> Result<Box<RawValue>, Box<dyn Error + Send + Sync>> {
        let convert = self.convert.as_ref().ok_or("this program does not have the upcast")?;
        convert(body)
    }
}

/// The event as it is read through these layers, with marks taken off and bodies made.
pub(crate) fn finish(event: Event, layers: &[Upcast]) -> Result<Event, sqlx::Error> {
    if layers.iter().all(|layer| layer.code.is_none()) {
        return Ok(event);
    }
    let body = match unmark(&event.body, layers) {
        Ok(None) => return Ok(event),
        Ok(Some(body)) => body,
        Err(source) => {
            return Err(sqlx::Error::Decode(UpcastFailure { event_id: event.id, source }.into()));
        }
    };
    Ok(Event { body, ..event })
}

/// The event as it is read through layers that have no SQL, without a database.
///
/// # Errors
/// A layer cannot make the body.
pub(crate) fn read_through(mut event: Event, layers: &[Upcast]) -> Result<Event, sqlx::Error> {
    for layer in layers {
        if !layer.events.contains(&event.event_type) {
            continue;
        }
        if let Some(code) = &layer.code {
            event.body = code
                .convert(&event.body)
                .map_err(|source| sqlx::Error::Decode(UpcastFailure { event_id: event.id, source }.into()))?;
        }
        if let Some(name) = &layer.event_type {
            event.event_type.clone_from(name);
        }
    }
    Ok(event)
}

/// The body below a mark, made by the layer that has marked it; `None`: it has no mark.
fn unmark(body: &RawValue, layers: &[Upcast]) -> Result<Option<Box<RawValue>>, Box<dyn Error + Send + Sync>> {
    if !body.get().starts_with(&format!("[\"{}\"", *MARK)) {
        return Ok(None);
    }
    let (_, place, below): (String, usize, Box<RawValue>) = serde_json::from_str(body.get())?;
    let code = layers.get(place).and_then(|layer| layer.code.as_ref()).ok_or("there is no such upcast")?;
    let below = unmark(&below, layers)?.unwrap_or(below);
    Ok(Some(code.convert(&below)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_make_bodies_from_the_lowest_up() {
        let number = |add: i64| Upcast::of(["A"]).body(move |n: i64| Ok::<_, String>(n + add));
        let fails = Upcast::of(["A"]).body(|_: i64| Err::<i64, _>("never"));
        let layers = [number(1), number(10), fails];
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        let marked = |place: usize, below: &str| raw(&format!("[\"{}\", {place}, {below}]", *MARK));
        let made = |body: &RawValue| unmark(body, &layers).map(|made| made.map(|body| body.get().to_owned()));
        assert_eq!(made(&raw("[\"upcast\", 0, 7]")).unwrap(), None, "any body may look like this");
        assert_eq!(made(&marked(0, "7")).unwrap().as_deref(), Some("8"));
        assert_eq!(made(&marked(1, marked(0, "7").get())).unwrap().as_deref(), Some("18"));
        assert_eq!(made(&marked(2, "7")).unwrap_err().to_string(), "never");
        assert!(made(&marked(0, "\"no number\"")).is_err());
    }
}
