//! A made-up history of a to-do application: the events of EventSourcery's example, for demo and benchmarks.
//!
//! The same seed makes the same history. A third of the events adds a to-do. The others amend, complete or abandon an open
//! to-do, a young one more often than an old one, so that aggregates interleave as they do in real stores. Of 200,000
//! events, 64,000 add, 97,000 amend, 29,000 complete and 9,500 abandon, and 25,500 to-dos stay open.

use serde_json::value::RawValue;
use uuid::Uuid;

use crate::event::{ExpectedVersion, NewEvent};

/// Makes the events of an endless history.
#[derive(Debug)]
pub struct TodoHistory {
    random: SplitMix,
    added: u64,
    open: Vec<Todo>,
}

#[derive(Debug)]
struct Todo {
    id: Uuid,
    version: i64,
}

/// To-dos that may be open at a time. Beyond this number, to-dos are completed instead of amended.
const OPEN_MAX: usize = 30_000;

const THINGS: [&str; 8] = [
    "the roof",
    "a bicycle",
    "the invoices",
    "two letters",
    "the garden",
    "a cake",
    "the shelves",
    "old books",
];

impl TodoHistory {
    /// Begins the history that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self { random: SplitMix(seed), added: 0, open: Vec::new() }
    }

    fn add(&mut self) -> NewEvent {
        self.added += 1;
        let number = self.added;
        let id = self.uuid();
        self.open.push(Todo { id, version: 1 });
        let thing = THINGS[self.random.below(THINGS.len())];
        let day = 1 + self.random.below(28);
        let body = format!(
            r#"{{"title":"see to {thing} ({number})","description":"{thing} should have been seen to long ago","due_date":"2027-01-{day:02}","stakeholder_email":"person{}@example.com"}}"#,
            number % 97
        );
        self.event(id, "TodoAdded", body, ExpectedVersion::Absent)
    }

    fn change(&mut self) -> NewEvent {
        let index = self.pick();
        let Todo { id, version } = self.open[index];
        let expected = ExpectedVersion::exactly(version);
        let day = 1 + self.random.below(28);
        match self.random.below(1_000) {
            0..716 if self.open.len() < OPEN_MAX => {
                self.open[index].version += 1;
                let body = format!(
                    r#"{{"title":"see to it (amended {version} times)","due_date":"2027-02-{day:02}"}}"#
                );
                self.event(id, "TodoAmended", body, expected)
            }
            0..930 => {
                self.open.swap_remove(index);
                self.event(id, "TodoCompleted", format!(r#"{{"completed_on":"2027-01-{day:02}"}}"#), expected)
            }
            _ => {
                self.open.swap_remove(index);
                self.event(id, "TodoAbandoned", format!(r#"{{"abandoned_on":"2027-01-{day:02}"}}"#), expected)
            }
        }
    }

    /// Picks an open to-do: the younger, the likelier.
    fn pick(&mut self) -> usize {
        let newest = self.open.len() - 1;
        let reach = 1 + self.random.below(self.open.len());
        newest - self.random.below(reach)
    }

    fn event(&mut self, id: Uuid, event_type: &str, body: String, expected: ExpectedVersion) -> NewEvent {
        let body = RawValue::from_string(body).unwrap_or_else(|_| RawValue::NULL.to_owned());
        let mut event = NewEvent::new(id, event_type, body).expecting(expected);
        event.uuid = self.uuid();
        event
    }

    fn uuid(&mut self) -> Uuid {
        uuid::Builder::from_random_bytes(
            (u128::from(self.random.next()) << 64 | u128::from(self.random.next())).to_be_bytes(),
        )
        .into_uuid()
    }
}

impl Iterator for TodoHistory {
    type Item = NewEvent;

    fn next(&mut self) -> Option<NewEvent> {
        Some(if self.open.is_empty() || self.random.below(100) < 32 { self.add() } else { self.change() })
    }
}

/// A random number generator that makes the same numbers everywhere: Sebastiano Vigna's SplitMix64.
#[derive(Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number from 0 to `bound`, exclusive.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn versions_follow_each_other_and_the_seed_decides() {
        let mut versions: HashMap<crate::event::AggregateId, i64> = HashMap::new();
        for event in TodoHistory::new(7).take(20_000) {
            let version = versions.entry(event.aggregate_id.clone()).or_default();
            match event.expected_version {
                ExpectedVersion::Absent => assert_eq!(*version, 0),
                expected => assert_eq!(expected, ExpectedVersion::exactly(*version)),
            }
            *version += 1;
        }
        let uuids = |seed| TodoHistory::new(seed).take(100).map(|event| event.uuid).collect::<Vec<_>>();
        assert_eq!(uuids(7), uuids(7));
        assert_ne!(uuids(7), uuids(8));
    }
}
