//! The model: writers that lock, draw ids, become visible and release; processors that read by the rule.
//!
//! It knows what the argument uses and nothing else. A draw locks the sequence to the end of the transaction; the table is
//! locked before the draw, or only before the event becomes visible, where a writer draws first. A writer may also roll back
//! to a savepoint, which gives up the lock on the table and the ids drawn under it, or be prepared, which gives it another
//! name. The watcher loops: last value, writers, perhaps the visible prefix, and then every processor reads its batch. A
//! second processor may join, at a position that somebody has chosen, and then the watcher starts afresh.

use crate::event::Position;
use crate::store::horizon::{Rule, VirtualTransaction, Writer};

/// What the writers may do, how often, and which step is in the wrong place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Model {
    pub(super) writers: usize,
    /// Transactions of a writer, one after the other.
    pub(super) transactions: u8,
    /// Most ids that a transaction draws.
    pub(super) draws: u8,
    /// Whether writers roll back to savepoints and lock again.
    pub(super) savepoints: bool,
    /// Whether writers are prepared before they commit or abort.
    pub(super) prepares: bool,
    /// Whether the reader looks at the visible prefix.
    pub(super) prefix: bool,
    /// Whether writers draw their ids first and lock the table when they insert.
    pub(super) draws_first: bool,
    /// Whether a processor joins, somewhere between the position of the first one and the head, and the watcher starts afresh.
    pub(super) joins: bool,
    pub(super) mutation: Mutation,
}

/// One step in the wrong place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutation {
    None,
    /// The reader asks for the writers before the last value.
    WritersReadFirst,
    /// A writer releases its lock before it is visible.
    ReleasedBeforeVisible,
    /// A writer draws its first id before it locks anything, as one that got it from somewhere else.
    DrawnBeforeLocked,
    /// The reader counts the locks on the table, and not those on the sequence.
    TableLocksOnly,
    /// A watcher that starts afresh takes the highest position of a processor for settled.
    ChosenPositionTrusted,
    /// The reader reads its batch in the snapshot of the observation.
    OldSnapshot,
    /// The reader takes a prepared transaction for a new writer.
    RenameUnnoticed,
}

/// A set of small positive ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Ids(u64);

impl Ids {
    fn up_to(position: Position) -> Self {
        Self((1 << position.next().get()) - 1)
    }
    fn with(self, id: Position) -> Self {
        Self(self.0 | 1 << id.get())
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
        let mut end = position;
        while !self.only(Self::default().with(end.next())).is_empty() {
            end = end.next();
        }
        end
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    /// Between transactions.
    Idle,
    Open,
    /// Visible; what is left is to release the lock.
    Committed,
    /// With [`Mutation::ReleasedBeforeVisible`]: unlocked; what is left is to become visible.
    Released,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct WriterState {
    phase: Phase,
    transaction: u8,
    draws: u8,
    ids: Ids,
    /// Whether it holds the lock on the table.
    locked: bool,
    /// Whether it holds the lock on the sequence.
    holds_sequence: bool,
    prepared: bool,
    /// Whether it has rolled back to a savepoint already; once is enough.
    rewound: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum ReaderPhase {
    Resting,
    /// Has read the last value.
    Counted(Position),
    /// With [`Mutation::WritersReadFirst`]: has read the writers.
    Listed(Vec<Writer>),
    /// Has told the rule and looks at the prefix.
    Observed,
    /// Is about to read the batch.
    Reading,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) last_value: Position,
    pub(super) visible: Ids,
    writers: Vec<WriterState>,
    reader: ReaderPhase,
    snapshot: Ids,
    rule: Rule,
    /// The first processor, which has been there from the beginning, and the one that has joined.
    pub(super) processors: Vec<Processor>,
}

/// What handles every event beyond the position that it began at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Processor {
    began_at: Position,
    pub(super) position: Position,
    pub(super) delivered: Ids,
}

impl Processor {
    fn beginning_at(position: Position) -> Self {
        Self { began_at: position, position, delivered: Ids::default() }
    }

    /// What it has to have seen of what is visible.
    pub(super) fn expected(self, visible: Ids) -> Ids {
        visible.without(Ids::up_to(self.began_at))
    }
}

impl World {
    pub(super) fn new(model: &Model) -> Self {
        let writer = WriterState {
            phase: Phase::Idle,
            transaction: 0,
            draws: 0,
            ids: Ids::default(),
            locked: false,
            holds_sequence: false,
            prepared: false,
            rewound: false,
        };
        Self {
            last_value: Position::START,
            visible: Ids::default(),
            writers: vec![writer; model.writers],
            reader: ReaderPhase::Resting,
            snapshot: Ids::default(),
            rule: Rule::new(),
            processors: vec![Processor::beginning_at(Position::START)],
        }
    }

    /// An event is visible, a processor is past it, and has not seen it.
    pub(super) fn has_lost(&self) -> bool {
        self.processors.iter().any(|one| {
            let passed = one.expected(self.visible).only(Ids::up_to(one.position));
            !passed.without(one.delivered).is_empty()
        })
    }

    pub(super) fn writers_are_done(&self, model: &Model) -> bool {
        self.writers.iter().all(|w| w.phase == Phase::Idle && w.transaction == model.transactions)
    }

    /// All that can happen next.
    pub(super) fn successors(&self, model: &Model) -> Vec<Self> {
        let mut next: Vec<Self> =
            (0..self.writers.len()).flat_map(|index| self.writer_steps(model, index)).collect();
        next.extend(self.reader_steps(model));
        if model.joins && self.processors.len() == 1 {
            next.extend(self.joins(model));
        }
        next
    }

    /// A processor joins, at each position that may be chosen, and a watcher starts afresh.
    fn joins(&self, model: &Model) -> Vec<Self> {
        let mut next = Vec::new();
        let mut chosen = self.processors[0].position;
        while chosen <= self.last_value.next() {
            let mut world = self.clone();
            world.processors.push(Processor::beginning_at(chosen));
            world.rule = match model.mutation {
                Mutation::ChosenPositionTrusted => Rule::trusting(chosen),
                _ => Rule::new(),
            };
            (world.reader, world.snapshot) = (ReaderPhase::Resting, Ids::default());
            next.push(world);
            chosen = chosen.next();
        }
        next
    }

    /// All that one writer can do next.
    fn writer_steps(&self, model: &Model, index: usize) -> Vec<Self> {
        let writer = self.writers[index];
        match writer.phase {
            Phase::Idle if writer.transaction < model.transactions => vec![self.step(index, |_, writer| {
                writer.phase = Phase::Open;
                writer.locked = !model.draws_first && !writer.draws_unlocked(model);
            })],
            Phase::Idle => Vec::new(),
            Phase::Open => [self.draws_and_locks(model, index), self.ends(model, index)].concat(),
            Phase::Released => vec![self.step(index, |world, writer| {
                world.visible = world.visible.and(writer.ids);
                writer.end();
            })],
            Phase::Committed => vec![self.step(index, |_, writer| writer.end())],
        }
    }

    /// The world after one writer has changed.
    fn step(&self, index: usize, change: impl FnOnce(&mut Self, &mut WriterState)) -> Self {
        let mut world = self.clone();
        let mut writer = self.writers[index];
        change(&mut world, &mut writer);
        world.writers[index] = writer;
        world
    }

    /// Steps of an open transaction on its way to more ids.
    fn draws_and_locks(&self, model: &Model, index: usize) -> Vec<Self> {
        let writer = self.writers[index];
        let may_draw = writer.draws < model.draws && !writer.prepared;
        let draws_unlocked = writer.draws_unlocked(model);
        let mut next = Vec::new();
        // `nextval` locks the sequence before it draws. Both are one step where the lock on the table comes before.
        if may_draw && model.draws_first && !writer.holds_sequence && !draws_unlocked {
            next.push(self.step(index, |_, writer| writer.holds_sequence = true));
        } else if may_draw && (writer.locked || model.draws_first || draws_unlocked) {
            next.push(self.step(index, |world, writer| {
                world.last_value = world.last_value.next();
                writer.holds_sequence = !draws_unlocked;
                writer.draws += 1;
                writer.ids = writer.ids.with(world.last_value);
            }));
        }
        let must_lock = may_draw || model.draws_first || model.mutation == Mutation::DrawnBeforeLocked;
        let has_drawn_if_first = !model.draws_first || writer.draws > 0;
        if must_lock && !writer.locked && !draws_unlocked && has_drawn_if_first {
            next.push(self.step(index, |_, writer| writer.locked = true));
        }
        next
    }

    /// Steps that bring an open transaction, or the savepoint in it, nearer to its end.
    fn ends(&self, model: &Model, index: usize) -> Vec<Self> {
        let writer = self.writers[index];
        let mut next = Vec::new();
        if writer.locked && !writer.ids.is_empty() {
            if model.savepoints && !writer.rewound && !writer.prepared {
                next.push(self.step(index, |_, writer| {
                    writer.rewound = true;
                    // Ids that the transaction knows apart from its rows may still be used.
                    writer.ids = if model.draws_first { writer.ids } else { Ids::default() };
                    writer.locked = false;
                }));
            }
            if model.prepares && !writer.prepared {
                next.push(self.step(index, |_, writer| writer.prepared = true));
            }
            next.push(self.step(index, |world, writer| {
                if model.mutation == Mutation::ReleasedBeforeVisible {
                    writer.phase = Phase::Released;
                    (writer.locked, writer.holds_sequence) = (false, false);
                } else {
                    world.visible = world.visible.and(writer.ids);
                    writer.phase = Phase::Committed;
                }
            }));
        }
        if writer.draws > 0 {
            // An aborted writer that still holds its lock is like one that has yet to abort.
            next.push(self.step(index, |_, writer| writer.end()));
        }
        next
    }

    pub(super) fn reader_steps(&self, model: &Model) -> Vec<Self> {
        let mut world = self.clone();
        match &self.reader {
            ReaderPhase::Resting => {
                world.snapshot = self.visible;
                world.reader = match model.mutation {
                    Mutation::WritersReadFirst => ReaderPhase::Listed(self.lock_holders(model)),
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
        let seen = if model.mutation == Mutation::OldSnapshot { self.snapshot } else { self.visible };
        let settled = self.rule.settled();
        for one in &mut self.processors {
            let batch = seen.only(Ids::up_to(settled)).without(Ids::up_to(one.position));
            assert!(batch.only(one.delivered).is_empty(), "an event was delivered twice: {one:?}");
            one.delivered = one.delivered.and(batch);
            // A watcher that has started afresh knows less than is handled.
            one.position = one.position.max(settled);
        }
        self.snapshot = Ids::default(); // Of no more consequence: worlds that differ here are one.
        self.reader = ReaderPhase::Resting;
    }

    fn lock_holders(&self, model: &Model) -> Vec<Writer> {
        let counts = |writer: &WriterState| {
            writer.locked || writer.holds_sequence && model.mutation != Mutation::TableLocksOnly
        };
        let locked = self.writers.iter().enumerate().filter(|(_, writer)| counts(writer));
        locked.map(|(index, writer)| writer.name(index, model)).collect()
    }
}

impl WriterState {
    /// Whether the mutation makes its next draw come before its lock.
    fn draws_unlocked(&self, model: &Model) -> bool {
        model.mutation == Mutation::DrawnBeforeLocked && self.draws == 0
    }

    fn end(&mut self) {
        let transaction = self.transaction + 1;
        *self = Self {
            phase: Phase::Idle,
            transaction,
            draws: 0,
            ids: Ids::default(),
            locked: false,
            holds_sequence: false,
            prepared: false,
            rewound: false,
        };
    }

    fn name(&self, index: usize, model: &Model) -> Writer {
        let unnoticed = self.prepared && model.mutation == Mutation::RenameUnnoticed;
        let slot = index as i32 + if unnoticed { 100 } else { 0 };
        Writer {
            virtual_transaction: VirtualTransaction { backend: slot, local: u32::from(self.transaction) },
            prepared: self.prepared && !unnoticed,
        }
    }
}
