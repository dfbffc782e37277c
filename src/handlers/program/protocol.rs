//! The lines that espd and a worker exchange, as `docs/worker-protocol.md` specifies them.
//!
//! Rows, keys and bodies are raw JSON text from end to end: no number in them ever passes through a floating-point type.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::event::{Event, Position};
use crate::processing::processor::ProcessorKind;

/// The version of the protocol that is spoken here.
pub(super) const VERSION: u32 = 1;

/// The first line that a worker reads: who it works for.
#[derive(Debug, Serialize)]
pub(super) struct Hello<'h> {
    pub(super) protocol: u32,
    pub(super) processor: &'h str,
    pub(super) kind: ProcessorKind,
    pub(super) version: i32,
    pub(super) emits: &'h [String],
    pub(super) tables: BTreeMap<&'h str, Table<'h>>,
}

/// A table that the worker may write.
#[derive(Debug, Serialize)]
pub(super) struct Table<'h> {
    /// The columns of the primary key; none where it has none.
    pub(super) key: &'h [String],
    pub(super) columns: &'h [String],
}

/// An event as a worker reads it.
#[derive(Debug, Serialize)]
pub(super) struct SentEvent<'e> {
    #[serde(flatten)]
    pub(super) event: &'e Event,
    pub(super) replaying: bool,
}

/// Anything that is written to a worker.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Order<'o> {
    Hello { hello: &'o Hello<'o> },
    Batch { batch: u64, events: Vec<SentEvent<'o>> },
    Row { row: Option<&'o RawValue> },
}

impl Order<'_> {
    /// One line, with its end.
    pub(super) fn to_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("names, numbers and JSON are JSON");
        // Raw text may span lines. In strings a line's end is written as an escape, so that these stand between tokens.
        line.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
        line.push(b'\n');
        line
    }
}

/// What a worker may say.
#[derive(Debug)]
pub(super) enum Message<'l> {
    /// It speaks this version of the protocol.
    Ready(i64),
    /// It has handled an event, and this is what shall come of it.
    Done { event: Position, actions: Vec<SaidAction<'l>> },
    /// It cannot handle an event.
    Failed { event: Position, error: String, detail: Option<String> },
    /// It wants to know a row.
    Read { table: String, key: &'l RawValue },
    /// It has answered all events of a batch.
    End(u64),
    /// Something for espd's log.
    Log { message: String, level: tracing::Level },
}

/// One element of `actions`, as it was written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SaidAction<'l> {
    pub(super) upsert: Option<String>,
    #[serde(borrow)]
    pub(super) row: Option<&'l RawValue>,
    pub(super) delete: Option<String>,
    #[serde(borrow, rename = "where")]
    pub(super) condition: Option<&'l RawValue>,
    pub(super) emit: Option<String>,
    pub(super) aggregate_id: Option<String>,
    #[serde(borrow)]
    pub(super) body: Option<&'l RawValue>,
    pub(super) expected_version: Option<i64>,
    pub(super) at: Option<String>,
    pub(super) after: Option<f64>,
    pub(super) key: Option<String>,
    pub(super) cancel: Option<String>,
}

/// A line as it was written: every key that any message has.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Line<'l> {
    ready: Option<i64>,
    done: Option<Position>,
    #[serde(borrow)]
    actions: Option<Vec<SaidAction<'l>>>,
    failed: Option<Position>,
    error: Option<String>,
    detail: Option<String>,
    read: Option<String>,
    #[serde(borrow)]
    key: Option<&'l RawValue>,
    end: Option<u64>,
    log: Option<String>,
    level: Option<String>,
}

/// What a worker has done that the protocol does not allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong(pub(super) String);

impl Wrong {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'l> Message<'l> {
    /// Reads one line.
    pub(super) fn parse(line: &'l str) -> Result<Self, Wrong> {
        let shown = || super::lines::excerpt(line.as_bytes());
        let nothing = || Wrong(format!("wrote a line that is no message: {}", shown()));
        // Serde would take a list for the members without their names.
        if !line.trim_start().starts_with('{') {
            return Err(nothing());
        }
        let read: Line<'l> = serde_json::from_str(line)
            .map_err(|error| Wrong(format!("wrote a line that is no message: {error}: {}", shown())))?;
        let keys = read.keys();
        let message = read.message().ok_or_else(nothing)?;
        match keys.into_iter().find(|key| !message.allows(key)) {
            None => Ok(message),
            Some(key) => {
                Err(Wrong(format!("wrote `{key}` into a message that has no such key: {}", shown())))
            }
        }
    }

    /// Whether a key may stand in this message.
    fn allows(&self, key: &str) -> bool {
        let keys: &[&str] = match self {
            Self::Ready(_) => &["ready"],
            Self::Done { .. } => &["done", "actions"],
            Self::Failed { .. } => &["failed", "error", "detail"],
            Self::Read { .. } => &["read", "key"],
            Self::End(_) => &["end"],
            Self::Log { .. } => &["log", "level"],
        };
        keys.contains(&key)
    }
}

impl<'l> Line<'l> {
    /// The keys that are there.
    fn keys(&self) -> Vec<&'static str> {
        let keys = [
            ("ready", self.ready.is_some()),
            ("done", self.done.is_some()),
            ("actions", self.actions.is_some()),
            ("failed", self.failed.is_some()),
            ("error", self.error.is_some()),
            ("detail", self.detail.is_some()),
            ("read", self.read.is_some()),
            ("key", self.key.is_some()),
            ("end", self.end.is_some()),
            ("log", self.log.is_some()),
            ("level", self.level.is_some()),
        ];
        keys.into_iter().filter(|(_, is_there)| *is_there).map(|(key, _)| key).collect()
    }

    /// The message that the telling key stands for, if what belongs to it is there.
    fn message(self) -> Option<Message<'l>> {
        if let Some(event) = self.done {
            return Some(Message::Done { event, actions: self.actions.unwrap_or_default() });
        }
        if let Some(event) = self.failed {
            return Some(Message::Failed { event, error: self.error?, detail: self.detail });
        }
        if let Some(table) = self.read {
            return Some(Message::Read { table, key: self.key? });
        }
        if let Some(message) = self.log {
            return Some(Message::Log { message, level: level(self.level.as_deref())? });
        }
        self.end.map(Message::End).or(self.ready.map(Message::Ready))
    }
}

fn level(word: Option<&str>) -> Option<tracing::Level> {
    match word {
        None | Some("info") => Some(tracing::Level::INFO),
        Some("error") => Some(tracing::Level::ERROR),
        Some("warn") => Some(tracing::Level::WARN),
        Some("debug") => Some(tracing::Level::DEBUG),
        Some("trace") => Some(tracing::Level::TRACE),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;

    fn event(body: &str) -> Event {
        Event {
            id: 7,
            uuid: Uuid::nil(),
            aggregate_id: Uuid::nil(),
            event_type: "TodoAdded".into(),
            version: 1,
            body: RawValue::from_string(body.to_owned()).unwrap(),
            metadata: RawValue::from_string("{}".to_owned()).unwrap(),
            correlation_id: None,
            causation_id: None,
            created_at: DateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_batch_is_one_line_that_keeps_every_digit() {
        let event = event("{\n  \"price\": 0.10000000000000000000000001,\r\n \"note\": \"a\\nb\"\n}");
        let events = vec![SentEvent { event: &event, replaying: true }];
        let line = String::from_utf8(Order::Batch { batch: 3, events }.to_line()).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.starts_with(r#"{"batch":3,"events":[{"id":7,"uuid":"00000000-"#), "{line}");
        assert!(line.contains("\"price\": 0.10000000000000000000000001,"), "{line}");
        assert!(line.contains(r#""note": "a\nb""#) && line.contains(r#""type":"TodoAdded""#), "{line}");
        assert!(line.ends_with("\"replaying\":true}]}\n"), "{line}");
        assert_eq!(Order::Row { row: None }.to_line(), b"{\"row\":null}\n");
    }

    #[test]
    fn every_message_is_understood() {
        assert!(matches!(Message::parse(r#"{"ready":1}"#), Ok(Message::Ready(1))));
        assert!(
            matches!(Message::parse(r#" { "done" : 5 } "#), Ok(Message::Done { event: 5, actions }) if actions.is_empty())
        );
        assert!(matches!(Message::parse(r#"{"end":9}"#), Ok(Message::End(9))));
        assert!(matches!(
            Message::parse(r#"{"failed":5,"error":"no title","detail":"line 3"}"#),
            Ok(Message::Failed { event: 5, error, detail: Some(_) }) if error == "no title"
        ));
        assert!(matches!(
            Message::parse(r#"{"log":"hi","level":"debug"}"#),
            Ok(Message::Log { level: tracing::Level::DEBUG, .. })
        ));
        let read = Message::parse(r#"{"key":{"id":12345678901234567890.10},"read":"todos"}"#).unwrap();
        assert!(
            matches!(read, Message::Read { key, .. } if key.get() == r#"{"id":12345678901234567890.10}"#)
        );
        let done = r#"{"done":5,"actions":[{"upsert":"t","row":{"a":1.10}},{"emit":"E","aggregate_id":"x","body":{}}]}"#;
        let Ok(Message::Done { actions, .. }) = Message::parse(done) else { panic!("{done}") };
        assert_eq!(actions[0].row.map(RawValue::get), Some(r#"{"a":1.10}"#));
        assert_eq!(actions[1].emit.as_deref(), Some("E"));
    }

    #[test]
    fn what_is_no_message_is_refused_and_shown() {
        for line in [
            "",
            "Traceback (most recent call last):",
            "{}",
            "[]",
            "null",
            r#"{"done":"5"}"#,
            r#"{"done":5.5}"#,
            r#"{"done":5}{"done":6}"#,
            r#"{"done":null}"#,
            r#"{"done":5,"done":5}"#,
            r#"{"done":5,"action":[]}"#,
            r#"{"done":5,"actions":[{"upsrt":"t"}]}"#,
            r#"{"failed":5}"#,
            r#"{"read":"todos"}"#,
            r#"{"log":"x","level":"loud"}"#,
            r#"{"error":"x"}"#,
        ] {
            let wrong = Message::parse(line).expect_err(line);
            assert!(wrong.0.contains("no message"), "{line}: {wrong}");
        }
        for line in
            [r#"{"done":5,"end":1}"#, r#"{"failed":5,"error":"x","actions":[]}"#, r#"{"ready":1,"log":"x"}"#]
        {
            let wrong = Message::parse(line).expect_err(line);
            assert!(wrong.0.contains("no such key"), "{line}: {wrong}");
        }
        let long = format!("{{\"done\":{}", "x".repeat(1_000_000));
        assert!(Message::parse(&long).unwrap_err().0.len() < 500);
    }
}
