//! Reads `[[upcast]]`.

use super::events::read_event_types;
use crate::config::reader::tree::Section;
use crate::store::upcast::Upcast;

/// An upcast, or `None` if a mistake leaves it incomplete.
pub(crate) fn read_upcast(section: &Section<'_>) -> Option<Upcast> {
    const ADVICE: &str = "write a list of the types as they are stored: events = [\"SomethingHappened\"]";
    let events = section.value("events").and_then(|events| {
        let types = read_event_types(&events.items(ADVICE)?);
        if types.is_empty() || types.iter().any(|name| name == "*") {
            events.location.report("an upcast has to name its event types", ADVICE);
        }
        Some(types)
    });
    let (event_type, body, when) = (section.text("type"), section.sql("body"), section.sql("when"));
    if section.value("type").is_none() && section.value("body").is_none() {
        let advice =
            "write `type`: what they are called now, or `body`: SQL for what is in them now, or both";
        section.report("an upcast without `type` and `body` changes nothing", advice);
    }
    Some(Upcast { events: events?, event_type, body, when, ..Upcast::default() })
}
