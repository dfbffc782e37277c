//! Workflows: reactors that remember, for each instance, how far it has come.

use std::collections::HashSet;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use uuid::Uuid;

use super::context::{ReactorContext, emission, storable};
use super::error::HandlerError;
use super::handler::Reactor;
use crate::event::{AggregateId, Event, EventType, Position, to_readable_json};
use crate::handlers::batch::{Action, ended};
use crate::processing::effects::Effect;
use crate::processing::emission::{Due, Emission};
use crate::processing::processor::Delivery;
use crate::processing::workflow::{Step, WorkflowInstance};

/// The most bytes of the name of an instance: keys of time-outs are made of it.
const INSTANCE_LENGTH_MAX: usize = 500;

/// A process that goes on from event to event, gives commands, waits, and has time-outs.
///
/// Each event belongs to an instance, whose state is kept in the transaction that moves the position: together with what the
/// workflow emits, and with the events of its commands. It waits by returning. What it may do beside that of a
/// [`Reactor`] is in [`WorkflowContext`]. An event that is handled again after a reset is not shown to it: its
/// instances have taken it in.
///
/// Registered by [`Registration::workflow`](super::Registration::workflow) and [`Program::workflow`](crate::Program::workflow).
#[async_trait]
pub trait Workflow: Send + Sync {
    /// What an instance remembers, kept as JSON. Later programs read it: extend it as you do with events.
    type State: Default + Serialize + DeserializeOwned + Send + Sync;

    /// Which instance an event belongs to, by a text of at most 500 bytes; `None`: the event is passed over. Time-outs find their
    /// instance by themselves. See [`by_correlation`] and [`by_aggregate`].
    fn instance(&self, event: &Event) -> Option<String>;

    /// Whether an event begins an instance that does not exist. Unless it is said, every event does.
    fn begins(&self, event: &Event) -> bool {
        let _ = event;
        true
    }

    /// Handles an event of an instance.
    ///
    /// # Errors
    /// As for [`Reactor::react`]. The state stays as it was. Steps that are done stay done.
    async fn handle(
        &mut self,
        event: &Delivery,
        state: &mut Self::State,
        context: &mut WorkflowContext<'_, '_>,
    ) -> Result<(), HandlerError>;

    /// As [`Reactor::after_commit`].
    ///
    /// # Errors
    /// As [`Reactor::after_commit`].
    async fn after_commit(&mut self, effect: &Effect) -> Result<(), HandlerError> {
        Err(format!(
            "this workflow does nothing after a commit, and was asked to for event {}",
            effect.event_id
        )
        .into())
    }
}

/// The instance of a conversation: all that an event has led to belongs to the one that the event began.
pub fn by_correlation(event: &Event) -> Option<String> {
    Some(event.correlation_id.unwrap_or(event.uuid).to_string())
}

/// The instance of an aggregate.
pub fn by_aggregate(event: &Event) -> Option<String> {
    Some(event.aggregate_id.to_string())
}

/// What a workflow can do about an event: everything that a reactor can, by the methods of [`ReactorContext`], and waiting, ending and
/// durable steps.
pub struct WorkflowContext<'w, 'r> {
    reactor: &'w mut ReactorContext<'r>,
    kept: WorkflowInstance,
    /// The names of the steps so far.
    steps: HashSet<String>,
    /// The time-outs that were asked for, by the uuids of their events.
    asked: HashSet<Uuid>,
    is_forgotten: bool,
}

impl<'r> Deref for WorkflowContext<'_, 'r> {
    type Target = ReactorContext<'r>;

    fn deref(&self) -> &ReactorContext<'r> {
        self.reactor
    }
}

impl<'r> DerefMut for WorkflowContext<'_, 'r> {
    fn deref_mut(&mut self) -> &mut ReactorContext<'r> {
        self.reactor
    }
}

impl WorkflowContext<'_, '_> {
    /// The instance.
    pub fn instance(&self) -> &str {
        &self.kept.instance
    }

    /// Does a part of the work once, and remembers its result: `context.step("charge", |key| gateway.charge(key, amount)).await?`.
    ///
    /// The result is recorded as soon as the work is done, before what follows begins, whatever becomes of the transaction. When the event
    /// is handled again, because the program was killed, or what followed has failed, the step is not done
    /// again: it answers with what is recorded. If the program is killed between the work and the record, the work is
    /// done again; `key` is the same then, for receivers that recognise repetitions. The transaction is open meanwhile, so a step is
    /// a matter of seconds. The records of an event are removed with its position.
    ///
    /// # Errors
    /// Those of the work, after which nothing is recorded. Two steps of one event have the same name, the result cannot be written as JSON or
    /// be read again (then it is not recorded, and the work is done again when the event is handled again), or the database does not answer.
    pub async fn step<T, F>(
        &mut self,
        name: &str,
        work: impl FnOnce(Uuid) -> F + Send,
    ) -> Result<T, HandlerError>
    where
        T: Serialize + DeserializeOwned + Send,
        F: Future<Output = Result<T, HandlerError>> + Send,
    {
        if name.contains('\0') {
            return Err("the name of a step contains a NUL character".into());
        }
        if !self.steps.insert(name.to_owned()) {
            return Err(format!("there are two steps {name} for one event: give them two names").into());
        }
        let (event_id, event_uuid) = (self.reactor.event.id, self.reactor.event.uuid);
        let step = Step { instance: &self.kept.instance, event_id, event_uuid, name };
        if let Some(done) = self.reactor.transaction.find_step(step).await? {
            return read_step(name, done.get());
        }
        let key = format!("espd/{}/step/{name}", self.reactor.emitter.reactor());
        let result = work(Uuid::new_v5(&event_uuid, key.as_bytes())).await?;
        let result = to_kept_json(&result)
            .map_err(|error| format!("the result of step {name} is not recorded: {error}"))?;
        let recorded = self.reactor.transaction.record_step(step, result).await?;
        read_step(name, recorded.get())
    }

    /// Has an event of type `E` come after a while, in the place of an earlier one of that type. It comes to this instance, whatever
    /// [`Workflow::instance`] says, unless it is cancelled before or the instance has ended. It is stored in a stream of the
    /// instance's own.
    ///
    /// # Errors
    /// As for [`ReactorContext::emit_after`]. If [`Registration::times_out`](super::Registration::times_out) does not name the type, the
    /// event at hand fails when the handler has returned.
    pub fn time_out_after<E: EventType>(&mut self, delay: Duration, body: &E) -> Result<(), HandlerError> {
        self.cancel_timeout::<E>();
        let metadata = to_raw_value(&Marked { workflow: self.kept.instance.clone() })?;
        let reactor = &mut *self.reactor;
        let stream = stream_of(reactor.emitter.reactor(), &self.kept.instance);
        let is_emission = |action: &&Action| matches!(action, Action::Emit(_) | Action::EmitAs(..));
        let ordinal = reactor.actions.iter().filter(is_emission).count() as u32 + 1;
        let uuid = reactor.emitter.identify(reactor.source, ordinal);
        let key = Some(key_of(&self.kept.instance, E::NAME));
        let emission =
            Emission { due: Due::after(delay)?, key, metadata: Some(metadata), ..emission(stream, body)? };
        reactor.emit_untyped(emission);
        self.kept.timeouts.insert(E::NAME.to_owned(), uuid);
        self.asked.insert(uuid);
        Ok(())
    }

    /// Has time-outs come anew that have come before, while the event that asks for them was set aside: the workflow has passed them over
    /// then, and its position is beyond them.
    async fn renew_passed_over(&mut self) -> Result<(), HandlerError> {
        loop {
            let awaited = self.kept.timeouts.values().filter(|uuid| self.asked.contains(*uuid)).copied();
            let awaited: Vec<Uuid> = awaited.collect();
            let passed_over = self.reactor.transaction.find_passed_over(&awaited).await?;
            if passed_over.is_empty() {
                return Ok(());
            }
            for uuid in passed_over {
                self.rename_timeout(uuid);
            }
        }
    }

    /// Gives the event of a time-out that was asked for another uuid.
    fn rename_timeout(&mut self, uuid: Uuid) {
        let renamed = Uuid::new_v5(&uuid, b"espd/passed over");
        let Self { reactor, kept, asked, .. } = self;
        let Some((name, awaited)) = kept.timeouts.iter_mut().find(|(_, awaited)| **awaited == uuid) else {
            return;
        };
        let key = Some(key_of(&kept.instance, name));
        let action = reactor.actions.iter_mut().rev().find(|action| {
            matches!(action, Action::Emit(emission) | Action::EmitAs(_, emission) if emission.key == key)
        });
        if let Some(action) = action
            && let Action::Emit(emission) | Action::EmitAs(_, emission) = &*action
        {
            *action = Action::EmitAs(renamed, emission.clone());
        }
        *awaited = renamed;
        asked.insert(renamed);
    }

    /// Waits no longer for an event of type `E`. One that has come already, and is not handled yet, is passed over.
    pub fn cancel_timeout<E: EventType>(&mut self) {
        for name in std::iter::once(&E::NAME).chain(E::WAS) {
            if self.kept.timeouts.remove(*name).is_some() {
                self.reactor.cancel(&key_of(&self.kept.instance, name));
            }
        }
    }

    /// Ends the instance: its time-outs are cancelled, and its later events are passed over. Its last state is kept.
    pub fn end(&mut self) {
        for name in std::mem::take(&mut self.kept.timeouts).into_keys() {
            self.reactor.cancel(&key_of(&self.kept.instance, &name));
        }
        self.kept.has_ended = true;
    }

    /// Ends the instance and forgets it. A later event may begin it anew.
    pub fn end_and_forget(&mut self) {
        self.end();
        self.is_forgotten = true;
    }
}

/// As JSON that every store keeps, and that can be read again.
fn to_kept_json<T: Serialize + DeserializeOwned>(value: &T) -> Result<Box<RawValue>, String> {
    let json = to_readable_json(value).map_err(|error| error.to_string())?;
    storable(json).map_err(|what| format!("it contains {what}"))
}

fn read_step<T: DeserializeOwned>(name: &str, result: &str) -> Result<T, HandlerError> {
    serde_json::from_str(result)
        .map_err(|error| format!("the recorded result of step {name} cannot be read: {error}").into())
}

/// Names a time-out among what the workflow emits later.
fn key_of(instance: &str, event_type: &str) -> String {
    format!("workflow/{event_type}/{instance}")
}

/// The stream that time-outs of an instance are stored in: in that of an aggregate, the aggregate would have to know them.
fn stream_of(workflow: &str, instance: &str) -> AggregateId {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("espd/workflow/{workflow}/{instance}").as_bytes()).into()
}

/// What the metadata of a time-out says.
#[derive(Serialize, Deserialize)]
struct Marked {
    /// The instance.
    workflow: String,
}

/// The instance that has wanted this event as a time-out, if one has.
fn instance_of_timeout(event: &Event, workflow: &str) -> Option<String> {
    let Marked { workflow: instance } = serde_json::from_str(event.metadata.get()).ok()?;
    (event.aggregate_id == stream_of(workflow, &instance)).then_some(instance)
}

/// The reactor that a workflow is.
pub(crate) struct WorkflowReactor<W>(pub(crate) W);

impl<W: Workflow> WorkflowReactor<W> {
    /// The instance that handles the event; `None`: the event is passed over.
    async fn find(
        &self,
        event: &Delivery,
        context: &mut ReactorContext<'_>,
    ) -> Result<Option<WorkflowInstance>, HandlerError> {
        let of_timeout = instance_of_timeout(event, context.emitter.reactor());
        let is_timeout = of_timeout.is_some();
        let Some(instance) = of_timeout.or_else(|| self.0.instance(event)) else { return Ok(None) };
        check_instance(&instance)?;
        context.begin_writing().await?;
        context.instance = Some(instance.clone());
        if context.transaction.set_aside_behind(event, &instance).await? {
            return Ok(None);
        }
        let found = context.transaction.load_instance(&instance).await?;
        let why = match found {
            Some(kept) if kept.has_ended => {
                format!("has ended with event {} ({})", kept.last_event_id, kept.last_event_type)
            }
            Some(mut kept) if is_timeout => {
                let is_awaited = kept.timeouts.remove(&event.event_type) == Some(event.uuid);
                if is_awaited {
                    return Ok(Some(kept));
                }
                format!("has gone on since, to event {} ({})", kept.last_event_id, kept.last_event_type)
            }
            Some(kept) => return Ok(Some(kept)),
            None if is_timeout || !self.0.begins(event) => "is not there".to_owned(),
            None => return Ok(Some(new_instance(instance, &W::State::default())?)),
        };
        if context.transaction.retries_failed().await? {
            // The operator who has asked for it expects that it is handled.
            return Err(format!(
                "instance {instance} {why}, so the event is passed over, and nothing was done: discard the dead letter"
            )
            .into());
        }
        Ok(None)
    }
}

fn check_instance(instance: &str) -> Result<(), HandlerError> {
    let length = instance.len();
    if length > INSTANCE_LENGTH_MAX {
        return Err(
            format!("the name of an instance has {length} bytes: {INSTANCE_LENGTH_MAX} is the most").into()
        );
    }
    if instance.contains('\0') {
        return Err("the name of an instance contains a NUL character".into());
    }
    Ok(())
}

fn new_instance(instance: String, state: &impl Serialize) -> Result<WorkflowInstance, HandlerError> {
    Ok(WorkflowInstance {
        instance,
        state: to_raw_value(state)?,
        timeouts: std::collections::BTreeMap::new(),
        events: 0,
        last_event_id: Position::START,
        last_event_type: String::new(),
        has_ended: false,
    })
}

#[async_trait]
impl<W: Workflow> Reactor for WorkflowReactor<W> {
    async fn react(
        &mut self,
        event: &Delivery,
        context: &mut ReactorContext<'_>,
    ) -> Result<(), HandlerError> {
        if event.replaying {
            return Ok(());
        }
        let Some(kept) = self.find(event, context).await? else { return Ok(()) };
        let mut state: W::State = serde_json::from_str(kept.state.get())
            .map_err(|error| format!("the state of instance {} cannot be read: {error}", kept.instance))?;
        let (steps, asked) = (HashSet::new(), HashSet::new());
        let mut own = WorkflowContext { reactor: context, kept, steps, asked, is_forgotten: false };
        self.0.handle(event, &mut state, &mut own).await?;
        if own.reactor.transaction.has_ended().await? {
            return Err(ended().message.into());
        }
        own.renew_passed_over().await?;
        let WorkflowContext { reactor: context, mut kept, is_forgotten, .. } = own;
        if is_forgotten {
            return Ok(context.transaction.remove_instance(&kept.instance, event.uuid).await?);
        }
        kept.state = to_kept_json(&state)
            .map_err(|error| format!("the state of instance {} is not kept: {error}", kept.instance))?;
        kept.events += 1;
        (kept.last_event_id, kept.last_event_type) = (event.id, event.event_type.clone());
        Ok(context.transaction.save_instance(kept, event.uuid).await?)
    }

    async fn after_commit(&mut self, effect: &Effect) -> Result<(), HandlerError> {
        self.0.after_commit(effect).await
    }
}
