//! Reads deliveries as the Rust types of their bodies.

use std::ops::Deref;

use super::error::{EventError, HandlerError};
use crate::event::{Event, EventType};
use crate::processing::processor::Delivery;

impl Delivery {
    /// Reads the body as `E`. Returns `None` if the event is of another type.
    ///
    /// # Errors
    /// The event is of this type, but its body is not of this shape. The error names the event.
    pub fn read<E: EventType>(&self) -> Result<Option<E>, HandlerError> {
        if !E::is_named(&self.event.event_type) {
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
