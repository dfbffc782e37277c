//! Several aggregates in one append.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;

use futures_util::TryStreamExt as _;
use serde::Serialize;
use serde_json::value::to_raw_value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::command_id::CommandId;
use super::execution::Envelope;
use super::loader::Loader;
use super::loading::new_event;
use super::{Aggregate, CommitError, Context, Decide, ExecuteError, Id, LoadError, Loaded};
use crate::event::{AggregateId, Appended, Event, ExpectedVersion, NewEvent, Version};
use crate::store::{EventStore, PostgresEventStore, ReadError, Uncommitted};

/// Several aggregates, each loaded once, whose new events are appended together: all or none.
///
/// ```
/// # use espd::prelude::*;
/// # espd::event_set! { pub enum Moved { Added { amount: u32 }, Taken { amount: u32 } } }
/// # #[derive(Clone, Default)] struct Account { balance: i64 }
/// # impl Aggregate for Account {
/// #     type Event = Moved;
/// #     fn evolve(&mut self, event: &Moved) {
/// #         self.balance += match event {
/// #             Moved::Added(added) => i64::from(added.amount),
/// #             Moved::Taken(taken) => -i64::from(taken.amount),
/// #         }
/// #     }
/// # }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let repository = Repository::new(MemoryEventStore::new());
/// # let (mine, yours) = (Id::<Account>::generate(), Id::<Account>::generate());
/// let mut work = repository.unit_of_work();
/// work.load_all(&[mine.clone(), yours.clone()]).await?;
/// work.record(&mine, espd::events![Added { amount: 30 }, Taken { amount: 10 }]).await?;
/// work.record(&yours, espd::events![Added { amount: 10 }]).await?;
/// assert_eq!(work.load(&mine).await?.balance, 20);
/// work.commit().await?;
/// # Ok(()) }
/// ```
///
/// An aggregate that was only read is not looked at again: another writer may change it before the commit.
#[must_use = "nothing is stored before the commit"]
pub struct UnitOfWork<'r, S> {
    loader: &'r Loader<S>,
    /// One instance for each aggregate.
    loaded: HashMap<Key, Box<dyn Any + Send + Sync>>,
    envelope: Envelope,
    command_id: CommandId,
    /// In order, as they will be wrapped at the commit.
    kept: Vec<NewEvent>,
    /// The version that each changed aggregate will have.
    heads: HashMap<AggregateId, Version>,
    /// How many new ids decisions have asked for.
    ids_asked: u32,
}

/// Names an instance: the same stream may be read as two types.
type Key = (TypeId, AggregateId);

fn key<A: Aggregate>(id: &Id<A>) -> Key {
    (TypeId::of::<A>(), id.get().clone())
}

impl<'r, S: EventStore> UnitOfWork<'r, S> {
    pub(super) fn new(loader: &'r Loader<S>) -> Self {
        Self {
            loader,
            loaded: HashMap::new(),
            envelope: Envelope::default(),
            command_id: CommandId::new(Uuid::new_v4()),
            kept: Vec::new(),
            heads: HashMap::new(),
            ids_asked: 0,
        }
    }

    /// Gives the work an id, so that repeating it is harmless: ask [`Self::find_stored`] before deciding anything.
    pub fn command_id(mut self, id: Uuid) -> Self {
        self.command_id = CommandId::new(id);
        self
    }

    /// What work of this id has stored before, in order; nothing if it was never committed, or has led to no events.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn find_stored(&self) -> Result<Vec<Event>, ReadError> {
        self.command_id.find_events(&self.loader.store).await
    }

    /// Names the event that has led to this work: its conversation goes on.
    pub fn caused_by(mut self, event: &Event) -> Self {
        self.envelope.caused_by(event);
        self
    }

    /// Makes the events a part of a conversation.
    pub fn correlation_id(mut self, id: Uuid) -> Self {
        self.envelope.correlation_id = Some(id);
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

    /// The state of an aggregate, with what this unit of work has added. It is read from the store the first time only.
    ///
    /// # Errors
    /// The store cannot be read, or an event of the stream not be understood.
    pub async fn load<A: Aggregate>(&mut self, id: &Id<A>) -> Result<&A, LoadError> {
        Ok(&self.instance(id).await?.state)
    }

    /// Loads several aggregates that are not loaded yet: in PostgreSQL by one statement, but one after the other where they have snapshots.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn load_all<A: Aggregate>(&mut self, ids: &[Id<A>]) -> Result<(), LoadError> {
        if A::snapshots().is_some() && self.loader.snapshots.is_some() {
            for id in ids {
                self.instance(id).await?;
            }
            return Ok(());
        }
        let is_missing = |id: &&Id<A>| !self.loaded.contains_key(&key(id));
        let missing: Vec<&Id<A>> = ids.iter().filter(is_missing).collect();
        let absent = |id: &&Id<A>| (id.get().clone(), Loaded::absent((*id).clone()));
        let mut found: HashMap<AggregateId, Loaded<A>> = missing.iter().map(absent).collect();
        let wanted = found.keys().cloned().collect();
        let mut events = self.loader.store.read_aggregates(wanted);
        while let Some(event) = events.try_next().await? {
            if let Some(loaded) = found.get_mut(&event.aggregate_id) {
                loaded.take_in(&event)?;
            }
        }
        drop(events);
        self.loaded.extend(found.into_values().map(|loaded| (key(&loaded.id), Box::new(loaded) as _)));
        Ok(())
    }

    /// Has an aggregate decide about a command, and keeps the events for the commit.
    ///
    /// # Errors
    /// The command is refused, or the aggregate cannot be loaded. Then nothing of it is kept.
    pub async fn execute<A, C>(
        &mut self,
        id: &Id<A>,
        command: &C,
    ) -> Result<&A, ExecuteError<<A as Decide<C>>::Refusal>>
    where
        A: Aggregate + Decide<C>,
    {
        let (now, command_id, ids_asked) = (self.loader.now(), self.command_id, self.ids_asked);
        let loaded = self.instance(id).await?;
        let context = Context::new(id.get().clone(), loaded.version, now, command_id).after_ids(ids_asked);
        let events = loaded.state.decide(command, &context).map_err(ExecuteError::Refused)?;
        self.ids_asked = context.ids_asked();
        self.keep(id, &events).map_err(ExecuteError::Unwritable)?;
        Ok(&self.instance(id).await?.state)
    }

    /// Keeps events for the commit.
    ///
    /// # Errors
    /// The aggregate cannot be loaded, or an event not be written as JSON.
    pub async fn record<A: Aggregate>(
        &mut self,
        id: &Id<A>,
        events: Vec<A::Event>,
    ) -> Result<(), ExecuteError<std::convert::Infallible>> {
        self.instance(id).await?;
        self.keep(id, &events).map_err(ExecuteError::Unwritable)
    }

    /// What would be appended, in order.
    pub fn new_events(&self) -> Vec<NewEvent> {
        let wrap =
            |(ordinal, event): (u32, &NewEvent)| self.envelope.wrap(event.clone(), self.command_id, ordinal);
        (0..).zip(&self.kept).map(wrap).collect()
    }

    /// Appends everything, or nothing, and returns where it is stored. Work of the same id that was committed by another caller a moment ago
    /// is [`AppendError::UuidReused`](crate::store::AppendError::UuidReused), or the places of its events where they are the same.
    ///
    /// # Errors
    /// One of the changed aggregates has another version than when it was loaded, or the store refuses or cannot be reached. A new unit of
    /// work reads the newest states.
    pub async fn commit(self) -> Result<Vec<Appended>, CommitError> {
        Ok(self.loader.store.append(&self.new_events()).await?)
    }

    async fn instance<A: Aggregate>(&mut self, id: &Id<A>) -> Result<&mut Loaded<A>, LoadError> {
        if !self.loaded.contains_key(&key(id)) {
            let loaded = self.loader.load(id).await?;
            self.loaded.insert(key(id), Box::new(loaded));
        }
        Ok(self.find(id).expect("it was loaded just now"))
    }

    fn find<A: Aggregate>(&mut self, id: &Id<A>) -> Option<&mut Loaded<A>> {
        self.loaded.get_mut(&key(id))?.downcast_mut()
    }

    fn keep<A: Aggregate>(&mut self, id: &Id<A>, events: &[A::Event]) -> Result<(), serde_json::Error> {
        let created_at = self.loader.created_at();
        let new =
            events.iter().map(|event| new_event::<A>(id.get(), event)).collect::<Result<Vec<_>, _>>()?;
        let Some(loaded) = self.find(id) else { return Ok(()) };
        let before = loaded.version;
        events.iter().for_each(|event| loaded.state.evolve(event));
        loaded.version = before.advanced_by(i64::try_from(events.len()).unwrap_or(i64::MAX));
        // The stream may have been read as another type too: the events of both are counted together.
        let head = self.heads.entry(id.get().clone()).or_insert(before);
        for event in new {
            let expected_version = ExpectedVersion::Exact(*head);
            self.kept.push(NewEvent { created_at, expected_version, ..event });
            *head = head.next();
        }
        Ok(())
    }
}

impl UnitOfWork<'_, PostgresEventStore> {
    /// Appends in the caller's own transaction, so that tables of the application commit with the events, as
    /// [`PostgresEventStore::append_in`] does.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub async fn append_in(self, connection: &mut PgConnection) -> Result<Uncommitted, CommitError> {
        Ok(self.loader.store.append_in(connection, &self.new_events()).await?)
    }
}

impl<S> fmt::Debug for UnitOfWork<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (loaded, new_events) = (self.loaded.len(), &self.kept);
        f.debug_struct("UnitOfWork").field("loaded", &loaded).field("new_events", new_events).finish()
    }
}
