//! The rule of the settled horizon: what two reads of the server say about ids that may still appear.

use std::collections::{BTreeMap, BTreeSet};

use super::Writer;
use crate::event::Position;

/// Takes observations and says which position is settled.
///
/// It has no I/O and no clock. The caller has to make both reads of an observation in the
/// order of the module's documentation, to make observations one after the other, and to take a new rule whenever
/// the server may have restarted, because then other transactions go by the same names, and ids that
/// were never committed may be drawn again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    /// `last_value` of the latest observation.
    head: Position,
    settled: Position,
    /// The writers of the latest observation. Whatever they may still commit is above their floor.
    floors: BTreeMap<Writer, Position>,
}

impl Rule {
    /// A rule that has not seen anything yet. It trusts nobody's position: only observations say what is settled.
    pub fn new() -> Self {
        Self::default()
    }

    /// A rule that has concluded before that everything at or below `settled` is. No caller knows such a position: this is
    /// how the tests show what a wrong one costs.
    #[cfg(test)]
    pub(super) fn trusting(settled: Position) -> Self {
        Self { head: settled, settled, floors: BTreeMap::new() }
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
    /// snapshot. Each of these ids is taken for good, so nothing can appear among them, whichever transactions
    /// hold locks. This lets readers pass a writer that has locked the table but drawn nothing.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::horizon::VirtualTransaction;

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
        let mut rule = Rule::new();
        assert_eq!(rule.observe(at(7), []), 7);
        assert!(!rule.is_held());
    }

    #[test]
    fn a_writer_holds_back_what_it_may_have_drawn_and_nothing_else() {
        let mut rule = Rule::new();
        rule.observe(at(7), []);
        assert_eq!(rule.observe(at(9), [A]), 7, "A drew 8, 9 or both");
        assert_eq!(rule.observe(at(20), [A, B]), 7);
        assert_eq!(rule.observe(at(30), [B]), 9, "B had not locked when 9 was the last id");
        assert_eq!(rule.observe(at(30), []), 30);
    }

    #[test]
    fn writers_that_never_pause_do_not_hold_the_horizon_for_ever() {
        let mut rule = Rule::new();
        for turn in 0..100 {
            // Each writer is seen twice, and there is always one.
            let seen = [writer(turn, false), writer(turn + 1, false)];
            let settled = rule.observe(at(i64::from(turn) * 10), seen);
            assert!(i64::from(turn) * 10 - settled.get() <= 20);
        }
    }

    #[test]
    fn a_writer_seen_first_has_a_floor_of_nothing() {
        let mut rule = Rule::new();
        assert_eq!(rule.observe(at(100), [A]), 0, "any of the 100 ids may be A's");
        let mut rule = Rule::new();
        rule.observe(at(60), []);
        assert_eq!(rule.observe(at(100), [A]), 60);
    }

    #[test]
    fn a_prepared_transaction_inherits_from_the_writers_that_vanished() {
        let mut rule = Rule::new();
        rule.observe(at(5), [A]);
        rule.observe(at(8), [A, B]);
        let prepared = writer(1, true);
        assert_eq!(rule.observe(at(9), [B, prepared]), 0, "it may be A, which had drawn 1 to 5");
        assert_eq!(rule.observe(at(9), [B]), 5);
    }

    #[test]
    fn prepared_transactions_in_a_row_do_not_hold_the_horizon_for_ever() {
        let mut rule = Rule::new();
        rule.observe(at(5), [writer(1, true)]);
        assert_eq!(rule.observe(at(6), [writer(2, true)]), 5, "no writer vanished that could be this one");
    }

    #[test]
    fn the_visible_prefix_passes_a_writer_that_has_drawn_nothing() {
        let mut rule = Rule::new();
        rule.observe(at(0), [A]);
        rule.observe(at(3), [A]);
        assert_eq!(rule.extend(at(3)), 3);
        assert!(!rule.is_held());
        assert_eq!(rule.extend(at(2)), 3, "never backward");
        assert_eq!(rule.holders().count(), 0);
    }

    #[test]
    fn the_holders_are_those_with_the_lowest_floor() {
        let mut rule = Rule::new();
        rule.observe(at(1), []);
        rule.observe(at(2), [A]);
        rule.observe(at(3), [A, B]);
        assert_eq!(rule.holders().collect::<Vec<_>>(), [A]);
    }
}
