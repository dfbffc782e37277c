//! The messages that espd and a program exchange, as `docs/worker-protocol.md` specifies them.
//!
//! Rows, keys and bodies stay raw JSON text, so that no number in them passes through a floating-point type.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::event::{Event, Position};
use crate::handlers::batch::{RowTables, TableShape};
use crate::processing::declaration::{ProcessorDeclaration, ProcessorKind};

/// The version of the protocol that this espd speaks.
pub(super) const VERSION: u32 = 1;

/// The first message to a program: which processor it handles events for. Its key in JSON is `hello`.
#[derive(Debug, Serialize)]
pub(super) struct Handshake<'h> {
    pub(super) protocol: u32,
    pub(super) processor: &'h str,
    pub(super) kind: ProcessorKind,
    pub(super) version: i32,
    pub(super) emits: &'h [String],
    pub(super) tables: BTreeMap<&'h str, Table<'h>>,
}

impl<'h> Handshake<'h> {
    pub(super) fn new(
        declaration: &'h ProcessorDeclaration,
        processor: &'h str,
        tables: &'h RowTables,
    ) -> Self {
        let emits = declaration.reactor.as_ref().map_or(&[][..], |reactor| &reactor.emits);
        let table =
            |shape: &'h TableShape| (shape.name.as_str(), Table { key: &shape.key, columns: &shape.columns });
        Self {
            protocol: VERSION,
            processor,
            kind: declaration.kind(),
            version: declaration.version,
            emits,
            tables: tables.shapes().iter().map(table).collect(),
        }
    }
}

/// A table that the program may write.
#[derive(Debug, Serialize)]
pub(super) struct Table<'h> {
    /// The columns of the primary key; empty if the table has none.
    pub(super) key: &'h [String],
    pub(super) columns: &'h [String],
}

/// An event as it is sent to a program.
#[derive(Debug, Serialize)]
pub(super) struct SentEvent<'e> {
    #[serde(flatten)]
    pub(super) event: &'e Event,
    pub(super) replaying: bool,
}

/// A message to a program.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum OutgoingMessage<'o> {
    Handshake { hello: &'o Handshake<'o> },
    Batch { batch: u64, events: Vec<SentEvent<'o>> },
    Row { row: Option<&'o RawValue> },
}

impl OutgoingMessage<'_> {
    /// Renders the message as one line, including its end.
    pub(super) fn to_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("names, numbers and JSON are JSON");
        // Raw JSON may span lines. Within strings a line break is escaped, so every one found here is between tokens.
        line.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
        line.push(b'\n');
        line
    }
}

/// A message from a program.
#[derive(Debug)]
pub(super) enum IncomingMessage<'l> {
    /// The program has started and speaks this version of the protocol.
    Ready(i64),
    /// The program has handled an event, and wants these actions.
    Done { event: Position, actions: Vec<ActionMessage<'l>> },
    /// The program cannot handle an event.
    Failed { event: Position, error: String, detail: Option<String> },
    /// The program wants to read a row.
    Read { table: String, key: &'l RawValue },
    /// The program has answered all events of the batch of this number.
    End(u64),
    /// A line for espd's log.
    Log { message: String, level: tracing::Level },
}

/// An element of `actions` as it was received: every key that any action has.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ActionMessage<'l> {
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
    #[serde(borrow)]
    pub(super) metadata: Option<&'l RawValue>,
    pub(super) cancel: Option<String>,
}

/// A line as it was received: every key that any message has.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Line<'l> {
    ready: Option<i64>,
    done: Option<Position>,
    #[serde(borrow)]
    actions: Option<Vec<ActionMessage<'l>>>,
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

/// What a program did that the protocol does not allow, as a sentence without its subject: "wrote `ready` again".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProtocolViolation(pub(super) String);

/// What a program did that is ready twice.
pub(super) const READY_AGAIN: &str = "wrote `ready` again";

impl ProtocolViolation {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for ProtocolViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'l> IncomingMessage<'l> {
    /// Parses one line.
    pub(super) fn parse(line: &'l str) -> Result<Self, ProtocolViolation> {
        let shown = || super::lines::excerpt(line.as_bytes());
        let nothing = || ProtocolViolation(format!("wrote a line that is no message: {}", shown()));
        // Serde would also accept an array of the members, without their names.
        if !line.trim_start().starts_with('{') {
            return Err(nothing());
        }
        let read: Line<'l> = serde_json::from_str(line).map_err(|error| {
            ProtocolViolation(format!("wrote a line that is no message: {error}: {}", shown()))
        })?;
        let keys = read.keys();
        let message = read.message().ok_or_else(nothing)?;
        match keys.into_iter().find(|key| !message.allows(key)) {
            None => Ok(message),
            Some(key) => Err(ProtocolViolation(format!(
                "wrote `{key}` into a message that has no such key: {}",
                shown()
            ))),
        }
    }

    /// Whether this message may have a key.
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
    /// The keys that the line has.
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

    /// The message that the line stands for, unless a required key is missing.
    fn message(self) -> Option<IncomingMessage<'l>> {
        if let Some(event) = self.done {
            return Some(IncomingMessage::Done { event, actions: self.actions.unwrap_or_default() });
        }
        if let Some(event) = self.failed {
            return Some(IncomingMessage::Failed { event, error: self.error?, detail: self.detail });
        }
        if let Some(table) = self.read {
            return Some(IncomingMessage::Read { table, key: self.key? });
        }
        if let Some(message) = self.log {
            return Some(IncomingMessage::Log { message, level: level(self.level.as_deref())? });
        }
        self.end.map(IncomingMessage::End).or(self.ready.map(IncomingMessage::Ready))
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
            id: 7.into(),
            uuid: Uuid::nil(),
            aggregate_id: Uuid::nil().into(),
            event_type: "TodoAdded".into(),
            version: 1.into(),
            body: RawValue::from_string(body.to_owned()).unwrap(),
            metadata: RawValue::from_string("{}".to_owned()).unwrap(),
            correlation_id: None,
            causation_id: None,
            created_at: DateTime::UNIX_EPOCH.into(),
        }
    }

    #[test]
    fn a_batch_is_one_line_that_keeps_every_digit() {
        let event = event("{\n  \"price\": 0.10000000000000000000000001,\r\n \"note\": \"a\\nb\"\n}");
        let events = vec![SentEvent { event: &event, replaying: true }];
        let line = String::from_utf8(OutgoingMessage::Batch { batch: 3, events }.to_line()).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.starts_with(r#"{"batch":3,"events":[{"id":7,"uuid":"00000000-"#), "{line}");
        assert!(line.contains("\"price\": 0.10000000000000000000000001,"), "{line}");
        assert!(line.contains(r#""note": "a\nb""#) && line.contains(r#""type":"TodoAdded""#), "{line}");
        assert!(line.ends_with("\"replaying\":true}]}\n"), "{line}");
        assert_eq!(OutgoingMessage::Row { row: None }.to_line(), b"{\"row\":null}\n");
    }

    #[test]
    fn every_message_is_parsed() {
        assert!(matches!(IncomingMessage::parse(r#"{"ready":1}"#), Ok(IncomingMessage::Ready(1))));
        assert!(
            matches!(IncomingMessage::parse(r#" { "done" : 5 } "#), Ok(IncomingMessage::Done { event, actions }) if event == 5 && actions.is_empty())
        );
        assert!(matches!(IncomingMessage::parse(r#"{"end":9}"#), Ok(IncomingMessage::End(9))));
        assert!(matches!(
            IncomingMessage::parse(r#"{"failed":5,"error":"no title","detail":"line 3"}"#),
            Ok(IncomingMessage::Failed { event, error, detail: Some(_) }) if event == 5 && error == "no title"
        ));
        assert!(matches!(
            IncomingMessage::parse(r#"{"log":"hi","level":"debug"}"#),
            Ok(IncomingMessage::Log { level: tracing::Level::DEBUG, .. })
        ));
        let read =
            IncomingMessage::parse(r#"{"key":{"id":12345678901234567890.10},"read":"todos"}"#).unwrap();
        assert!(
            matches!(read, IncomingMessage::Read { key, .. } if key.get() == r#"{"id":12345678901234567890.10}"#)
        );
        let done = r#"{"done":5,"actions":[{"upsert":"t","row":{"a":1.10}},{"emit":"E","aggregate_id":"x","body":{}}]}"#;
        let Ok(IncomingMessage::Done { actions, .. }) = IncomingMessage::parse(done) else {
            panic!("{done}")
        };
        assert_eq!(actions[0].row.map(RawValue::get), Some(r#"{"a":1.10}"#));
        assert_eq!(actions[1].emit.as_deref(), Some("E"));
    }

    #[test]
    fn a_line_that_is_no_message_is_refused_and_shown() {
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
            let violation = IncomingMessage::parse(line).expect_err(line);
            assert!(violation.0.contains("no message"), "{line}: {violation}");
        }
        for line in
            [r#"{"done":5,"end":1}"#, r#"{"failed":5,"error":"x","actions":[]}"#, r#"{"ready":1,"log":"x"}"#]
        {
            let violation = IncomingMessage::parse(line).expect_err(line);
            assert!(violation.0.contains("no such key"), "{line}: {violation}");
        }
        let long = format!("{{\"done\":{}", "x".repeat(1_000_000));
        assert!(IncomingMessage::parse(&long).unwrap_err().0.len() < 500);
    }
}
