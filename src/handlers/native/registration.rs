//! What a program says about a processor that it registers.

use super::handling::Abilities;
use crate::aggregate::Aggregate;
use crate::event::{EventSet, EventType, PersonalFields};
use crate::processing::declaration::{
    Approve, BatchLimits, Check, HandledEvents, Handling, Isolation, OnHandlerChange, ProcessorDeclaration,
    ProcessorKind, ProcessorSettings, ReactorDeclaration, SourceText, Start, TableDeclaration,
    handler_timeout,
};
use crate::retry::RetryPolicy;
use crate::store::{BodyCodec, Codec};

/// What a processor is called, which events it handles, which tables it owns, and, for a reactor, what it emits; and how it is
/// run (batches, retries, isolation), as far as the configuration does not say.
#[derive(Debug, Clone)]
pub struct Registration {
    name: String,
    kind: ProcessorKind,
    version: i32,
    types: Vec<String>,
    tables: Vec<(String, String)>,
    ddl: Vec<String>,
    checks: Vec<(String, String)>,
    emits: Vec<String>,
    /// The personal fields of what it emits, by type.
    personal: Vec<(&'static str, &'static [PersonalFields])>,
    codec: Codec,
    /// How it is run.
    pub(super) settings: ProcessorSettings,
    /// What the handler may do beside writing and emitting.
    pub(super) abilities: Abilities,
}

impl Registration {
    /// Registers a projector. Its name has up to 48 characters of `a-z`, `0-9` and `_`, does not begin with a digit, and is
    /// unique among all processors. Without [`Self::handles`] it handles all events.
    pub fn projector(name: &str) -> Self {
        Self::new(name, ProcessorKind::Projector)
    }

    /// Registers a reactor, under a name as for [`Self::projector`].
    pub fn reactor(name: &str) -> Self {
        Self::new(name, ProcessorKind::Reactor)
    }

    /// Registers a [`Workflow`](super::Workflow), under a name as for [`Self::projector`]. Everything that is said of reactors holds.
    pub fn workflow(name: &str) -> Self {
        let registration = Self::new(name, ProcessorKind::Reactor);
        Self { abilities: Abilities { is_workflow: true, ..registration.abilities }, ..registration }
    }

    fn new(name: &str, kind: ProcessorKind) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            version: 1,
            types: Vec::new(),
            tables: Vec::new(),
            ddl: Vec::new(),
            checks: Vec::new(),
            emits: Vec::new(),
            personal: Vec::new(),
            codec: Codec::default(),
            settings: ProcessorSettings::default(),
            abilities: Abilities::default(),
        }
    }

    /// Sets the version of the tables, 1 by default. Raising it has them built anew.
    #[must_use]
    pub fn version(self, version: i32) -> Self {
        Self { version, ..self }
    }

    /// Has the processor handle events of type `E`, also under the names that it had before. May be repeated.
    #[must_use]
    pub fn handles<E: EventType>(self) -> Self {
        E::WAS.iter().fold(self.handles_type(E::NAME), |registration, name| registration.handles_type(name))
    }

    /// Has the processor handle events of the named type, for which there need not be a Rust type.
    #[must_use]
    pub fn handles_type(mut self, name: &str) -> Self {
        if !self.types.iter().any(|known| known == name) {
            self.types.push(name.to_owned());
        }
        self
    }

    /// Has the processor handle all types of a set, for example those of an aggregate: `handles_set::<BookEvent>()`, which
    /// `BookEvent::read(&event)` reads. May be repeated.
    #[must_use]
    pub fn handles_set<S: EventSet>(self) -> Self {
        S::names().into_iter().fold(self, Self::handles_type)
    }

    /// All but this type: `handles_set::<BookEvent>().but::<BookLost>()`.
    ///
    /// # Panics
    /// No type is left, which would mean all events.
    #[must_use]
    pub fn but<E: EventType>(mut self) -> Self {
        self.types.retain(|name| name != E::NAME && !E::WAS.contains(&name.as_str()));
        assert!(!self.types.is_empty(), "{} handles no type of events but {}", self.name, E::NAME);
        self
    }

    /// Gives the processor a table. `columns` is the text between the parentheses of `create table`. espd creates the table
    /// before the processor runs; a reset drops it and creates it again.
    #[must_use]
    pub fn table(mut self, name: &str, columns: &str) -> Self {
        self.tables.push((name.to_owned(), columns.to_owned()));
        self
    }

    /// Adds a statement that is run once after the tables were created, such as `create index`.
    #[must_use]
    pub fn ddl(mut self, statement: &str) -> Self {
        self.ddl.push(statement.to_owned());
        self
    }

    /// Adds a query that returns no row where the tables are right: a version that is built beside the one that serves goes live only
    /// then. Names without a schema mean the tables that are built. What `[[projector.check]]` says in the configuration is
    /// required as well.
    #[must_use]
    pub fn check(mut self, name: &str, sql: &str) -> Self {
        self.checks.push((name.to_owned(), sql.to_owned()));
        self
    }

    /// Allows a reactor to emit events of type `E`. If the type has personal fields, the registration needs a [`Self::codec`] that seals
    /// them.
    #[must_use]
    pub fn emits<E: EventType>(mut self) -> Self {
        self.emits.push(E::NAME.to_owned());
        self.personal.push((E::NAME, E::PERSONAL));
        self
    }

    /// Allows a reactor to give commands to aggregates of type `A`, and so to emit their events: see
    /// [`ReactorContext::execute`](super::ReactorContext::execute).
    #[must_use]
    pub fn executes<A: Aggregate>(mut self) -> Self {
        for name in A::Event::names() {
            if !self.emits.iter().any(|known| known == name) {
                self.emits.push(name.to_owned());
            }
        }
        self.personal.extend(A::Event::personal());
        Self { abilities: Abilities { gives_commands: true, ..self.abilities }, ..self }
    }

    /// Has a workflow wait for time-outs of type `E`: it emits them, and handles them when they are due. See
    /// [`WorkflowContext::time_out_after`](super::WorkflowContext::time_out_after).
    #[must_use]
    pub fn times_out<E: EventType>(self) -> Self {
        self.handles::<E>().emits::<E>()
    }

    /// Sets where the processor begins when it is run for the first time. By default a projector begins with the first event of
    /// the store, and a reactor with the events that are appended from then on. A `start` in the configuration takes
    /// precedence. The tables of a projector that begins later do not hold what was before.
    #[must_use]
    pub fn start(mut self, start: Start) -> Self {
        self.settings.start = Some(start);
        self
    }

    /// Has the handler see bodies as they were before the codec of the application's store has encoded them, and encodes what it
    /// emits. An event that cannot be decoded is one that cannot be handled.
    #[must_use]
    pub fn codec(self, codec: impl BodyCodec) -> Self {
        Self { codec: Codec::new(codec), ..self }
    }

    /// What it may emit although the personal fields would be stored in the clear.
    pub(super) fn find_unsealed(&self) -> Vec<String> {
        let fault = |(event_type, personal): &(&'static str, &'static [PersonalFields])| {
            let PersonalFields { fields, .. } = self.codec.find_unsealed(event_type, personal)?;
            let (name, fields) = (&self.name, fields.join(", "));
            Some(format!(
                "{name} emits {event_type}, whose personal fields ({fields}) no codec seals: add .codec(…) to its registration, \
                 with the PersonalData that the store has"
            ))
        };
        self.personal.iter().filter_map(fault).collect()
    }

    /// How bodies are stored.
    pub(super) fn body_codec(&self) -> Codec {
        self.codec.clone()
    }

    /// Allows the handler to have work done once its batch is committed: see [`ReactorContext::after_commit`] and
    /// [`ProjectorContext::after_commit`].
    ///
    /// [`ReactorContext::after_commit`]: super::ReactorContext::after_commit
    /// [`ProjectorContext::after_commit`]: super::ProjectorContext::after_commit
    #[must_use]
    pub fn after_commit(self) -> Self {
        Self { abilities: Abilities { acts_after_commit: true, ..self.abilities }, ..self }
    }

    /// The complete declaration, with defaults for what is not said.
    pub(super) fn into_declaration(self) -> ProcessorDeclaration {
        let place = |what: &str| format!("<{} of {} in the program>", what, self.name);
        let text = |sql: &str, what: &str| SourceText::new(sql, &place(what), 1, 1);
        let table = |(name, columns): &(String, String)| {
            TableDeclaration::new(name, text(columns, &format!("table {name}")))
        };
        let check = |(name, sql): &(String, String)| Check {
            name: name.clone(),
            sql: text(sql, &format!("check {name}")),
        };
        let mut declaration = ProcessorDeclaration {
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
            on_handler_change: OnHandlerChange::default(),
            handler_timeout: handler_timeout(),
            start: None,
            reads: Vec::new(),
            synchronous: None,
            fold: true,
            aggregate_column: None,
            approve: Approve::default(),
            checks: self.checks.iter().map(check).collect(),
            reactor: (self.kind == ProcessorKind::Reactor)
                .then(|| ReactorDeclaration { emits: self.emits.clone(), ..ReactorDeclaration::default() }),
            read_through: None,
            scope: None,
            name: self.name,
        };
        self.settings.apply_to(&mut declaration);
        declaration
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::event_set! {
        enum BookEvent {
            BookLent {} = "BookLent" was ["BookTaken"],
            BookReturned {},
            BookLost {} = "BookLost" was ["BookGone"],
        }
    }

    #[test]
    fn a_processor_handles_a_set_of_types_or_all_but_some() {
        let all = Registration::projector("books").handles::<BookReturned>().handles_set::<BookEvent>();
        assert_eq!(all.types, ["BookReturned", "BookLent", "BookTaken", "BookLost", "BookGone"]);
        assert_eq!(all.but::<BookLost>().but::<BookLent>().types, ["BookReturned"]);
    }

    #[test]
    #[should_panic(expected = "books handles no type of events but BookLost")]
    fn nothing_is_not_everything() {
        let _ = Registration::projector("books").handles::<BookLost>().but::<BookLost>();
    }
}
