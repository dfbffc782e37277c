//! Streams of events for tests of what reads them.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use uuid::Uuid;

use crate::aggregate::{Aggregate, Id};
use crate::event::{Event, EventSet as _, ExpectedVersion, NewEvent, Position, Version};
use crate::store::{AppendError, EventStore};

/// What has happened to an aggregate, as a store has it.
///
/// ```
/// use espd::aggregate::testing::stream;
/// use espd::prelude::*;
/// # espd::event_set! { pub enum BookEvent { BookLent { to: String }, BookReturned {} } }
/// # #[derive(Debug, Clone, Default)] struct Book;
/// # impl Aggregate for Book { type Event = BookEvent; fn evolve(&mut self, _: &BookEvent) {} }
///
/// let book = Id::<Book>::generate();
/// let events = stream(&book, espd::events![BookLent { to: "Ada".into() }, BookReturned {}]).stored();
/// assert_eq!((events[1].event_type.as_str(), events[1].version.get()), ("BookReturned", 2));
/// ```
pub fn stream<A: Aggregate>(id: &Id<A>, events: impl IntoIterator<Item = A::Event>) -> Stream {
    let new = |event: A::Event| event.to_new(id.get().clone()).expect("events can be written as JSON");
    Stream {
        events: events.into_iter().map(new).collect(),
        began: DateTime::UNIX_EPOCH,
        step: TimeDelta::seconds(1),
    }
}

/// Events of one aggregate or more, for a test: one second apart from 1970 on, each with an id that is the same in each run, unless said otherwise.
#[derive(Debug, Clone)]
#[must_use = "say what becomes of the events"]
pub struct Stream {
    events: Vec<NewEvent>,
    began: DateTime<Utc>,
    step: TimeDelta,
}

impl Stream {
    /// When the first has happened.
    pub fn since(self, began: DateTime<Utc>) -> Self {
        Self { began, ..self }
    }

    /// How far they are apart.
    pub fn every(self, step: TimeDelta) -> Self {
        Self { step, ..self }
    }

    /// What all of them have as metadata.
    ///
    /// # Panics
    /// It cannot be written as JSON.
    pub fn metadata(mut self, metadata: &impl Serialize) -> Self {
        let metadata: Box<RawValue> = to_raw_value(metadata).expect("metadata can be written as JSON");
        self.events.iter_mut().for_each(|event| event.metadata.clone_from(&metadata));
        self
    }

    /// What all of them belong to.
    pub fn correlation_id(mut self, id: Uuid) -> Self {
        self.events.iter_mut().for_each(|event| event.correlation_id = Some(id));
        self
    }

    /// And what has happened to another aggregate, or the same one, after that.
    pub fn and(mut self, later: Self) -> Self {
        self.events.extend(later.events);
        self
    }

    /// The events, to be appended: each has its time and its uuid, and expects the version that it comes after.
    pub fn new_events(self) -> Vec<NewEvent> {
        let versions = self.versions();
        let events = self.events.into_iter().zip(versions).zip(0..);
        let dated = events.map(|((event, version), n): (_, i32)| NewEvent {
            uuid: Uuid::new_v5(
                &Uuid::NAMESPACE_OID,
                format!("{} {}", event.aggregate_id, version.get()).as_bytes(),
            ),
            expected_version: ExpectedVersion::Exact(Version::from(version.get() - 1)),
            created_at: Some(self.began + self.step * n),
            ..event
        });
        dated.collect()
    }

    /// The events as an empty store would have them after the append.
    pub fn stored(self) -> Vec<Event> {
        let versions = self.versions();
        let events = self.new_events().into_iter().zip(versions).zip(1..);
        events.map(|((event, version), id)| stored(event, version, Position::from(id))).collect()
    }

    /// Appends the events to a store, and returns them as it has them.
    ///
    /// # Errors
    /// As of [`EventStore::append`]; a conflict if something has happened to one of the aggregates.
    pub async fn append_to(self, store: &impl EventStore) -> Result<Vec<Event>, AppendError> {
        let events = self.new_events();
        let appended = store.append(&events).await?;
        Ok(events.into_iter().zip(appended).map(|(event, at)| stored(event, at.version, at.id)).collect())
    }

    /// The version of the aggregate after each event.
    fn versions(&self) -> Vec<Version> {
        let version = |n: usize| {
            let id = &self.events[n].aggregate_id;
            let before = self.events[..n].iter().filter(|earlier| earlier.aggregate_id == *id).count();
            Version::from(i64::try_from(before).unwrap_or(i64::MAX - 1) + 1)
        };
        (0..self.events.len()).map(version).collect()
    }
}

fn stored(event: NewEvent, version: Version, id: Position) -> Event {
    Event {
        id,
        uuid: event.uuid,
        aggregate_id: event.aggregate_id,
        event_type: event.event_type,
        version,
        body: event.body,
        metadata: event.metadata,
        correlation_id: event.correlation_id,
        causation_id: event.causation_id,
        created_at: event.created_at.unwrap_or_default().into(),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::store::MemoryEventStore;

    crate::event_set! { enum BookEvent { BookReturned {} } }

    #[derive(Debug, Clone, Default)]
    struct Book;

    impl Aggregate for Book {
        type Event = BookEvent;

        fn evolve(&mut self, _: &BookEvent) {}
    }

    #[test]
    fn a_stream_is_what_a_store_would_have() {
        let (one, other) = (Id::<Book>::new(Uuid::from_u128(1)), Id::<Book>::new(Uuid::from_u128(2)));
        let made = stream(&one, [BookReturned {}.into(), BookReturned {}.into()])
            .and(stream(&other, [BookReturned {}.into()]))
            .and(stream(&one, [BookReturned {}.into()]));
        let versions = |events: &[Event]| events.iter().map(|one| one.version.get()).collect::<Vec<_>>();
        let ids = |events: &[Event]| events.iter().map(|one| (one.id, one.uuid)).collect::<Vec<_>>();
        let stored = made.clone().stored();
        assert_eq!(versions(&stored), [1, 2, 1, 3]);
        let appended = made.append_to(&MemoryEventStore::new()).now_or_never().unwrap().unwrap();
        assert_eq!((ids(&appended), versions(&appended)), (ids(&stored), versions(&stored)));
    }
}
