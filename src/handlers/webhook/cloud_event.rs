//! An event as the headers and the body of a request: CloudEvents 1.0 over HTTP, in binary mode.
//!
//! <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md>

use hyper::header::HeaderName;
use percent_encoding::{AsciiSet, CONTROLS, PercentEncode, utf8_percent_encode};
use uuid::Uuid;

use super::text_headers::TextHeaders;
use crate::event::Event;

/// The namespace of delivery keys. It was generated once at random, is the same everywhere and never changes.
const DELIVERIES: Uuid = Uuid::from_u128(0x6f2b_1c8e_9d34_4a57_b0c6_e81f_7a25_93d4);

/// The key by which a receiver recognizes a delivery. It depends only on the names of the reactor and the event, so it is
/// the same for every attempt, from any process and after any restore.
pub(crate) fn delivery_key(reactor: &str, event: Uuid) -> Uuid {
    Uuid::new_v5(&DELIVERIES, format!("{reactor}/{event}").as_bytes())
}

/// The attributes that differ from event to event, each with the name of its header. `ce-specversion` and `ce-source` are
/// those of all events of a store.
pub(crate) fn add_attributes(event: &Event, headers: &mut TextHeaders) {
    headers.add(ID, event.uuid.as_hyphenated());
    headers.add(TYPE, encode(&event.event_type));
    headers.add(SUBJECT, &event.aggregate_id);
    headers.add(TIME, encode(&event.created_at.to_string()));
    // Attributes of espd and of registered extensions.
    headers.add(POSITION, event.id);
    headers.add(VERSION, event.version);
    if let Some(uuid) = event.correlation_id {
        headers.add(CORRELATION, uuid.as_hyphenated());
    }
    if let Some(uuid) = event.causation_id {
        headers.add(CAUSATION, uuid.as_hyphenated());
    }
}

const ID: HeaderName = HeaderName::from_static("ce-id");
const TYPE: HeaderName = HeaderName::from_static("ce-type");
const SUBJECT: HeaderName = HeaderName::from_static("ce-subject");
const TIME: HeaderName = HeaderName::from_static("ce-time");
const POSITION: HeaderName = HeaderName::from_static("ce-position");
const VERSION: HeaderName = HeaderName::from_static("ce-version");
const CORRELATION: HeaderName = HeaderName::from_static("ce-correlationid");
const CAUSATION: HeaderName = HeaderName::from_static("ce-causationid");

/// All characters are encoded but visible ASCII without `"` and `%`, so no text of an event can end a header.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// Encodes the value of a header as the binding specifies.
pub(crate) fn encode(value: &str) -> PercentEncode<'_> {
    utf8_percent_encode(value, ENCODED)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderMap;
    use serde_json::value::RawValue;

    use super::*;

    fn event(event_type: &str) -> Event {
        Event {
            id: 7.into(),
            uuid: Uuid::from_u128(1),
            aggregate_id: Uuid::from_u128(2).into(),
            event_type: event_type.to_owned(),
            version: 3.into(),
            body: RawValue::from_string("{}".into()).unwrap(),
            metadata: RawValue::from_string("{}".into()).unwrap(),
            correlation_id: None,
            causation_id: Some(Uuid::from_u128(4)),
            created_at: "2026-01-31T12:00:00.25Z".parse().unwrap(),
        }
    }

    #[test]
    fn the_attributes_are_those_of_the_event() {
        let (mut headers, mut attributes) = (TextHeaders::new(), HeaderMap::new());
        add_attributes(&event("TodoAdded"), &mut headers);
        headers.write_to(&mut attributes);
        let expected = [
            ("ce-id", "00000000-0000-0000-0000-000000000001"),
            ("ce-type", "TodoAdded"),
            ("ce-subject", "00000000-0000-0000-0000-000000000002"),
            ("ce-time", "2026-01-31T12:00:00.250Z"),
            ("ce-position", "7"),
            ("ce-version", "3"),
            ("ce-causationid", "00000000-0000-0000-0000-000000000004"),
        ];
        let attributes = attributes.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
        assert_eq!(attributes.collect::<Vec<_>>(), expected);
    }

    /// The second is the example of the binding.
    #[test]
    fn no_text_of_an_event_ends_a_header() {
        let encode = |text| super::encode(text).to_string();
        assert_eq!(encode("a\r\nx-evil: 1\0"), "a%0D%0Ax-evil:%201%00");
        assert_eq!(encode("Euro € 😀"), "Euro%20%E2%82%AC%20%F0%9F%98%80");
        assert_eq!(encode("50%\"~!"), "50%25%22~!");
    }

    #[test]
    fn a_key_follows_from_the_reactor_and_the_event_only() {
        let key = delivery_key("mailer", Uuid::from_u128(1));
        assert_eq!(key.to_string(), "49364f47-b8bf-5977-97ee-54a85e2338e4");
        assert_ne!(key, delivery_key("mailer", Uuid::from_u128(2)));
        assert_ne!(key, delivery_key("mailer2", Uuid::from_u128(1)));
    }
}
