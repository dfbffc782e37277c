//! Which event may be sent next: in order within an aggregate, side by side across aggregates.
//!
//! A pure thing: what happened and what time it is arrive as arguments. Events of one aggregate stand in a queue. Only the
//! first of a queue is ever sent, and it leaves the queue when it has been committed that it is done; so whatever is
//! repeated after a crash is the last that a receiver has seen of its aggregate. One that failed keeps its queue waiting
//! and no other.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use uuid::Uuid;

use crate::event::Position;

/// Events that have been looked at and are not done.
#[derive(Debug, Clone)]
pub(crate) struct Schedule<T> {
    held: BTreeMap<Position, ScheduledEvent<T>>,
    /// The events of each aggregate, in order.
    queues: HashMap<Uuid, VecDeque<Position>>,
    ready: BTreeSet<Position>,
    postponed: BTreeSet<(Instant, Position)>,
    done: BTreeSet<Position>,
    under_way: usize,
    weight: usize,
}

#[derive(Debug, Clone)]
struct ScheduledEvent<T> {
    aggregate: Uuid,
    state: DeliveryState,
    weight: usize,
    content: T,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DeliveryState {
    /// For an earlier one of its aggregate.
    Waiting,
    Ready,
    UnderWay,
    Postponed(Instant),
    /// Until that is committed.
    Done,
}

impl<T> Default for Schedule<T> {
    fn default() -> Self {
        Self {
            held: BTreeMap::new(),
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
    /// Takes an event in, after all that it has. `until`: when it is tried again, if it has failed before. `weight`: its
    /// share of [`Self::weight`].
    pub(crate) fn insert(
        &mut self,
        id: Position,
        aggregate: Uuid,
        content: T,
        weight: usize,
        until: Option<Instant>,
    ) {
        let queue = self.queues.entry(aggregate).or_default();
        let first = queue.is_empty();
        queue.push_back(id);
        self.weight += weight;
        self.held.insert(id, ScheduledEvent { aggregate, state: DeliveryState::Waiting, weight, content });
        match until {
            _ if !first => {}
            None => self.enter(id, DeliveryState::Ready),
            Some(until) => self.enter(id, DeliveryState::Postponed(until)),
        }
    }

    /// The next event to send, which is under way from now on.
    pub(crate) fn take_ready(&mut self, now: Instant) -> Option<Position> {
        while let Some((_, id)) = self.postponed.first().copied().filter(|(until, _)| *until <= now) {
            self.enter(id, DeliveryState::Ready);
        }
        let id = self.ready.first().copied()?;
        self.enter(id, DeliveryState::UnderWay);
        Some(id)
    }

    /// The event need not be sent any more. Its queue goes on after [`Self::remove_completed`].
    pub(crate) fn complete(&mut self, id: Position) {
        self.enter(id, DeliveryState::Done);
    }

    /// Nothing has come of it, and it is not to blame: it may be sent as soon as any.
    pub(crate) fn release(&mut self, id: Position) {
        self.enter(id, DeliveryState::Ready);
    }

    /// It is tried again then, and its queue waits.
    pub(crate) fn postpone(&mut self, id: Position, until: Instant) {
        self.enter(id, DeliveryState::Postponed(until));
    }

    /// Everything that is put off may be sent now.
    pub(crate) fn make_all_due(&mut self) {
        for (_, id) in std::mem::take(&mut self.postponed) {
            self.enter(id, DeliveryState::Ready);
        }
    }

    /// Those behind an event in its queue, in order.
    pub(crate) fn behind(&self, id: Position) -> impl Iterator<Item = Position> {
        let queue = self.held.get(&id).and_then(|held| self.queues.get(&held.aggregate));
        queue.into_iter().flatten().copied().filter(move |other| *other > id)
    }

    /// What is done has been committed: it is forgotten, and the next in queue may be sent.
    pub(crate) fn remove_completed(&mut self) {
        for id in std::mem::take(&mut self.done) {
            let Some(held) = self.held.remove(&id) else { continue };
            self.weight -= held.weight;
            let Some(queue) = self.queues.get_mut(&held.aggregate) else { continue };
            queue.retain(|other| *other != id);
            match queue.front().copied() {
                None => drop(self.queues.remove(&held.aggregate)),
                Some(next) if self.state(next) == Some(DeliveryState::Waiting) => {
                    self.enter(next, DeliveryState::Ready)
                }
                Some(_) => {}
            }
        }
    }

    /// Every event at or below it is done, of all up to `seen`.
    pub(crate) fn completed_upto(&self, seen: Position) -> Position {
        let open = self.held.iter().find(|(_, held)| held.state != DeliveryState::Done);
        open.map_or(seen, |(id, _)| id.previous())
    }

    /// What is done and not settled.
    pub(crate) fn completed(&self) -> impl Iterator<Item = Position> {
        self.done.iter().copied()
    }

    /// The event that is due first of those put off, and when.
    pub(crate) fn next_due(&self) -> Option<(Instant, Position)> {
        self.postponed.first().copied()
    }

    /// When the event is tried again, if it is put off.
    pub(crate) fn postponed_until(&self, id: Position) -> Option<Instant> {
        match self.state(id) {
            Some(DeliveryState::Postponed(until)) => Some(until),
            _ => None,
        }
    }

    /// Whether there is anything to send.
    pub(crate) fn has_ready(&self, now: Instant) -> bool {
        !self.ready.is_empty() || self.postponed.first().is_some_and(|(until, _)| *until <= now)
    }

    /// Events under way.
    pub(crate) fn under_way(&self) -> usize {
        self.under_way
    }

    /// Events held.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// The weight of all events held.
    pub(crate) fn weight(&self) -> usize {
        self.weight
    }

    /// The event held.
    pub(crate) fn get(&self, id: Position) -> Option<&T> {
        self.held.get(&id).map(|held| &held.content)
    }

    /// The event held, to be changed.
    pub(crate) fn get_mut(&mut self, id: Position) -> Option<&mut T> {
        self.held.get_mut(&id).map(|held| &mut held.content)
    }

    fn state(&self, id: Position) -> Option<DeliveryState> {
        self.held.get(&id).map(|held| held.state)
    }

    /// Moves an event from one state, and from the list of that state, to another.
    fn enter(&mut self, id: Position, state: DeliveryState) {
        let Some(held) = self.held.get_mut(&id) else { return };
        match std::mem::replace(&mut held.state, state) {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const fn at(position: i64) -> Position {
        Position::new(position)
    }

    fn aggregate(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    /// Events 1, 2, 3 … of these aggregates.
    fn schedule(aggregates: &[u128]) -> Schedule<()> {
        let mut schedule = Schedule::default();
        for (id, number) in (1..).map(at).zip(aggregates) {
            schedule.insert(id, aggregate(*number), (), 1, None);
        }
        schedule
    }

    fn take_all(schedule: &mut Schedule<()>, now: Instant) -> Vec<Position> {
        std::iter::from_fn(|| schedule.take_ready(now)).collect()
    }

    #[test]
    fn one_of_each_aggregate_is_under_way() {
        let (mut schedule, now) = (schedule(&[1, 2, 1, 3, 2]), Instant::now());
        assert_eq!(take_all(&mut schedule, now), [1, 2, 4]);
        schedule.complete(at(1));
        assert_eq!(take_all(&mut schedule, now), [0; 0], "the end of 1 is not committed yet");
        schedule.remove_completed();
        assert_eq!((take_all(&mut schedule, now), schedule.under_way(), schedule.len()), (vec![at(3)], 3, 4));
    }

    #[test]
    fn a_failing_event_keeps_its_aggregate_waiting_and_no_other() {
        let (mut schedule, now) = (schedule(&[1, 2, 1, 2]), Instant::now());
        let later = now + Duration::from_secs(1);
        take_all(&mut schedule, now);
        schedule.postpone(at(1), later);
        schedule.complete(at(2));
        assert_eq!(
            (schedule.completed_upto(at(4)), schedule.completed().collect::<Vec<_>>()),
            (at(0), vec![at(2)])
        );
        schedule.remove_completed();
        assert_eq!((take_all(&mut schedule, now), schedule.next_due()), (vec![at(4)], Some((later, at(1)))));
        schedule.complete(at(4));
        schedule.remove_completed();
        assert_eq!(
            (schedule.completed_upto(at(4)), schedule.has_ready(now), schedule.has_ready(later)),
            (at(0), false, true)
        );
        assert_eq!(take_all(&mut schedule, later), [1]);
        schedule.complete(at(1));
        assert_eq!(schedule.completed_upto(at(4)), 2);
        schedule.remove_completed();
        assert_eq!(take_all(&mut schedule, later), [3]);
    }

    #[test]
    fn what_is_set_aside_takes_those_behind_it_along() {
        let (mut schedule, now) = (schedule(&[1, 2, 1, 2, 1]), Instant::now());
        take_all(&mut schedule, now);
        let behind: Vec<Position> = schedule.behind(at(1)).collect();
        assert_eq!(behind, [3, 5]);
        behind.into_iter().chain([at(1)]).for_each(|id| schedule.complete(id));
        assert_eq!(schedule.completed_upto(at(5)), 1);
        schedule.remove_completed();
        assert_eq!((schedule.len(), schedule.weight()), (2, 2));
    }

    #[test]
    fn a_failure_of_an_earlier_process_still_counts() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut schedule = Schedule::default();
        schedule.insert(at(1), aggregate(1), (), 1, Some(later));
        schedule.insert(at(2), aggregate(1), (), 1, None);
        assert_eq!(
            (schedule.take_ready(now), schedule.take_ready(later), schedule.take_ready(later)),
            (None, Some(at(1)), None)
        );
        schedule.postpone(at(1), later);
        schedule.make_all_due();
        assert_eq!(schedule.take_ready(now), Some(at(1)));
    }

    /// What may happen, in every order, to a few events of two aggregates.
    #[derive(Clone)]
    struct World {
        schedule: Schedule<()>,
        now: Instant,
        /// What the receiver has accepted, in order; and what of that has been committed.
        received: Vec<Position>,
        committed: BTreeSet<Position>,
    }

    const AGGREGATES: [u128; 4] = [1, 2, 1, 1];

    impl World {
        fn new() -> Self {
            let (schedule, now) = (schedule(&AGGREGATES), Instant::now());
            Self { schedule, now, received: Vec::new(), committed: BTreeSet::new() }
        }

        fn under_way(&self) -> Vec<Position> {
            let held = self.schedule.held.iter();
            held.filter(|(_, held)| held.state == DeliveryState::UnderWay).map(|(id, _)| *id).collect()
        }

        fn next(&self) -> Vec<Self> {
            let mut worlds = Vec::new();
            let mut change = |change: &dyn Fn(&mut Self)| {
                let mut world = self.clone();
                change(&mut world);
                worlds.push(world);
            };
            if self.schedule.has_ready(self.now) {
                change(&|world| _ = world.schedule.take_ready(world.now));
            }
            for id in self.under_way() {
                change(&|world| world.accept(id));
                change(&|world| world.schedule.release(id));
                change(&|world| world.schedule.postpone(id, world.now + Duration::from_secs(1)));
                // It was accepted, and the answer was lost.
                change(&|world| {
                    world.received.push(id);
                    world.schedule.postpone(id, world.now + Duration::from_secs(1));
                });
            }
            if self.schedule.next_due().is_some() {
                change(&|world| world.now += Duration::from_secs(1));
            }
            if self.schedule.completed().next().is_some() {
                change(&|world| world.commit());
            }
            change(&|world| world.crash());
            worlds
        }

        fn accept(&mut self, id: Position) {
            self.received.push(id);
            self.schedule.complete(id);
        }

        fn commit(&mut self) {
            self.committed.extend(self.schedule.completed());
            self.schedule.remove_completed();
            let low_water = self.schedule.completed_upto(at(AGGREGATES.len() as i64));
            assert!(
                (1..=low_water.get()).map(at).all(|id| self.committed.contains(&id)),
                "beyond what is done"
            );
        }

        /// Another process begins with what was committed.
        fn crash(&mut self) {
            self.schedule = Schedule::default();
            for (id, number) in (1..).map(at).zip(AGGREGATES) {
                if !self.committed.contains(&id) {
                    self.schedule.insert(id, aggregate(number), (), 1, None);
                }
            }
        }

        /// In each aggregate: nothing is left out, and only the last one is ever repeated.
        fn check(&self) {
            for number in [1, 2] {
                let of_it = |id: &&Position| AGGREGATES[usize::try_from(id.get()).unwrap() - 1] == number;
                let mut received: Vec<&Position> = self.received.iter().filter(of_it).collect();
                received.dedup();
                let all: Vec<Position> =
                    (1..).map(at).zip(AGGREGATES).filter(|(_, of)| *of == number).map(|(id, _)| id).collect();
                assert!(received.iter().zip(&all).all(|(seen, id)| *seen == id), "{:?}", self.received);
                assert!(received.len() <= all.len(), "{:?}", self.received);
                let under_way = self.under_way();
                assert!(under_way.iter().filter(of_it).count() <= 1, "two of one aggregate at a time");
            }
        }
    }

    #[test]
    fn whatever_happens_in_whatever_order_each_aggregate_is_received_in_order() {
        const DEPTH: usize = 16;
        let (mut worlds, mut seen) = (vec![World::new()], 0);
        for _ in 0..DEPTH {
            worlds = worlds.iter().flat_map(World::next).collect();
            worlds.iter().for_each(World::check);
            let mut known = std::collections::HashSet::new();
            worlds.retain(|world| {
                let states: Vec<_> =
                    world.schedule.held.iter().map(|(id, held)| format!("{id}{:?}", held.state)).collect();
                known.insert((states, world.received.clone(), world.committed.clone()))
            });
            seen += worlds.len();
        }
        assert!(seen > 10_000, "{seen} worlds only");
    }

    proptest::proptest! {
        #[test]
        fn the_lists_agree_with_the_states(steps in proptest::collection::vec((0usize..6, 0i64..12), 0..80)) {
            let (mut schedule, start) = (schedule(&[1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3]), Instant::now());
            let mut now = start;
            for (step, number) in steps {
                let under_way = schedule.held.iter().filter(|(_, held)| held.state == DeliveryState::UnderWay).map(|(id, _)| *id);
                let under_way: Vec<Position> = under_way.collect();
                let one = under_way.get(usize::try_from(number).unwrap() % under_way.len().max(1)).copied();
                match (step, one) {
                    (0, _) => _ = schedule.take_ready(now),
                    (1, Some(id)) => schedule.complete(id),
                    (2, Some(id)) => schedule.postpone(id, now + Duration::from_secs(number.unsigned_abs())),
                    (3, Some(id)) => schedule.release(id),
                    (4, _) => now += Duration::from_secs(1),
                    _ => schedule.remove_completed(),
                }
                let count = |wanted: fn(DeliveryState) -> bool| schedule.held.values().filter(|held| wanted(held.state)).count();
                proptest::prop_assert_eq!(schedule.ready.len(), count(|state| state == DeliveryState::Ready));
                proptest::prop_assert_eq!(schedule.done.len(), count(|state| state == DeliveryState::Done));
                proptest::prop_assert_eq!(schedule.under_way(), count(|state| state == DeliveryState::UnderWay));
                proptest::prop_assert_eq!(schedule.postponed.len(), count(|state| matches!(state, DeliveryState::Postponed(_))));
                proptest::prop_assert_eq!(schedule.weight(), schedule.len());
                for queue in schedule.queues.values() {
                    let first = schedule.state(queue[0]).unwrap();
                    proptest::prop_assert!(first != DeliveryState::Waiting, "a queue that nobody moves");
                    proptest::prop_assert!(queue.iter().skip(1).all(|id| schedule.state(*id) == Some(DeliveryState::Waiting)));
                }
            }
        }
    }
}
