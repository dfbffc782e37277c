//! One reactor and one event, without any database.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::error::LocalError;
use super::processors::list;
use super::program::LocalProgram;
use crate::aggregate::testing::difference;
use crate::event::{AggregateId, Event, EventSet, EventType, NewEvent, Position};
use crate::handlers::native::{
    HandlerError, Reactor, ReactorContext, Registration, Start, Workflow, WorkflowReactor,
};
use crate::processing::effects::Effect;
use crate::processing::emission::LaterEmission;
use crate::processing::processor::Delivery;
use crate::store::{EventStore as _, MemoryEventStore};

/// A reactor in a test: `reactor(reminders(), || Reminders).given_of(id, events).when(event).await?`.
pub fn reactor<R: Reactor + 'static>(
    registration: Registration,
    make: impl Fn() -> R + Send + Sync + 'static,
) -> ReactorUnderTest {
    let effects = Effects::default();
    let seen = effects.clone();
    let registration = registration.start(Start::Now).on_failure(crate::retry::OnFailure::Stop);
    let make = move || Watched { reactor: make(), effects: seen.clone() };
    let program = LocalProgram::new().reactor(registration, make);
    ReactorUnderTest { program, effects, given: Vec::new() }
}

/// A workflow in a test: as [`reactor`]. What is given goes through the workflow before.
pub fn workflow<W: Workflow + 'static>(
    registration: Registration,
    make: impl Fn() -> W + Send + Sync + 'static,
) -> ReactorUnderTest {
    reactor(registration, move || WorkflowReactor(make()))
}

/// The payloads of what was asked for after commits.
type Effects = Arc<Mutex<Vec<String>>>;

/// A reactor whose work after commits is noted and not done.
struct Watched<R> {
    reactor: R,
    effects: Effects,
}

#[async_trait]
impl<R: Reactor> Reactor for Watched<R> {
    async fn react(
        &mut self,
        event: &Delivery,
        context: &mut ReactorContext<'_>,
    ) -> Result<(), HandlerError> {
        self.reactor.react(event, context).await
    }

    async fn after_commit(&mut self, effect: &Effect) -> Result<(), HandlerError> {
        let mut effects = self.effects.lock().unwrap_or_else(PoisonError::into_inner);
        effects.push(effect.payload.get().to_owned());
        Ok(())
    }
}

/// A reactor with what has happened before.
pub struct ReactorUnderTest {
    program: LocalProgram,
    effects: Effects,
    given: Vec<Result<NewEvent, serde_json::Error>>,
}

impl ReactorUnderTest {
    /// What has happened before, and the reactor has handled.
    #[must_use]
    pub fn given(mut self, events: impl IntoIterator<Item = NewEvent>) -> Self {
        self.given.extend(events.into_iter().map(Ok));
        self
    }

    /// As [`Self::given`], events of one aggregate.
    #[must_use]
    pub fn given_of<E: EventSet>(
        mut self,
        id: impl Into<AggregateId>,
        events: impl IntoIterator<Item = E>,
    ) -> Self {
        let id = id.into();
        self.given.extend(events.into_iter().map(|event| event.to_new(id.clone())));
        self
    }

    /// Shows an event to the reactor, once.
    ///
    /// # Errors
    /// [`LocalError::Failed`] with the error of the reactor, or why it cannot be run so.
    pub async fn when(self, event: NewEvent) -> Result<Reaction, LocalError> {
        let store = MemoryEventStore::new();
        let mut processors = self.program.start(&store).await?;
        let given = self.given.into_iter().collect::<Result<Vec<_>, _>>();
        let given = given.map_err(|error| LocalError::Store(error.into()))?;
        if given.iter().any(|given| given.uuid == event.uuid) {
            let fault = "the event of `when` is one of those that were given: make another, which has a uuid of its own";
            return Err(LocalError::Unfit { faults: vec![fault.to_owned()] });
        }
        store.append(&given).await.map_err(|error| LocalError::Store(error.into()))?;
        processors.drain().await?;
        self.effects.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let uuid = event.uuid;
        let appended = store.append(&[event]).await.map_err(|error| LocalError::Store(error.into()))?;
        let before: HashSet<Uuid> =
            processors.own_pending().await?.iter().map(|pending| pending.event.uuid).collect();
        let after = appended.last().map_or(Position::START, |last| last.id);
        // What it emits is not shown to it.
        processors.drain_events(after).await?;
        let mut events = store.read_after(after, None, None, i64::MAX).await?;
        events.retain(|event| event.causation_id == Some(uuid));
        let mut later = processors.own_pending().await?;
        later.retain(|pending| !before.contains(&pending.event.uuid));
        let later = later.iter().map(list).collect();
        let effects = std::mem::take(&mut *self.effects.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Reaction { events, later, effects })
    }
}

/// What a reactor has done about an event.
#[derive(Debug, Clone)]
pub struct Reaction {
    events: Vec<Event>,
    later: Vec<LaterEmission>,
    effects: Vec<String>,
}

impl Reaction {
    /// What it has emitted at once, in order.
    pub fn emitted(&self) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(|event| !is_of_command(event))
    }

    /// What its commands have led to, in order.
    pub fn commanded(&self) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(|event| is_of_command(event))
    }

    /// What it has emitted for later, the next ones first.
    pub fn later(&self) -> &[LaterEmission] {
        &self.later
    }

    /// The payloads of what it wants done after the commit. Nothing of it was done.
    ///
    /// # Panics
    /// One of them is no `T`.
    #[track_caller]
    pub fn effects<T: DeserializeOwned>(&self) -> Vec<T> {
        let mut effects = Vec::new();
        for payload in &self.effects {
            match serde_json::from_str(payload) {
                Ok(effect) => effects.push(effect),
                Err(error) => panic!("{payload} is another effect: {error}"),
            }
        }
        effects
    }

    /// Expects that it has emitted these events of type `E`, in this order, and no other event of that type, at once.
    ///
    /// # Panics
    /// There are others; the message shows which differ.
    #[track_caller]
    pub fn then_emitted<E: EventType + Debug + PartialEq>(
        self,
        expected: impl IntoIterator<Item = E>,
    ) -> Self {
        require(&read(self.emitted()), expected);
        self
    }

    /// Expects that its commands have led to these events of type `E`, in this order, and to no other event of that type.
    ///
    /// # Panics
    /// There are others; the message shows which differ.
    #[track_caller]
    pub fn then_commanded<E: EventType + Debug + PartialEq>(
        self,
        expected: impl IntoIterator<Item = E>,
    ) -> Self {
        require(&read(self.commanded()), expected);
        self
    }

    /// Expects these effects, in this order.
    ///
    /// # Panics
    /// There are others; the message shows which differ.
    #[track_caller]
    pub fn then_effects<T: DeserializeOwned + Debug + PartialEq>(
        self,
        expected: impl IntoIterator<Item = T>,
    ) -> Self {
        require(&self.effects::<T>(), expected);
        self
    }

    /// Expects that nothing is emitted, at once or later, commanded or to be done.
    ///
    /// # Panics
    /// Something is.
    #[track_caller]
    pub fn then_nothing(self) -> Self {
        let Self { events, later, effects } = &self;
        let types: Vec<&str> = events.iter().map(|event| event.event_type.as_str()).collect();
        assert!(
            types.is_empty() && later.is_empty() && effects.is_empty(),
            "nothing was expected, and there is:\nevents {types:?}\nlater {later:?}\neffects {effects:?}"
        );
        self
    }
}

#[track_caller]
fn read<'e, E: EventType>(events: impl Iterator<Item = &'e Event>) -> Vec<E> {
    let mut found = Vec::new();
    // No closure: a panic in one is not at the line of the caller.
    for event in events {
        match event.read::<E>() {
            Ok(read) => found.extend(read),
            Err(error) => panic!("{} is not what it should be: {error}", event.event_type),
        }
    }
    found
}

#[track_caller]
fn require<T: Debug + PartialEq>(actual: &[T], expected: impl IntoIterator<Item = T>) {
    let expected: Vec<T> = expected.into_iter().collect();
    assert!(actual == expected, "other than expected:\n{}", difference(&expected, actual));
}

/// Whether an event comes from a command of a reactor, and not from an emission.
fn is_of_command(event: &Event) -> bool {
    #[derive(serde::Deserialize)]
    struct Metadata {
        espd: Option<OfEspd>,
    }
    #[derive(serde::Deserialize)]
    struct OfEspd {
        command: Option<Uuid>,
    }
    let metadata: Option<Metadata> = serde_json::from_str(event.metadata.get()).ok();
    metadata.and_then(|metadata| metadata.espd).is_some_and(|espd| espd.command.is_some())
}
