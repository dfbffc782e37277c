//! Upcasts read old events as new ones: bodies of an older shape, and types that had other names.
//!
//! Events are never changed. An upcast is a layer of SQL over the event table that every reader of a processor looks
//! through, whatever its handlers are written in; the layers lie in the order of the configuration, so an old event goes
//! through all of them. Without upcasts, readers use the layout's source as it is.

use serde::{Deserialize, Serialize};

use crate::postgres::quote::quote_literal;
use crate::postgres::source_text::SourceText;

/// One `[[upcast]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upcast {
    /// The types that the upcast is for, as they come from the layer below. Never empty.
    pub events: Vec<String>,
    /// The type that they are read as; `None`: the same.
    pub event_type: Option<String>,
    /// A SQL expression of `event`, for the body that is read; `None`: the same.
    pub body: Option<SourceText>,
    /// A SQL condition on `event`: which of these events the upcast is for; `None`: all of them.
    pub when: Option<SourceText>,
}

impl Upcast {
    /// The columns of `source` as they are read through this layer. The text needs an alias.
    pub(crate) fn over(&self, source: &str) -> String {
        let is_old = self.condition();
        let or_else = |new: Option<String>, old: &str| {
            new.map_or(old.to_owned(), |new| format!("case when {is_old} then {new} else {old} end"))
        };
        let event_type = self.event_type.as_ref().map(|name| quote_literal(name));
        // An upcast that yields null would produce an event without a body. The text below is not JSON, so its cast fails
        // with an error that names the event.
        let body = self.body.as_ref().map(|sql| {
            let none = "('an upcast has made no body for event ' || event.id)::jsonb";
            format!("coalesce((\n{}\n)::jsonb, {none})", sql.text)
        });
        format!(
            "(select event.id, event.uuid, event.aggregate_id, {} as type, event.version, {} as body, event.metadata, \
             event.correlation_id, event.causation_id, event.created_at from {source} as event)",
            or_else(event_type, "event.type"),
            or_else(body, "event.body"),
        )
    }

    fn condition(&self) -> String {
        let types: Vec<String> = self.events.iter().map(|name| quote_literal(name)).collect();
        let when = self.when.as_ref().map(|sql| format!(" and (\n{}\n)", sql.text)).unwrap_or_default();
        format!("event.type in ({}){when}", types.join(", "))
    }

    /// Whether no event of this type gets past this layer.
    pub(crate) fn hides(&self, event_type: &str) -> bool {
        let renames = self.event_type.as_ref().is_some_and(|new| new != event_type);
        renames && self.when.is_none() && self.events.iter().any(|old| old == event_type)
    }
}

/// The types in the store that may be read as one of these.
pub(crate) fn stored_types<'t>(
    upcasts: &'t [Upcast],
    types: impl IntoIterator<Item = &'t str>,
) -> Vec<&'t str> {
    let mut stored: Vec<&str> = types.into_iter().collect();
    for upcast in upcasts.iter().rev() {
        if upcast.event_type.as_ref().is_some_and(|new| stored.contains(&new.as_str())) {
            stored.extend(upcast.events.iter().map(String::as_str));
        }
    }
    stored
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rename(from: &str, to: &str) -> Upcast {
        Upcast { events: vec![from.into()], event_type: Some(to.into()), body: None, when: None }
    }

    #[test]
    fn the_types_below_the_layers_are_found() {
        let upcasts = [rename("A", "B"), rename("B", "C"), rename("X", "Y")];
        assert_eq!(stored_types(&upcasts, ["C"]), ["C", "B", "A"]);
        assert_eq!(stored_types(&upcasts, ["D"]), ["D"]);
    }

    #[test]
    fn a_renamed_type_is_hidden_unless_only_some_are_renamed() {
        let some = Upcast { when: Some(SourceText::unplaced("true")), ..rename("A", "B") };
        assert!(rename("A", "B").hides("A") && !rename("A", "B").hides("B") && !some.hides("A"));
    }
}
