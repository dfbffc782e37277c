//! Decides which event may be sent next: in order within an aggregate, concurrently across aggregates.
//!
//! The schedule is pure: what has happened and the current time arrive as arguments. The events of each aggregate form a
//! queue. Only the first event of a queue is ever sent, and it leaves the queue when its completion is committed. Whatever
//! is repeated after a crash is therefore the last event that the receiver has seen of that aggregate. A failed event holds
//! up its own queue and no other.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use crate::event::{AggregateId, Position};

/// Events that have been read and whose completion is not committed.
#[derive(Debug, Clone)]
pub(crate) struct Schedule<T> {
    events: BTreeMap<Position, ScheduledEvent<T>>,
    /// The events of each aggregate, in order.
    queues: HashMap<AggregateId, VecDeque<Position>>,
    // The events of each state; those that wait for an earlier event have no list.
    ready: BTreeSet<Position>,
    postponed: BTreeSet<(Instant, Position)>,
    done: BTreeSet<Position>,
    under_way: usize,
    weight: usize,
}

#[derive(Debug, Clone)]
struct ScheduledEvent<T> {
    aggregate: AggregateId,
    state: DeliveryState,
    weight: usize,
    content: T,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DeliveryState {
    /// For an earlier event of the aggregate.
    Waiting,
    Ready,
    UnderWay,
    Postponed(Instant),
    /// Until its completion is committed.
    Done,
}

impl<T> Default for Schedule<T> {
    fn default() -> Self {
        Self {
            events: BTreeMap::new(),
            queues: HashMap::new(),
            ready: BTreeSet::new(),
            postponed: BTreeSet::new(),
            done: BTreeSet::new(),
            under_way: 0,
            weight: 0,
        }
    }
}

impl<T> Schedule<T> {
    /// Adds an event behind all others. `until` is the time of its next attempt, if it has failed before; `weight` is its
    /// share of [`Self::weight`].
    pub(crate) fn insert(
        &mut self,
        id: Position,
        aggregate: AggregateId,
        content: T,
        weight: usize,
        until: Option<Instant>,
    ) {
        let queue = self.queues.entry(aggregate.clone()).or_default();
        let first = queue.is_empty();
        queue.push_back(id);
        self.weight += weight;
        self.events.insert(id, ScheduledEvent { aggregate, state: DeliveryState::Waiting, weight, content });
        match until {
            _ if !first => {}
            None => self.enter(id, DeliveryState::Ready),
            Some(until) => self.enter(id, DeliveryState::Postponed(until)),
        }
    }

    /// Takes the next event to send. From now on it is under way.
    pub(crate) fn take_ready(&mut self, now: Instant) -> Option<Position> {
        while let Some((_, id)) = self.postponed.first().copied().filter(|(until, _)| *until <= now) {
            self.enter(id, DeliveryState::Ready);
        }
        let id = self.ready.first().copied()?;
        self.enter(id, DeliveryState::UnderWay);
        Some(id)
    }

    /// Records that an event need not be sent any more. Its queue moves on after [`Self::remove`].
    pub(crate) fn complete(&mut self, id: Position) {
        self.enter(id, DeliveryState::Done);
    }

    /// Makes an event ready again whose attempt had no result.
    pub(crate) fn release(&mut self, id: Position) {
        self.enter(id, DeliveryState::Ready);
    }

    /// Takes note that an event is under way already.
    pub(crate) fn mark_under_way(&mut self, id: Position) {
        self.enter(id, DeliveryState::UnderWay);
    }

    /// Postpones an event until its next attempt. Its queue waits meanwhile.
    pub(crate) fn postpone(&mut self, id: Position, until: Instant) {
        self.enter(id, DeliveryState::Postponed(until));
    }

    /// Makes all postponed events ready.
    pub(crate) fn make_all_due(&mut self) {
        for (_, id) in std::mem::take(&mut self.postponed) {
            self.enter(id, DeliveryState::Ready);
        }
    }

    /// The events before an event in its queue, in order.
    pub(crate) fn before(&self, id: Position) -> impl Iterator<Item = Position> {
        let queue = self.events.get(&id).and_then(|event| self.queues.get(&event.aggregate));
        queue.into_iter().flatten().copied().filter(move |other| *other < id)
    }

    /// The events behind an event in its queue, in order.
    pub(crate) fn behind(&self, id: Position) -> impl Iterator<Item = Position> {
        let queue = self.events.get(&id).and_then(|event| self.queues.get(&event.aggregate));
        queue.into_iter().flatten().copied().filter(move |other| *other > id)
    }

    /// Removes these of the completed events, now that they are committed. The next event of each queue becomes ready.
    pub(crate) fn remove(&mut self, committed: &[Position]) {
        for id in committed.iter().copied() {
            if !self.done.remove(&id) {
                continue;
            }
            let Some(event) = self.events.remove(&id) else { continue };
            self.weight -= event.weight;
            let Some(queue) = self.queues.get_mut(&event.aggregate) else { continue };
            queue.retain(|other| *other != id);
            match queue.front().copied() {
                None => drop(self.queues.remove(&event.aggregate)),
                Some(next) if self.state(next) == Some(DeliveryState::Waiting) => {
                    self.enter(next, DeliveryState::Ready)
                }
                Some(_) => {}
            }
        }
    }

    /// The position up to which all events are completed, of all events up to `seen`.
    pub(crate) fn completed_upto(&self, seen: Position) -> Position {
        let open = self.events.iter().find(|(_, event)| event.state != DeliveryState::Done);
        open.map_or(seen, |(id, _)| id.previous())
    }

    /// The events under way.
    pub(crate) fn all_under_way(&self) -> impl Iterator<Item = Position> {
        let events = self.events.iter();
        events.filter(|(_, event)| event.state == DeliveryState::UnderWay).map(|(id, _)| *id)
    }

    /// The completed events that are not committed.
    pub(crate) fn completed(&self) -> impl Iterator<Item = Position> {
        self.done.iter().copied()
    }

    /// The postponed event that is due first, and when.
    pub(crate) fn next_due(&self) -> Option<(Instant, Position)> {
        self.postponed.first().copied()
    }

    /// When an event is tried again, if it is postponed.
    pub(crate) fn postponed_until(&self, id: Position) -> Option<Instant> {
        match self.state(id) {
            Some(DeliveryState::Postponed(until)) => Some(until),
            _ => None,
        }
    }

    /// Whether any event can be sent.
    pub(crate) fn has_ready(&self, now: Instant) -> bool {
        !self.ready.is_empty() || self.postponed.first().is_some_and(|(until, _)| *until <= now)
    }

    /// The number of events that are ready.
    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// The number of events under way.
    pub(crate) fn under_way(&self) -> usize {
        self.under_way
    }

    /// The number of events.
    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    /// The sum of the weights of all events.
    pub(crate) fn weight(&self) -> usize {
        self.weight
    }

    /// The content of an event.
    pub(crate) fn get(&self, id: Position) -> Option<&T> {
        self.events.get(&id).map(|event| &event.content)
    }

    /// The content of an event, to be changed.
    pub(crate) fn get_mut(&mut self, id: Position) -> Option<&mut T> {
        self.events.get_mut(&id).map(|event| &mut event.content)
    }

    fn state(&self, id: Position) -> Option<DeliveryState> {
        self.events.get(&id).map(|event| event.state)
    }

    /// Moves an event to another state, and from the list of its state to that of the other.
    fn enter(&mut self, id: Position, state: DeliveryState) {
        let Some(event) = self.events.get_mut(&id) else { return };
        match std::mem::replace(&mut event.state, state) {
            DeliveryState::Waiting => {}
            DeliveryState::Ready => drop(self.ready.remove(&id)),
            DeliveryState::UnderWay => self.under_way -= 1,
            DeliveryState::Postponed(until) => drop(self.postponed.remove(&(until, id))),
            DeliveryState::Done => drop(self.done.remove(&id)),
        }
        match state {
            DeliveryState::Waiting => {}
            DeliveryState::Ready => drop(self.ready.insert(id)),
            DeliveryState::UnderWay => self.under_way += 1,
            DeliveryState::Postponed(until) => drop(self.postponed.insert((until, id))),
            DeliveryState::Done => drop(self.done.insert(id)),
        }
    }
}
