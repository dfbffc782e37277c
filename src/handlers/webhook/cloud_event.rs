//! An event as the headers and the body of a request: CloudEvents 1.0 over HTTP, in binary mode.
//!
//! <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md>

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use uuid::Uuid;

use crate::event::Event;

/// The namespace of delivery keys. It was generated once at random, is the same everywhere and never changes.
const DELIVERIES: Uuid = Uuid::from_u128(0x6f2b_1c8e_9d34_4a57_b0c6_e81f_7a25_93d4);

/// The key by which a receiver recognizes a delivery. It depends only on the names of the reactor and the event, so it is
/// the same for every attempt, from any process and after any restore.
pub(crate) fn delivery_key(reactor: &str, event: Uuid) -> Uuid {
    Uuid::new_v5(&DELIVERIES, format!("{reactor}/{event}").as_bytes())
}

/// The attributes of an event as headers. `source` names the event store.
pub(crate) fn attributes(event: &Event, source: &str) -> Vec<(&'static str, String)> {
    let mut attributes = vec![
        ("ce-specversion", "1.0".to_owned()),
        ("ce-id", event.uuid.to_string()),
        ("ce-source", encode(source)),
        ("ce-type", encode(&event.event_type)),
        ("ce-subject", event.aggregate_id.to_string()),
        ("ce-time", encode(&event.created_at.to_string())),
        // Attributes of espd and of registered extensions.
        ("ce-position", event.id.to_string()),
        ("ce-version", event.version.to_string()),
    ];
    attributes.extend(event.correlation_id.map(|uuid| ("ce-correlationid", uuid.to_string())));
    attributes.extend(event.causation_id.map(|uuid| ("ce-causationid", uuid.to_string())));
    attributes
}

/// All characters are encoded but visible ASCII without `"` and `%`, so no text of an event can end a header.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// Encodes the value of a header as the binding specifies.
fn encode(value: &str) -> String {
    utf8_percent_encode(value, ENCODED).to_string()
}

#[cfg(test)]
mod tests {
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
        let attributes = attributes(&event("TodoAdded"), "/espd");
        let expected = [
            ("ce-specversion", "1.0"),
            ("ce-id", "00000000-0000-0000-0000-000000000001"),
            ("ce-source", "/espd"),
            ("ce-type", "TodoAdded"),
            ("ce-subject", "00000000-0000-0000-0000-000000000002"),
            ("ce-time", "2026-01-31T12:00:00.250Z"),
            ("ce-position", "7"),
            ("ce-version", "3"),
            ("ce-causationid", "00000000-0000-0000-0000-000000000004"),
        ];
        assert_eq!(attributes, expected.map(|(name, value)| (name, value.to_owned())));
    }

    /// The second is the example of the binding.
    #[test]
    fn no_text_of_an_event_ends_a_header() {
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
