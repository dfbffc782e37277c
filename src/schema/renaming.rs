//! Puts chosen names in the place of those that the migration files write.
//!
//! The files are released and never edited, so they keep the default names, and with these the text is the same byte for byte.
//! Otherwise a chosen name takes the place of a word in the code, not in comments. In the body of a function it is qualified by the
//! schema, so that nothing in there can be meant instead, such as a common table expression of the same name.

use super::names::{EspdNames, Name};
use crate::postgres::lexer::{Token, TokenKind, tokens};
use crate::postgres::quote::quote_identifier;

/// What the migration files write in place of the schema's name; psql replaces the same text.
pub(super) const SCHEMA_TOKEN: &str = ":\"schema\"";

/// The words before the name of a table. `events` is the name of parameters as well, and these never follow one of them.
const BEFORE_TABLE: [&str; 4] = ["from", "join", "into", "update"];

/// The text of a file with the chosen names in it.
pub(crate) fn rename(text: &str, names: &EspdNames) -> String {
    if *names == EspdNames::default() { text.to_owned() } else { Renaming { names }.apply(text) }
}

struct Renaming<'n> {
    names: &'n EspdNames,
}

impl Renaming<'_> {
    fn apply(&self, text: &str) -> String {
        // A file that cannot be taken apart is one that PostgreSQL refuses.
        let Ok(tokens) = tokens(text) else { return text.to_owned() };
        let mut renamed = String::with_capacity(text.len());
        let mut copied = 0;
        for (place, token) in tokens.iter().enumerate() {
            let new = match token.kind {
                TokenKind::Literal => self.literal(token),
                TokenKind::Word => self.word(Surroundings { tokens: &tokens, place }),
                _ => None,
            };
            if let Some(new) = new {
                renamed += &text[copied..token.start];
                renamed += &new;
                copied = token.end;
            }
        }
        renamed + &text[copied..]
    }

    fn word(&self, at: Surroundings<'_>) -> Option<String> {
        let word = at.text(0);
        if let Some((_, derived)) = self.names.derived().iter().find(|(derived, _)| derived == word) {
            return Some(quote_identifier(derived));
        }
        if word == "cache" && at.text(-1) == "(" && at.text(-2) == "identity" {
            let sequence = quote_identifier(&self.names.get(Name::Sequence));
            return Some(format!("sequence name {SCHEMA_TOKEN}.{sequence} cache"));
        }
        let name = Name::ALL.into_iter().find(|name| name.default_name() == word)?;
        let new = quote_identifier(&self.names.get(name));
        if at.is_of_schema() {
            return Some(new);
        }
        let is_meant = match name {
            _ if at.text(-1) == "." => false,
            Name::EventsTable => BEFORE_TABLE.contains(&at.text(-1)),
            name => !name.is_function() || at.text(1) == "(" || at.text(1) == ".",
        };
        // `append_at.key` is a parameter, whose function is named without its schema.
        let is_qualifier = at.text(1) == ".";
        is_meant.then(|| if is_qualifier { new } else { format!("{SCHEMA_TOKEN}.{new}") })
    }

    /// A string or the body of a function.
    fn literal(&self, token: &Token<'_>) -> Option<String> {
        let content = token.content()?;
        let quote = &token.text[..(token.text.len() - content.len()) / 2];
        let new = if quote == "'" { self.string(content) } else { self.apply(content) };
        Some(format!("{quote}{new}{quote}"))
    }

    /// A string is a name itself, or speaks of names to people. In what it says, the names of tables are words of English.
    fn string(&self, content: &str) -> String {
        let derived = self.names.derived();
        if let Some((_, derived)) = derived.iter().find(|(derived, _)| derived == content) {
            return derived.clone();
        }
        let events_table = self.names.get(Name::EventsTable);
        if content == "%I.events" {
            return format!("%I.{}", quote_identifier(&events_table));
        }
        if let Some(before) = content.strip_suffix(" call append") {
            return format!("{before} call {}", self.names.get(Name::Append));
        }
        let functions = Name::ALL.into_iter().filter(|name| name.is_function() && *name != Name::Append);
        let functions = functions.map(|name| (name.default_name().to_owned(), self.names.get(name)));
        let derived = derived.into_iter().map(|(word, name)| (word, quote_identifier(&name)));
        replace_words(content, &functions.chain(derived).collect::<Vec<_>>())
    }
}

/// A token and those beside it.
#[derive(Clone, Copy)]
struct Surroundings<'t> {
    tokens: &'t [Token<'t>],
    place: usize,
}

impl<'t> Surroundings<'t> {
    /// The text of the token that is so many places after this one, or before it; empty where there is none.
    fn text(self, offset: isize) -> &'t str {
        let token = self.place.checked_add_signed(offset).and_then(|place| self.tokens.get(place));
        token.map_or("", |token| token.text)
    }

    /// Whether `:"schema".` is before it.
    fn is_of_schema(self) -> bool {
        [self.text(-3), self.text(-2), self.text(-1)] == [":", "\"schema\"", "."]
    }
}

/// Replaces whole words.
fn replace_words(text: &str, words: &[(String, String)]) -> String {
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut replaced = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_of_word) {
        let (before, from) = rest.split_at(start);
        let end = from.find(|c| !is_of_word(c)).unwrap_or(from.len());
        let word = &from[..end];
        let new = words.iter().find(|(old, _)| old == word).map_or(word, |(_, new)| new);
        replaced.extend([before, new]);
        rest = &from[end..];
    }
    replaced + rest
}

#[cfg(test)]
mod tests {
    use super::super::files::{EVENT_STORE, PROCESSING};
    use super::*;

    fn other_names() -> EspdNames {
        EspdNames {
            events_table: "My Events".into(),
            sequence: Some("select".into()),
            tracker_table: "positions".into(),
            append_events: "store-all".into(),
            append: "store".into(),
            append_at: "store_at".into(),
            append_after: "store_after".into(),
            cancel_scheduled: "store_never".into(),
        }
    }

    fn renamed(text: &str) -> String {
        rename(text, &other_names())
    }

    #[test]
    fn the_default_names_leave_a_text_as_it_is() {
        for (_, _, text) in EVENT_STORE.files.iter().chain(PROCESSING.files) {
            assert_eq!(rename(text, &EspdNames::default()), **text);
        }
    }

    #[test]
    fn a_name_is_replaced_where_it_is_meant() {
        for (text, expected) in [
            (
                r#"create table if not exists :"schema".events ("#,
                r#"create table if not exists :"schema"."My Events" ("#,
            ),
            ("as $$ insert into events as e $$", r#"as $$ insert into :"schema"."My Events" as e $$"#),
            (
                "generated always as identity (cache 1)",
                r#"generated always as identity (sequence name :"schema"."select" cache 1)"#,
            ),
            ("tracker trackers;", r#"tracker :"schema"."positions";"#),
            ("select * from append_events(1)", r#"select * from :"schema"."store-all"(1)"#),
            ("where append_at.key = s.key", r#"where "store_at".key = s.key"#),
            ("constraint events_uuid_key unique", r#"constraint "My Events_uuid_key" unique"#),
            ("violated = 'events_uuid_key'", "violated = 'My Events_uuid_key'"),
            (
                "hint = 'create index events_correlation_id_idx'",
                r#"hint = 'create index "My Events_correlation_id_idx"'"#,
            ),
            ("'Write through append_at and cancel_scheduled.'", "'Write through store_at and store_never.'"),
            ("format('%I.events', schema)", r#"format('%I."My Events"', schema)"#),
        ] {
            assert_eq!(renamed(text), expected);
        }
    }

    #[test]
    fn a_word_that_means_something_else_stays() {
        for text in [
            "-- insert into events\n/* from events */ select 1",
            "jsonb_array_elements(events)",
            "for event in select value from jsonb_array_elements(events) loop events := '[]'",
            "unnest(versions, partitions, events)",
            "message = 'the events of a store'",
            "scheduled_events, append_scheduled(due), s.append",
            r#""append_events", e.trackers"#,
        ] {
            assert_eq!(renamed(text), text);
        }
    }

    /// What is still called as by default after everything was renamed: words that mean something else. A new migration that
    /// names a table in a way that is not recognised shows up here.
    #[test]
    fn no_migration_names_anything_in_a_way_that_is_overlooked() {
        let derived = EspdNames::default().derived().map(|(word, _)| word);
        let words: Vec<&str> = Name::ALL
            .iter()
            .map(|name| name.default_name())
            .chain(derived.iter().map(String::as_str))
            .collect();
        let mut left = Vec::new();
        let roles = include_str!("../../migrations/roles.sql");
        let files = EVENT_STORE.files.iter().chain(PROCESSING.files).map(|(_, _, text)| *text);
        for text in files.chain([roles]) {
            find_left(&renamed(text), &words, &mut left);
        }
        left.sort();
        left.dedup();
        assert_eq!(left, MEAN_SOMETHING_ELSE, "{left:#?}");
    }

    /// Collects the words, each with the token before it, and the strings that have one of them.
    fn find_left(text: &str, words: &[&str], left: &mut Vec<String>) {
        let tokens = tokens(text).unwrap();
        for (place, token) in tokens.iter().enumerate() {
            let before = Surroundings { tokens: &tokens, place }.text(-1);
            match (token.kind, token.content()) {
                (_, Some(content)) if token.text.starts_with('$') => find_left(content, words, left),
                (_, Some(content)) => {
                    let is_of_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
                    let mut parts = content.split(|c| !is_of_word(c));
                    if parts.any(|part| words.contains(&part)) {
                        left.push(token.text.to_owned());
                    }
                }
                (TokenKind::Word, _) if words.contains(&token.text) => {
                    left.push(format!("{before} {}", token.text));
                }
                _ => {}
            }
        }
    }

    const MEAN_SOMETHING_ELSE: &[&str] = &[
        "'% by % (%): % scheduled events'",
        "':events'",
        "'Appends events at a later time, from the transaction of the caller on.'",
        "'Copies of what events say. May be emptied at any time.'",
        "'could not append because of a concurrent append'",
        "'create trigger %I after insert on %s referencing new table as \"Inserted events of espd\"\n                  for each statement execute function %I.%I()'",
        "'espd: scheduled events of '",
        "'leave it out, or keep projections and events in one database'",
        "'there is no time to append at'",
        "'uuid %s is stored already, but not the whole append'",
        "( events",
        ", events",
        ". events",
        ": events",
        "; events",
        "= events",
        "and events",
        "declare events",
        "out events",
        "then events",
    ];
}
