//! Loading: an aggregate is folded from its stream, event by event, so a huge one needs no more memory than its state.

use futures_util::TryStreamExt as _;
use futures_util::stream::BoxStream;

use super::{Aggregate, Id, LoadError, UnknownEvents};
use crate::event::{AggregateId, Event, EventSet, NewEvent, Position, Version};
use crate::store::ReadError;

/// An aggregate as it is at a version.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Loaded<A> {
    /// Which aggregate.
    pub id: Id<A>,
    /// The version that the state is folded up to; 0 if nothing has happened to the aggregate yet.
    pub version: Version,
    /// The id of the event of that version; 0 if there is none.
    pub position: Position,
    /// The state.
    pub state: A,
    /// The version of the snapshot that loading began with; 0 if with none.
    pub(super) snapshot: Version,
}

impl<A: Aggregate> Loaded<A> {
    /// The aggregate before its first event.
    pub(crate) fn absent(id: Id<A>) -> Self {
        Self {
            id,
            version: Version::NONE,
            position: Position::START,
            state: A::default(),
            snapshot: Version::NONE,
        }
    }

    /// Whether anything has happened to the aggregate.
    pub fn exists(&self) -> bool {
        self.version > Version::NONE
    }

    /// Takes in an event of the stream.
    pub(crate) fn take_in(&mut self, event: &Event) -> Result<(), LoadError> {
        evolve(&mut self.state, event)?;
        (self.version, self.position) = (event.version, event.id);
        Ok(())
    }

    /// Takes in a stream.
    pub(super) async fn take_in_all(
        &mut self,
        mut events: BoxStream<'_, Result<Event, ReadError>>,
    ) -> Result<(), LoadError> {
        while let Some(event) = events.try_next().await? {
            self.take_in(&event)?;
        }
        Ok(())
    }
}

/// An event of an aggregate, to be appended, with its tags and keys.
pub(crate) fn new_event<A: Aggregate>(
    aggregate_id: &AggregateId,
    event: &A::Event,
) -> Result<NewEvent, serde_json::Error> {
    let (tags, keys) = (A::tags(aggregate_id, event), A::keys(aggregate_id, event));
    Ok(NewEvent { tags, keys, ..event.to_new(aggregate_id.clone())? })
}

/// A stored event as one of the set; `None` if it is of no type of the set.
pub(super) fn read<E: EventSet>(event: &Event) -> Result<Option<E>, LoadError> {
    E::read(event).map_err(|source| unreadable(event, source))
}

/// Has a state take in an event.
pub(super) fn evolve<A: Aggregate>(state: &mut A, event: &Event) -> Result<(), LoadError> {
    match read::<A::Event>(event)? {
        Some(known) => state.evolve(&known),
        None if A::UNKNOWN_EVENTS == UnknownEvents::PassOver => {}
        None => return Err(unknown(event)),
    }
    Ok(())
}

fn unknown(event: &Event) -> LoadError {
    LoadError::UnknownType {
        aggregate_id: event.aggregate_id.clone(),
        position: event.id,
        event_type: event.event_type.clone(),
    }
}

fn unreadable(event: &Event, source: serde_json::Error) -> LoadError {
    LoadError::Unreadable {
        aggregate_id: event.aggregate_id.clone(),
        position: event.id,
        event_type: event.event_type.clone(),
        source,
    }
}
