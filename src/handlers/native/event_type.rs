//! Rust types for the bodies of events.

use std::ops::Deref;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{EventError, HandlerError};
use crate::event::Event;
use crate::processing::processor::Delivery;

/// The body of one type of event.
///
/// Events of an older name or shape can be read as this type with an `[[upcast]]` in the configuration, or, for the shape,
/// with the attributes of serde: `#[serde(default)]`, `#[serde(alias = "…")]`.
pub trait EventType: Serialize + DeserializeOwned {
    /// The name of the event type in the store.
    const NAME: &'static str;
}

impl Delivery {
    /// Reads the body as `E`. Returns `None` if the event is of another type.
    ///
    /// # Errors
    /// The event is of this type, but its body is not of this shape. The error names the event.
    pub fn read<E: EventType>(&self) -> Result<Option<E>, HandlerError> {
        if self.event.event_type != E::NAME {
            return Ok(None);
        }
        match serde_json::from_str(self.event.body.get()) {
            Ok(body) => Ok(Some(body)),
            Err(error) => Err(self.failed(format!("the body is not a {}: {error}", E::NAME))),
        }
    }

    /// Makes an error that names this event as the one that could not be handled.
    pub fn failed(&self, source: impl Into<HandlerError>) -> HandlerError {
        EventError { event_id: self.event.id, source: source.into() }.into()
    }
}

/// A delivery can be used as its event.
impl Deref for Delivery {
    type Target = Event;

    fn deref(&self) -> &Event {
        &self.event
    }
}
