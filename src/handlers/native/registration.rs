//! What a program says about a processor of its own.

use super::typed::EventType;
use crate::processing::declaration::{
    BatchLimits, HandledEvents, Handling, Isolation, ProcessorDeclaration, Reaction, SourceText, Start,
    TableDeclaration,
};
use crate::processing::processor::ProcessorKind;
use crate::retry::RetryPolicy;

/// What a processor is called, which events it handles, and which tables it owns. How it is run (batches, retries,
/// isolation) the configuration says.
#[derive(Debug, Clone)]
pub struct Registration {
    name: String,
    kind: ProcessorKind,
    version: i32,
    types: Vec<String>,
    tables: Vec<(String, String)>,
    ddl: Vec<String>,
    emits: Vec<String>,
    start: Start,
}

impl Registration {
    /// A projector of this name: up to 48 of `a-z`, `0-9` and `_`, unique among all processors.
    pub fn projector(name: &str) -> Self {
        Self::new(name, ProcessorKind::Projector)
    }

    /// A reactor of this name.
    pub fn reactor(name: &str) -> Self {
        Self::new(name, ProcessorKind::Reactor)
    }

    fn new(name: &str, kind: ProcessorKind) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            version: 1,
            types: Vec::new(),
            tables: Vec::new(),
            ddl: Vec::new(),
            emits: Vec::new(),
            start: Start::default(),
        }
    }

    /// The version of its tables, from 1: raised when they have to be built anew.
    #[must_use]
    pub fn version(self, version: i32) -> Self {
        Self { version, ..self }
    }

    /// It handles events of this type. One that names no type handles all events.
    #[must_use]
    pub fn handles<E: EventType>(self) -> Self {
        self.handles_type(E::NAME)
    }

    /// As [`Self::handles`], for a type that is no type of Rust.
    #[must_use]
    pub fn handles_type(mut self, name: &str) -> Self {
        if !self.types.iter().any(|known| known == name) {
            self.types.push(name.to_owned());
        }
        self
    }

    /// It owns this table: `columns` is what stands between the parentheses of `create table`. espd makes it, and a
    /// reset drops it and makes it anew.
    #[must_use]
    pub fn table(mut self, name: &str, columns: &str) -> Self {
        self.tables.push((name.to_owned(), columns.to_owned()));
        self
    }

    /// A statement to run once after the tables were made: an index, a view.
    #[must_use]
    pub fn ddl(mut self, statement: &str) -> Self {
        self.ddl.push(statement.to_owned());
        self
    }

    /// It may emit events of this type. Reactors only.
    #[must_use]
    pub fn emits<E: EventType>(mut self) -> Self {
        self.emits.push(E::NAME.to_owned());
        self
    }

    /// Where a reactor begins when it is run for the first time: with what happens from then on, unless said otherwise
    /// here or in the configuration.
    #[must_use]
    pub fn start(self, start: Start) -> Self {
        Self { start, ..self }
    }

    /// The complete declaration, with defaults for what the configuration says.
    pub(super) fn into_declaration(self) -> ProcessorDeclaration {
        let place = |what: &str| format!("<{} of {} in the program>", what, self.name);
        let text = |sql: &str, what: &str| SourceText::new(sql, &place(what), 1, 1);
        let table = |(name, columns): &(String, String)| TableDeclaration {
            name: name.clone(),
            columns: text(columns, &format!("table {name}")),
        };
        ProcessorDeclaration {
            version: self.version,
            tables: self.tables.iter().map(table).collect(),
            ddl: self.ddl.iter().map(|statement| text(statement, "ddl")).collect(),
            handling: Handling::Native(match self.types.as_slice() {
                [] => HandledEvents::All,
                types => HandledEvents::Types(types.to_vec()),
            }),
            batch: BatchLimits::default(),
            retry: RetryPolicy::default(),
            isolation: Isolation::default(),
            reaction: (self.kind == ProcessorKind::Reactor).then(|| Reaction {
                emits: self.emits.clone(),
                start: self.start,
                ..Reaction::default()
            }),
            name: self.name,
        }
    }
}
