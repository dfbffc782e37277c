//! One command, from its decision to its events in the store.

use std::future::IntoFuture;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use sqlx::PgConnection;
use uuid::Uuid;

use super::command_id::CommandId;
use super::loader::{Loader, pause_before};
use super::loading::{new_event, read};
use super::{Aggregate, Context, ExecuteError, Id, LoadError, Loaded};
use crate::event::{Appended, Event, ExpectedVersion, NewEvent, Version};
use crate::store::{AppendError, EventStore, Kept, PostgresEventStore, Uncommitted};

/// The most events that a conflict tells of.
const SINCE_MAX: usize = 100;

/// A decision: the state and the context to events, or a refusal.
type Decision<'r, A, R> =
    Box<dyn Fn(&A, &Context) -> Result<Vec<<A as Aggregate>::Event>, R> + Send + Sync + 'r>;

/// A command that is about to be carried out. Await it, after what there is to say of it.
///
/// The stream is read, the state decides, and the events are appended with the version that the decision has seen. When
/// another writer was faster, what came since is read and the decision is made anew, a few times.
#[must_use = "a command is carried out when it is awaited"]
pub struct Execution<'r, S, A: Aggregate, R> {
    loader: &'r Loader<S>,
    id: Id<A>,
    decision: Decision<'r, A, R>,
    envelope: Envelope,
    expected: Option<Version>,
    /// Whether the aggregate must have events.
    must_exist: bool,
    /// The id of the command, if nobody can have used it before.
    new_command_id: Option<Uuid>,
    appender: Option<&'r dyn Appender>,
}

/// Stores what was decided, where that is more than appending it to the store.
#[async_trait]
pub(crate) trait Appender: Send + Sync {
    /// Stores events, perhaps none, that were decided on a version.
    async fn append(&self, events: &[NewEvent], seen: Version) -> Result<Vec<Appended>, AppendError>;
}

/// What the events of a command have in common.
#[derive(Debug, Clone, Default)]
pub(super) struct Envelope {
    pub(super) command_id: Option<Uuid>,
    pub(super) correlation_id: Option<Uuid>,
    pub(super) causation_id: Option<Uuid>,
    pub(super) metadata: Option<Box<RawValue>>,
}

impl Envelope {
    /// The same event, in this envelope.
    pub(super) fn wrap(&self, event: NewEvent, command_id: CommandId, ordinal: u32) -> NewEvent {
        NewEvent {
            uuid: command_id.event_uuid(ordinal),
            correlation_id: Some(self.correlation_id.unwrap_or(command_id.get())),
            causation_id: Some(self.causation_id.unwrap_or(command_id.get())),
            metadata: self.metadata.clone().unwrap_or(event.metadata),
            ..event
        }
    }

    pub(super) fn caused_by(&mut self, event: &Event) {
        self.causation_id = Some(event.uuid);
        self.correlation_id = Some(event.correlation_id.unwrap_or(event.uuid));
    }
}

/// What a command has led to.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Executed<A: Aggregate> {
    /// The events, in order; none if there was nothing to do.
    pub events: Vec<A::Event>,
    /// Where the events are stored, in the same order.
    pub appended: Vec<Appended>,
    /// The version of the aggregate after them.
    pub version: Version,
    /// The state of the aggregate after them.
    pub state: A,
    /// Whether the command had been carried out before, by its id, and this is what it led to then. Of several callers with one command at the
    /// same time, more than one may be told that it was not.
    pub is_repeated: bool,
}

/// What a command would lead to. Nothing is stored.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Planned<A: Aggregate> {
    /// The events, in order; none if there is nothing to do.
    pub events: Vec<A::Event>,
    /// The same, ready to be appended, with the version that the decision has seen.
    pub new_events: Vec<NewEvent>,
    /// The version that the decision has seen.
    pub version: Version,
    /// The state of the aggregate after the events.
    pub state: A,
}

impl<'r, S: EventStore, A: Aggregate, R> Execution<'r, S, A, R> {
    pub(super) fn new(loader: &'r Loader<S>, id: Id<A>, decision: Decision<'r, A, R>) -> Self {
        let envelope = Envelope::default();
        let (expected, must_exist, new_command_id, appender) = (None, false, None, None);
        Self { loader, id, decision, envelope, expected, must_exist, new_command_id, appender }
    }

    /// Gives the command an id. Once it is carried out, repeating it with the same id stores nothing, decides nothing, and answers
    /// with what it has led to. A command that led to no events leaves no trace, and is decided again.
    pub fn command_id(mut self, id: Uuid) -> Self {
        self.envelope.command_id = Some(id);
        self
    }

    /// Carries it out only if the aggregate is at this version; 0: does not exist. Then it is not tried again.
    pub fn expecting(mut self, version: impl Into<Version>) -> Self {
        self.expected = Some(version.into());
        self
    }

    /// Makes the events a part of a conversation. Without it they begin one, whose id is that of the command.
    pub fn correlation_id(mut self, id: Uuid) -> Self {
        self.envelope.correlation_id = Some(id);
        self
    }

    /// Names the event that has led to the command: its conversation goes on.
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

    /// Names what has led to the command.
    #[cfg(feature = "commands")]
    pub(crate) fn causation_id(mut self, id: Uuid) -> Self {
        self.envelope.causation_id = Some(id);
        self
    }

    /// Carries it out only if the aggregate exists.
    #[cfg(feature = "commands")]
    pub(crate) fn existing(mut self) -> Self {
        self.must_exist = true;
        self
    }

    /// Gives the command an id that nobody can have used before, so that it is not looked for.
    #[cfg(feature = "commands")]
    pub(crate) fn new_command_id(mut self, id: Uuid) -> Self {
        self.new_command_id = Some(id);
        self
    }

    /// Has something else store what is decided.
    #[cfg(feature = "commands")]
    pub(crate) fn stored_by(mut self, appender: &'r dyn Appender) -> Self {
        self.appender = Some(appender);
        self
    }

    /// Decides without storing anything.
    ///
    /// # Errors
    /// As of the command itself.
    pub async fn dry_run(self) -> Result<Planned<A>, ExecuteError<R>> {
        let loaded = self.load(&mut Kept::default()).await?;
        self.plan(&loaded, self.draw_command_id())
    }

    async fn load(&self, kept: &mut Kept) -> Result<Loaded<A>, ExecuteError<R>> {
        let loaded = self.loader.load_keeping(kept, &self.id).await?;
        match self.find_conflict(loaded.version) {
            Some(expected) => {
                kept.release();
                Err(self.conflict(expected, loaded.version).await)
            }
            None => Ok(loaded),
        }
    }

    /// The version that the aggregate should have instead of this one; that of the first event, if it has none and must exist.
    fn find_conflict(&self, actual: Version) -> Option<Version> {
        let missing = (self.must_exist && actual == 0).then(|| Version::from(1));
        self.expected.filter(|expected| *expected != actual).or(missing)
    }

    fn draw_command_id(&self) -> CommandId {
        CommandId::new(self.envelope.command_id.or(self.new_command_id).unwrap_or_else(Uuid::new_v4))
    }

    async fn run(self) -> Result<Executed<A>, ExecuteError<R>> {
        if let Some(executed) = self.find_executed().await? {
            return Ok(executed);
        }
        match self.try_to_store().await {
            // The same command may have been carried out by another caller since.
            Err(error) if error.may_be_repetition() => self.find_executed().await?.ok_or(error),
            Ok(nothing) if nothing.events.is_empty() => Ok(self.find_executed().await?.unwrap_or(nothing)),
            Ok(executed) => Ok(executed),
            Err(error) => Err(error),
        }
    }

    async fn try_to_store(&self) -> Result<Executed<A>, ExecuteError<R>> {
        let command_id = self.draw_command_id();
        let mut kept = Kept::default();
        let mut loaded = self.load(&mut kept).await?;
        let retries = if self.expected.is_some() { 0 } else { self.loader.conflict_retries };
        let mut retry = 0;
        loop {
            let planned = self.plan(&loaded, command_id)?;
            match self.append(&mut kept, &planned).await {
                Ok(appended) => return planned.executed(appended),
                Err(AppendError::Conflict { .. }) if retry < retries => {}
                Err(AppendError::Conflict { expected, actual, .. }) => {
                    return Err(self.conflict(expected, actual).await);
                }
                Err(other) => return Err(ExecuteError::Append(other)),
            }
            retry += 1;
            tokio::time::sleep(pause_before(retry, command_id.event_uuid(retry).as_bytes()[0])).await;
            self.loader.catch_up(&mut kept, &mut loaded).await?;
        }
    }

    async fn append(&self, kept: &mut Kept, planned: &Planned<A>) -> Result<Vec<Appended>, AppendError> {
        match self.appender {
            Some(appender) => {
                kept.release();
                appender.append(&planned.new_events, planned.version).await
            }
            None => self.loader.store.append_keeping(kept, &planned.new_events).await,
        }
    }

    fn plan(&self, loaded: &Loaded<A>, command_id: CommandId) -> Result<Planned<A>, ExecuteError<R>> {
        let id = self.id.get();
        let context = Context::new(id.clone(), loaded.version, self.loader.now(), command_id);
        let events = (self.decision)(&loaded.state, &context).map_err(ExecuteError::Refused)?;
        let created_at = self.loader.created_at();
        let mut new_events = Vec::with_capacity(events.len());
        for (ordinal, event) in (0..).zip(&events) {
            let event = new_event::<A>(id, event).map_err(ExecuteError::Unwritable)?;
            let event = NewEvent { created_at, ..event };
            new_events.push(self.envelope.wrap(event, command_id, ordinal));
        }
        if let Some(first) = new_events.first_mut() {
            first.expected_version = ExpectedVersion::Exact(loaded.version);
        }
        let state = loaded.state.after(&events);
        Ok(Planned { events, new_events, version: loaded.version, state })
    }

    /// What the command has led to, if it was carried out before.
    async fn find_executed(&self) -> Result<Option<Executed<A>>, ExecuteError<R>> {
        let Some(command_id) = self.envelope.command_id else { return Ok(None) };
        let stored = CommandId::new(command_id).find_events(&self.loader.store).await?;
        let Some(last) = stored.last() else { return Ok(None) };
        let events = self.recognise(command_id, &stored)?;
        let loaded = self.loader.load_at(&self.id, last.version).await?;
        Ok(Some(repeated(events, &stored, loaded)))
    }

    /// The events of the command, which must be those of this aggregate.
    fn recognise(&self, command_id: Uuid, stored: &[Event]) -> Result<Vec<A::Event>, ExecuteError<R>> {
        let mut events = Vec::with_capacity(stored.len());
        for event in stored {
            let known = read::<A::Event>(event)?.filter(|_| event.aggregate_id == *self.id.get());
            let aggregate_id = event.aggregate_id.clone();
            events.push(known.ok_or(ExecuteError::CommandIdReused { command_id, aggregate_id })?);
        }
        Ok(events)
    }

    /// The conflict, with the first of the events that have come since.
    async fn conflict(&self, expected: Version, actual: Version) -> ExecuteError<R> {
        let aggregate_id = self.id.get().clone();
        let is_final = self.expected.is_some();
        let since = self
            .loader
            .store
            .read_aggregate(aggregate_id.clone(), expected.next(), Some(actual))
            .take(SINCE_MAX);
        match since.try_collect().await {
            Ok(since) => ExecuteError::Conflict { aggregate_id, expected, actual, since, is_final },
            Err(error) => error.into(),
        }
    }
}

/// What a command has led to, as it is stored.
fn repeated<A: Aggregate>(events: Vec<A::Event>, stored: &[Event], loaded: Loaded<A>) -> Executed<A> {
    let place = |event: &Event| Appended { id: event.id, uuid: event.uuid, version: event.version };
    let appended = stored.iter().map(place).collect();
    Executed { events, appended, version: loaded.version, state: loaded.state, is_repeated: true }
}

impl<A: Aggregate, R> Execution<'_, PostgresEventStore, A, R> {
    /// Carries it out in the caller's own transaction, so that tables of the application commit with the events. It reads
    /// there as well, without snapshots, and sees what the transaction has appended.
    ///
    /// It is not tried again: after a conflict the transaction can only be rolled back, and the whole of it be repeated; therefore
    /// [`ExecuteError::Conflict`] has no events. Once the transaction is committed, say so: [`Uncommitted::commit`].
    ///
    /// # Errors
    /// As of the command itself.
    pub async fn append_in(
        self,
        connection: &mut PgConnection,
    ) -> Result<(Executed<A>, Uncommitted), ExecuteError<R>> {
        let store = &self.loader.store;
        if let Some(command_id) = self.envelope.command_id {
            let stored = CommandId::new(command_id).find_events_in(store, connection).await?;
            if let Some(last) = stored.last() {
                let events = self.recognise(command_id, &stored)?;
                let loaded = self.load_in(connection, last.version).await?;
                let nothing = store.append_in(connection, &[]).await.map_err(ExecuteError::Append)?;
                return Ok((repeated(events, &stored, loaded), nothing));
            }
        }
        let loaded = self.load_in(connection, Version::MAX).await?;
        if let Some(expected) = self.find_conflict(loaded.version) {
            return Err(self.conflict_in_transaction(expected, loaded.version));
        }
        let planned = self.plan(&loaded, self.draw_command_id())?;
        match store.append_in(connection, &planned.new_events).await {
            Ok(uncommitted) => Ok((planned.executed(uncommitted.to_vec())?, uncommitted)),
            Err(AppendError::Conflict { expected, actual, .. }) => {
                Err(self.conflict_in_transaction(expected, actual))
            }
            Err(other) => Err(ExecuteError::Append(other)),
        }
    }

    async fn load_in(&self, connection: &mut PgConnection, upto: Version) -> Result<Loaded<A>, LoadError> {
        let mut loaded = Loaded::absent(self.id.clone());
        let events = self.loader.store.read_aggregate_in(connection, self.id.get(), upto);
        loaded.take_in_all(events).await?;
        Ok(loaded)
    }

    fn conflict_in_transaction(&self, expected: Version, actual: Version) -> ExecuteError<R> {
        let (aggregate_id, is_final) = (self.id.get().clone(), self.expected.is_some());
        ExecuteError::Conflict { aggregate_id, expected, actual, since: Vec::new(), is_final }
    }
}

impl<A: Aggregate> Planned<A> {
    /// # Errors
    /// What was appended are the events of the same command that were stored before.
    fn executed<R>(self, appended: Vec<Appended>) -> Result<Executed<A>, ExecuteError<R>> {
        if let Some(first) = appended.first().filter(|first| first.version != self.version.next()) {
            return Err(ExecuteError::Append(AppendError::UuidReused { uuid: first.uuid }));
        }
        let version = appended.last().map_or(self.version, |last| last.version);
        Ok(Executed { events: self.events, appended, version, state: self.state, is_repeated: false })
    }
}

impl<'r, S: EventStore, A: Aggregate, R: Send + 'r> IntoFuture for Execution<'r, S, A, R> {
    type Output = Result<Executed<A>, ExecuteError<R>>;
    type IntoFuture = BoxFuture<'r, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}
