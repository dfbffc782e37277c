use std::time::Duration;

use super::*;

impl<T> Schedule<T> {
    /// Has all that is completed be committed.
    fn remove_completed(&mut self) {
        let done: Vec<Position> = self.completed().collect();
        self.remove(&done);
    }
}

const fn at(position: i64) -> Position {
    Position::new(position)
}

fn aggregate(number: u128) -> AggregateId {
    uuid::Uuid::from_u128(number).into()
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
    assert_eq!(take_all(&mut schedule, now), [0; 0], "the completion of 1 is not committed yet");
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
fn an_event_that_is_set_aside_completes_those_behind_it() {
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

/// The state of a receiver and a schedule with a few events of two aggregates. The test explores every order of what may
/// happen.
#[derive(Clone)]
struct World {
    schedule: Schedule<()>,
    now: Instant,
    /// The events that the receiver has accepted, in order, and those of them that are committed.
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
        let events = self.schedule.events.iter();
        events.filter(|(_, event)| event.state == DeliveryState::UnderWay).map(|(id, _)| *id).collect()
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
            // The receiver has accepted the event, and its answer was lost.
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
        let completed_upto = self.schedule.completed_upto(at(AGGREGATES.len() as i64));
        assert!(
            (1..=completed_upto.get()).map(at).all(|id| self.committed.contains(&id)),
            "beyond what is done"
        );
    }

    /// Another process starts from what was committed.
    fn crash(&mut self) {
        self.schedule = Schedule::default();
        for (id, number) in (1..).map(at).zip(AGGREGATES) {
            if !self.committed.contains(&id) {
                self.schedule.insert(id, aggregate(number), (), 1, None);
            }
        }
    }

    /// Requires that no event of an aggregate is left out, and that only the last one is ever repeated.
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
                world.schedule.events.iter().map(|(id, event)| format!("{id}{:?}", event.state)).collect();
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
            let under_way = schedule.events.iter().filter(|(_, event)| event.state == DeliveryState::UnderWay).map(|(id, _)| *id);
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
            let count = |wanted: fn(DeliveryState) -> bool| schedule.events.values().filter(|event| wanted(event.state)).count();
            proptest::prop_assert_eq!(schedule.ready.len(), count(|state| state == DeliveryState::Ready));
            proptest::prop_assert_eq!(schedule.done.len(), count(|state| state == DeliveryState::Done));
            proptest::prop_assert_eq!(schedule.under_way(), count(|state| state == DeliveryState::UnderWay));
            proptest::prop_assert_eq!(schedule.postponed.len(), count(|state| matches!(state, DeliveryState::Postponed(_))));
            proptest::prop_assert_eq!(schedule.weight(), schedule.len());
            for queue in schedule.queues.values() {
                let first = schedule.state(queue[0]).unwrap();
                proptest::prop_assert!(first != DeliveryState::Waiting, "a queue that never moves");
                proptest::prop_assert!(queue.iter().skip(1).all(|id| schedule.state(*id) == Some(DeliveryState::Waiting)));
            }
        }
    }
}
