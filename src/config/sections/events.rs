//! Reads lists of event types.

use crate::config::reader::tree::Value;
use crate::processing::declaration::HandledEvents;

pub(crate) const ADVISE_EVENTS: &str =
    "write a list of event types: events = [\"SomethingHappened\"], or [\"*\"] for all";

/// The events that something handles: types, or all of them.
pub(crate) fn read_events(value: &Value<'_>) -> Option<HandledEvents> {
    let items = value.items(ADVISE_EVENTS)?;
    if items.is_empty() {
        value.location.report("a handler without event types handles nothing", ADVISE_EVENTS);
    }
    let types = read_event_types(&items);
    if !types.iter().any(|event_type| event_type == "*") {
        return Some(HandledEvents::Types(types));
    }
    if types.len() > 1 {
        let advice = "write [\"*\"] alone, or split this into two handlers; both run, in order";
        value.location.report("`*` stands for all types and cannot be combined with others", advice);
    }
    Some(HandledEvents::All)
}

/// Event types, none twice and none empty.
pub(crate) fn read_event_types(items: &[Value<'_>]) -> Vec<String> {
    let mut types = Vec::new();
    for item in items {
        match item.text() {
            Some(event_type) if event_type.trim().is_empty() => {
                item.location.report("an event type is never empty", ADVISE_EVENTS);
            }
            Some(event_type) if types.contains(&event_type) => {
                item.location
                    .report(format!("{} is listed twice", item.as_written()), "remove one of the two");
            }
            event_type => types.extend(event_type),
        }
    }
    types
}
