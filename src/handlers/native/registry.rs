//! The processors that a program has registered, and that program.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::processor::{HandlerFactory, NativeProcessor};
use super::registration::Registration;
use super::{Projector, Reactor};
use crate::config::Config;
use crate::processing::declaration::{Handling, ProcessorDeclaration, Reaction, Start, is_name};
use crate::processing::processor::{Base, Events, Processor};

/// Processors written in Rust, by name.
#[derive(Default)]
pub struct Registry {
    processors: BTreeMap<String, Registered>,
    /// What cannot be run as it was registered.
    faults: Vec<String>,
}

struct Registered {
    declaration: ProcessorDeclaration,
    factory: HandlerFactory,
}

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

    /// Registers a projector. `make` makes an instance: one at the start, and another one after each failure.
    #[must_use]
    pub fn projector<P: Projector + 'static>(
        mut self,
        registration: Registration,
        make: impl Fn() -> P + Send + Sync + 'static,
    ) -> Self {
        let factory = HandlerFactory::Projector(Arc::new(move || Box::new(make())));
        self.registry.add(registration, factory);
        self
    }

    /// Registers a reactor. `make` is as for [`Self::projector`].
    #[must_use]
    pub fn reactor<R: Reactor + 'static>(
        mut self,
        registration: Registration,
        make: impl Fn() -> R + Send + Sync + 'static,
    ) -> Self {
        let factory = HandlerFactory::Reactor(Arc::new(move || Box::new(make())));
        self.registry.add(registration, factory);
        self
    }

    /// One of the processors, for those who give it turns by themselves, such as tests. `schema` is that of espd's own
    /// tables, `projections_schema` that of the processor's. `None`: there is none of this name.
    pub fn processor(
        &self,
        name: &str,
        schema: &str,
        projections_schema: &str,
        events: Events,
    ) -> Option<Box<dyn Processor>> {
        let declaration = self.registry.processors.get(name)?.declaration.clone();
        let base = Base::new(declaration, schema, projections_schema, events);
        Some(Box::new(self.registry.make(base).ok()?))
    }

    /// Does what the command line says, as `espd` does, and returns the exit code.
    pub fn main(self) -> std::process::ExitCode {
        crate::daemon::main_with(self.registry)
    }
}

impl Registry {
    fn add(&mut self, registration: Registration, factory: HandlerFactory) {
        let declaration = registration.into_declaration();
        let name = declaration.name.clone();
        if declaration.kind() != factory.kind() {
            let (declared, made) = (declaration.kind().as_str(), factory.kind().as_str());
            self.faults
                .push(format!("{name} is declared as a {declared}, but the program registers a {made}"));
        }
        if !is_name(&name) {
            let rule = "up to 48 of a-z, 0-9 and _, beginning with a letter or _";
            self.faults.push(format!("{name:?} is not a name for a processor: {rule}"));
        }
        if self.processors.insert(name.clone(), Registered { declaration, factory }).is_some() {
            self.faults.push(format!("the program registers two processors called {name}"));
        }
    }

    /// Completes a configuration by what the program has registered: with `native = true` it says how one of them is to
    /// be run; the others are run as `[runner]` and `[retry]` say.
    ///
    /// # Errors
    /// What of the two does not go together.
    pub(crate) fn complete(&self, config: &mut Config) -> Result<(), Vec<String>> {
        let mut faults = self.faults.clone();
        for declared in &mut config.processors {
            let registered = self.processors.get(&declared.name);
            let outcome = match (&declared.handling, registered) {
                (Handling::Native(_), Some(registered)) => fill_in(declared, &registered.declaration),
                (Handling::Native(_), None) => Err(format!(
                    "processor {} is native, and this program has not registered it: run the one that has",
                    declared.name
                )),
                (_, Some(_)) => Err(format!(
                    "processor {} is registered by this program: declare it with `native = true`, or give one of the two \
                     another name",
                    declared.name
                )),
                (_, None) => Ok(()),
            };
            faults.extend(outcome.err());
        }
        for (name, Registered { declaration, .. }) in &self.processors {
            if !config.processors.iter().any(|declared| declared.name == *name) {
                config.processors.push(ProcessorDeclaration {
                    batch: config.runner.batch,
                    retry: config.retry,
                    isolation: config.runner.isolation.clone(),
                    ..declaration.clone()
                });
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// The processor of this declaration.
    pub(crate) fn make(&self, base: Base) -> Result<NativeProcessor, String> {
        match self.processors.get(base.name()) {
            Some(registered) => Ok(NativeProcessor::new(base, registered.factory.clone())),
            None => Err(format!("this program has not registered {}", base.name())),
        }
    }
}

/// What the program says, with how the configuration wants it run.
fn fill_in(declared: &mut ProcessorDeclaration, registered: &ProcessorDeclaration) -> Result<(), String> {
    if declared.kind() != registered.kind() {
        return Err(format!(
            "processor {} is a {} in this program: declare it under [{}]",
            declared.name,
            registered.kind().as_str(),
            registered.kind().as_str()
        ));
    }
    let declared_reaction = declared.reaction.clone().unwrap_or_default();
    let reaction = registered.reaction.clone().map(|reaction| Reaction {
        // "now" is also what it is where nothing is said.
        start: Some(declared_reaction.start).filter(|start| *start != Start::Now).unwrap_or(reaction.start),
        chain_max: declared_reaction.chain_max,
        ..reaction
    });
    *declared = ProcessorDeclaration {
        batch: declared.batch,
        retry: declared.retry,
        isolation: declared.isolation.clone(),
        reaction,
        ..registered.clone()
    };
    Ok(())
}
