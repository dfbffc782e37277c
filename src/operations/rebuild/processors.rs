//! What handles the events of a version beside the one that serves: what handles those of the serving one, with another tracker
//! and other tables.

use sqlx::PgConnection;

use super::blocked;
use crate::handlers::program::ProgramProcessor;
use crate::handlers::sql::SqlProcessor;
use crate::operations::operator::{Operator, OperatorError};
use crate::postgres::sql_scope::SqlScope;
use crate::processing::declaration::{Handling, ProcessorDeclaration};
use crate::processing::processor::{Events, Processor, ProcessorBase};
use crate::processing::rebuild::{Beside, Part, Share, whole_fingerprint};
use crate::store::PostgresEventStore;

impl Operator<'_> {
    /// The version of a declaration beside the serving one.
    pub(super) fn beside(
        &self,
        declaration: &ProcessorDeclaration,
        beside: Beside,
        part: Option<&Part>,
    ) -> Result<Box<dyn Processor>, OperatorError> {
        let condition = part.map(Part::of_event);
        let (declared, scope, events) = self.place_beside(declaration, beside, condition.as_deref());
        let schema = self.databases.layout.schema();
        if !matches!(declaration.handling, Handling::Sql(_)) {
            return self.outside(declaration, ProcessorBase::new(declared, schema, scope, events));
        }
        let made = SqlProcessor::new(declared, schema, scope, events);
        Ok(Box::new(made.map_err(|fault| OperatorError::Declaration(Box::new(fault)))?))
    }

    /// A version whose handlers are not in the database, but in a program: this one, or a child.
    fn outside(
        &self,
        declaration: &ProcessorDeclaration,
        base: ProcessorBase,
    ) -> Result<Box<dyn Processor>, OperatorError> {
        let name = &declaration.name;
        match (&declaration.handling, self.native) {
            (Handling::Program(program), _) => {
                Ok(Box::new(ProgramProcessor::new(base, program.clone()).known_as(name)))
            }
            (Handling::Native(_), Some(registry)) => {
                Ok(Box::new(registry.make_beside(base, name).map_err(OperatorError::Blocked)?))
            }
            _ => Err(match self.find_missing_program(declaration) {
                Some((because, remedy)) => OperatorError::Blocked(format!("{because}: {remedy}")),
                None => OperatorError::Blocked(format!("{name} has no handlers that could be run here")),
            }),
        }
    }

    /// One share of the version of a declaration beside the serving one: with a function, a child process or instances of its own.
    pub(super) async fn beside_share(
        &self,
        connection: &mut PgConnection,
        declaration: &ProcessorDeclaration,
        beside: Beside,
        share: Share,
    ) -> Result<Box<dyn Processor>, OperatorError> {
        let (declared, scope, events) = self.place_beside(declaration, beside, Some(&share.of_event()));
        let schema = self.databases.layout.schema();
        if !matches!(declaration.handling, Handling::Sql(_)) {
            return self.outside(declaration, ProcessorBase::new(declared, schema, scope, events));
        }
        let made = SqlProcessor::of_share(declared, schema, scope, events, share.number);
        let mut processor = made.map_err(|fault| OperatorError::Declaration(Box::new(fault)))?;
        processor.make_functions(connection).await.map_err(blocked)?;
        Ok(Box::new(processor))
    }

    /// How a version is declared beside the serving one, where its tables are, and its events: those for which a condition holds.
    fn place_beside(
        &self,
        declaration: &ProcessorDeclaration,
        beside: Beside,
        condition: Option<&str>,
    ) -> (ProcessorDeclaration, SqlScope, Events) {
        let databases = self.databases;
        let declared = ProcessorDeclaration {
            name: beside.name(&declaration.name),
            synchronous: None,
            ..declaration.clone()
        };
        // It is where the configuration has it now, and means what it meant.
        let (present, recorded) = (&databases.scope, declaration.scope.as_ref());
        let scope = recorded.map_or(present.clone(), |recorded| SqlScope {
            schema: present.schema.clone(),
            ..recorded.clone()
        });
        let scope = scope.beside(&beside.schema(&scope.schema, &declaration.name));
        let layout = databases.layout.clone();
        let layout = match &declaration.read_through {
            Some(upcasts) => layout.reading_through(upcasts),
            None => layout,
        };
        let layout = condition.map_or(layout.clone(), |condition| layout.only(condition));
        let events = if databases.elsewhere {
            Events::Elsewhere(PostgresEventStore::new(databases.events.clone(), layout))
        } else {
            Events::SameDatabase(layout)
        };
        (declared, scope, events)
    }

    /// A fingerprint of the tables, and of what handles the events: a version is gone on with only where both are as they were.
    pub(super) fn whole_fingerprint(&self, declaration: &ProcessorDeclaration) -> String {
        let upcasts = self.databases.layout.upcasts();
        let handlers = match (&declaration.handling, self.native) {
            // Only the whole program tells whether it has the same handlers.
            (Handling::Native(_), Some(registry)) => registry.fingerprint(upcasts),
            _ => declaration.handler_fingerprint(upcasts).unwrap_or_default(),
        };
        whole_fingerprint(declaration, &handlers)
    }
}
