//! Tries every interleaving of a few writers and a reader that follows the rule.
//!
//! The model knows what the argument uses and nothing else: a writer locks, draws ids, becomes
//! visible (or never does), releases. It may also roll back to a savepoint, which gives up the lock
//! and the ids drawn under it, or be prepared, which gives it another name. The reader loops: last
//! value, writers, perhaps the visible prefix, batch. Every sound model must lose nothing; every
//! model with one step in the wrong place must lose something, or the exploration proves nothing.

use std::collections::HashSet;
use std::hash::Hash;

use proptest::prelude::*;

use super::*;

/// What the writers may do, how often, and which step is in the wrong place.
#[derive(Debug, Clone, Copy)]
struct Model {
    writers: usize,
    /// Transactions of a writer, one after the other.
    transactions: u8,
    /// Most ids that a transaction draws.
    draws: u8,
    /// Whether writers roll back to savepoints and lock again.
    savepoints: bool,
    /// Whether writers are prepared before they commit or abort.
    prepares: bool,
    /// Whether the reader looks at the visible prefix.
    prefix: bool,
    fault: Fault,
}

/// One step in the wrong place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The reader asks for the writers before the last value.
    WritersReadFirst,
    /// A writer releases its lock before it is visible.
    ReleasedBeforeVisible,
    /// A writer draws its first id before it locks.
    DrawnBeforeLocked,
    /// The reader reads its batch in the snapshot of the observation.
    OldSnapshot,
    /// The reader takes a prepared transaction for a new writer.
    RenameUnnoticed,
}

/// A set of small positive ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Ids(u64);

impl Ids {
    fn up_to(position: Position) -> Self {
        Self((1 << (position + 1)) - 1)
    }
    fn with(self, id: Position) -> Self {
        Self(self.0 | 1 << id)
    }
    fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    fn only(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
    fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// The last id of the run that starts just after `position`.
    fn end_of_run_after(self, position: Position) -> Position {
        (position..).find(|id| self.only(Self::default().with(id + 1)).is_empty()).unwrap()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    /// Between transactions.
    Idle,
    Open,
    /// Visible; what is left is to release the lock.
    Committed,
    /// With [`Fault::ReleasedBeforeVisible`]: unlocked; what is left is to become visible.
    Released,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct WriterState {
    phase: Phase,
    transaction: u8,
    draws: u8,
    ids: Ids,
    locked: bool,
    prepared: bool,
    /// Whether it has rolled back to a savepoint already; once is enough.
    rewound: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum ReaderPhase {
    Resting,
    /// Has read the last value.
    Counted(Position),
    /// With [`Fault::WritersReadFirst`]: has read the writers.
    Listed(Vec<Writer>),
    /// Has told the rule and looks at the prefix.
    Observed,
    /// Is about to read the batch.
    Reading,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    last_value: Position,
    visible: Ids,
    writers: Vec<WriterState>,
    reader: ReaderPhase,
    snapshot: Ids,
    rule: Rule,
    position: Position,
    delivered: Ids,
}

impl World {
    fn new(model: &Model) -> Self {
        let writer = WriterState {
            phase: Phase::Idle,
            transaction: 0,
            draws: 0,
            ids: Ids::default(),
            locked: false,
            prepared: false,
            rewound: false,
        };
        Self {
            last_value: 0,
            visible: Ids::default(),
            writers: vec![writer; model.writers],
            reader: ReaderPhase::Resting,
            snapshot: Ids::default(),
            rule: Rule::new(0),
            position: 0,
            delivered: Ids::default(),
        }
    }

    /// An event is visible, the reader is past it, and has not seen it.
    fn has_lost(&self) -> bool {
        !self.visible.only(Ids::up_to(self.position)).without(self.delivered).is_empty()
    }

    fn writers_are_done(&self, model: &Model) -> bool {
        self.writers.iter().all(|w| w.phase == Phase::Idle && w.transaction == model.transactions)
    }

    /// All that can happen next.
    fn successors(&self, model: &Model) -> Vec<Self> {
        let mut next: Vec<Self> =
            (0..self.writers.len()).flat_map(|index| self.writer_steps(model, index)).collect();
        next.extend(self.reader_steps(model));
        next
    }

    fn writer_steps(&self, model: &Model, index: usize) -> Vec<Self> {
        let writer = self.writers[index];
        let mut next = Vec::new();
        let mut step = |change: &dyn Fn(&mut Self, &mut WriterState)| {
            let mut world = self.clone();
            let mut changed = writer;
            change(&mut world, &mut changed);
            world.writers[index] = changed;
            next.push(world);
        };
        let may_draw = writer.draws < model.draws && !writer.prepared;
        let draws_unlocked = model.fault == Fault::DrawnBeforeLocked && writer.draws == 0;
        match writer.phase {
            Phase::Idle if writer.transaction < model.transactions => {
                step(&|_, writer| {
                    writer.phase = Phase::Open;
                    writer.locked = !draws_unlocked;
                });
            }
            Phase::Idle => {}
            Phase::Open => {
                if may_draw && (writer.locked || draws_unlocked) {
                    step(&|world, writer| {
                        world.last_value += 1;
                        writer.draws += 1;
                        writer.ids = writer.ids.with(world.last_value);
                    });
                }
                let must_lock = may_draw || model.fault == Fault::DrawnBeforeLocked;
                if must_lock && !writer.locked && !draws_unlocked {
                    step(&|_, writer| writer.locked = true);
                }
                if writer.locked && !writer.ids.is_empty() {
                    if model.savepoints && !writer.rewound && !writer.prepared {
                        step(&|_, writer| {
                            writer.rewound = true;
                            writer.ids = Ids::default();
                            writer.locked = false;
                        });
                    }
                    if model.prepares && !writer.prepared {
                        step(&|_, writer| writer.prepared = true);
                    }
                    if model.fault == Fault::ReleasedBeforeVisible {
                        step(&|_, writer| {
                            writer.phase = Phase::Released;
                            writer.locked = false;
                        });
                    } else {
                        step(&|world, writer| {
                            world.visible = world.visible.and(writer.ids);
                            writer.phase = Phase::Committed;
                        });
                    }
                }
                if writer.draws > 0 {
                    // An aborted writer that still holds its lock is like one that has yet to abort.
                    step(&|_, writer| writer.end());
                }
            }
            Phase::Released => step(&|world, writer| {
                world.visible = world.visible.and(writer.ids);
                writer.end();
            }),
            Phase::Committed => step(&|_, writer| writer.end()),
        }
        next
    }

    fn reader_steps(&self, model: &Model) -> Vec<Self> {
        let mut world = self.clone();
        match &self.reader {
            ReaderPhase::Resting => {
                world.snapshot = self.visible;
                world.reader = match model.fault {
                    Fault::WritersReadFirst => ReaderPhase::Listed(self.lock_holders(model)),
                    _ => ReaderPhase::Counted(self.last_value),
                };
            }
            ReaderPhase::Listed(writers) => world.observe(model, self.last_value, writers.clone()),
            ReaderPhase::Counted(last_value) => world.observe(model, *last_value, self.lock_holders(model)),
            ReaderPhase::Observed => {
                world.rule.extend(self.visible.end_of_run_after(self.rule.settled()));
                world.reader = ReaderPhase::Reading;
            }
            ReaderPhase::Reading => world.read_batch(model),
        }
        vec![world]
    }

    fn observe(&mut self, model: &Model, last_value: Position, writers: Vec<Writer>) {
        self.rule.observe(last_value, writers);
        self.reader = if model.prefix { ReaderPhase::Observed } else { ReaderPhase::Reading };
    }

    fn read_batch(&mut self, model: &Model) {
        let seen = if model.fault == Fault::OldSnapshot { self.snapshot } else { self.visible };
        let settled = self.rule.settled();
        let batch = seen.only(Ids::up_to(settled)).without(Ids::up_to(self.position));
        assert!(batch.only(self.delivered).is_empty(), "an event was delivered twice: {self:?}");
        self.delivered = self.delivered.and(batch);
        self.position = settled;
        self.snapshot = Ids::default(); // Of no more consequence: worlds that differ here are one.
        self.reader = ReaderPhase::Resting;
    }

    fn lock_holders(&self, model: &Model) -> Vec<Writer> {
        let locked = self.writers.iter().enumerate().filter(|(_, writer)| writer.locked);
        locked.map(|(index, writer)| writer.name(index, model)).collect()
    }
}

impl WriterState {
    fn end(&mut self) {
        let transaction = self.transaction + 1;
        *self = Self {
            phase: Phase::Idle,
            transaction,
            draws: 0,
            ids: Ids::default(),
            locked: false,
            prepared: false,
            rewound: false,
        };
    }

    fn name(&self, index: usize, model: &Model) -> Writer {
        let unnoticed = self.prepared && model.fault == Fault::RenameUnnoticed;
        let slot = index as i32 + if unnoticed { 100 } else { 0 };
        Writer {
            virtual_transaction: VirtualTransaction { backend: slot, local: u32::from(self.transaction) },
            prepared: self.prepared && !unnoticed,
        }
    }
}

struct Explored {
    states: usize,
    losing: usize,
}

/// Visits every reachable world. A world that has lost an event is counted and not followed further.
fn explore(model: Model) -> Explored {
    let start = World::new(&model);
    let mut seen = HashSet::from([start.clone()]);
    let mut waiting = vec![start];
    let mut losing = 0;
    while let Some(world) = waiting.pop() {
        if world.has_lost() {
            losing += 1;
            continue;
        }
        if model.fault == Fault::None && world.writers_are_done(&model) {
            assert_reader_finishes(&model, world.clone());
        }
        for next in world.successors(&model) {
            assert!(next.position >= world.position, "the position moved backward");
            if seen.insert(next.clone()) {
                waiting.push(next);
            }
        }
    }
    let explored = Explored { states: seen.len(), losing };
    println!("{:>7} states, {:>5} of them have lost an event: {model:?}", explored.states, explored.losing);
    explored
}

/// Two rounds after the last writer has ended, the reader has read everything and is at the head.
fn assert_reader_finishes(model: &Model, mut world: World) {
    for _ in 0..10 {
        world = world.reader_steps(model).remove(0);
    }
    assert_eq!(world.delivered, world.visible, "an event is never read: {world:?}");
    assert_eq!(world.position, world.last_value, "the reader never reaches the head: {world:?}");
}

const TWO_WRITERS: Model = Model {
    writers: 2,
    transactions: 1,
    draws: 2,
    savepoints: false,
    prepares: false,
    prefix: false,
    fault: Fault::None,
};

const THREE_WRITERS: Model = Model { writers: 3, draws: 1, ..TWO_WRITERS };

/// Tells the figures of a sound model and fails if it loses an event.
fn assert_nothing_is_lost(model: Model) {
    let explored = explore(model);
    assert_eq!(explored.losing, 0);
    assert!(explored.states > 10_000, "{} states: too few to mean anything", explored.states);
}

#[test]
fn two_writers_that_draw_twice_lose_nothing() {
    assert_nothing_is_lost(TWO_WRITERS);
}

#[test]
fn three_writers_lose_nothing() {
    assert_nothing_is_lost(THREE_WRITERS);
}

#[test]
fn writers_that_come_again_lose_nothing() {
    assert_nothing_is_lost(Model { draws: 1, transactions: 2, ..TWO_WRITERS });
}

#[test]
fn a_reader_that_looks_at_the_visible_prefix_loses_nothing() {
    assert_nothing_is_lost(Model { prefix: true, ..TWO_WRITERS });
}

#[test]
fn writers_that_roll_back_to_savepoints_lose_nothing() {
    assert_nothing_is_lost(Model { savepoints: true, ..TWO_WRITERS });
}

#[test]
fn writers_that_are_prepared_lose_nothing() {
    assert_nothing_is_lost(Model { prepares: true, ..TWO_WRITERS });
}

#[test]
fn every_step_in_the_wrong_place_loses_an_event() {
    for fault in [
        Fault::WritersReadFirst,
        Fault::ReleasedBeforeVisible,
        Fault::DrawnBeforeLocked,
        Fault::OldSnapshot,
        Fault::RenameUnnoticed,
    ] {
        let model = Model { draws: 1, prepares: fault == Fault::RenameUnnoticed, fault, ..TWO_WRITERS };
        assert!(explore(model).losing > 0, "{fault:?} goes unnoticed");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// More writers than can be tried exhaustively, doing everything, in random order.
    #[test]
    fn no_random_run_loses_an_event(choices in prop::collection::vec(any::<u16>(), 400)) {
        let model = Model {
            writers: 6, transactions: 2, draws: 3, savepoints: true, prepares: true, prefix: true,
            fault: Fault::None,
        };
        let mut world = World::new(&model);
        for choice in choices {
            let mut next = world.successors(&model);
            world = next.swap_remove(usize::from(choice) % next.len());
            prop_assert!(!world.has_lost(), "{:?}", world);
        }
        while !world.writers_are_done(&model) {
            world = world.successors(&model).swap_remove(0);
            prop_assert!(!world.has_lost(), "{:?}", world);
        }
        assert_reader_finishes(&model, world);
    }
}
