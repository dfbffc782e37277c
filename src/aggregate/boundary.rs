//! Decisions beyond one aggregate: state that is folded from what has happened to tags, and events of several aggregates.

use std::fmt;
use std::future::IntoFuture;
use std::sync::atomic::{AtomicU32, Ordering};

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde_json::value::to_raw_value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::command_id::CommandId;
use super::execution::Envelope;
use super::loader::{Loader, pause_before};
use super::loading::{evolve, read};
use super::{Aggregate, ExecuteError, LoadError, UnknownEvents};
use crate::event::{AggregateId, Appended, Event, EventSet, KeyChange, NewEvent, Position, Tag, UniqueKey};
use crate::store::{
    AppendError, ConsistencyToken, EventStore, PostgresEventStore, TagQuery, TaggedEvents, Uncommitted,
};

/// An event that a decision makes: of which aggregate it is, and which tags it has.
#[derive(Debug, Clone)]
pub struct Draft<E> {
    aggregate_id: AggregateId,
    event: E,
    tags: Vec<Tag>,
    keys: Vec<KeyChange>,
}

impl<E> Draft<E> {
    /// An event of an aggregate.
    pub fn new(aggregate_id: impl Into<AggregateId>, event: impl Into<E>) -> Self {
        Self { aggregate_id: aggregate_id.into(), event: event.into(), tags: Vec::new(), keys: Vec::new() }
    }

    /// The same event with a tag more, as [`NewEvent::tagged`].
    #[must_use]
    pub fn tagged(mut self, tag: impl Into<Tag>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// The same event, with which its aggregate claims a key, as [`NewEvent::claiming`].
    #[must_use]
    pub fn claiming(mut self, scope: impl Into<String>, key: impl Into<String>) -> Self {
        self.keys.push(KeyChange::Claim(UniqueKey::new(scope, key)));
        self
    }

    /// The same event, with which its aggregate gives a key back, as [`NewEvent::releasing`].
    #[must_use]
    pub fn releasing(mut self, scope: impl Into<String>, key: impl Into<String>) -> Self {
        self.keys.push(KeyChange::Release(UniqueKey::new(scope, key)));
        self
    }
}

/// What a decision beyond one aggregate knows beside its state.
#[derive(Debug)]
pub struct BoundaryContext {
    now: DateTime<Utc>,
    command_id: CommandId,
    ids: AtomicU32,
}

impl BoundaryContext {
    /// The time, as the clock of the repository tells it.
    pub fn now(&self) -> DateTime<Utc> {
        self.now
    }

    /// A new id. The n-th of a command is the same whenever the command is tried again or repeated.
    pub fn new_id(&self) -> Uuid {
        self.command_id.new_id(self.ids.fetch_add(1, Ordering::Relaxed))
    }
}

type Decision<'r, A, R> =
    Box<dyn Fn(&A, &BoundaryContext) -> Result<Vec<Draft<<A as Aggregate>::Event>>, R> + Send + Sync + 'r>;

/// A decision beyond one aggregate that is about to be made. Await it, after what there is to say of it.
///
/// The events that match the query are read, the state is folded from them and decides, and the events are appended unless one came
/// that matches. Then it is read as well, and the decision is made anew, a few times.
///
/// Where the query leaves out types, it is about events of any type, and one that `A` does not know is an error, as in the stream of
/// an aggregate: an old program does not decide without what it cannot read. With [`UnknownEvents::PassOver`] it is about the types
/// that `A` knows.
#[must_use = "a decision is made when it is awaited"]
pub struct DecisionWithin<'r, S, A: Aggregate, R> {
    loader: &'r Loader<S>,
    query: TagQuery,
    decision: Decision<'r, A, R>,
    envelope: Envelope,
}

/// What a decision beyond one aggregate has led to.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DecidedWithin<A: Aggregate> {
    /// The events, in order; none if there was nothing to do.
    pub events: Vec<A::Event>,
    /// Where the events are stored, in the same order.
    pub appended: Vec<Appended>,
    /// The state after them.
    pub state: A,
    /// Whether it had been carried out before, by its command id, and this is what it led to then. Of several callers with one
    /// command at the same time, more than one may be told that it was not.
    pub is_repeated: bool,
}

/// State that is folded from the events of a query.
struct Folded<A> {
    state: A,
    token: ConsistencyToken,
    last: Position,
}

/// What a decision would append.
struct PlannedWithin<A: Aggregate> {
    events: Vec<A::Event>,
    new_events: Vec<NewEvent>,
    state: A,
    /// The last event that the decision has seen.
    seen: Position,
}

impl<A: Aggregate> Folded<A> {
    fn of(read: &TaggedEvents) -> Result<Self, LoadError> {
        let mut folded =
            Self { state: A::default(), token: ConsistencyToken::default(), last: Position::START };
        folded.take_in(read)?;
        Ok(folded)
    }

    fn take_in(&mut self, read: &TaggedEvents) -> Result<(), LoadError> {
        for event in &read.events {
            evolve(&mut self.state, event)?;
            self.last = event.id;
        }
        self.token = read.token.clone();
        Ok(())
    }

    /// Whether all of these come after what is folded, and nothing that is folded has gone. An event of another tag may have committed late.
    fn precedes(&self, tail: &TaggedEvents) -> bool {
        !tail.token.is_behind(&self.token) && tail.events.first().is_none_or(|first| first.id > self.last)
    }
}

impl<'r, S: EventStore, A: Aggregate, R> DecisionWithin<'r, S, A, R> {
    pub(super) fn new(loader: &'r Loader<S>, query: TagQuery, decision: Decision<'r, A, R>) -> Self {
        let query = match A::UNKNOWN_EVENTS {
            UnknownEvents::Refuse => query,
            UnknownEvents::PassOver => query.with_default_types(&A::Event::names()),
        };
        Self { loader, query, decision, envelope: Envelope::default() }
    }

    /// Gives it a command id, as [`Execution::command_id`](super::Execution::command_id).
    pub fn command_id(mut self, id: Uuid) -> Self {
        self.envelope.command_id = Some(id);
        self
    }

    /// Makes the events a part of a conversation. Without it they begin one, whose id is that of the command.
    pub fn correlation_id(mut self, id: Uuid) -> Self {
        self.envelope.correlation_id = Some(id);
        self
    }

    /// Names the event that has led to the decision: its conversation goes on.
    pub fn caused_by(mut self, event: &Event) -> Self {
        self.envelope.caused_by(event);
        self
    }

    /// Sets the metadata of the events: what serializes as a JSON object.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn metadata(mut self, metadata: &impl Serialize) -> Result<Self, serde_json::Error> {
        self.envelope.metadata = Some(to_raw_value(metadata)?);
        Ok(self)
    }

    /// Decides without storing anything, and returns what would be appended.
    ///
    /// # Errors
    /// As of the decision itself.
    pub async fn dry_run(self) -> Result<Vec<NewEvent>, ExecuteError<R>> {
        let folded = self.fold().await?;
        Ok(self.plan(&folded, self.draw_command_id())?.new_events)
    }

    fn draw_command_id(&self) -> CommandId {
        CommandId::new(self.envelope.command_id.unwrap_or_else(Uuid::new_v4))
    }

    async fn run(self) -> Result<DecidedWithin<A>, ExecuteError<R>> {
        if let Some(decided) = self.find_decided().await? {
            return Ok(decided);
        }
        match self.try_to_store().await {
            // The same command may have been carried out by another caller since, and this be its echo.
            Err(error) if error.may_be_repetition() => self.find_decided().await?.ok_or(error),
            Ok(nothing) if nothing.events.is_empty() => Ok(self.find_decided().await?.unwrap_or(nothing)),
            outcome => outcome,
        }
    }

    async fn try_to_store(&self) -> Result<DecidedWithin<A>, ExecuteError<R>> {
        let command_id = self.draw_command_id();
        let mut folded = self.fold().await?;
        let mut retry = 0;
        loop {
            let planned = self.plan(&folded, command_id)?;
            if planned.new_events.is_empty() {
                return planned.decided(Vec::new());
            }
            let condition = self.query.clone().unchanged_since(folded.token.clone());
            // Where nothing came, the store was restored to an earlier state than the one that was folded.
            let is_known = match self.loader.store.append_if(&planned.new_events, &condition).await {
                Ok(appended) => return planned.decided(appended),
                Err(AppendError::ConditionFailed { came, .. }) if retry < self.loader.conflict_retries => {
                    came.is_some()
                }
                Err(other) => return Err(ExecuteError::Append(other)),
            };
            retry += 1;
            tokio::time::sleep(pause_before(retry, command_id.event_uuid(retry).as_bytes()[0])).await;
            folded = if is_known { self.catch_up(folded).await? } else { self.fold().await? };
        }
    }

    async fn fold(&self) -> Result<Folded<A>, ExecuteError<R>> {
        Ok(Folded::of(&self.loader.store.read_tagged(&self.query, None).await?)?)
    }

    /// Takes in what came since, or begins again where that is not the end of what there is now.
    async fn catch_up(&self, mut folded: Folded<A>) -> Result<Folded<A>, ExecuteError<R>> {
        let tail = self.loader.store.read_tagged(&self.query, Some(&folded.token)).await;
        match tail {
            Ok(tail) if folded.precedes(&tail) => folded.take_in(&tail).map(|()| folded).map_err(Into::into),
            Ok(_) => self.fold().await,
            Err(error) => Err(error.into()),
        }
    }

    fn plan(&self, folded: &Folded<A>, command_id: CommandId) -> Result<PlannedWithin<A>, ExecuteError<R>> {
        let context = BoundaryContext { now: self.loader.now(), command_id, ids: AtomicU32::new(0) };
        let drafts = (self.decision)(&folded.state, &context).map_err(ExecuteError::Refused)?;
        let created_at = self.loader.created_at();
        let (mut events, mut new_events) =
            (Vec::with_capacity(drafts.len()), Vec::with_capacity(drafts.len()));
        for (ordinal, draft) in (0..).zip(drafts) {
            let Draft { aggregate_id, event, tags, keys } = draft;
            let new = event.to_new(aggregate_id).map_err(ExecuteError::Unwritable)?;
            let new = NewEvent { created_at, tags, keys, ..new };
            new_events.push(self.envelope.wrap(new, command_id, ordinal));
            events.push(event);
        }
        let state = folded.state.after(&events);
        Ok(PlannedWithin { events, new_events, state, seen: folded.last })
    }

    /// What the command has led to, if it was carried out before.
    async fn find_decided(&self) -> Result<Option<DecidedWithin<A>>, ExecuteError<R>> {
        let Some(command_id) = self.envelope.command_id else { return Ok(None) };
        let store = &self.loader.store;
        let stored = CommandId::new(command_id).find_events(store).await?;
        if stored.is_empty() {
            return Ok(None);
        }
        repeated(command_id, &stored, store.read_tagged(&self.query, None).await?).map(Some)
    }
}

/// What a command has led to, as it is stored: what the decision was made from is what came before its first event.
fn repeated<A: Aggregate, R>(
    command_id: Uuid,
    stored: &[Event],
    mut seen: TaggedEvents,
) -> Result<DecidedWithin<A>, ExecuteError<R>> {
    let mut events = Vec::with_capacity(stored.len());
    for event in stored {
        let aggregate_id = event.aggregate_id.clone();
        let known = read::<A::Event>(event)?;
        events.push(known.ok_or(ExecuteError::CommandIdReused { command_id, aggregate_id })?);
    }
    seen.events.retain(|event| stored.first().is_none_or(|first| event.id < first.id));
    let state = Folded::<A>::of(&seen)?.state.after(&events);
    let place = |event: &Event| Appended { id: event.id, uuid: event.uuid, version: event.version };
    let appended = stored.iter().map(place).collect();
    Ok(DecidedWithin { events, appended, state, is_repeated: true })
}

impl<A: Aggregate> PlannedWithin<A> {
    /// # Errors
    /// What was appended are the events of the same command, which the decision has seen already.
    fn decided<R>(self, appended: Vec<Appended>) -> Result<DecidedWithin<A>, ExecuteError<R>> {
        if let Some(first) = appended.first().filter(|first| first.id <= self.seen) {
            return Err(ExecuteError::Append(AppendError::UuidReused { uuid: first.uuid }));
        }
        Ok(DecidedWithin { events: self.events, appended, state: self.state, is_repeated: false })
    }
}

impl<A: Aggregate, R> DecisionWithin<'_, PostgresEventStore, A, R> {
    /// Decides in the caller's own transaction, so that tables of the application commit with the events, and reads in it too.
    ///
    /// It is not tried again: when the condition fails the transaction can only be rolled back, and the whole of it be repeated. Once
    /// it is committed, say so: [`Uncommitted::commit`].
    ///
    /// # Errors
    /// As of the decision itself.
    pub async fn append_in(
        self,
        connection: &mut PgConnection,
    ) -> Result<(DecidedWithin<A>, Uncommitted), ExecuteError<R>> {
        if let Some(repeated) = self.find_decided_in(connection).await? {
            return Ok(repeated);
        }
        let store = &self.loader.store;
        let folded = Folded::of(&store.read_tagged_in(connection, &self.query, None).await?)?;
        let planned = match self.plan(&folded, self.draw_command_id()) {
            Err(refused) => return self.find_decided_in(connection).await?.ok_or(refused),
            Ok(planned) => planned,
        };
        let condition = self.query.clone().unchanged_since(folded.token);
        let uncommitted = store.append_if_in(connection, &planned.new_events, &condition).await;
        let uncommitted = uncommitted.map_err(ExecuteError::Append)?;
        match planned.decided(uncommitted.to_vec()) {
            Ok(decided) if !decided.events.is_empty() => Ok((decided, uncommitted)),
            // Another caller may have carried out the same command between the two reads.
            outcome => {
                uncommitted.rolled_back();
                match self.find_decided_in(connection).await? {
                    Some(repeated) => Ok(repeated),
                    None => Ok((outcome?, self.append_nothing_in(connection).await?)),
                }
            }
        }
    }

    async fn find_decided_in(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Option<(DecidedWithin<A>, Uncommitted)>, ExecuteError<R>> {
        let Some(command_id) = self.envelope.command_id else { return Ok(None) };
        let store = &self.loader.store;
        let stored = CommandId::new(command_id).find_events_in(store, connection).await?;
        if stored.is_empty() {
            return Ok(None);
        }
        let seen = store.read_tagged_in(connection, &self.query, None).await?;
        let decided = repeated(command_id, &stored, seen)?;
        Ok(Some((decided, self.append_nothing_in(connection).await?)))
    }

    async fn append_nothing_in(&self, connection: &mut PgConnection) -> Result<Uncommitted, ExecuteError<R>> {
        self.loader.store.append_in(connection, &[]).await.map_err(ExecuteError::Append)
    }
}

impl<'r, S: EventStore, A: Aggregate, R: Send + 'r> IntoFuture for DecisionWithin<'r, S, A, R> {
    type Output = Result<DecidedWithin<A>, ExecuteError<R>>;
    type IntoFuture = BoxFuture<'r, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<S, A: Aggregate, R> fmt::Debug for DecisionWithin<'_, S, A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecisionWithin").field("query", &self.query).finish_non_exhaustive()
    }
}
