//! Runs a registered handler as a processor.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::FutureExt as _;
use sqlx::{Connection as _, PgConnection};

use super::context::{AskedEffects, ProjectorContext, ReactorContext};
use super::error::{Classified, HandlerError, classify};
use super::handler::{Projector, Reactor};
use crate::event::Position;
use crate::handlers::batch::{Applied, BatchTransaction, EventEffects, RowTables};
use crate::postgres::server_mark;
use crate::processing::declaration::ProcessorKind;
use crate::processing::effects::{Effect, Effects, NewEffect};
use crate::processing::emission::{Emitter, SourceEvent};
use crate::processing::failure::Failure;
use crate::processing::processor::{
    BatchRequest, Delivery, Outcome, Processor, ProcessorBase, ProcessorError,
};
use crate::processing::progress::Progress;
use crate::processing::tracker::Claim;
use crate::store::Codec;

/// How long the transaction may be idle while a handler works. Then the server ends it, because the handler seems frozen.
const IDLE_MAX: Duration = Duration::from_secs(300);

/// How long one piece of work after a commit may take. Then it has failed, because it seems to hang.
const EFFECT_MAX: Duration = Duration::from_secs(300);

/// Makes the instances of a handler.
#[derive(Clone)]
pub(super) enum HandlerFactory {
    Projector(Arc<dyn Fn() -> Box<dyn Projector> + Send + Sync>),
    Reactor(Arc<dyn Fn() -> Box<dyn Reactor> + Send + Sync>),
}

enum Handler {
    Projector(Box<dyn Projector>),
    Reactor(Box<dyn Reactor>),
}

impl Handler {
    async fn after_commit(&mut self, effect: &Effect) -> Result<(), HandlerError> {
        match self {
            Self::Projector(projector) => projector.after_commit(effect).await,
            Self::Reactor(reactor) => reactor.after_commit(effect).await,
        }
    }
}

impl HandlerFactory {
    fn create(&self) -> Handler {
        match self {
            Self::Projector(make) => Handler::Projector(make()),
            Self::Reactor(make) => Handler::Reactor(make()),
        }
    }

    pub(super) fn kind(&self) -> ProcessorKind {
        match self {
            Self::Projector(_) => ProcessorKind::Projector,
            Self::Reactor(_) => ProcessorKind::Reactor,
        }
    }
}

/// A registered processor, ready to run.
pub(crate) struct NativeProcessor {
    base: ProcessorBase,
    emitter: Emitter,
    factory: HandlerFactory,
    codec: Codec,
    /// `None` after a failure, because the instance may remember what was not committed.
    handler: Option<Handler>,
    /// Where effects are recorded; `None`: the handler has none.
    effects: Option<Effects>,
    /// Whether effects are to be carried out before anything else.
    effects_pending: bool,
}

/// What handling needs beside the handler and the transaction.
#[derive(Clone, Copy)]
struct Means<'m> {
    factory: &'m HandlerFactory,
    emitter: &'m Emitter,
    codec: &'m Codec,
    /// Whether the handler may ask for work after the commit.
    may_act: bool,
}

/// The number of events that were handled, and the failure of the next one, if there is one.
struct Handled {
    events: usize,
    failure: Option<Box<Failure>>,
    /// What is to be done after the commit. What belongs to events that were not handled is left out.
    effects: Vec<NewEffect>,
}

impl NativeProcessor {
    pub(super) fn new(
        base: ProcessorBase,
        factory: HandlerFactory,
        codec: Codec,
        acts_after_commit: bool,
    ) -> Self {
        let emitter = Emitter::new(&base.declaration, &base.schema, &base.events);
        let emitter = emitter.with_codec(codec.clone());
        let effects = acts_after_commit.then(|| Effects::new(&base.schema));
        Self { base, emitter, factory, codec, handler: None, effects, effects_pending: false }
    }

    /// Handles the events of the request, and records what is to be done once they are committed.
    async fn handle(
        &mut self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<Outcome, ProcessorError> {
        let mut handler = self.handler.take().unwrap_or_else(|| self.factory.create());
        let Some(mut transaction) = BatchTransaction::open(connection, &self.base, request, IDLE_MAX).await?
        else {
            self.handler = Some(handler);
            return Ok(Outcome::ClaimLost);
        };
        let (mut events, upto) = transaction.read().await?;
        let undecodable = self.codec.decode_some(events.iter_mut().map(|delivery| &mut delivery.event));
        let readable = &events[..undecodable.as_ref().map_or(events.len(), |(place, _)| *place)];
        let means = Means {
            factory: &self.factory,
            emitter: &self.emitter,
            codec: &self.codec,
            may_act: self.effects.is_some(),
        };
        let mut handled = match &mut handler {
            Handler::Projector(projector) => project(projector, means, &mut transaction, readable).await?,
            Handler::Reactor(reactor) => {
                react(reactor.as_mut(), means, &mut transaction, readable, request.limits.time).await?
            }
        };
        if let (Some((place, reason)), None) = (undecodable, &handled.failure)
            && handled.events == place
        {
            let failure = Failure::of_processor(format!("the body cannot be decoded: {reason}"));
            handled.failure = Some(Box::new(SourceEvent::of(&events[place]).attribute(failure)));
        }
        let recorded = self.record_effects(&mut transaction, request, &handled).await?;
        let outcome = finish(transaction, request, &events, upto, handled).await?;
        self.effects_pending |= recorded;
        if let Outcome::Committed { failure: None, .. } = outcome {
            self.handler = Some(handler);
        }
        Ok(outcome)
    }

    /// Records in the transaction what is to be done once it is committed. Returns whether that is anything.
    async fn record_effects(
        &self,
        transaction: &mut BatchTransaction<'_>,
        request: &BatchRequest<'_>,
        handled: &Handled,
    ) -> Result<bool, ProcessorError> {
        let Some(effects) = self.effects.as_ref().filter(|_| !handled.effects.is_empty()) else {
            return Ok(false);
        };
        effects.record(transaction.connection(), &request.claim.key, &handled.effects).await?;
        Ok(true)
    }

    /// Carries out what is to be done after the last commits, in order, for as long as a batch may take. Returns the number of
    /// those that were carried out, and why the next one could not be.
    async fn carry_out(
        &mut self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<(usize, Option<Failure>), ProcessorError> {
        let (key, deadline) = (&request.claim.key, Instant::now() + request.limits.time);
        let Some(effects) = &self.effects else { return Ok((0, None)) };
        let (mut done, mut count) = (None, 0);
        while let Some(effect) = effects.next(&mut *connection, key, done).await? {
            let mut handler = self.handler.take().unwrap_or_else(|| self.factory.create());
            let acting = tokio::time::timeout(EFFECT_MAX, catch_panic(handler.after_commit(&effect)));
            let late = |_elapsed| Err(format!("it took longer than {EFFECT_MAX:?}").into());
            if let Err(error) = acting.await.unwrap_or_else(late) {
                let failure = match classify(error) {
                    Classified::Infrastructure(error) => return Err(error.into()),
                    Classified::Failed { failure, .. } => failure,
                };
                let of = format!("after the commit of event {} ({})", effect.event_id, effect.event_type);
                let message = format!("{of}: {}", failure.message);
                return Ok((count, Some(Failure { message, ..failure })));
            }
            self.handler = Some(handler);
            (done, count) = (Some(effect.key()), count + 1);
            if Instant::now() >= deadline {
                effects.remove(&mut *connection, effect.key()).await?;
                return Ok((count, None));
            }
        }
        self.effects_pending = false;
        Ok((count, None))
    }
}

#[async_trait]
impl Processor for NativeProcessor {
    fn base(&self) -> &ProcessorBase {
        &self.base
    }

    async fn prepare(&mut self, connection: &mut PgConnection, claim: &Claim) -> Result<(), ProcessorError> {
        let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
        self.base.prepare(&mut transaction, claim).await?;
        self.effects_pending = match &self.effects {
            Some(effects) => effects.are_pending(&mut transaction, &claim.key).await?,
            None => false,
        };
        transaction.commit().await?;
        Ok(())
    }

    fn hands_out_connection(&self) -> bool {
        true
    }

    fn has_pending_effects(&self) -> bool {
        self.effects_pending
    }

    async fn close(&mut self) {
        self.handler = None;
    }

    async fn process(
        &mut self,
        connection: &mut PgConnection,
        request: BatchRequest<'_>,
    ) -> Result<Outcome, ProcessorError> {
        if self.effects_pending {
            let (count, failure) = self.carry_out(connection, &request).await?;
            if let Some(failure) = failure {
                let (progressed, failure) = (count > 0, Box::new(failure));
                return Ok(Outcome::EffectFailed { committed: None, progressed, failure });
            }
            if self.effects_pending {
                return self.renew(connection, &request).await;
            }
        }
        let outcome = self.handle(connection, &request).await?;
        let Outcome::Committed { position, handled, .. } = outcome else { return Ok(outcome) };
        if self.effects_pending {
            let (count, failure) = self.carry_out(connection, &request).await?;
            if let Some(failure) = failure {
                let (progressed, failure) = (count > 0, Box::new(failure));
                return Ok(Outcome::EffectFailed {
                    committed: Some((position, handled)),
                    progressed,
                    failure,
                });
            }
        }
        Ok(outcome)
    }
}

impl NativeProcessor {
    /// Keeps the claim, where the time of a batch was not enough for what is to be done before it.
    async fn renew(
        &self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<Outcome, ProcessorError> {
        let (claim, lease) = (request.claim, request.lease);
        let renewed = self.base.trackers().renew(connection, claim, lease, false, 0.0).await?;
        Ok(match renewed {
            Some(_) => Outcome::Committed { position: claim.position, handled: 0, failure: None },
            None => Outcome::ClaimLost,
        })
    }
}

/// Commits what was handled, and moves the position.
async fn finish(
    transaction: BatchTransaction<'_>,
    request: &BatchRequest<'_>,
    events: &[Delivery],
    upto: Position,
    handled: Handled,
) -> Result<Outcome, ProcessorError> {
    let Handled { events: count, failure, .. } = handled;
    let position = match events.get(count) {
        // Without a failure, the batch ended because its time was up.
        Some(next) if failure.is_some() => next.id.previous(),
        Some(_) => count.checked_sub(1).map_or(request.claim.position, |last| events[last].id),
        None => upto,
    };
    let handled = i32::try_from(count).unwrap_or(i32::MAX);
    if request.dead_letter().is_none() || failure.is_none() {
        let progress = Progress { position, handled, failing: failure.is_some(), pending_retry: None };
        transaction.finish(progress).await?;
    }
    Ok(Outcome::Committed { position, handled, failure })
}

/// Hands all events to the projector. If it fails at one of them, hands those before it to another instance.
async fn project(
    projector: &mut Box<dyn Projector>,
    means: Means<'_>,
    transaction: &mut BatchTransaction<'_>,
    events: &[Delivery],
) -> Result<Handled, ProcessorError> {
    if events.is_empty() {
        return Ok(Handled { events: 0, failure: None, effects: Vec::new() });
    }
    transaction.savepoint().await?;
    let error = match project_once(projector.as_mut(), means, transaction, events).await {
        Ok(effects) => return Ok(Handled { events: events.len(), failure: None, effects }),
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
    transaction.rollback_to_savepoint().await?;
    let mut effects = Vec::new();
    if place > 0 {
        if let Handler::Projector(another) = means.factory.create() {
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
    transaction: &mut BatchTransaction<'_>,
    events: &[Delivery],
) -> Result<Vec<NewEffect>, HandlerError> {
    let mut context =
        ProjectorContext { transaction, codec: means.codec, effects: AskedEffects::new(means.may_act) };
    catch_panic(projector.project(events, &mut context)).await?;
    Ok(context.effects.asked)
}

/// Hands the events to the reactor one by one, until one fails or the time is up.
async fn react(
    reactor: &mut dyn Reactor,
    Means { emitter, codec, may_act, .. }: Means<'_>,
    transaction: &mut BatchTransaction<'_>,
    events: &[Delivery],
    time: Duration,
) -> Result<Handled, ProcessorError> {
    let (deadline, tables) = (Instant::now() + time, RowTables::default());
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
            effects: AskedEffects::new(may_act),
        };
        let outcome = catch_panic(reactor.react(event, &mut context)).await;
        let ReactorContext { actions, may_have_written, effects: asked, .. } = context;
        if let Err(error) = outcome {
            let failure = match classify(error) {
                Classified::Infrastructure(error) => return Err(error.into()),
                Classified::Failed { failure, .. } => failure,
            };
            if may_have_written {
                transaction.undo_event().await?;
            }
            let applied = transaction.apply(&tables, emitter, &pending).await?;
            let failure = applied.failure.or(Some(Box::new(source.attribute(failure))));
            return Ok(handled(done + applied.events, failure, effects));
        }
        effects.extend(asked.asked);
        pending.push(EventEffects { source, actions });
        if may_have_written {
            // Rows are in the transaction already, so whether the emissions are accepted has to be known now.
            let Applied { events: applied, failure } = transaction.apply(&tables, emitter, &pending).await?;
            if failure.is_some() {
                transaction.undo_event().await?;
                return Ok(handled(done + applied, failure, effects));
            }
            done += pending.len();
            pending.clear();
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    let Applied { events: applied, failure } = transaction.apply(&tables, emitter, &pending).await?;
    Ok(handled(done + applied, failure, effects))
}

/// Turns a panic of the handler into an error.
async fn catch_panic(work: impl Future<Output = Result<(), HandlerError>>) -> Result<(), HandlerError> {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(outcome) => outcome,
        Err(panic) => {
            let said = panic.downcast_ref::<&str>().map(ToString::to_string);
            let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
            Err(format!("the handler has panicked: {}", said.as_deref().unwrap_or("?")).into())
        }
    }
}
