//! Codecs: how the bodies of events are written into the store, where that is not plain JSON.

use std::borrow::Cow;
use std::error::Error;
use std::fmt::Debug;
use std::sync::Arc;

use serde_json::value::RawValue;

use super::{AppendError, ReadError};
use crate::event::{Event, NewEvent};

/// Turns the body of an event into what is stored, and back: to encrypt it, to compress it, or to keep another format inside of
/// JSON. What is stored is always JSON, for example one string.
///
/// A store that was made `with_codec` encodes what it appends and decodes what it reads. So do handlers in Rust that were
/// registered with one (`Registration::codec`). Everybody else sees what is stored: handlers in SQL, programs,
/// webhooks, upcasts, `espctl events`. Types that they handle are best left as they are: the event says which type it is.
///
/// The same event must always be encoded to the same body, because appending an event again is recognised by its content. A
/// cipher takes its nonce from the event's uuid, which no other event has.
pub trait BodyCodec: Debug + Send + Sync + 'static {
    /// The body as it is stored.
    ///
    /// # Errors
    /// The event cannot be stored.
    fn encode(&self, event: &NewEvent) -> Result<Box<RawValue>, Box<dyn Error + Send + Sync>>;

    /// The body as it was before [`Self::encode`]. Events of before the codec come here as well.
    ///
    /// # Errors
    /// The event cannot be read.
    fn decode(&self, event: &Event) -> Result<Box<RawValue>, Box<dyn Error + Send + Sync>>;
}

/// The codec of a store, if it has one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Codec(Option<Arc<dyn BodyCodec>>);

impl Codec {
    pub(crate) fn new(codec: impl BodyCodec) -> Self {
        Self(Some(Arc::new(codec)))
    }

    /// The body that is stored of an event.
    pub(crate) fn encode(&self, event: &NewEvent) -> Result<Option<Box<RawValue>>, String> {
        let encode = |codec: &Arc<dyn BodyCodec>| codec.encode(event).map_err(|error| error.to_string());
        self.0.as_ref().map(encode).transpose()
    }

    /// The events as they are stored.
    pub(crate) fn encode_all<'e>(&self, events: &'e [NewEvent]) -> Result<Cow<'e, [NewEvent]>, AppendError> {
        if self.0.is_none() {
            return Ok(Cow::Borrowed(events));
        }
        let mut encoded = events.to_vec();
        for (index, event) in encoded.iter_mut().enumerate() {
            let invalid = |reason| AppendError::Invalid { index: Some(index), reason };
            if let Some(body) = self.encode(event).map_err(invalid)? {
                event.body = body;
            }
        }
        Ok(Cow::Owned(encoded))
    }

    /// The event as it was before it was encoded.
    pub(crate) fn decode(&self, mut event: Event) -> Result<Event, ReadError> {
        if let Some(codec) = &self.0 {
            let decoded = codec.decode(&event);
            event.body = decoded
                .map_err(|error| ReadError::Undecodable { position: event.id, reason: error.to_string() })?;
        }
        Ok(event)
    }

    /// Decodes these events up to the first that cannot be decoded. Returns its place and the reason.
    pub(crate) fn decode_some<'e>(
        &self,
        events: impl IntoIterator<Item = &'e mut Event>,
    ) -> Option<(usize, String)> {
        let codec = self.0.as_ref()?;
        events.into_iter().enumerate().find_map(|(place, event)| match codec.decode(event) {
            Ok(body) => {
                event.body = body;
                None
            }
            Err(error) => Some((place, error.to_string())),
        })
    }
}
