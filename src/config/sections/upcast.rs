//! Reads `[[upcast]]`.

use super::processor::read_event_types;
use crate::config::reader::tree::Section;
use crate::store::upcast::Upcast;

/// An upcast, or `None` where a fault leaves it incomplete.
pub(crate) fn read_upcast(section: &Section<'_>) -> Option<Upcast> {
    const ADVICE: &str = "write a list of the types as they are stored: events = [\"SomethingHappened\"]";
    let events = section.require("events", ADVICE).and_then(|events| {
        let types = read_event_types(&events.items(ADVICE)?);
        if types.is_empty() || types.iter().any(|name| name == "*") {
            events.location.report("an upcast is for types that it names", ADVICE);
        }
        Some(types)
    });
    let event_type = section.value("type").and_then(|name| name.text());
    let body = section.value("body").and_then(|body| body.sql());
    let when = section.value("when").and_then(|when| when.sql());
    if section.value("type").is_none() && section.value("body").is_none() {
        let advice =
            "write `type`: what they are called now, or `body`: SQL for what is in them now, or both";
        section.report("an upcast without `type` and `body` changes nothing", advice);
    }
    Some(Upcast { events: events?, event_type, body, when })
}
