//! Hands events to a registered handler, whatever store they come from and wherever it commits.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;

use super::context::{AskedEffects, Commands, ProjectorContext, ReactorContext};
use super::error::{Classified, HandlerError, classify};
use super::handler::{Projector, Reactor};
use super::transaction::{NoPostgres, Transaction};
use crate::event::{Event, Position};
use crate::handlers::batch::{Applied, EventEffects, find_misuse};
use crate::processing::declaration::ProcessorKind;
use crate::processing::effects::{Effect, EffectQueue, NewEffect};
use crate::processing::emission::{Emitter, SourceEvent};
use crate::processing::failure::Failure;
use crate::processing::heartbeat;
use crate::processing::processor::{Delivery, ProcessorError};
use crate::store::Codec;

/// How long one piece of work after a commit may take. Then it has failed, because it seems to hang.
const EFFECT_MAX: Duration = Duration::from_secs(300);

/// Makes the instances of a handler.
#[derive(Clone)]
pub(super) enum HandlerFactory {
    Projector(Arc<dyn Fn() -> Box<dyn Projector> + Send + Sync>),
    Reactor(Arc<dyn Fn() -> Box<dyn Reactor> + Send + Sync>),
}

enum Instance {
    Projector(Box<dyn Projector>),
    Reactor(Box<dyn Reactor>),
}

impl Instance {
    async fn after_commit(&mut self, effect: &Effect) -> Result<(), HandlerError> {
        match self {
            Self::Projector(projector) => projector.after_commit(effect).await,
            Self::Reactor(reactor) => reactor.after_commit(effect).await,
        }
    }
}

impl HandlerFactory {
    fn create(&self) -> Instance {
        match self {
            Self::Projector(make) => Instance::Projector(make()),
            Self::Reactor(make) => Instance::Reactor(make()),
        }
    }

    pub(super) fn kind(&self) -> ProcessorKind {
        match self {
            Self::Projector(_) => ProcessorKind::Projector,
            Self::Reactor(_) => ProcessorKind::Reactor,
        }
    }
}

/// What a registration allows a handler to do.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Abilities {
    /// Ask for work after the commit.
    pub(crate) acts_after_commit: bool,
    /// Give commands to aggregates.
    pub(crate) gives_commands: bool,
    /// Remember instances and steps.
    pub(crate) is_workflow: bool,
}

impl Abilities {
    /// Whether an event relies on what the one before it has led to.
    pub(crate) fn needs_each_stored(self) -> bool {
        self.gives_commands || self.is_workflow
    }
}

/// A registered handler, and what it is run with.
pub(crate) struct NativeHandler {
    factory: HandlerFactory,
    codec: Codec,
    emitter: Emitter,
    pub(crate) abilities: Abilities,
    /// How long the handler may take for what it is handed.
    time_max: Duration,
    /// `None` after a failure, because the instance may remember what was not committed.
    instance: Option<Instance>,
}

/// An event that cannot be shown to the handler: its place, and why.
pub(crate) type Unreadable = (usize, Failure);

/// How many pieces of work after commits were carried out.
pub(crate) struct CarriedOut {
    pub(crate) count: usize,
    /// Why the next one could not be.
    pub(crate) failure: Option<Failure>,
    /// Whether nothing is left.
    pub(crate) all: bool,
}

impl NativeHandler {
    pub(super) fn new(factory: HandlerFactory, codec: Codec, emitter: Emitter, abilities: Abilities) -> Self {
        let emitter = emitter.with_codec(codec.clone());
        Self { factory, codec, emitter, abilities, time_max: Duration::MAX, instance: None }
    }

    /// The same handler, which is given up when it takes longer.
    #[must_use]
    pub(super) fn within(self, time_max: Duration) -> Self {
        Self { time_max, ..self }
    }

    /// Lets go of the instance, because it may remember what was not committed.
    pub(crate) fn forget(&mut self) {
        self.instance = None;
    }

    /// Hands events to the handler, in order, up to the first one that cannot be handled, or until the time is up. The caller
    /// commits what was handled, or calls [`Self::forget`].
    pub(crate) async fn handle(
        &mut self,
        transaction: &mut dyn Transaction,
        events: &mut [Delivery],
        unreadable: Option<Unreadable>,
        time: Duration,
    ) -> Result<Handled, ProcessorError> {
        let mut instance = self.instance.take().unwrap_or_else(|| self.factory.create());
        self.before_decoding(events, unreadable.as_ref()).await?;
        let unreadable = self.decode(events, unreadable);
        let readable = &events[..unreadable.as_ref().map_or(events.len(), |(place, _)| *place)];
        let Self { factory, codec, emitter, abilities, time_max, .. } = &*self;
        let means = Means { factory, emitter, codec, abilities: *abilities, time_max: *time_max };
        let mut handled = match &mut instance {
            Instance::Projector(projector) => project(projector, means, transaction, readable).await?,
            Instance::Reactor(reactor) => react(reactor.as_mut(), means, transaction, readable, time).await?,
        };
        if let (Some((place, failure)), None) = (unreadable, &handled.failure)
            && handled.events == place
        {
            handled.failure = Some(Box::new(SourceEvent::of(&events[place]).attribute(failure)));
        }
        if handled.failure.is_none() {
            self.instance = Some(instance);
        }
        Ok(handled)
    }

    /// Has the codec fetch what it needs. Where that is not there now, no event has failed.
    async fn before_decoding(
        &self,
        events: &[Delivery],
        unreadable: Option<&Unreadable>,
    ) -> Result<(), ProcessorError> {
        let end = unreadable.map_or(events.len(), |(place, _)| *place);
        let events: Vec<&Event> = events[..end].iter().map(|delivery| &delivery.event).collect();
        let unavailable = |message| ProcessorError::Unavailable { message, wait: None };
        self.codec.before_decoding(&events).await.map_err(unavailable)
    }

    /// Decodes the bodies of events that can be read so far. Returns the first one that cannot.
    fn decode(&self, events: &mut [Delivery], unreadable: Option<Unreadable>) -> Option<Unreadable> {
        let end = unreadable.as_ref().map_or(events.len(), |(place, _)| *place);
        let bodies = events[..end].iter_mut().map(|delivery| &mut delivery.event);
        let Some((place, reason)) = self.codec.decode_some(bodies) else { return unreadable };
        Some((place, Failure::of_processor(format!("the body cannot be decoded: {reason}"))))
    }

    /// Carries out what is to be done after the last commits, in order, for as long as a batch may take.
    pub(crate) async fn carry_out(
        &mut self,
        queue: &mut dyn EffectQueue,
        time: Duration,
    ) -> Result<CarriedOut, ProcessorError> {
        let deadline = Instant::now() + time;
        let (mut done, mut count) = (None, 0);
        while let Some(effect) = queue.next(done).await? {
            let mut instance = self.instance.take().unwrap_or_else(|| self.factory.create());
            let acting = tokio::time::timeout(EFFECT_MAX, catch_panic(instance.after_commit(&effect)));
            let late = |_elapsed| Err(format!("it took longer than {EFFECT_MAX:?}").into());
            if let Err(error) = acting.await.unwrap_or_else(late) {
                let failure = match classify(error) {
                    Classified::Infrastructure(error) => return Err(error.into()),
                    Classified::Failed { failure, .. } => failure,
                };
                let of = format!("after the commit of event {} ({})", effect.event_id, effect.event_type);
                let message = format!("{of}: {}", failure.message);
                let failure = Some(Failure { message, ..failure });
                return Ok(CarriedOut { count, failure, all: false });
            }
            self.instance = Some(instance);
            (done, count) = (Some(effect.key()), count + 1);
            if Instant::now() >= deadline {
                queue.remove(effect.key()).await?;
                return Ok(CarriedOut { count, failure: None, all: false });
            }
        }
        Ok(CarriedOut { count, failure: None, all: true })
    }
}

/// What handling needs beside the handler and the transaction.
#[derive(Clone, Copy)]
struct Means<'m> {
    factory: &'m HandlerFactory,
    emitter: &'m Emitter,
    codec: &'m Codec,
    abilities: Abilities,
    time_max: Duration,
}

/// The number of events that were handled, and the failure of the next one, if there is one.
pub(crate) struct Handled {
    pub(crate) events: usize,
    pub(crate) failure: Option<Box<Failure>>,
    /// What is to be done after the commit. What belongs to events that were not handled is left out.
    pub(crate) effects: Vec<NewEffect>,
}

impl Handled {
    /// How far the position moves: over what was handled, of events that were read from one position up to another.
    pub(crate) fn position(&self, events: &[Delivery], from: Position, upto: Position) -> Position {
        match events.get(self.events) {
            // Without a failure, the batch ended because its time was up.
            Some(next) if self.failure.is_some() => next.id.previous(),
            Some(_) => self.events.checked_sub(1).map_or(from, |last| events[last].id),
            None => upto,
        }
    }
}

/// Hands all events to the projector. If it fails at one of them, hands those before it to another instance.
async fn project(
    projector: &mut Box<dyn Projector>,
    means: Means<'_>,
    transaction: &mut dyn Transaction,
    events: &[Delivery],
) -> Result<Handled, ProcessorError> {
    if events.is_empty() {
        return Ok(Handled { events: 0, failure: None, effects: Vec::new() });
    }
    heartbeat::record_at_hand(events[0].id, events.len());
    transaction.savepoint().await?;
    let error = match project_once(projector.as_mut(), means, transaction, events).await {
        Ok(effects) => return Ok(Handled { events: events.len(), failure: None, effects }),
        Err(error) if events.len() > 1 && error.is::<NotReturned>() => {
            let failure = Failure::of_processor(error.to_string());
            return Err(ProcessorError::NotReturned(Box::new(failure)));
        }
        Err(error) => error,
    };
    let (event_id, failure) = match classify(error) {
        Classified::Infrastructure(error) => return Err(error.into()),
        Classified::Failed { event_id, failure } => (event_id, failure),
    };
    let failed = event_id.and_then(|id| events.iter().position(|event| event.id == id));
    let Some(place) = failed.or((events.len() == 1).then_some(0)) else {
        return Err(ProcessorError::Unattributed(Box::new(failure)));
    };
    let undone = transaction.rollback_to_savepoint().await;
    undone.map_err(|error| blame(error, &SourceEvent::of(&events[place]), &failure))?;
    let mut effects = Vec::new();
    if place > 0 {
        if let Instance::Projector(another) = means.factory.create() {
            *projector = another;
        }
        let again = project_once(projector.as_mut(), means, transaction, &events[..place]).await;
        effects = again.map_err(|error| match classify(error) {
            Classified::Infrastructure(error) => error.into(),
            Classified::Failed { failure, .. } => ProcessorError::Unattributed(Box::new(failure)),
        })?;
    }
    let failure = Some(Box::new(SourceEvent::of(&events[place]).attribute(failure)));
    Ok(Handled { events: place, failure, effects })
}

async fn project_once(
    projector: &mut dyn Projector,
    means: Means<'_>,
    transaction: &mut dyn Transaction,
    events: &[Delivery],
) -> Result<Vec<NewEffect>, HandlerError> {
    let mut context = ProjectorContext {
        transaction,
        codec: means.codec,
        effects: AskedEffects::new(means.abilities.acts_after_commit),
    };
    in_time(means.time_max, catch_panic(projector.project(events, &mut context))).await?;
    Ok(context.effects.asked)
}

/// Hands the events to the reactor one by one, until one fails or the time is up.
async fn react(
    reactor: &mut dyn Reactor,
    Means { emitter, codec, abilities, time_max, .. }: Means<'_>,
    transaction: &mut dyn Transaction,
    events: &[Delivery],
    time: Duration,
) -> Result<Handled, ProcessorError> {
    let deadline = Instant::now() + time;
    let mut effects = Vec::new();
    // What belongs to an event that was not handled is not to be done.
    let handled = |count: usize, failure, mut effects: Vec<NewEffect>| {
        effects.retain(|effect| events[..count].last().is_some_and(|last| effect.event_id <= last.id));
        Handled { events: count, failure, effects }
    };
    // The effects of events that have not been carried out, and the number of events before them.
    let (mut pending, mut done) = (Vec::new(), 0);
    for event in events {
        let source = SourceEvent::of(event);
        let mut context = ReactorContext {
            transaction: &mut *transaction,
            codec,
            replaying: event.replaying,
            actions: Vec::new(),
            may_have_written: false,
            event,
            source: &source,
            emitter,
            effects: AskedEffects::new(abilities.acts_after_commit),
            commands: Commands::new(abilities.gives_commands),
            instance: None,
        };
        heartbeat::record_at_hand(event.id, 1);
        let outcome = in_time(time_max, catch_panic(reactor.react(event, &mut context))).await;
        let ReactorContext { actions, may_have_written, effects: asked, instance, .. } = context;
        let source = SourceEvent { instance, ..source };
        if let Err(error) = outcome {
            let failure = match classify(error) {
                Classified::Infrastructure(error) => return Err(error.into()),
                Classified::Failed { failure, .. } => failure,
            };
            if may_have_written {
                let undone = transaction.undo_event().await;
                undone.map_err(|error| blame(error, &source, &failure))?;
            }
            let applied = transaction.apply(emitter, &pending).await?;
            let failure = applied.failure.or(Some(Box::new(source.attribute(failure))));
            return Ok(handled(done + applied.events, failure, effects));
        }
        effects.extend(asked.asked);
        pending.push(EventEffects { source, actions });
        if may_have_written || abilities.needs_each_stored() {
            // Rows are in the transaction already, so whether the emissions are accepted has to be known now.
            let Applied { events: applied, failure } =
                apply_and_undo(transaction, emitter, &pending, may_have_written).await?;
            if failure.is_some() {
                return Ok(handled(done + applied, failure, effects));
            }
            done += pending.len();
            pending.clear();
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    let Applied { events: applied, failure } = transaction.apply(emitter, &pending).await?;
    Ok(handled(done + applied, failure, effects))
}

/// Stores what events have led to. If that is not accepted, undoes what the last of them has written itself, if it has.
async fn apply_and_undo(
    transaction: &mut dyn Transaction,
    emitter: &Emitter,
    effects: &[EventEffects],
    may_have_written: bool,
) -> Result<Applied, ProcessorError> {
    let Some((last, before)) = effects.split_last().filter(|_| may_have_written) else {
        return transaction.apply(emitter, effects).await;
    };
    let Applied { events, failure } = match transaction.apply(emitter, effects).await {
        Ok(Applied { failure: None, events }) => return Ok(Applied { failure: None, events }),
        Ok(refused) => refused,
        Err(ProcessorError::Database(error)) => match find_misuse(&error) {
            Some(misuse) => {
                Applied { events: before.len(), failure: Some(Box::new(last.source.attribute(misuse))) }
            }
            None => return Err(error.into()),
        },
        Err(error) => return Err(error),
    };
    let Some(failure) = failure else { return Ok(Applied { events, failure }) };
    let undone = transaction.undo_event().await;
    undone.map_err(|error| blame(error, &last.source, &failure))?;
    // What those before it have led to was undone as well.
    let again = match events {
        0 => Applied { events, failure: None },
        _ => transaction.apply(emitter, &effects[..events]).await?,
    };
    Ok(Applied { failure: again.failure.or(Some(failure)), ..again })
}

/// The error of a batch in which what an event has done cannot be undone. If the handler is the reason, the event has failed.
fn blame(error: sqlx::Error, event: &SourceEvent, failure: &Failure) -> ProcessorError {
    let Some(misuse) = find_misuse(&error) else { return error.into() };
    let message = match failure.message == misuse.message {
        true => misuse.message,
        false => format!("{}. It has failed: {}", misuse.message, failure.message),
    };
    let failure = Failure { sqlstate: misuse.sqlstate, ..Failure::of_processor(message) };
    ProcessorError::Unattributed(Box::new(event.attribute(failure)))
}

/// A handler that has not returned in time.
#[derive(Debug, thiserror::Error)]
#[error("the handler has not returned within {} s (handler_timeout)", .0.as_secs_f32())]
struct NotReturned(Duration);

/// Gives a handler up that takes longer.
async fn in_time(
    time_max: Duration,
    work: impl Future<Output = Result<(), HandlerError>>,
) -> Result<(), HandlerError> {
    let late = |_elapsed| Err(Box::new(NotReturned(time_max)).into());
    tokio::time::timeout(time_max, work).await.unwrap_or_else(late)
}

/// Turns a panic of the handler into an error.
async fn catch_panic(work: impl Future<Output = Result<(), HandlerError>>) -> Result<(), HandlerError> {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(outcome) => outcome,
        Err(panic) if panic.is::<NoPostgres>() => Err(Box::new(NoPostgres)),
        Err(panic) => Err(describe_panic(panic).into()),
    }
}

/// What a handler has said when it panicked.
pub(crate) fn describe_panic(panic: Box<dyn Any + Send>) -> String {
    let said = panic.downcast_ref::<&str>().map(ToString::to_string);
    let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
    if said.is_none() {
        // To drop what is anything may panic again.
        std::mem::forget(panic);
    }
    format!("the handler has panicked: {}", said.as_deref().unwrap_or("?"))
}
