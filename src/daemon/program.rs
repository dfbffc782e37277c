//! An espd with processors of one's own.

use std::sync::Arc;

use super::own_program;
use super::registered::add_registered;
use super::start_error::StartError;
use crate::config::Config;
use crate::event::Event;
use crate::handlers::native::{Projector, Reactor, Registration, Registry, Workflow, WorkflowReactor};
use crate::local::LocalProgram;
use crate::process::hook::{ProcessorFailure, SetAsideEvents, StoreDivergence, WorkerEnd, WorkerFacts};
use crate::processing::processor::{Events, Processor, ProcessorBase};
use crate::store::PostgresEventStore;
use crate::store::upcast::Upcast;

/// A program that runs processors of its own: espd, with its command line.
#[derive(Default)]
pub struct Program {
    registry: Registry,
}

impl Program {
    /// A program without processors of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a projector. `make` makes an instance at the start, and another one after each failure.
    #[must_use]
    pub fn projector<P: Projector + 'static>(
        mut self,
        registration: Registration,
        make: impl Fn() -> P + Send + Sync + 'static,
    ) -> Self {
        self.registry.add_projector(registration, make);
        self
    }

    /// Registers a reactor. `make` is as for [`Self::projector`].
    #[must_use]
    pub fn reactor<R: Reactor + 'static>(
        mut self,
        registration: Registration,
        make: impl Fn() -> R + Send + Sync + 'static,
    ) -> Self {
        self.registry.add_reactor(registration, make);
        self
    }

    /// Registers a workflow. `make` is as for [`Self::projector`].
    #[must_use]
    pub fn workflow<W: Workflow + 'static>(
        mut self,
        registration: Registration,
        make: impl Fn() -> W + Send + Sync + 'static,
    ) -> Self {
        self.registry.add_reactor(registration, move || WorkflowReactor(make()));
        self
    }

    /// Has `hook` called in each worker, before the worker does anything else: before it listens to signals, connects or reads.
    /// If it fails, the worker ends with exit code 71 and is started again later, as after a crash. Where the configuration has
    /// an `on_worker_start` too, that command comes first.
    #[must_use]
    pub fn on_worker_start<E>(
        mut self,
        hook: impl Fn(&WorkerFacts) -> Result<(), E> + Send + Sync + 'static,
    ) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.registry.hooks.on_worker_start = Some(Arc::new(move |worker| hook(worker).map_err(Into::into)));
        self
    }

    /// Has `hook` called in the daemon, in a thread of its own, when a worker has ended. What it does has no consequence for the
    /// workers. At most four hooks run at once; further ones are left out, which the log tells.
    #[must_use]
    pub fn on_worker_end(mut self, hook: impl Fn(&WorkerEnd) + Send + Sync + 'static) -> Self {
        self.registry.hooks.on_worker_end = Some(Arc::new(hook));
        self
    }

    /// Has `hook` called in the daemon, as [`Self::on_worker_end`], when a processor has failed in another way than the last time:
    /// at another event, with another error, or with another consequence. A further attempt with the same outcome is not told.
    #[must_use]
    pub fn on_failure(mut self, hook: impl Fn(&ProcessorFailure) + Send + Sync + 'static) -> Self {
        self.registry.hooks.on_failure = Some(Arc::new(hook));
        self
    }

    /// Has `hook` called in the daemon, as [`Self::on_worker_end`], when a processor has set events aside, at most once a second.
    #[must_use]
    pub fn on_dead_letter(mut self, hook: impl Fn(&SetAsideEvents) + Send + Sync + 'static) -> Self {
        self.registry.hooks.on_dead_letter = Some(Arc::new(hook));
        self
    }

    /// Has `hook` called in the daemon, as [`Self::on_worker_end`], when a processor has stopped because the event store is not the
    /// one that it followed.
    #[must_use]
    pub fn on_diverged(mut self, hook: impl Fn(&StoreDivergence) + Send + Sync + 'static) -> Self {
        self.registry.hooks.on_diverged = Some(Arc::new(hook));
        self
    }

    /// Has `hook` called with the events that this process appends, once they are committed: through [`Self::event_store`] and
    /// [`Running::event_store`](crate::Running::event_store), as [`PostgresEventStore::on_appended`] says, and with those that were
    /// scheduled for later and that [`Self::start`] appends when they are due. A daemon appends scheduled events in a process of
    /// its own, which calls nothing.
    #[must_use]
    pub fn on_appended(mut self, hook: impl Fn(&[Event]) + Send + Sync + 'static) -> Self {
        self.registry.on_appended = Some(Arc::new(hook));
        self
    }

    /// Reads old events as new ones, above the upcasts of the configuration and those that were added before: for every processor
    /// of this program and of its configuration, and for [`Self::event_store`].
    #[must_use]
    pub fn upcast(mut self, upcast: Upcast) -> Self {
        self.registry.add_upcast(upcast);
        self
    }

    /// The event store of a configuration, which reads old events as the processors of this program do. It connects when it is
    /// first used.
    ///
    /// # Errors
    /// The configuration names no database, or contradicts the program.
    pub fn event_store(&self, config: &Config) -> Result<PostgresEventStore, StartError> {
        let mut config = config.clone();
        add_registered(&mut config, &self.registry).map_err(|faults| StartError::of_faults(&faults))?;
        let store =
            PostgresEventStore::from_config(&config).map_err(|error| StartError::of(&error.into()))?;
        Ok(telling(store, &self.registry))
    }

    /// Makes one of the processors, for callers that hand it batches themselves, such as tests. `schema` holds espd's
    /// own tables, `projections_schema` those of the processor. Returns `None` if no processor has this name.
    #[doc(hidden)]
    pub fn processor(
        &self,
        name: &str,
        schema: &str,
        projections_schema: &str,
        events: Events,
    ) -> Option<Box<dyn Processor>> {
        let declaration = self.registry.declaration(name)?.clone();
        let base = ProcessorBase::new(declaration, schema, projections_schema, events);
        Some(Box::new(self.registry.make(base, None).ok()?))
    }

    /// The processors of this program, to be run without PostgreSQL, on the memory store for example: see
    /// [`testing`](crate::testing).
    pub fn locally(self) -> LocalProgram {
        LocalProgram::of(self.registry, None)
    }

    /// As [`Self::locally`], with the settings and the upcasts of a configuration. Processors that it declares in SQL, as programs or
    /// as webhooks are refused at the start, unless [`LocalProgram::only`] names others.
    ///
    /// # Errors
    /// The configuration and the program contradict each other.
    pub fn locally_with(self, config: &Config) -> Result<LocalProgram, StartError> {
        let mut config = config.clone();
        add_registered(&mut config, &self.registry).map_err(|faults| StartError::of_faults(&faults))?;
        Ok(LocalProgram::of(self.registry, Some((config.processors, config.upcasts))))
    }

    /// The processors that were registered.
    pub(super) fn into_registry(self) -> Registry {
        self.registry
    }

    /// Does what the command line says, and returns the exit code: everything that `espd` does but its demo, and every command
    /// of `espctl`, each with the processors of this program. Messages name this program.
    pub fn main(self) -> std::process::ExitCode {
        own_program::main(self.registry)
    }
}

/// The store, which calls what the program wants called with appended events.
pub(super) fn telling(store: PostgresEventStore, registry: &Registry) -> PostgresEventStore {
    match registry.on_appended.clone() {
        Some(hook) => store.on_appended(move |events| hook(events)),
        None => store,
    }
}
