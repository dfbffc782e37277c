//! Traces: what has led to an event, and what the event has led to.
//!
//! An event names its cause by `causation_id`. No index serves that column, because every append of an event with a cause would
//! pay for it. What an event has led to is looked for in its conversation, which an index serves: reactors, workflows and
//! commands hand the correlation on.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use futures_util::TryStreamExt as _;
use serde::Serialize;
use uuid::Uuid;

use super::{EventStore, ReadError};
use crate::event::{Event, Position};

/// How far a trace goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceLimits {
    /// The most events of a trace.
    pub events: usize,
    /// The most causes above the event, and the most levels below the first cause.
    pub depth: usize,
    /// Whether effects are also looked for outside of the conversation. That reads the whole store from the first cause on.
    pub everywhere: bool,
}

impl Default for TraceLimits {
    /// A thousand events, a hundred levels, within the conversation.
    fn default() -> Self {
        Self { events: 1_000, depth: 100, everywhere: false }
    }
}

/// A tree of events: from the first cause of one of them down to all effects.
#[derive(Debug, Clone, Serialize)]
pub struct Trace {
    /// The event that was asked for. It is among `events`.
    pub asked: Uuid,
    /// What the first cause names as its own cause and is no event of the store: a command, an event that was deleted, an
    /// event of another store. `None`: the first cause names none.
    pub cause: Option<Uuid>,
    /// The events, each behind its cause and before what comes after both.
    pub events: Vec<TracedEvent>,
    /// Whether a limit has left something out.
    pub is_cut: bool,
}

/// An event in a trace.
#[derive(Debug, Clone, Serialize)]
pub struct TracedEvent {
    /// How many causes it has above it in the trace.
    pub depth: usize,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}

/// Walks from an event up to its first cause, and from there down to everything that this has led to. `None`: no event has the
/// uuid.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use espd::prelude::*;
/// use espd::store::{TraceLimits, trace};
/// # let body = || serde_json::value::RawValue::from_string("{}".to_owned()).unwrap();
///
/// let store = MemoryEventStore::new();
/// let ordered = NewEvent::new(Uuid::new_v4(), "Ordered", body());
/// let mut paid = NewEvent::new(Uuid::new_v4(), "Paid", body());
/// (paid.causation_id, paid.correlation_id) = (Some(ordered.uuid), Some(ordered.uuid));
/// store.append(&[ordered, paid.clone()]).await?;
///
/// let trace = trace(&store, paid.uuid, TraceLimits::default()).await?.expect("it is stored");
/// let lines = trace.events.iter().map(|traced| format!("{} {}", traced.depth, traced.event.event_type));
/// assert_eq!(lines.collect::<Vec<_>>(), ["0 Ordered", "1 Paid"]);
/// # Ok(()) }
/// ```
///
/// # Errors
/// The store cannot be read.
pub async fn trace(
    store: &dyn EventStore,
    event: Uuid,
    limits: TraceLimits,
) -> Result<Option<Trace>, ReadError> {
    let Some(found) = find(store, event).await? else { return Ok(None) };
    let mut walk =
        Walk { store, limits, events: HashMap::new(), conversations: VecDeque::new(), is_cut: false };
    let (first, cause) = walk.up(found).await?;
    walk.down(cause).await?;
    if limits.everywhere {
        walk.search_everywhere(first, cause).await?;
    }
    Ok(Some(walk.into_trace(event, first, cause)))
}

async fn find(store: &dyn EventStore, uuid: Uuid) -> Result<Option<Event>, ReadError> {
    Ok(store.read_uuids(&[uuid]).await?.into_iter().next())
}

/// What is known of a trace while it is made.
struct Walk<'s> {
    store: &'s dyn EventStore,
    limits: TraceLimits,
    events: HashMap<Uuid, Event>,
    /// The correlations that are still to be read.
    conversations: VecDeque<Uuid>,
    is_cut: bool,
}

/// How many events of a conversation are read for each that a trace may have.
const READ_FACTOR: usize = 10;

impl Walk<'_> {
    /// Takes the event and its causes. Returns the first one, and what that names as its cause and is no event.
    async fn up(&mut self, event: Event) -> Result<(Uuid, Option<Uuid>), ReadError> {
        let mut first = event;
        for _ in 0..self.limits.depth {
            let (uuid, cause) = (first.uuid, first.causation_id);
            self.take(first);
            let Some(cause) = cause.filter(|cause| !self.events.contains_key(cause)) else {
                return Ok((uuid, None));
            };
            match find(self.store, cause).await? {
                Some(event) => first = event,
                None => return Ok((uuid, Some(cause))),
            }
        }
        self.is_cut = true;
        let uuid = first.uuid;
        self.take(first);
        Ok((uuid, None))
    }

    fn take(&mut self, event: Event) {
        self.conversations.push_back(event.correlation_id.unwrap_or(event.uuid));
        self.events.insert(event.uuid, event);
    }

    /// Takes the effects of the events, and of the cause that is no event, from the conversations that they belong to.
    async fn down(&mut self, cause: Option<Uuid>) -> Result<(), ReadError> {
        let mut read = HashSet::new();
        let mut effects: HashMap<Uuid, Vec<Event>> = HashMap::new();
        let mut causes: VecDeque<Uuid> = cause.into_iter().chain(self.events.keys().copied()).collect();
        let mut looked_at = causes.clone();
        while let Some(conversation) = self.conversations.pop_front() {
            if read.insert(conversation) {
                self.read(conversation, &mut effects).await?;
                // What was read now may have been caused by what was looked at before.
                causes.extend(looked_at.iter().copied());
            }
            while let Some(cause) = causes.pop_front() {
                for effect in effects.remove(&cause).unwrap_or_default() {
                    let uuid = effect.uuid;
                    if self.take_within_limit(effect) {
                        causes.push_back(uuid);
                        looked_at.push_back(uuid);
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds the events of a conversation to those that something has led to.
    async fn read(
        &mut self,
        conversation: Uuid,
        effects: &mut HashMap<Uuid, Vec<Event>>,
    ) -> Result<(), ReadError> {
        let mut left = self.limits.events.saturating_mul(READ_FACTOR);
        let mut events = self.store.read_correlation(conversation);
        while let Some(event) = events.try_next().await? {
            if let Some(cause) = event.causation_id {
                effects.entry(cause).or_default().push(event);
            }
            left -= 1;
            if left == 0 {
                self.is_cut = true;
                break;
            }
        }
        Ok(())
    }

    /// Takes an event that is new, if there is room. Returns whether it was taken.
    fn take_within_limit(&mut self, event: Event) -> bool {
        if self.events.contains_key(&event.uuid) {
            return false;
        }
        if self.events.len() >= self.limits.events {
            self.is_cut = true;
            return false;
        }
        self.take(event);
        true
    }

    /// Takes every later event that one of those taken has led to. A cause has a lower id than its effect.
    async fn search_everywhere(&mut self, first: Uuid, cause: Option<Uuid>) -> Result<(), ReadError> {
        let from = if cause.is_some() { Position::START } else { self.events[&first].id };
        let mut events = self.store.read_range(from, Position::MAX, None);
        while let Some(event) = events.try_next().await? {
            let is_effect =
                event.causation_id.is_some_and(|id| Some(id) == cause || self.events.contains_key(&id));
            if is_effect {
                self.take_within_limit(event);
            }
        }
        Ok(())
    }

    fn into_trace(mut self, asked: Uuid, first: Uuid, cause: Option<Uuid>) -> Trace {
        let mut effects: HashMap<Uuid, BTreeMap<Position, Uuid>> = HashMap::new();
        for event in self.events.values() {
            if let Some(cause) = event.causation_id {
                effects.entry(cause).or_default().insert(event.id, event.uuid);
            }
        }
        let roots = cause.and_then(|cause| effects.remove(&cause));
        let roots = roots.map_or_else(|| vec![first], |roots| roots.into_values().collect());
        let mut open: Vec<(usize, Uuid)> = roots.into_iter().rev().map(|root| (0, root)).collect();
        let mut events = Vec::new();
        while let Some((depth, uuid)) = open.pop() {
            let Some(event) = self.events.remove(&uuid) else { continue };
            events.push(TracedEvent { depth, event });
            let below = effects.remove(&uuid).unwrap_or_default();
            if depth >= self.limits.depth {
                self.is_cut |= !below.is_empty();
                continue;
            }
            open.extend(below.into_values().rev().map(|effect| (depth + 1, effect)));
        }
        Trace { asked, cause, events, is_cut: self.is_cut }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::event::NewEvent;
    use crate::store::MemoryEventStore;

    /// An event whose uuid, cause and correlation are these numbers; 0: none.
    fn event(uuid: u128, cause: u128, correlation: u128) -> NewEvent {
        let some = |number: u128| (number > 0).then(|| Uuid::from_u128(number));
        let body = RawValue::from_string("{}".to_owned()).expect("JSON");
        let event = NewEvent::new(Uuid::new_v4(), "A", body);
        let uuid = Uuid::from_u128(uuid);
        NewEvent { uuid, causation_id: some(cause), correlation_id: some(correlation), ..event }
    }

    async fn traced(events: &[NewEvent], of: u128, limits: TraceLimits) -> (Vec<(usize, u128)>, Trace) {
        let store = MemoryEventStore::new();
        store.append(events).await.expect("they are appended");
        let trace = trace(&store, Uuid::from_u128(of), limits).await.expect("it is read");
        let trace = trace.expect("it is stored");
        let lines = trace.events.iter().map(|traced| (traced.depth, traced.event.uuid.as_u128()));
        (lines.collect(), trace)
    }

    #[tokio::test]
    async fn a_trace_has_the_causes_and_all_effects() {
        let conversation = [
            event(1, 0, 0),
            event(2, 1, 1),
            event(3, 2, 1),
            event(4, 1, 1),
            event(5, 3, 1),
            event(6, 0, 1),
            event(7, 6, 1),
        ];
        let tree = vec![(0, 1), (1, 2), (2, 3), (3, 5), (1, 4)];
        for of in [1, 2, 5, 4] {
            let (lines, trace) = traced(&conversation, of, TraceLimits::default()).await;
            assert_eq!(lines, tree, "{of}");
            assert!(!trace.is_cut && trace.cause.is_none() && trace.asked == Uuid::from_u128(of));
        }
    }

    #[tokio::test]
    async fn a_cause_that_is_no_event_is_told_with_all_that_it_led_to() {
        let events = [event(1, 90, 80), event(2, 90, 80), event(3, 2, 80), event(4, 91, 80)];
        let (lines, trace) = traced(&events, 3, TraceLimits::default()).await;
        assert_eq!(lines, [(0, 1), (0, 2), (1, 3)]);
        assert_eq!(trace.cause, Some(Uuid::from_u128(90)));
    }

    /// An event without a correlation begins a conversation of its own, which its effects belong to.
    #[tokio::test]
    async fn effects_are_found_where_a_conversation_leads_to_another_and_otherwise_everywhere() {
        let events = [event(1, 0, 70), event(2, 1, 70), event(3, 2, 0), event(4, 3, 3)];
        let (lines, _) = traced(&events, 1, TraceLimits::default()).await;
        assert_eq!(lines, [(0, 1), (1, 2)]);
        let (lines, _) = traced(&events, 4, TraceLimits::default()).await;
        assert_eq!(lines, [(0, 1), (1, 2), (2, 3), (3, 4)]);
        let everywhere = TraceLimits { everywhere: true, ..TraceLimits::default() };
        let (lines, _) = traced(&events, 1, everywhere).await;
        assert_eq!(lines, [(0, 1), (1, 2), (2, 3), (3, 4)]);
    }

    #[tokio::test]
    async fn a_trace_has_an_end_and_says_what_it_leaves_out() {
        let circle = [event(1, 2, 9), event(2, 1, 9)];
        let (lines, trace) = traced(&circle, 1, TraceLimits::default()).await;
        assert_eq!((lines, trace.is_cut), (vec![(0, 2), (1, 1)], false));
        let chain: Vec<NewEvent> = (1..=9).map(|n| event(n, n - 1, 1)).collect();
        let few = TraceLimits { events: 4, ..TraceLimits::default() };
        let (lines, trace) = traced(&chain, 2, few).await;
        assert_eq!((lines.len(), trace.is_cut), (4, true));
        let flat = TraceLimits { depth: 3, ..TraceLimits::default() };
        let (lines, trace) = traced(&chain, 9, flat).await;
        assert_eq!((lines, trace.is_cut), (vec![(0, 6), (1, 7), (2, 8), (3, 9)], true));
    }
}
