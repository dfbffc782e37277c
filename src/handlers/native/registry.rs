//! The registered processors: from a name to what makes the processor.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::handler::{Projector, Reactor};
use super::processor::{HandlerFactory, NativeProcessor};
use super::registration::Registration;
use crate::postgres::name::is_name;
use crate::process::hook::HookClosures;
use crate::processing::declaration::ProcessorDeclaration;
use crate::processing::processor::ProcessorBase;
use crate::store::Codec;

/// Holds the processors written in Rust, by name.
#[derive(Default)]
pub(crate) struct Registry {
    processors: BTreeMap<String, Registered>,
    /// Why some of them cannot be run as they were registered.
    faults: Vec<String>,
    /// What the program has called when something happens to a worker or a processor.
    pub(crate) hooks: HookClosures,
}

struct Registered {
    declaration: ProcessorDeclaration,
    factory: HandlerFactory,
    codec: Codec,
}

impl Registry {
    /// Adds a projector, which `make` makes an instance of at the start and after each failure.
    pub(crate) fn add_projector<P: Projector + 'static>(
        &mut self,
        registration: Registration,
        make: impl Fn() -> P + Send + Sync + 'static,
    ) {
        self.add(registration, HandlerFactory::Projector(Arc::new(move || Box::new(make()))));
    }

    /// Adds a reactor. `make` is as for [`Self::add_projector`].
    pub(crate) fn add_reactor<R: Reactor + 'static>(
        &mut self,
        registration: Registration,
        make: impl Fn() -> R + Send + Sync + 'static,
    ) {
        self.add(registration, HandlerFactory::Reactor(Arc::new(move || Box::new(make()))));
    }

    fn add(&mut self, registration: Registration, factory: HandlerFactory) {
        let codec = registration.body_codec();
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
        if self.processors.insert(name.clone(), Registered { declaration, factory, codec }).is_some() {
            self.faults.push(format!("the program registers two processors called {name}"));
        }
    }

    /// Why processors cannot be run as they were registered; empty if all can.
    pub(crate) fn faults(&self) -> &[String] {
        &self.faults
    }

    /// The declaration of the processor that was registered under this name.
    pub(crate) fn declaration(&self, name: &str) -> Option<&ProcessorDeclaration> {
        self.processors.get(name).map(|registered| &registered.declaration)
    }

    /// Whether no processor is registered.
    pub(crate) fn is_empty(&self) -> bool {
        self.processors.is_empty()
    }

    /// The declarations of all registered processors, by name.
    pub(crate) fn declarations(&self) -> impl Iterator<Item = &ProcessorDeclaration> {
        self.processors.values().map(|registered| &registered.declaration)
    }

    /// Makes the processor of this declaration.
    ///
    /// # Errors
    /// No processor of this name was registered.
    pub(crate) fn make(&self, base: ProcessorBase) -> Result<NativeProcessor, String> {
        match self.processors.get(base.name()) {
            Some(Registered { factory, codec, .. }) => {
                Ok(NativeProcessor::new(base, factory.clone(), codec.clone()))
            }
            None => Err(format!("this program has not registered {}", base.name())),
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::super::context::ProjectorContext;
    use super::super::error::HandlerError;
    use super::*;
    use crate::processing::processor::Delivery;

    struct Nothing;

    #[async_trait]
    impl Projector for Nothing {
        async fn project(
            &mut self,
            _events: &[Delivery],
            _context: &mut ProjectorContext<'_>,
        ) -> Result<(), HandlerError> {
            Ok(())
        }
    }

    fn faults(registrations: Vec<Registration>) -> Vec<String> {
        let mut registry = Registry::default();
        for registration in registrations {
            registry.add_projector(registration, || Nothing);
        }
        registry.faults().to_vec()
    }

    #[test]
    fn a_registration_that_cannot_be_run_is_a_fault() {
        assert_eq!(faults(vec![Registration::projector("a"), Registration::projector("b")]), [""; 0]);
        for (registrations, words) in [
            (vec![Registration::projector("2a")], "not a name"),
            (vec![Registration::projector("a"), Registration::projector("a")], "two processors called a"),
            (vec![Registration::reactor("a")], "a is declared as a reactor"),
        ] {
            let faults = faults(registrations);
            assert!(faults.len() == 1 && faults[0].contains(words), "{faults:?}");
        }
    }
}
