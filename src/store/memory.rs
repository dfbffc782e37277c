//! The event store in memory.

mod tags;

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::watch;
use uuid::Uuid;

use super::appended_hook::AppendedHook;
use super::codec::{BodyCodec, Codec};
use super::event_stream::Watching;
use super::horizon::Horizon;
use super::normalized::{Json, find_appended, normalize, now, place, refuse_repeated_uuids};
use super::{
    AppendCondition, AppendError, ConsistencyToken, EventStore, EventStream, ReadError, TagQuery,
    TaggedEvents, validity,
};
use crate::event::{AggregateId, Appended, Event, NewEvent, Position, Version};
use tags::Tags;

/// An event store in memory, for tests and examples. Clones are the same store.
///
/// It behaves as [`super::PostgresEventStore`] does: it keeps JSON as jsonb would, takes events with the same uuid for
/// the same event, and checks expected versions in the same way. Its ids have no holes.
#[derive(Debug, Clone, Default)]
pub struct MemoryEventStore {
    shared: Arc<Shared>,
    codec: Codec,
    on_appended: AppendedHook,
}

/// What the clones of a store share.
#[derive(Debug)]
struct Shared {
    events: Mutex<Events>,
    /// Written by appends, read by streams. Everything is settled at once.
    horizon: watch::Sender<Horizon>,
    /// Never changes: there is no connection to be made anew.
    control: watch::Sender<u64>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { events: Mutex::default(), horizon: watch::Sender::default(), control: watch::Sender::new(1) }
    }
}

impl MemoryEventStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same store, whose bodies are encoded when they are appended and decoded when they are read.
    pub fn with_codec(self, codec: impl BodyCodec) -> Self {
        Self { codec: Codec::new(codec), ..self }
    }

    /// The same store, which calls `hook` with the stored events after each append, as
    /// [`super::PostgresEventStore::on_appended`] says.
    #[must_use]
    pub fn on_appended(self, hook: impl Fn(&[Event]) + Send + Sync + 'static) -> Self {
        Self { on_appended: AppendedHook::new(hook), ..self }
    }

    /// The same store, whose bodies are those that are stored, and which calls no hook.
    pub(crate) fn as_stored(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), ..Self::default() }
    }

    /// Whether an event is stored.
    pub(crate) fn is_stored(&self, uuid: Uuid) -> bool {
        self.events().ids.contains_key(&uuid)
    }

    /// Appends those of the events, as they are stored, that are not stored yet: all of them or nothing.
    pub(crate) fn append_missing(&self, events: &[NewEvent]) -> Result<Vec<Appended>, AppendError> {
        let mut stored = self.events();
        let missing: Vec<NewEvent> =
            events.iter().filter(|event| !stored.ids.contains_key(&event.uuid)).cloned().collect();
        validity::check(&missing)?;
        self.store(&mut stored, &missing, None)
    }

    fn store(
        &self,
        stored: &mut Events,
        events: &[NewEvent],
        condition: Option<&AppendCondition>,
    ) -> Result<Vec<Appended>, AppendError> {
        let appended = stored.append(events, condition)?;
        let head = stored.by_id.last().map_or(Position::START, |last| last.id);
        self.shared.horizon.send_replace(Horizon { head, settled: head, ..Horizon::default() });
        Ok(appended)
    }

    fn tell_appended(&self, appended: &[Appended]) {
        if !self.on_appended.is_set() || appended.is_empty() {
            return;
        }
        let stored: Vec<Event> = {
            let events = self.events();
            let is_new = |event: &&Event| appended.iter().any(|new| new.id == event.id);
            events.by_id.iter().filter(is_new).cloned().collect()
        };
        let decoded: Result<Vec<Event>, ReadError> =
            stored.into_iter().map(|event| self.codec.decode(event)).collect();
        match decoded {
            Ok(events) => self.on_appended.call(&events),
            Err(error) => {
                tracing::error!(%error, "on_appended is not called: the events could not be read again")
            }
        }
    }

    fn events(&self) -> MutexGuard<'_, Events> {
        // An append changes nothing before it has succeeded, so a panic leaves nothing half done.
        self.shared.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the store, as [`PostgresEventStore::subscribe`](super::PostgresEventStore::subscribe) does.
    pub fn subscribe(&self, event_types: Option<&[String]>, after: Option<Position>) -> EventStream {
        let shared = Arc::clone(&self.shared);
        let watch = move || {
            let (_, reachable) = watch::channel(None);
            Watching::of(shared.horizon.subscribe(), shared.control.subscribe(), reachable)
        };
        EventStream::new(self.clone(), watch, event_types, after)
    }

    /// Streams what is stored now, in the order of ids, from and to these places.
    fn stream(
        &self,
        (from, to): (Position, Position),
        wanted: impl Fn(&Event) -> bool + Send + 'static,
    ) -> BoxStream<'static, Result<Event, ReadError>> {
        let places = self.events().places(from, to);
        let pages = Pages { store: self.clone(), wanted, places, page: VecDeque::new() };
        let codec = self.codec.clone();
        stream::iter(pages).map(move |event| codec.decode(event)).boxed()
    }
}

/// The most events that a stream copies at a time.
const PAGE_EVENTS: usize = 100;

/// Copies the wanted events page by page, so that a stream never holds all of them.
struct Pages<F> {
    store: MemoryEventStore,
    wanted: F,
    /// The indexes that are still to be looked at.
    places: Range<usize>,
    page: VecDeque<Event>,
}

impl<F: Fn(&Event) -> bool> Iterator for Pages<F> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.page.is_empty() {
            let events = self.store.events();
            let wanted = |place: &usize| (self.wanted)(&events.by_id[*place]);
            let found: Vec<usize> = self.places.by_ref().filter(wanted).take(PAGE_EVENTS).collect();
            self.page = found.into_iter().map(|place| events.by_id[place].clone()).collect();
        }
        self.page.pop_front()
    }
}

#[async_trait]
impl EventStore for MemoryEventStore {
    async fn append(&self, events: &[NewEvent]) -> Result<Vec<Appended>, AppendError> {
        let events = &*self.codec.encode_all(events).await?;
        validity::check(events)?;
        let appended = self.store(&mut self.events(), events, None)?;
        self.tell_appended(&appended);
        Ok(appended)
    }

    async fn append_if(
        &self,
        events: &[NewEvent],
        condition: &AppendCondition,
    ) -> Result<Vec<Appended>, AppendError> {
        condition.check()?;
        let events = &*self.codec.encode_all(events).await?;
        validity::check(events)?;
        let appended = self.store(&mut self.events(), events, Some(condition))?;
        self.tell_appended(&appended);
        Ok(appended)
    }

    async fn read_tagged(
        &self,
        query: &TagQuery,
        since: Option<&ConsistencyToken>,
    ) -> Result<TaggedEvents, ReadError> {
        if let Some(reason) = query.find_fault().or_else(|| since.and_then(ConsistencyToken::find_fault)) {
            return Err(ReadError::Refused { reason });
        }
        let stored = self.events();
        let ids = stored.tags.find(query, since.unwrap_or(&ConsistencyToken::default()), |id| stored.at(id));
        let events = ids.into_iter().filter_map(|id| stored.at(id)).cloned();
        let events = events.map(|event| self.codec.decode(event)).collect::<Result<_, _>>()?;
        Ok(TaggedEvents { events, token: stored.tags.token(query) })
    }

    async fn read_after(
        &self,
        position: Position,
        upto: Option<Position>,
        event_types: Option<&[String]>,
        limit: i64,
    ) -> Result<Vec<Event>, ReadError> {
        let events = self.events();
        let places = events.places(position.next(), upto.unwrap_or(Position::MAX));
        let found = events.by_id[places].iter().filter(|event| is_one_of(event_types, event));
        let found = found.take(usize::try_from(limit).unwrap_or(0)).cloned();
        found.map(|event| self.codec.decode(event)).collect()
    }

    fn read_aggregate(
        &self,
        aggregate_id: AggregateId,
        from: Version,
        to: Option<Version>,
    ) -> BoxStream<'_, Result<Event, ReadError>> {
        let to = to.unwrap_or(Version::MAX);
        let within = move |version| from <= version && version <= to;
        self.stream(ALL, move |event| event.aggregate_id == aggregate_id && within(event.version))
    }

    async fn read_uuids(&self, uuids: &[Uuid]) -> Result<Vec<Event>, ReadError> {
        let events = self.events();
        let mut found: Vec<&Event> = uuids.iter().filter_map(|uuid| events.find(*uuid)).collect();
        found.sort_unstable_by_key(|event| event.id);
        found.dedup_by_key(|event| event.id);
        found.into_iter().map(|event| self.codec.decode(event.clone())).collect()
    }

    fn read_aggregate_until(
        &self,
        aggregate_id: AggregateId,
        time: DateTime<Utc>,
    ) -> BoxStream<'_, Result<Event, ReadError>> {
        let is_its = move |event: &Event| event.aggregate_id == aggregate_id;
        let last = self.events().find_last(|event| is_its(event) && event.created_at <= time);
        self.stream((Position::START, last), is_its)
    }

    fn read_correlation(&self, correlation_id: Uuid) -> BoxStream<'_, Result<Event, ReadError>> {
        self.stream(ALL, move |event| {
            event.correlation_id == Some(correlation_id) || event.uuid == correlation_id
        })
    }

    fn read_range(
        &self,
        from: Position,
        to: Position,
        event_types: Option<Vec<String>>,
    ) -> BoxStream<'_, Result<Event, ReadError>> {
        self.stream((from, to), move |event| is_one_of(event_types.as_deref(), event))
    }

    async fn position_at(&self, time: DateTime<Utc>) -> Result<Position, ReadError> {
        Ok(self.events().find_last(|event| event.created_at <= time))
    }

    async fn latest_id(&self, event_types: Option<&[String]>) -> Result<Position, ReadError> {
        Ok(self.events().find_last(|event| is_one_of(event_types, event)))
    }
}

fn is_one_of(event_types: Option<&[String]>, event: &Event) -> bool {
    event_types.is_none_or(|types| types.contains(&event.event_type))
}

/// Every place.
const ALL: (Position, Position) = (Position::START, Position::MAX);

/// The events, and indexes on them.
#[derive(Debug, Default)]
struct Events {
    /// In the order of ids, which are 1, 2, 3 …, and therefore in the order of versions too.
    by_id: Vec<Event>,
    ids: HashMap<Uuid, Position>,
    heads: HashMap<AggregateId, Version>,
    tags: Tags,
}

impl Events {
    /// The indexes of the events with `from <= id <= to`.
    fn places(&self, from: Position, to: Position) -> Range<usize> {
        let index = |id: Position| usize::try_from(id.previous().get()).unwrap_or(0).min(self.by_id.len());
        let (from, end) = (index(from), index(to.next()));
        from..if to == Position::MAX { self.by_id.len() } else { end.max(from) }
    }

    /// The id of the last such event; 0 if there is none.
    fn find_last(&self, wanted: impl Fn(&Event) -> bool) -> Position {
        self.by_id.iter().rfind(|event| wanted(event)).map_or(Position::START, |event| event.id)
    }

    fn append(
        &mut self,
        events: &[NewEvent],
        condition: Option<&AppendCondition>,
    ) -> Result<Vec<Appended>, AppendError> {
        let bodies = normalize(events)?;
        refuse_repeated_uuids(events)?;
        if let Some(appended) = find_appended(events, |uuid| self.find(uuid))? {
            self.tags.refuse_others(events, &appended)?;
            return Ok(appended);
        }
        if let Some(condition) = condition {
            self.tags.check(condition, |id| self.at(id))?;
        }
        let owners = self.tags.change_keys(events)?;
        let versions = place(events, |id| self.heads.get(id).copied().unwrap_or(Version::NONE))?;
        self.tags.set_owners(owners);
        let stored = events.iter().zip(bodies).zip(versions);
        Ok(stored
            .map(|((event, (body, metadata)), version)| self.store(event, version, body, metadata))
            .collect())
    }

    /// What is stored under a uuid.
    fn find(&self, uuid: Uuid) -> Option<&Event> {
        self.at(*self.ids.get(&uuid)?)
    }

    fn at(&self, id: Position) -> Option<&Event> {
        self.by_id.get(usize::try_from(id.previous().get()).ok()?)
    }

    fn store(&mut self, event: &NewEvent, version: Version, body: Json, metadata: Json) -> Appended {
        let id = i64::try_from(self.by_id.len()).map_or(Position::MAX, |length| Position::new(length).next());
        self.ids.insert(event.uuid, id);
        self.heads.insert(event.aggregate_id.clone(), version);
        self.tags.add(id, &event.tags);
        self.by_id.push(Event {
            id,
            uuid: event.uuid,
            aggregate_id: event.aggregate_id.clone(),
            event_type: event.event_type.clone(),
            version,
            body,
            metadata,
            correlation_id: event.correlation_id,
            causation_id: event.causation_id,
            created_at: event.kept_created_at().unwrap_or_else(now).into(),
        });
        Appended { id, uuid: event.uuid, version }
    }
}
