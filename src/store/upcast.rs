//! Upcasts read old events as new ones: bodies of an older shape, and types that had other names.
//!
//! Events are never changed. An upcast is a layer of SQL over the event table that every reader of a processor looks
//! through, whatever its handlers are written in; the layers lie in the order of the configuration, so an old event goes
//! through all of them. Without upcasts, readers use the layout's source as it is.

mod code;

use std::error::Error;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use code::BodyCode;
pub(crate) use code::{UpcastFailure, finish, read_through};

use crate::postgres::quote::quote_literal;
use crate::postgres::source_text::SourceText;

/// Reads some events as if they had another type, another body, or both: an `[[upcast]]` of the configuration, or one that a
/// program declares.
///
/// ```
/// use espd::store::Upcast;
/// # #[derive(serde::Deserialize)] struct OldAddress { street_and_number: String }
/// # #[derive(serde::Serialize)] struct Address { street: String, number: String }
///
/// let renamed = Upcast::of(["TodoCreated"]).as_type("TodoAdded");
/// let in_sql = Upcast::of(["TodoAdded"]).body_sql("jsonb_build_object('title', event.body->'label')").when_sql("event.body ? 'label'");
/// let in_rust = Upcast::of(["AddressGivenV1"]).as_type("AddressGiven").body(|old: OldAddress| {
///     let (street, number) = old.street_and_number.rsplit_once(' ').ok_or("it has no number")?;
///     Ok::<_, &str>(Address { street: street.to_owned(), number: number.to_owned() })
/// });
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Upcast {
    /// The types that the upcast is for, as they come from the layer below. Never empty.
    pub events: Vec<String>,
    /// The type that they are read as; `None`: the same.
    pub event_type: Option<String>,
    /// A SQL expression of `event`, for the body that is read; `None`: the same.
    pub body: Option<SourceText>,
    /// A SQL condition on `event`: which of these events the upcast is for; `None`: all of them.
    pub when: Option<SourceText>,
    /// Makes the body in Rust; `None`: `body` does, or nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<BodyCode>,
    /// Whether a program declares it, and not the configuration.
    #[serde(default)]
    pub in_program: bool,
}

impl Upcast {
    /// An upcast for events of these types, as they come from the store or from the upcasts before.
    pub fn of<T: Into<String>>(events: impl IntoIterator<Item = T>) -> Self {
        Self { events: events.into_iter().map(Into::into).collect(), in_program: true, ..Self::default() }
    }

    /// The type that the events are read as.
    #[must_use]
    pub fn as_type(self, name: &str) -> Self {
        Self { event_type: Some(name.to_owned()), ..self }
    }

    /// Makes the body by a SQL expression of `event`, which yields JSON. Readers of every kind see it.
    #[must_use]
    pub fn body_sql(self, expression: &str) -> Self {
        Self { body: Some(self.source_text(expression)), code: None, ..self }
    }

    /// Makes the body in Rust, of the old one, for readers in Rust: a processor in SQL, a program or a webhook that would read such
    /// an event is refused. Numbers keep their digits where `Old` and `New` do.
    #[must_use]
    pub fn body<Old, New, E>(self, convert: impl Fn(Old) -> Result<New, E> + Send + Sync + 'static) -> Self
    where
        Old: DeserializeOwned,
        New: Serialize,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        Self { code: Some(BodyCode::new(convert)), body: None, ..self }
    }

    /// Which of the events the upcast is for: those for which a SQL condition on `event` holds.
    #[must_use]
    pub fn when_sql(self, condition: &str) -> Self {
        Self { when: Some(self.source_text(condition)), ..self }
    }

    fn source_text(&self, sql: &str) -> SourceText {
        SourceText::new(sql, &format!("<upcast of {} in the program>", self.events.join(", ")), 1, 1)
    }

    /// The columns of `source` as they are read through this layer, which is at `place` among all. The text needs an alias.
    pub(crate) fn over(&self, source: &str, place: usize) -> String {
        let is_old = self.condition();
        let or_else = |new: Option<String>, old: &str| {
            new.map_or(old.to_owned(), |new| format!("case when {is_old} then {new} else {old} end"))
        };
        let event_type = self.event_type.as_ref().map(|name| quote_literal(name));
        // An upcast that yields null would produce an event without a body. The text below is not JSON, so its cast fails
        // with an error that names the event.
        let marked = self.code.as_ref().map(|_| BodyCode::marking(place));
        let body = self.body.as_ref().map(|sql| {
            let none = "('an upcast has made no body for event ' || event.id)::jsonb";
            format!("coalesce((\n{}\n)::jsonb, {none})", sql.text)
        });
        format!(
            "(select event.id, event.uuid, event.aggregate_id, {} as type, event.version, {} as body, event.metadata, \
             event.correlation_id, event.causation_id, event.created_at from {source} as event)",
            or_else(event_type, "event.type"),
            or_else(marked.or(body), "event.body"),
        )
    }

    /// The types that its events are read as.
    fn read_as(&self) -> Vec<&str> {
        match &self.event_type {
            Some(name) => vec![name],
            None => self.events.iter().map(String::as_str).collect(),
        }
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

/// Why these readers cannot be: an upcast makes bodies in Rust that they would read in SQL. `types` are those that something
/// reads that is not written in Rust; `None`: all.
pub(crate) fn find_unreadable(upcasts: &[Upcast], types: Option<&[&str]>) -> Option<String> {
    let mut made = upcasts.iter().enumerate().filter(|(_, upcast)| upcast.code.is_some());
    let (_, upcast) = made.find(|(place, upcast)| {
        let Some(types) = types else { return true };
        let read = stored_types(&upcasts[place + 1..], types.iter().copied());
        upcast.read_as().iter().any(|name| read.contains(name))
    })?;
    Some(upcast.events.join(", "))
}

/// The upcasts in SQL that would look into a body that is still to be made in Rust.
pub(crate) fn find_disordered(upcasts: &[Upcast]) -> Vec<String> {
    let looks = |upcast: &&(usize, &Upcast)| upcast.1.body.is_some() || upcast.1.when.is_some();
    let numbered: Vec<(usize, &Upcast)> = upcasts.iter().enumerate().collect();
    let looking = numbered.iter().filter(looks);
    let disordered = looking.filter_map(|(place, upcast)| {
        let types: Vec<&str> = upcast.events.iter().map(String::as_str).collect();
        let made = find_unreadable(&upcasts[..*place], Some(&types))?;
        Some(format!(
            "the upcast of {} in SQL is above that of {made}, whose bodies are made in Rust: declare it before, or write it in Rust as well",
            upcast.events.join(", ")
        ))
    });
    disordered.collect()
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
        Upcast { events: vec![from.into()], event_type: Some(to.into()), ..Upcast::default() }
    }

    #[test]
    fn the_types_below_the_layers_are_found() {
        let upcasts = [rename("A", "B"), rename("B", "C"), rename("X", "Y")];
        assert_eq!(stored_types(&upcasts, ["C"]), ["C", "B", "A"]);
        assert_eq!(stored_types(&upcasts, ["D"]), ["D"]);
    }

    #[test]
    fn whoever_would_read_what_rust_has_to_make_is_found() {
        let made = || Upcast::of(["V1"]).as_type("V2").body(|body: serde_json::Value| Ok::<_, String>(body));
        let upcasts = [rename("A", "B"), made(), rename("V2", "V3")];
        for (types, found) in [
            (Some(&["B"][..]), false),
            (Some(&["V1"]), false),
            (Some(&["V2"]), true),
            (Some(&["V3"]), true),
            (None, true),
        ] {
            assert_eq!(find_unreadable(&upcasts, types).is_some(), found, "{types:?}");
        }
        assert_eq!(find_unreadable(&upcasts[..1], None), None);
        let looking = |name: &str| Upcast::of([name]).when_sql("event.body ? 'a'").as_type("X");
        assert_eq!(find_disordered(&[looking("V3"), made()]), [""; 0]);
        assert_eq!(find_disordered(&[made(), rename("V2", "V3"), looking("V3")]).len(), 1);
        assert_eq!(find_disordered(&[made(), looking("A")]), [""; 0]);
    }

    #[test]
    fn a_renamed_type_is_hidden_unless_only_some_are_renamed() {
        let some = Upcast { when: Some(SourceText::unplaced("true")), ..rename("A", "B") };
        assert!(rename("A", "B").hides("A") && !rename("A", "B").hides("B") && !some.hides("A"));
    }
}
