//! The settled horizon: the largest id at or below which no event can appear any more.
//!
//! Ids are drawn before commit and become visible out of order, so a reader that follows
//! `id > position` loses events. It may read up to the horizon, and no further. Nothing is asked of
//! the writers: an `INSERT` or `COPY` locks the table before it draws an id and holds the lock until
//! its transaction ends, and PostgreSQL makes a transaction visible before it releases its locks.
//!
//! One observation is two reads, **in this order**:
//!
//! 1. `last_value`, the last id drawn;
//! 2. the writers: who holds the lock on the table that every insert takes.
//!
//! A writer that is missing from an observation had ended before it, or has not yet locked and will
//! draw ids above its `last_value` only. So a writer that appears for the first time has only ids
//! above the `last_value` of the observation before: that is its *floor*. Everything at or below the
//! lowest floor is settled; without writers, everything at or below the latest `last_value` is.
//! Events must then be read in a snapshot that is newer than the observation.
//!
//! This file is the rule alone: it neither reads nor waits. [`Observer`] reads, and
//! [`crate::store::watcher`] repeats it. The argument in full, and the experiment, are in
//! `docs/ordering.md`; `horizon/explorer.rs` tries every interleaving of small cases.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::event::Position;

mod durability;
#[cfg(test)]
mod explorer;
mod locks;
mod postgres;

pub use postgres::{ObserveError, Observer, observe_once};

/// What is known of the order of events at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Horizon {
    /// Last id drawn by the store; 0 in an empty one.
    pub head: Position,
    /// Largest id at or below which no event can appear any more. 0 while that is not known: before
    /// the first observation, and from the loss of the connection to the next observation. Only then
    /// does it go back.
    pub settled: Position,
    /// The writers that have held `settled` below `head` for long, longest first; empty if nobody has.
    pub held_by: Vec<Holder>,
    /// Since when the longest holder has been seen, on this process' clock.
    pub held_since: Option<Instant>,
}

/// A transaction that holds the horizon back, described for the operator who has to end it.
///
/// What the server does not tell (missing privileges, a session that has just ended) is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its name in `pg_locks.virtualtransaction`.
    pub virtual_transaction: VirtualTransaction,
    /// Process id of its session; `None` for a prepared transaction, which has none.
    pub pid: Option<i32>,
    /// Role of its session, or owner of the prepared transaction.
    pub user: Option<String>,
    /// `application_name` of its session.
    pub application_name: Option<String>,
    /// State of its session: `active`, `idle in transaction`, …
    pub state: Option<String>,
    /// The statement that its session runs or ran last, up to 200 characters.
    pub query: Option<String>,
    /// How long the transaction has been open, or prepared, on the server's clock.
    pub age: Option<Duration>,
    /// Global identifier of a prepared transaction: `rollback prepared 'gid'` ends it.
    pub prepared: Option<String>,
}

/// Waits until events after `position` are settled and returns the horizon; at once if they are.
///
/// `None` when the watcher has ended: nothing will settle any more.
pub async fn wait_beyond(horizon: &mut watch::Receiver<Horizon>, position: Position) -> Option<Position> {
    let beyond = horizon.wait_for(|horizon| horizon.settled > position).await;
    beyond.ok().map(|horizon| horizon.settled)
}

/// A transaction that may have drawn ids: a holder of the lock that every insert takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Writer {
    /// Its identity. Unique from start to start of a server, not beyond.
    pub virtual_transaction: VirtualTransaction,
    /// Whether it is a prepared transaction. `PREPARE TRANSACTION` turns a writer into another one:
    /// the old vanishes and the new appears in one moment, with the ids that the old one drew.
    pub prepared: bool,
}

/// `pg_locks.virtualtransaction`: `3/1234`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualTransaction {
    /// Slot of the session; -1 for a prepared transaction that was recovered after a restart.
    pub backend: i32,
    /// Number of the transaction in its slot.
    pub local: u32,
}

/// The rule: observations in, settled position out.
///
/// It has no I/O and no clock. The caller owes it three things: both reads of an observation in the
/// order of the module's documentation; observations one after the other; and a new rule whenever
/// the server may have restarted, because then other transactions go by the same names and ids that
/// nobody committed may be drawn again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// `last_value` of the latest observation.
    head: Position,
    settled: Position,
    /// The writers of the latest observation. Whatever they may still commit is above their floor.
    floors: BTreeMap<Writer, Position>,
}

impl Rule {
    /// A rule that trusts the caller that everything at or below `floor` is settled; 0 trusts nothing.
    pub fn new(floor: Position) -> Self {
        Self { head: floor, settled: floor, floors: BTreeMap::new() }
    }

    /// Takes an observation and returns what is settled now, which never moves backward.
    pub fn observe(&mut self, last_value: Position, writers: impl IntoIterator<Item = Writer>) -> Position {
        let writers: BTreeSet<Writer> = writers.into_iter().collect();
        let before = std::mem::take(&mut self.floors);
        let newcomer = self.head;
        // A prepared transaction seen for the first time may be a writer that has just vanished.
        let vanished = before.iter().filter(|(writer, _)| !writer.prepared && !writers.contains(writer));
        let renamed = vanished.map(|(_, floor)| *floor).min().unwrap_or(newcomer);
        let floor_of = |writer: &Writer| match before.get(writer) {
            Some(floor) => *floor,
            None if writer.prepared => renamed,
            None => newcomer,
        };
        self.floors = writers.iter().map(|writer| (*writer, floor_of(writer))).collect();
        self.head = last_value;
        self.settle(self.floors.values().min().copied().unwrap_or(last_value))
    }

    /// Takes the contiguous visible prefix and returns what is settled now.
    ///
    /// The caller has seen an event with every id from the settled position up to `end`, in one
    /// snapshot. Each of these ids is taken for good, so nothing can appear among them, whoever
    /// holds locks. This lets readers pass a writer that has locked the table but drawn nothing.
    pub fn extend(&mut self, end: Position) -> Position {
        self.settle(end)
    }

    fn settle(&mut self, position: Position) -> Position {
        self.settled = self.settled.max(position);
        self.settled
    }

    /// Largest id at or below which no event can appear any more.
    pub fn settled(&self) -> Position {
        self.settled
    }

    /// The last id known to be drawn.
    pub fn head(&self) -> Position {
        self.head.max(self.settled)
    }

    /// Whether ids have been drawn that are not settled.
    pub fn is_held(&self) -> bool {
        self.settled < self.head
    }

    /// The writers that keep the horizon where it is; empty unless it is held.
    pub fn holders(&self) -> impl Iterator<Item = Writer> {
        let settled = self.settled;
        let held = self.is_held();
        self.floors.iter().filter(move |(_, floor)| held && **floor <= settled).map(|(writer, _)| *writer)
    }
}

impl std::fmt::Display for VirtualTransaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.backend, self.local)
    }
}

impl std::str::FromStr for VirtualTransaction {
    type Err = InvalidVirtualTransaction;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (backend, local) = text.split_once('/')?;
            Some(Self { backend: backend.parse().ok()?, local: local.parse().ok()? })
        };
        parse().ok_or_else(|| InvalidVirtualTransaction(text.to_owned()))
    }
}

/// The text does not name a virtual transaction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a virtual transaction")]
pub struct InvalidVirtualTransaction(String);

impl std::fmt::Display for Holder {
    /// One line for the log: who it is, how old, what it does.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.prepared, self.pid) {
            (Some(gid), _) => write!(f, "prepared transaction {gid:?}")?,
            (None, Some(pid)) => write!(f, "process {pid}")?,
            (None, None) => write!(f, "transaction {}", self.virtual_transaction)?,
        }
        if let Some(name) = self.application_name.as_deref().filter(|name| !name.is_empty()) {
            write!(f, " of {name:?}")?;
        }
        if let Some(age) = self.age {
            write!(f, ", open for {} s", age.as_secs())?;
        }
        if let Some(state) = &self.state {
            write!(f, ", {state}")?;
        }
        if let Some(query) = &self.query {
            write!(f, ": {query}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(position: i64) -> Position {
        Position::new(position)
    }

    const A: Writer = writer(1, false);
    const B: Writer = writer(2, false);

    const fn writer(backend: i32, prepared: bool) -> Writer {
        Writer { virtual_transaction: VirtualTransaction { backend, local: 1 }, prepared }
    }

    #[test]
    fn without_writers_everything_drawn_is_settled() {
        let mut rule = Rule::new(at(0));
        assert_eq!(rule.observe(at(7), []), 7);
        assert!(!rule.is_held());
    }

    #[test]
    fn a_writer_holds_back_what_it_may_have_drawn_and_nothing_else() {
        let mut rule = Rule::new(at(0));
        rule.observe(at(7), []);
        assert_eq!(rule.observe(at(9), [A]), 7, "A drew 8, 9 or both");
        assert_eq!(rule.observe(at(20), [A, B]), 7);
        assert_eq!(rule.observe(at(30), [B]), 9, "B had not locked when 9 was the last id");
        assert_eq!(rule.observe(at(30), []), 30);
    }

    #[test]
    fn writers_that_never_pause_do_not_hold_the_horizon_for_ever() {
        let mut rule = Rule::new(at(0));
        for turn in 0..100 {
            // Each writer is seen twice, and there is always one.
            let seen = [writer(turn, false), writer(turn + 1, false)];
            let settled = rule.observe(at(i64::from(turn) * 10), seen);
            assert!(i64::from(turn) * 10 - settled.get() <= 20);
        }
    }

    #[test]
    fn a_writer_seen_first_has_a_floor_of_nothing() {
        let mut rule = Rule::new(at(0));
        assert_eq!(rule.observe(at(100), [A]), 0, "any of the 100 ids may be A's");
        let mut rule = Rule::new(at(60));
        assert_eq!(rule.observe(at(100), [A]), 60);
    }

    #[test]
    fn a_prepared_transaction_inherits_from_the_writers_that_vanished() {
        let mut rule = Rule::new(at(0));
        rule.observe(at(5), [A]);
        rule.observe(at(8), [A, B]);
        let prepared = writer(1, true);
        assert_eq!(rule.observe(at(9), [B, prepared]), 0, "it may be A, which had drawn 1 to 5");
        assert_eq!(rule.observe(at(9), [B]), 5);
    }

    #[test]
    fn prepared_transactions_in_a_row_do_not_hold_the_horizon_for_ever() {
        let mut rule = Rule::new(at(0));
        rule.observe(at(5), [writer(1, true)]);
        assert_eq!(rule.observe(at(6), [writer(2, true)]), 5, "no writer vanished that could be this one");
    }

    #[test]
    fn the_visible_prefix_passes_a_writer_that_has_drawn_nothing() {
        let mut rule = Rule::new(at(0));
        rule.observe(at(0), [A]);
        rule.observe(at(3), [A]);
        assert_eq!(rule.extend(at(3)), 3);
        assert!(!rule.is_held());
        assert_eq!(rule.extend(at(2)), 3, "never backward");
        assert_eq!(rule.holders().count(), 0);
    }

    #[test]
    fn the_holders_are_those_with_the_lowest_floor() {
        let mut rule = Rule::new(at(0));
        rule.observe(at(1), []);
        rule.observe(at(2), [A]);
        rule.observe(at(3), [A, B]);
        assert_eq!(rule.holders().collect::<Vec<_>>(), [A]);
    }

    #[test]
    fn names_of_virtual_transactions_are_read_and_written() {
        for text in ["3/1234", "-1/789", "0/4294967295"] {
            let name: VirtualTransaction = text.parse().unwrap();
            assert_eq!(name.to_string(), text);
        }
        for text in ["", "3", "/", "3/", "3/-1", "3/4294967296", "a/1"] {
            assert!(text.parse::<VirtualTransaction>().is_err(), "{text:?}");
        }
    }
}
