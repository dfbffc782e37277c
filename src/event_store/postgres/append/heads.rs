//! What an append says about the aggregates that it writes to.

use std::collections::HashMap;

use uuid::Uuid;

use crate::event::{NewEvent, Version};

/// The versions that the aggregates of an append must be at, and those that its events then get.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ExpectedHeads {
    /// For each event the version that it gets.
    pub(super) versions: Vec<Version>,
    /// Each aggregate once.
    pub(super) aggregate_ids: Vec<Uuid>,
    /// For each aggregate the version that it must be at.
    pub(super) expected: Vec<Version>,
}

impl ExpectedHeads {
    /// `None` if the events leave an aggregate's version open, or contradict each other.
    ///
    /// One event with an expectation is enough for an aggregate: it fixes the versions of those before
    /// and after it.
    pub(super) fn of(events: &[NewEvent]) -> Option<Self> {
        let mut heads = Self {
            versions: Vec::with_capacity(events.len()),
            aggregate_ids: Vec::with_capacity(1),
            expected: Vec::with_capacity(1),
        };
        if let [event] = events {
            heads.add_aggregate(event.aggregate_id, event.expected_version.version()?);
            heads.versions.push(heads.expected[0].checked_add(1)?);
            return Some(heads);
        }

        let places = places_in_aggregates(events);
        let expected = expected_by_aggregate(events, &places)?;
        for (event, place) in events.iter().zip(&places) {
            let head = *expected.get(&event.aggregate_id)?;
            if *place == 1 {
                heads.add_aggregate(event.aggregate_id, head);
            }
            heads.versions.push(head.checked_add(*place)?);
        }
        Some(heads)
    }

    fn add_aggregate(&mut self, aggregate_id: Uuid, expected: Version) {
        self.aggregate_ids.push(aggregate_id);
        self.expected.push(expected);
    }
}

/// For each event its place among those of the same aggregate, from 1.
fn places_in_aggregates(events: &[NewEvent]) -> Vec<Version> {
    let mut lengths = HashMap::new();
    let place = |event: &NewEvent| {
        let length = lengths.entry(event.aggregate_id).or_insert(0);
        *length += 1;
        *length
    };
    events.iter().map(place).collect()
}

fn expected_by_aggregate(events: &[NewEvent], places: &[Version]) -> Option<HashMap<Uuid, Version>> {
    let mut heads = HashMap::new();
    for (event, place) in events.iter().zip(places) {
        let Some(expected) = event.expected_version.version() else { continue };
        let head = expected - (place - 1);
        if head < 0 || *heads.entry(event.aggregate_id).or_insert(head) != head {
            return None;
        }
    }
    Some(heads)
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::event::ExpectedVersion::{self, Absent, Any, Exact};

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);

    fn heads_of(events: &[(Uuid, ExpectedVersion)]) -> Option<ExpectedHeads> {
        let body = RawValue::from_string("{}".to_owned()).unwrap();
        let event = |&(aggregate_id, expected): &(Uuid, ExpectedVersion)| {
            NewEvent::new(aggregate_id, "Happened", body.clone()).expecting(expected)
        };
        ExpectedHeads::of(&events.iter().map(event).collect::<Vec<_>>())
    }

    #[test]
    fn one_expectation_fixes_the_versions_of_an_aggregate() {
        let heads = heads_of(&[(A, Absent), (B, Any), (A, Any), (B, Exact(8))]).unwrap();
        assert_eq!(heads.versions, [1, 8, 2, 9]);
        assert_eq!(heads.aggregate_ids, [A, B]);
        assert_eq!(heads.expected, [0, 7]);
        assert_eq!(heads_of(&[(A, Exact(99))]).unwrap().versions, [100]);
    }

    #[test]
    fn an_aggregate_without_expectation_leaves_it_open() {
        assert_eq!(heads_of(&[(A, Any)]), None);
        assert_eq!(heads_of(&[(A, Absent), (B, Any)]), None);
    }

    #[test]
    fn what_cannot_be_is_left_to_the_database() {
        assert_eq!(heads_of(&[(A, Absent), (A, Absent)]), None);
        assert_eq!(heads_of(&[(A, Any), (A, Absent)]), None);
        assert_eq!(heads_of(&[(A, Exact(Version::MAX))]), None);
        assert_eq!(heads_of(&[(A, Exact(Version::MAX - 1)), (A, Any)]), None);
    }
}
