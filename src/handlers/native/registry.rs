//! The registered processors: from a name to what makes the processor.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use super::handler::{Projector, Reactor};
use super::handling::{Abilities, HandlerFactory, NativeHandler};
use super::processor::NativeProcessor;
use super::registration::Registration;
use super::settings::{find_faults, outside};
use crate::postgres::connector::Connector;
use crate::postgres::name::is_name;
use crate::process::executable::own_fingerprint;
use crate::process::hook::HookClosures;
use crate::processing::declaration::{
    OnHandlerChange, ProcessorDeclaration, ProcessorKind, ProcessorSettings, upcast_fingerprint,
};
use crate::processing::emission::Emitter;
use crate::processing::processor::ProcessorBase;
use crate::store::upcast::Upcast;
use crate::store::{AppendedClosure, Codec};

/// How long the connection on which steps are recorded is kept when there are none.
const STEP_CONNECTION_IDLE: Duration = Duration::from_secs(60);

/// A step that is recorded survives a crash of the server, whatever the default of the database is.
const WAIT_FOR_THE_DISK: &str = "-- wait_for_the_disk
    select set_config('synchronous_commit', 'local', false) where current_setting('synchronous_commit') = 'off'";

/// Holds the processors written in Rust, by name.
#[derive(Default)]
pub(crate) struct Registry {
    processors: BTreeMap<String, Registered>,
    /// How old events are read as new ones, beyond what the configuration says.
    upcasts: Vec<Upcast>,
    /// Why some of them cannot be run as they were registered.
    faults: Vec<String>,
    /// What the program has called when something happens to a worker or a processor.
    pub(crate) hooks: HookClosures,
    /// What the program has called with the events that its own process appends.
    pub(crate) on_appended: Option<AppendedClosure>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.processors.keys()).finish()
    }
}

struct Registered {
    declaration: ProcessorDeclaration,
    settings: ProcessorSettings,
    factory: HandlerFactory,
    codec: Codec,
    abilities: Abilities,
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

    /// Adds an upcast above those that were added before.
    pub(crate) fn add_upcast(&mut self, mut upcast: Upcast) {
        let names = upcast.events.join(", ");
        if upcast.events.is_empty() {
            self.faults.push("an upcast names no event type".to_owned());
        }
        if upcast.event_type.is_none() && upcast.body.is_none() && upcast.code.is_none() {
            self.faults
                .push(format!("the upcast of {names} changes nothing: give it a type, a body, or both"));
        }
        if let Some(code) = &mut upcast.code {
            code.number = self.upcasts.len();
        }
        self.upcasts.push(upcast);
    }

    /// The upcasts that the program has, in their order.
    pub(crate) fn upcasts(&self) -> &[Upcast] {
        &self.upcasts
    }

    /// The upcasts, as another process was told of them, with the code that this program has.
    pub(crate) fn with_code(&self, upcasts: &[Upcast]) -> Vec<Upcast> {
        let with_code = |upcast: &Upcast| {
            let code = upcast.code.as_ref().and_then(|code| self.upcasts.get(code.number));
            Upcast {
                code: code.map_or_else(|| upcast.code.clone(), |own| own.code.clone()),
                ..upcast.clone()
            }
        };
        upcasts.iter().map(with_code).collect()
    }

    fn add(&mut self, registration: Registration, factory: HandlerFactory) {
        let codec = registration.body_codec();
        self.faults.extend(registration.find_unsealed());
        let settings = registration.settings.clone();
        let abilities = registration.abilities;
        let declaration = registration.into_declaration();
        let name = declaration.name.clone();
        if declaration.kind() != factory.kind() {
            let (declared, made) = (declaration.kind().as_str(), factory.kind().as_str());
            self.faults
                .push(format!("{name} is declared as a {declared}, but the program registers a {made}"));
        }
        self.faults.extend(find_faults(&settings).into_iter().map(|fault| format!("{name}: {fault}")));
        if declaration.kind() == ProcessorKind::Reactor
            && declaration.on_handler_change == OnHandlerChange::Rebuild
        {
            self.faults
                .push(format!("{name} is a reactor, which is never rebuilt: its effects cannot be undone"));
        }
        let version = outside("version", Some(declaration.version), 1..=i32::MAX);
        self.faults.extend(version.map(|fault| format!("{name}: {fault}")));
        if !is_name(&name) {
            let rule = "up to 48 of a-z, 0-9 and _, beginning with a letter or _";
            self.faults.push(format!("{name:?} is not a name for a processor: {rule}"));
        }
        let registered = Registered { declaration, settings, factory, codec, abilities };
        if self.processors.insert(name.clone(), registered).is_some() {
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

    /// What the program says of how the processor that was registered under this name is run.
    pub(crate) fn settings(&self, name: &str) -> Option<&ProcessorSettings> {
        self.processors.get(name).map(|registered| &registered.settings)
    }

    /// Whether no processor is registered.
    pub(crate) fn is_empty(&self) -> bool {
        self.processors.is_empty()
    }

    /// The declarations of all registered processors, by name.
    pub(crate) fn declarations(&self) -> impl Iterator<Item = &ProcessorDeclaration> {
        self.processors.values().map(|registered| &registered.declaration)
    }

    /// Makes the processor of this declaration. A workflow records its steps in `database`, on a connection of its own, which is
    /// made when the first step is recorded.
    ///
    /// # Errors
    /// No processor of this name was registered.
    pub(crate) fn make(
        &self,
        mut base: ProcessorBase,
        database: Option<&Connector>,
    ) -> Result<NativeProcessor, String> {
        match self.processors.get(base.name()) {
            Some(Registered { factory, codec, abilities, .. }) => {
                base.is_workflow = abilities.is_workflow;
                let database = database.filter(|_| abilities.is_workflow);
                base.step_records = database.map(|database| record_steps(database, base.name()));
                Ok(NativeProcessor::new(base, factory.clone(), codec.clone(), *abilities))
            }
            None => Err(format!("this program has not registered {}", base.name())),
        }
    }

    /// A fingerprint of the handlers, and of how they read old events: that of the whole program, because a part of it says nothing of
    /// what it calls.
    pub(crate) fn fingerprint(&self, upcasts: &[Upcast]) -> String {
        format!("{} {}", own_fingerprint(), upcast_fingerprint(upcasts))
    }

    /// Makes the processor of a version beside the one that serves, whose tracker has another name than the `registered` one. It has
    /// instances of its own, and what they ask to be done after a commit is left out: that was done when the serving version has
    /// handled the event.
    ///
    /// # Errors
    /// No processor of this name was registered.
    pub(crate) fn make_beside(
        &self,
        base: ProcessorBase,
        registered: &str,
    ) -> Result<NativeProcessor, String> {
        match self.processors.get(registered) {
            Some(Registered { factory, codec, abilities, .. }) => {
                Ok(NativeProcessor::beside(base, factory.clone(), codec.clone(), *abilities))
            }
            None => Err(format!("this program has not registered {registered}")),
        }
    }

    /// Makes the handler of this declaration, to be run without PostgreSQL; `None`: it was not registered.
    pub(crate) fn make_handler(&self, declaration: &ProcessorDeclaration) -> Option<NativeHandler> {
        let Registered { factory, codec, abilities, .. } = self.processors.get(&declaration.name)?;
        let emitter = Emitter::without_postgres(declaration);
        Some(NativeHandler::new(factory.clone(), codec.clone(), emitter, *abilities))
    }
}

/// The connection on which a workflow records its steps, each at once.
fn record_steps(database: &Connector, name: &str) -> PgPool {
    let settings = PgPoolOptions::new().max_connections(1).idle_timeout(STEP_CONNECTION_IDLE);
    database.named(&format!("espd: {name} (steps)")).prepared_pool(settings, WAIT_FOR_THE_DISK)
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
            (vec![Registration::projector("a").version(0)], "a: `version` is 0, and may be 1 to"),
            (vec![Registration::projector("a"), Registration::projector("a")], "two processors called a"),
            (vec![Registration::reactor("a")], "a is declared as a reactor"),
        ] {
            let faults = faults(registrations);
            assert!(faults.len() == 1 && faults[0].contains(words), "{faults:?}");
        }
    }
}
