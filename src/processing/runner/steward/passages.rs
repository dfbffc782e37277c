//! The moves over events of others that runners wait for, and whose turn it is.
//!
//! Near the head, those at one place are moved together, at once. Far behind, the events to look through are many, and each is to be
//! looked at once for all: so whoever is behind is moved up to the others first, and all go on together.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::event::Position;
use crate::processing::tracker::{Passing, Stretch};

/// How long a runner waits at most until its position is moved. Then it looks whether there is something else to do, and asks again.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// Ids that are few enough to be looked through for those alone who are at one place.
pub(in crate::processing::runner) const NEAR: i64 = 10_000;

/// Ids that are looked through at once at first, and how long that may take. They are twice as many as before while it takes
/// less than a half of that.
const REACH: i64 = 100_000;
const REACH_MAX: i64 = 64 * REACH;
const LONG: Duration = Duration::from_millis(500);

/// What became of a move.
#[derive(Debug, Clone, Copy)]
pub(in crate::processing::runner) enum Passed {
    /// Where the position is now, and whether all that was looked through was of other types.
    To(Position, bool),
    /// The turn has not come: ask again.
    NotYet,
}

/// A move that a runner waits for.
#[derive(Debug)]
pub(super) struct Passage {
    pub(super) passing: Passing,
    pub(super) stretch: Stretch,
    pub(super) answer: oneshot::Sender<Option<Passed>>,
    pub(super) asked: Instant,
}

/// The moves that are waited for.
#[derive(Debug)]
pub(super) struct Passages {
    waiting: Vec<Passage>,
    /// Ids that are looked through at once.
    reach: i64,
    /// How many times positions far behind were moved.
    turn: usize,
}

impl Default for Passages {
    fn default() -> Self {
        Self { waiting: Vec::new(), reach: REACH, turn: 0 }
    }
}

impl Passages {
    pub(super) fn add(&mut self, passage: Passage) {
        self.waiting.push(passage);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Forgets all of them, because the database does not answer, or not in time.
    pub(super) fn give_up(&mut self) {
        *self = Self { reach: NEAR, ..Self::default() };
    }

    /// Where positions wait that are near the head, in order.
    pub(super) fn near(&self) -> Vec<Position> {
        self.places(true)
    }

    /// The place far behind whose turn it is, and how far positions may be moved from there.
    pub(super) fn next_far(&self) -> Option<(Position, Position)> {
        let (after, next) = choose(&self.places(false), self.turn)?;
        let reach = after.advanced_by(self.reach);
        Some((after, next.map_or(reach, |next| reach.min(next))))
    }

    fn places(&self, near: bool) -> Vec<Position> {
        let mut ends: BTreeMap<Position, Position> = BTreeMap::new();
        for Stretch { after, upto, .. } in self.waiting.iter().map(|one| one.stretch) {
            let end = ends.entry(after).or_insert(upto);
            *end = upto.min(*end);
        }
        ends.retain(|after, upto| (after.distance_to(*upto) <= NEAR) == near);
        ends.into_keys().collect()
    }

    /// Those that wait at a place.
    pub(super) fn take(&mut self, after: Position) -> Vec<Passage> {
        self.waiting.extract_if(.., |one| one.stretch.after == after).collect()
    }

    /// Takes note of how long it took to look through [`Self::reach`] ids or fewer.
    pub(super) fn note(&mut self, took: Duration) {
        self.turn = self.turn.wrapping_add(1);
        self.reach = match took {
            took if took > LONG => (self.reach / 2).max(NEAR),
            took if took < LONG / 2 => (self.reach * 2).min(REACH_MAX),
            _ => self.reach,
        };
    }

    /// Answers those that have waited for long.
    pub(super) fn put_off(&mut self) {
        for passage in self.waiting.extract_if(.., |one| one.asked.elapsed() >= WAIT_MAX) {
            let _ = passage.answer.send(Some(Passed::NotYet));
        }
    }
}

/// The place whose turn it is, and the next one. In every second turn that is the first, so that all come together; in the
/// others each in turn, so that none waits for ever.
fn choose(places: &[Position], turn: usize) -> Option<(Position, Option<Position>)> {
    let index = if turn.is_multiple_of(2) { 0 } else { (turn / 2) % places.len().max(1) };
    Some((*places.get(index)?, places.get(index + 1).copied()))
}

/// How far all that wait at one place may be moved: as far as is settled for each, so that it does not matter whose mark is compared.
pub(super) fn common(group: &[Passage]) -> Option<Stretch> {
    group.iter().map(|one| one.stretch).reduce(|all, one| Stretch {
        upto: all.upto.min(one.upto),
        settled: all.settled.min(one.settled),
        mark: all.mark.or(one.mark),
        ..all
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processing::tracker::Claim;

    /// Those that wait at these places, each for everything up to an id.
    fn waiting(places: &[(i64, i64)]) -> (Passages, Vec<oneshot::Receiver<Option<Passed>>>) {
        let (mut passages, mut answers) = (Passages::default(), Vec::new());
        for (after, upto) in places {
            let (answer, answered) = oneshot::channel();
            let passing = Passing { claim: Claim::example(*after), types: Vec::new(), rate: 0.0 };
            let stretch =
                Stretch { after: (*after).into(), upto: (*upto).into(), settled: (*upto).into(), mark: None };
            passages.add(Passage { passing, stretch, answer, asked: Instant::now() });
            answers.push(answered);
        }
        (passages, answers)
    }

    #[test]
    fn who_is_far_behind_comes_up_to_the_others_first_and_nobody_waits_for_ever() {
        let (mut passages, _answers) =
            waiting(&[(50_000, 900_000), (0, 900_000), (899_000, 900_000), (0, 800_000), (70_000, 900_000)]);
        assert_eq!(passages.near(), [899_000]);
        let mut turns = Vec::new();
        for _ in 0..6 {
            turns.push(passages.next_far().unwrap());
            passages.note(LONG);
        }
        let of = |after: i64, most: i64| (Position::from(after), Position::from(most));
        let (first, second, third) = (of(0, 50_000), of(50_000, 70_000), of(70_000, 170_000));
        assert_eq!(turns, [first, first, first, second, first, third]);
        let group = passages.take(0.into());
        let stretch = common(&group).unwrap();
        assert_eq!((group.len(), stretch.upto, stretch.settled), (2, 800_000.into(), 800_000.into()));
        assert_eq!(passages.next_far(), Some(second));
    }

    #[test]
    fn so_many_ids_are_looked_through_at_once_as_can_be_in_time() {
        let (mut passages, _answers) = waiting(&[(0, 1_000_000_000)]);
        let reach = |passages: &Passages| passages.next_far().unwrap().1.get();
        passages.note(LONG / 4);
        assert_eq!(reach(&passages), 2 * REACH);
        passages.note(LONG * 2);
        assert_eq!(reach(&passages), REACH);
        for _ in 0..99 {
            passages.note(Duration::ZERO);
        }
        assert_eq!(reach(&passages), REACH_MAX);
    }

    #[test]
    fn who_has_waited_for_long_looks_for_something_else_to_do() {
        let (mut passages, mut answers) = waiting(&[(0, 100_000), (5, 100_000)]);
        passages.waiting[0].asked = Instant::now().checked_sub(WAIT_MAX).unwrap();
        passages.put_off();
        assert!(matches!(answers[0].try_recv(), Ok(Some(Passed::NotYet))));
        assert!(answers[1].try_recv().is_err() && !passages.is_empty());
        passages.give_up();
        assert!(passages.is_empty());
    }
}
