//! Reads `[[event]]`.

use serde::Deserialize;

use crate::config::reader::json::JsonText;
use crate::config::reader::tree::Section;
use crate::store::declared_event::{DeclaredEvent, SchemaMistake, as_stored, find_mistake};

/// When the bodies of a type are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Check {
    /// When they are appended.
    Append,
    /// By `espctl schema events`, which reports.
    #[default]
    Report,
}

/// A declared event type, or `None` if a mistake leaves it incomplete.
pub(crate) fn read_event(section: &Section<'_>) -> Option<DeclaredEvent> {
    let name = section.value("type").and_then(|name| {
        let event_type = name.text()?;
        if event_type.trim().is_empty() {
            name.location.report("an event type is never empty", "write type = \"SomethingHappened\"");
            return None;
        }
        name.location.reserve("event", &event_type, "an event type is declared once");
        Some(event_type)
    });
    let check: Check = section.choice("check").unwrap_or_default();
    let written = section.value("schema")?;
    let JsonText { value: schema, text } = written.json()?;
    let text = as_stored(&text);
    if let Some(SchemaMistake { path, message, advice }) =
        find_mistake(&schema).or_else(|| text.clone().err())
    {
        let place = if path.is_empty() { "the schema".to_owned() } else { format!("{path} of the schema") };
        written.location.report(format!("{place}: {message}"), advice);
        return None;
    }
    Some(DeclaredEvent {
        event_type: name?,
        schema,
        text: text.ok()?,
        is_checked: check == Check::Append,
        place: written.place(),
    })
}
