//! What is declared about a processor: its tables, its handlers, the bounds of its batches.
//!
//! Plain data, checked by [`crate::config`] and complete: every default is filled in. A worker child
//! receives its processor's declaration from the supervisor as JSON.

mod isolation;
mod kind;
mod program;
mod reaction;
mod webhook;

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::postgres::source_text::SourceText;
pub use isolation::Isolation;
pub use kind::ProcessorKind;
pub use program::{ProgramDeclaration, Secret};
pub use reaction::{ReactorDeclaration, Start};
pub use webhook::{Header, InvalidReceiver, ReceiverUrl, SigningSecret, WebhookDeclaration};

use crate::retry::RetryPolicy;

/// A projector or reactor, as declared under `[projector]` or `[reactor]`, or by a program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessorDeclaration {
    /// Unique among all processors: `[a-z_][a-z0-9_]{0,47}`.
    pub name: String,
    /// Version of the tables, from 1. Raised by the author when the tables have to be built anew.
    pub version: i32,
    /// The tables that the processor owns, in the order of the file.
    pub tables: Vec<TableDeclaration>,
    /// Statements to run once after the tables were created: indexes, views, comments.
    pub ddl: Vec<SourceText>,
    /// Which events it handles, and how.
    pub handling: Handling,
    /// Where a batch ends.
    pub batch: BatchLimits,
    /// How to go on after a failure.
    pub retry: RetryPolicy,
    /// Whom it shares a worker with.
    pub isolation: Isolation,
    /// What makes it a reactor, if it is one.
    pub reaction: Option<ReactorDeclaration>,
}

impl ProcessorDeclaration {
    /// What it does with events.
    pub fn kind(&self) -> ProcessorKind {
        if self.reaction.is_some() { ProcessorKind::Reactor } else { ProcessorKind::Projector }
    }

    /// The pieces of SQL that handle events, in the order of the file; none where something else does.
    pub fn handlers(&self) -> &[Handler] {
        match &self.handling {
            Handling::Sql(handlers) => handlers,
            Handling::Native(_) | Handling::Program(_) | Handling::Webhook(_) => &[],
        }
    }

    /// The event types that it handles, or `None` if it handles all events.
    pub fn event_types(&self) -> Option<BTreeSet<&str>> {
        match &self.handling {
            Handling::Sql(handlers) => union(handlers.iter().map(|handler| &handler.events)),
            Handling::Native(events) => events.types(),
            Handling::Program(program) => program.events.types(),
            Handling::Webhook(webhook) => webhook.events.types(),
        }
    }

    /// The names of its tables, in the order of the file.
    pub fn table_names(&self) -> Vec<String> {
        self.tables.iter().map(|table| table.name.clone()).collect()
    }

    /// Whether it does something that no rollback takes back.
    pub fn acts_outside(&self) -> bool {
        match self.handling {
            Handling::Sql(_) => false,
            Handling::Native(_) => self.kind() == ProcessorKind::Reactor,
            Handling::Program(_) | Handling::Webhook(_) => true,
        }
    }
}

/// The types of all of these, or `None` if one of them is all events.
fn union<'e>(all: impl Iterator<Item = &'e HandledEvents>) -> Option<BTreeSet<&'e str>> {
    all.map(HandledEvents::types).try_fold(BTreeSet::new(), |mut union, types| {
        union.extend(types?);
        Some(union)
    })
}

/// Who handles the events of a processor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handling {
    /// Declared SQL, inside the database. Never empty.
    Sql(Vec<Handler>),
    /// Rust, in the program that has registered a processor of this name.
    Native(HandledEvents),
    /// A child process, in any language.
    Program(ProgramDeclaration),
    /// A receiver of HTTP requests. Reactors only.
    Webhook(WebhookDeclaration),
}

/// A table that a projector owns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableDeclaration {
    /// Unique among the tables of all projectors: `[a-z_][a-z0-9_]{0,47}`.
    pub name: String,
    /// The text between the parentheses of `create table`.
    pub columns: SourceText,
}

/// One `[[projector.on]]`: a piece of PL/pgSQL and the events that it is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Handler {
    /// The events that it is for.
    pub events: HandledEvents,
    /// One or more PL/pgSQL statements; the last one may lack its semicolon. Never blank.
    pub sql: SourceText,
}

/// Which events a handler is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandledEvents {
    /// Every event, written `["*"]`.
    All,
    /// The events of these types; at least one, none twice.
    Types(Vec<String>),
}

impl HandledEvents {
    /// The types, or `None` for all events.
    pub fn types(&self) -> Option<BTreeSet<&str>> {
        match self {
            Self::All => None,
            Self::Types(types) => Some(types.iter().map(String::as_str).collect()),
        }
    }
}

/// Where a batch ends: at whichever bound is reached first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchLimits {
    /// Events handled in one batch, at least 1.
    pub size: i64,
    /// Bytes of event bodies as stored; a batch holds one event at least, however large.
    pub bytes: i64,
    /// Time that a batch may take, roughly: it ends after the event during which the time is up.
    pub time: Duration,
    /// Ids looked at, whatever their types. Keeps a statement short when a type is rare.
    pub span: i64,
}

impl Default for BatchLimits {
    /// 1,000 events, 16 MiB, 2 s, 100,000 ids.
    fn default() -> Self {
        Self { size: 1_000, bytes: 16 << 20, time: Duration::from_secs(2), span: 100_000 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_of_all_events_widens_the_projector() {
        let handler = |events| Handler { events, sql: SourceText::unplaced("null") };
        let typed = handler(HandledEvents::Types(vec!["B".into(), "A".into()]));
        let mut projector = ProcessorDeclaration {
            name: "p".into(),
            version: 1,
            tables: vec![],
            ddl: vec![],
            handling: Handling::Sql(vec![typed.clone(), typed.clone()]),
            batch: BatchLimits::default(),
            retry: RetryPolicy::default(),
            isolation: Isolation::default(),
            reaction: None,
        };
        assert_eq!(projector.event_types(), Some(["A", "B"].into()));
        projector.handling = Handling::Sql(vec![typed, handler(HandledEvents::All)]);
        assert_eq!(projector.event_types(), None);
    }
}
