//! Events as types of Rust: each says once what it is called.

use std::ops::Deref;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{EventError, HandlerError};
use crate::event::Event;
use crate::processing::processor::Delivery;

/// The body of one type of event.
///
/// Bodies of older shape, and types of older names, are read as this one after an `[[upcast]]` of the configuration; or
/// with what serde offers: `#[serde(default)]`, `#[serde(alias = "…")]`.
pub trait EventType: Serialize + DeserializeOwned {
    /// What the event is called in the store.
    const NAME: &'static str;
}

impl Delivery {
    /// The body, if the event is of this type.
    ///
    /// # Errors
    /// It is of this type, but its body is not of this shape.
    pub fn read<E: EventType>(&self) -> Result<Option<E>, HandlerError> {
        if self.event.event_type != E::NAME {
            return Ok(None);
        }
        match serde_json::from_str(self.event.body.get()) {
            Ok(body) => Ok(Some(body)),
            Err(error) => Err(self.failed(format!("the body is not a {}: {error}", E::NAME))),
        }
    }

    /// Says that this is the event that could not be handled.
    pub fn failed(&self, source: impl Into<HandlerError>) -> HandlerError {
        EventError { event_id: self.event.id, source: source.into() }.into()
    }
}

/// A delivery is an event that also knows whether it is replayed.
impl Deref for Delivery {
    type Target = Event;

    fn deref(&self) -> &Event {
        &self.event
    }
}
