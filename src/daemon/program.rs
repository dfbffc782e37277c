//! An espd with processors of one's own.

use std::sync::Arc;

use crate::config::Config;
use crate::handlers::native::{Projector, Reactor, Registration, Registry};
use crate::process::hook::{ProcessorFailure, SetAsideEvents, StoreDivergence, WorkerEnd, WorkerFacts};
use crate::processing::declaration::{Handling, ProcessorDeclaration, ReactorDeclaration};
use crate::processing::processor::{Events, Processor, ProcessorBase};

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
        Some(Box::new(self.registry.make(base).ok()?))
    }

    /// Does what the command line says, as `espd` does, and returns the exit code.
    pub fn main(self) -> std::process::ExitCode {
        super::main_with(self.registry)
    }
}

/// Completes a configuration with the registered processors. A processor that is declared with `native = true` is run as
/// declared there; the others are run as `[runner]` and `[retry]` say.
///
/// # Errors
/// Every contradiction between the configuration and the program.
pub(super) fn add_registered(config: &mut Config, registry: &Registry) -> Result<(), Vec<String>> {
    let mut faults = registry.faults().to_vec();
    for declared in &mut config.processors {
        let registered = registry.declaration(&declared.name);
        faults.extend(complete(declared, registered).err());
    }
    for registered in registry.declarations() {
        if !config.processors.iter().any(|declared| declared.name == registered.name) {
            config.processors.push(ProcessorDeclaration {
                batch: config.runner.batch,
                retry: config.retry,
                isolation: config.runner.isolation.clone(),
                on_handler_change: config.runner.on_handler_change,
                ..registered.clone()
            });
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// Completes a declared processor, if the program has to provide it.
fn complete(
    declared: &mut ProcessorDeclaration,
    registered: Option<&ProcessorDeclaration>,
) -> Result<(), String> {
    match (&declared.handling, registered) {
        (Handling::Native(_), Some(registered)) => fill_in(declared, registered),
        (Handling::Native(_), None) => Err(format!(
            "processor {} is native, and this program has not registered it: run the program that has",
            declared.name
        )),
        (_, Some(_)) => Err(format!(
            "processor {} is registered by this program: declare it with `native = true`, or give one of the two \
             another name",
            declared.name
        )),
        (_, None) => Ok(()),
    }
}

/// Takes what the processor does from the program, and how it is run from the configuration.
fn fill_in(declared: &mut ProcessorDeclaration, registered: &ProcessorDeclaration) -> Result<(), String> {
    if declared.kind() != registered.kind() {
        return Err(format!(
            "processor {} is a {} in this program: declare it under [{}]",
            declared.name,
            registered.kind().as_str(),
            registered.kind().as_str()
        ));
    }
    let declared_reactor = declared.reactor.clone().unwrap_or_default();
    let reactor = registered
        .reactor
        .clone()
        .map(|reactor| ReactorDeclaration { chain_max: declared_reactor.chain_max, ..reactor });
    *declared = ProcessorDeclaration {
        batch: declared.batch,
        retry: declared.retry,
        isolation: declared.isolation.clone(),
        on_handler_change: declared.on_handler_change,
        start: declared.start.or(registered.start),
        reads: declared.reads.clone(),
        reactor,
        ..registered.clone()
    };
    Ok(())
}
