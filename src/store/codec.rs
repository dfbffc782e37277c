//! Codecs: how the bodies of events are written into the store, where that is not plain JSON.

use std::borrow::Cow;
use std::error::Error;
use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;

use serde_json::value::RawValue;

use super::{AppendError, ReadError};
use crate::event::{Event, NewEvent, PersonalFields};
use crate::postgres::error::chain;

/// Turns the body of an event into what is stored, and back: to encrypt it, to compress it, or to keep another format inside of
/// JSON. What is stored is always JSON, for example one string.
///
/// A store that was made `with_codec` encodes what it appends and decodes what it reads. So do handlers in Rust that were
/// registered with one (`Registration::codec`). Everybody else sees what is stored: handlers in SQL, programs,
/// webhooks, upcasts, `espctl events`. Types that they handle are best left as they are: the event says which type it is.
///
/// The same event must always be encoded to the same body, because appending an event again is recognised by its content. A
/// cipher takes its nonce from the event's uuid, which no other event has.
#[async_trait]
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

    /// Whether these personal fields of a type are encrypted by [`Self::encode`]. Where they are not, an event of a Rust type that declares
    /// them ([`EventType::PERSONAL`](crate::event::EventType::PERSONAL)) is refused, because it would be stored in the clear.
    ///
    /// By default they are not. A codec around another one passes this on.
    fn seals(&self, _event_type: &str, _fields: &PersonalFields) -> bool {
        false
    }

    /// Is told of the events that are encoded next, all at once: to fetch what that takes, such as keys. What a reactor emits is
    /// encoded without this, so [`Self::encode`] has to do without it.
    ///
    /// # Errors
    /// What it takes is not there now. Nothing is appended; the same append may be repeated. An error of `sqlx` counts as one of the
    /// store, so `sqlx::Error::Configuration` says that repeating does not help.
    async fn before_encoding(&self, _events: &[NewEvent]) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }

    /// As [`Self::before_encoding`], for the events of a batch that a processor handles next. Other readers decode event by event
    /// without this.
    ///
    /// # Errors
    /// What it takes is not there now. The batch is tried again; no event has failed.
    async fn before_decoding(&self, _events: &[&Event]) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }
}

/// The codec of a store, if it has one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Codec(Option<Arc<dyn BodyCodec>>);

impl Codec {
    pub(crate) fn new(codec: impl BodyCodec) -> Self {
        Self(Some(Arc::new(codec)))
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// The first personal fields of a type that would be stored in the clear.
    pub(crate) fn find_unsealed<'f>(
        &self,
        event_type: &str,
        personal: &'f [PersonalFields],
    ) -> Option<&'f PersonalFields> {
        let is_sealed =
            |fields: &&PersonalFields| self.0.as_ref().is_some_and(|codec| codec.seals(event_type, fields));
        personal.iter().find(|fields| !is_sealed(fields))
    }

    fn refuse_unsealed(&self, event: &NewEvent) -> Result<(), String> {
        let Some(PersonalFields { fields, .. }) = self.find_unsealed(&event.event_type, event.personal)
        else {
            return Ok(());
        };
        Err(format!(
            "{} has personal fields ({}), which no codec seals: add PersonalData::of this type to the store by \
             .with_codec, and to the registration of a reactor by .codec",
            event.event_type,
            fields.join(", ")
        ))
    }

    /// The body that is stored of an event.
    pub(crate) fn encode(&self, event: &NewEvent) -> Result<Option<Box<RawValue>>, String> {
        self.refuse_unsealed(event)?;
        let encode = |codec: &Arc<dyn BodyCodec>| codec.encode(event).map_err(|error| chain(&*error));
        self.0.as_ref().map(encode).transpose()
    }

    /// Has the codec fetch what decoding these events takes. Fails with the reason why that is not there now.
    pub(crate) async fn before_decoding(&self, events: &[&Event]) -> Result<(), String> {
        let Some(codec) = &self.0 else { return Ok(()) };
        codec.before_decoding(events).await.map_err(|error| chain(&*error))
    }

    /// The events as they are stored.
    pub(crate) async fn encode_all<'e>(
        &self,
        events: &'e [NewEvent],
    ) -> Result<Cow<'e, [NewEvent]>, AppendError> {
        let invalid = |index| move |reason| AppendError::Invalid { index: Some(index), reason };
        for (index, event) in events.iter().enumerate() {
            self.refuse_unsealed(event).map_err(invalid(index))?;
        }
        let Some(codec) = &self.0 else { return Ok(Cow::Borrowed(events)) };
        codec.before_encoding(events).await.map_err(unavailable)?;
        let mut encoded = events.to_vec();
        for (index, event) in encoded.iter_mut().enumerate() {
            if let Some(body) = self.encode(event).map_err(invalid(index))? {
                (event.body, event.personal) = (body, &[]);
            }
        }
        Ok(Cow::Owned(encoded))
    }

    /// The event as it was before it was encoded.
    pub(crate) fn decode(&self, mut event: Event) -> Result<Event, ReadError> {
        if let Some(codec) = &self.0 {
            let decoded = codec.decode(&event);
            event.body = decoded
                .map_err(|error| ReadError::Undecodable { position: event.id, reason: chain(&*error) })?;
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
            Err(error) => Some((place, chain(&*error))),
        })
    }
}

/// What a codec needs is not there now, which says nothing about the event.
fn unavailable(error: Box<dyn Error + Send + Sync>) -> AppendError {
    match error.downcast::<sqlx::Error>() {
        Ok(error) => AppendError::Database(*error),
        Err(error) => AppendError::Database(sqlx::Error::Io(std::io::Error::other(error))),
    }
}
