//! Which processors are run, and whether they can be.

use super::error::LocalError;
use super::processor::LocalProcessor;
use super::{LocalProcessors, LocalStore};
use crate::handlers::native::{Projector, Reactor, Registration, Registry, Workflow, WorkflowReactor};
use crate::processing::declaration::{Handling, ProcessorDeclaration};
use crate::store::upcast::Upcast;

/// Processors in Rust that are to be run without PostgreSQL.
///
/// An application that has a [`Program`](crate::Program) runs that one: `program().locally().start(&store)`.
#[derive(Default)]
pub struct LocalProgram {
    registry: Registry,
    /// The processors and upcasts as a configuration has completed them; `None`: there is no configuration.
    completed: Option<(Vec<ProcessorDeclaration>, Vec<Upcast>)>,
    /// The names of the processors that are run; `None`: all.
    only: Option<Vec<String>>,
}

impl LocalProgram {
    /// No processors yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The processors of a program, and of a configuration if there is one.
    pub(crate) fn of(
        registry: Registry,
        completed: Option<(Vec<ProcessorDeclaration>, Vec<Upcast>)>,
    ) -> Self {
        Self { registry, completed, only: None }
    }

    /// Registers a projector, as [`Program::projector`](crate::Program::projector) does.
    #[must_use]
    pub fn projector<P: Projector + 'static>(
        mut self,
        registration: Registration,
        make: impl Fn() -> P + Send + Sync + 'static,
    ) -> Self {
        self.registry.add_projector(registration, make);
        self
    }

    /// Registers a reactor, as [`Program::reactor`](crate::Program::reactor) does.
    #[must_use]
    pub fn reactor<R: Reactor + 'static>(
        mut self,
        registration: Registration,
        make: impl Fn() -> R + Send + Sync + 'static,
    ) -> Self {
        self.registry.add_reactor(registration, make);
        self
    }

    /// Registers a workflow, as [`Program::workflow`](crate::Program::workflow) does.
    #[must_use]
    pub fn workflow<W: Workflow + 'static>(
        mut self,
        registration: Registration,
        make: impl Fn() -> W + Send + Sync + 'static,
    ) -> Self {
        self.registry.add_reactor(registration, move || WorkflowReactor(make()));
        self
    }

    /// Reads old events as new ones, as [`Program::upcast`](crate::Program::upcast) does. The body is made in Rust, if it changes.
    #[must_use]
    pub fn upcast(mut self, upcast: Upcast) -> Self {
        self.registry.add_upcast(upcast);
        self
    }

    /// Runs these processors only.
    #[must_use]
    pub fn only<T: Into<String>>(self, names: impl IntoIterator<Item = T>) -> Self {
        Self { only: Some(names.into_iter().map(Into::into).collect()), ..self }
    }

    /// Makes the processors ready on a store. One that has never run there begins where its registration says: unless it says
    /// otherwise, a projector with the first event, and a reactor with what is appended from now on. Nothing is handled before
    /// [`LocalProcessors::drain`].
    ///
    /// # Errors
    /// [`LocalError::Unfit`] for processors that cannot be run as they are registered, or not without PostgreSQL.
    pub async fn start(self, store: impl Into<LocalStore>) -> Result<LocalProcessors, LocalError> {
        let Self { registry, completed, only } = self;
        let (mut declared, upcasts) = completed
            .unwrap_or_else(|| (registry.declarations().cloned().collect(), registry.upcasts().to_vec()));
        let mut faults = registry.faults().to_vec();
        if let Some(only) = &only {
            let is_known = |name: &&String| declared.iter().any(|one| one.name == **name);
            let unknown = only.iter().filter(|name| !is_known(name));
            faults.extend(unknown.map(|name| format!("there is no processor {name}")));
            declared.retain(|declaration| only.contains(&declaration.name));
        }
        faults.extend(declared.iter().filter_map(needs_postgres));
        faults.extend(upcasts.iter().filter_map(is_in_sql));
        if !faults.is_empty() {
            return Err(LocalError::Unfit { faults });
        }
        declared.sort_by(|one, other| one.name.cmp(&other.name));
        let make = |declaration: ProcessorDeclaration| {
            let handler = registry.make_handler(&declaration)?;
            Some(LocalProcessor::new(declaration, handler))
        };
        let processors = declared.into_iter().filter_map(make).collect();
        let processors = LocalProcessors::new(store.into(), processors, upcasts);
        processors.register().await?;
        Ok(processors)
    }
}

/// Why a processor cannot be run without PostgreSQL, if so.
fn needs_postgres(declaration: &ProcessorDeclaration) -> Option<String> {
    let ProcessorDeclaration { name, handling, .. } = declaration;
    let why = match handling {
        Handling::Native(_) => return None,
        Handling::Sql(_) => "its handlers are SQL, which runs inside of PostgreSQL",
        Handling::Program(_) => "what its program wants written is rows of PostgreSQL",
        Handling::Webhook(_) => "its deliveries are remembered in PostgreSQL",
    };
    let (kind, file) = (declaration.kind().as_str(), declaration.file());
    Some(format!(
        "{kind} {name} ({file}) needs PostgreSQL: {why}. Run it with `Program::start` on a PostgreSQL of its own \
         (`espd::embedded`), or name the others with `only`"
    ))
}

/// Why an upcast cannot be read through without PostgreSQL, if so.
fn is_in_sql(upcast: &Upcast) -> Option<String> {
    (upcast.body.is_some() || upcast.when.is_some()).then(|| {
        format!(
            "the upcast of {} needs PostgreSQL: it is SQL. Make the body in Rust (`Upcast::body`)",
            upcast.events.join(", ")
        )
    })
}
