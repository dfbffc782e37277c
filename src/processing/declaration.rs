//! A declaration says what a processor is: its tables, its handlers, the limits of its batches.
//!
//! Declarations are plain data. [`crate::config`] has checked them and filled in every default. A worker process receives the
//! declarations of its processors from the supervisor, as JSON.

mod approve;
mod fingerprint;
mod hidden_texts;
mod isolation;
mod kind;
mod on_handler_change;
mod program;
mod reactor;
mod settings;
mod start;
mod suitability;
mod synchronous;
mod table;
mod webhook;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::postgres::source_text::SourceText;
pub use approve::Approve;
pub(crate) use fingerprint::{are_comparable, upcast_fingerprint};
pub(crate) use hidden_texts::HiddenTexts;
pub use isolation::Isolation;
pub use kind::ProcessorKind;
pub use on_handler_change::OnHandlerChange;
pub(crate) use program::{ProgramDeclaration, Secret};
pub use reactor::ReactorDeclaration;
pub use settings::{ProcessorSettings, RetrySettings};
pub use start::Start;
pub(crate) use suitability::Unsuitable;
pub use synchronous::Synchronous;
pub(crate) use table::CreateTable;
pub use table::TableDeclaration;
pub use webhook::WebhookDeclaration;
pub(crate) use webhook::{Header, InvalidReceiver, ReceiverUrl, SigningSecret};

use crate::postgres::sql_scope::SqlScope;
use crate::retry::RetryPolicy;
use crate::store::upcast::Upcast;

/// A projector or reactor, as declared under `[projector]` or `[reactor]`, or by a program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessorDeclaration {
    /// Unique among all processors: `[a-z_][a-z0-9_]{0,47}`.
    pub name: String,
    /// Version of the tables, from 1. The author raises it when the tables have to be rebuilt.
    pub version: i32,
    /// The tables that the processor owns, in the order of the configuration file.
    pub tables: Vec<TableDeclaration>,
    /// Statements that run once after the tables were created: indexes, views, comments.
    pub ddl: Vec<SourceText>,
    /// Which events the processor handles, and how.
    pub handling: Handling,
    /// The limits of a batch.
    pub batch: BatchLimits,
    /// What happens after a failure.
    pub retry: RetryPolicy,
    /// Which processors share a worker with this one.
    pub isolation: Isolation,
    /// What happens when the handlers are not those that have made the rows.
    pub on_handler_change: OnHandlerChange,
    /// How long a handler in Rust may take for what it is handed: a batch of a projector, an event of a reactor.
    #[serde(default = "handler_timeout")]
    pub handler_timeout: Duration,
    /// Where the processor begins when it runs for the first time; `None`: as its kind does, see [`Self::start`].
    #[serde(default)]
    pub start: Option<Start>,
    /// The names of tables of other processors that the handlers read, in the order of the configuration file, none twice.
    #[serde(default)]
    pub reads: Vec<SourceText>,
    /// Whether events are handled when they are inserted, and in which order; `None`: in batches. For projectors in SQL only.
    #[serde(default)]
    pub synchronous: Option<Synchronous>,
    /// Whether batches may be handled by their net effect on each row, where the result is the same. For projectors in SQL only.
    #[serde(default = "yes")]
    pub fold: bool,
    /// The column of each of its tables that has the aggregate whose events alone write the row; `None`: the handlers say so, or
    /// nobody does. For projectors only.
    #[serde(default)]
    pub aggregate_column: Option<String>,
    /// When a version that a daemon has built beside the serving one goes live. For projectors only.
    #[serde(default)]
    pub approve: Approve,
    /// What has to be true of the tables before a version goes live. For projectors only.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// What only reactors declare; `None` for a projector.
    pub reactor: Option<ReactorDeclaration>,
    /// The upcasts that old events are read through, where a declaration is recorded that ran with them; `None`: those that there
    /// are now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_through: Option<Vec<Upcast>>,
    /// What SQL meant where a declaration is recorded that has run; `None`: what it means now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<SqlScope>,
}

/// How long a handler in Rust may take, unless something else is said: 5 min.
pub(crate) fn handler_timeout() -> Duration {
    Duration::from_secs(300)
}

impl ProcessorDeclaration {
    /// Whether the processor is a projector or a reactor.
    pub fn kind(&self) -> ProcessorKind {
        if self.reactor.is_some() { ProcessorKind::Reactor } else { ProcessorKind::Projector }
    }

    /// Returns where the processor begins that has never run: unless it says otherwise, a projector with the first event of the
    /// store, because its tables show all of them, and a reactor now, because what it does about old events comes too late.
    pub fn start(&self) -> Start {
        self.start.unwrap_or(match self.kind() {
            ProcessorKind::Projector => Start::Beginning,
            ProcessorKind::Reactor => Start::Now,
        })
    }

    /// Returns the SQL handlers, in the order of the configuration file; none if the events are not handled in SQL.
    pub fn handlers(&self) -> &[Handler] {
        match &self.handling {
            Handling::Sql(handlers) => handlers,
            Handling::Native(_) | Handling::Program(_) | Handling::Webhook(_) => &[],
        }
    }

    /// Returns the event types that the processor handles; `None`: it handles all events.
    pub fn event_types(&self) -> Option<BTreeSet<&str>> {
        match &self.handling {
            Handling::Sql(handlers) => union(handlers.iter().map(|handler| &handler.events)),
            Handling::Native(events) => events.types(),
            Handling::Program(program) => program.events.types(),
            Handling::Webhook(webhook) => webhook.events.types(),
        }
    }

    /// Returns the names of the processor's tables, in the order of the configuration file.
    pub fn table_names(&self) -> Vec<String> {
        self.tables.iter().map(|table| table.name.clone()).collect()
    }

    /// Returns the file that the processor is declared in, as far as a text of it says so.
    pub(crate) fn file(&self) -> &str {
        let program = match &self.handling {
            Handling::Program(program) => Some(&program.place),
            _ => None,
        };
        let handlers = self.handlers().iter().map(|handler| &handler.sql);
        let tables = self.tables.iter().map(|table| &table.columns);
        program.into_iter().chain(handlers).chain(tables).next().map_or("<program>", |text| &text.file)
    }

    /// The declaration as it is recorded in the database: of a program it has nothing but the types of events, because the command and
    /// the environment may have what is for nobody else. What `upcasts` do in Rust cannot be recorded. `scope`: what SQL means to it.
    pub(crate) fn recorded(&self, upcasts: &[Upcast], scope: &SqlScope) -> Self {
        let mut recorded = Self { scope: Some(scope.clone()), ..self.clone() };
        recorded.read_through = upcasts.iter().all(|upcast| upcast.code.is_none()).then(|| upcasts.to_vec());
        if let Handling::Program(program) = &mut recorded.handling {
            *program = ProgramDeclaration::new(program.events.clone(), Vec::new(), PathBuf::new());
        }
        recorded
    }

    /// Whether the processor declares that it reads this table of another one.
    pub fn reads(&self, table: &str) -> bool {
        self.reads.iter().any(|read| read.text == table)
    }

    /// Whether the processor has effects that no rollback undoes.
    pub fn acts_outside(&self) -> bool {
        match self.handling {
            Handling::Sql(_) => false,
            Handling::Native(_) => self.kind() == ProcessorKind::Reactor,
            Handling::Program(_) | Handling::Webhook(_) => true,
        }
    }
}

/// What `fold` is unless it is declared.
fn yes() -> bool {
    true
}

/// Returns the types of all of these; `None` if one of them stands for all events.
fn union<'e>(all: impl Iterator<Item = &'e HandledEvents>) -> Option<BTreeSet<&'e str>> {
    all.map(HandledEvents::types).try_fold(BTreeSet::new(), |mut union, types| {
        union.extend(types?);
        Some(union)
    })
}

/// What handles the events of a processor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handling {
    /// Declared SQL handles the events, inside the database. There is one handler at least.
    Sql(Vec<Handler>),
    /// Rust handles the events, in the program that has registered a processor of this name.
    Native(HandledEvents),
    /// A child process handles the events; it can be written in any language.
    Program(ProgramDeclaration),
    /// A receiver of HTTP requests handles the events. For reactors only.
    Webhook(WebhookDeclaration),
}

/// A `[[projector.on]]` or `[[reactor.on]]`: some PL/pgSQL, and the events that it handles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Handler {
    /// The events that the handler handles.
    pub events: HandledEvents,
    /// One or more PL/pgSQL statements; the last one may lack its semicolon. Never blank.
    pub sql: SourceText,
}

/// A `[[projector.check]]`: a query that returns no row where the tables are right.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What people call it.
    pub name: String,
    /// The query, whose rows say what is wrong. Never blank.
    pub sql: SourceText,
}

/// The events that a handler handles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandledEvents {
    /// All events, written `["*"]`.
    All,
    /// The events of these types; at least one, none twice.
    Types(Vec<String>),
}

impl HandledEvents {
    /// Returns the types; `None`: all events.
    pub fn types(&self) -> Option<BTreeSet<&str>> {
        match self {
            Self::All => None,
            Self::Types(types) => Some(types.iter().map(String::as_str).collect()),
        }
    }
}

/// The limits of a batch. A batch ends at the limit that it reaches first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchLimits {
    /// Most events that are handled in one batch, at least 1, unless the processor is far behind.
    pub size: i64,
    /// Most events that are handled in one batch while the processor is far behind; where it is less than `size`, that holds.
    pub size_max: i64,
    /// Most bytes of event bodies, as stored. A batch has one event at least, however large.
    pub bytes: i64,
    /// Time that a batch may take. The batch ends after the event during which the time is up.
    pub time: Duration,
    /// Most ids that a batch looks at, whatever their types. It keeps a statement short when a type is rare.
    pub span: i64,
    /// How large a batch may be that is folded while the processor is far behind.
    pub folded: FoldedLimits,
}

/// The limits of a folded batch while the processor is far behind: the events stay in the server, and the more of them are folded
/// at once, the fewer rows are written that a later one changes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoldedLimits {
    /// Most events.
    pub size: i64,
    /// Most bytes of event bodies, as stored.
    pub bytes: i64,
    /// Most ids that are looked at.
    pub span: i64,
}

impl Default for FoldedLimits {
    /// 250,000 events, 128 MiB, 1,000,000 ids.
    fn default() -> Self {
        Self { size: 250_000, bytes: 128 << 20, span: 1_000_000 }
    }
}

impl BatchLimits {
    /// The limits of a batch of so many events at most, which is folded unless it meets a handler that cannot be.
    #[must_use]
    pub(crate) fn of_folded(self, size: i64) -> Self {
        let grown = |own: i64, most: i64| own.max(most.min(own.saturating_mul(size) / self.size.max(1)));
        Self {
            bytes: grown(self.bytes, self.folded.bytes),
            span: grown(self.span, self.folded.span),
            size_max: self.folded.size,
            ..self
        }
    }
}

impl Default for BatchLimits {
    /// 1,000 events, up to 50,000 when far behind, 16 MiB, 2 s, 100,000 ids.
    fn default() -> Self {
        Self {
            size: 1_000,
            size_max: 50_000,
            bytes: 16 << 20,
            time: Duration::from_secs(2),
            span: 100_000,
            folded: FoldedLimits::default(),
        }
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
            on_handler_change: OnHandlerChange::default(),
            handler_timeout: handler_timeout(),
            start: None,
            reads: vec![],
            synchronous: None,
            fold: true,
            aggregate_column: None,
            approve: Approve::default(),
            checks: vec![],
            reactor: None,
            read_through: None,
            scope: None,
        };
        assert_eq!(projector.event_types(), Some(["A", "B"].into()));
        let before = projector.handler_fingerprint(&[]);
        assert_eq!(before, projector.clone().handler_fingerprint(&[]));
        projector.handling = Handling::Sql(vec![typed, handler(HandledEvents::All)]);
        assert_eq!(projector.event_types(), None);
        assert_ne!(before, projector.handler_fingerprint(&[]));
    }
}
