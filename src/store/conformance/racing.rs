//! Writers at the same time. What must hold under any timing is tried often, with real tasks.

use std::collections::HashSet;

use futures_util::future::join_all;
use uuid::Uuid;

use super::{Store, append, happened, read_aggregate, read_all, versions};
use crate::event::ExpectedVersion::{self, Absent, Exact};
use crate::event::{Appended, NewEvent};
use crate::store::AppendError;

/// How many tasks write at the same time.
const WRITERS: usize = 8;

const ROUNDS: usize = 20;

/// Appends each list in a task of its own, all at once.
async fn append_at_once(
    store: &Store,
    appends: impl IntoIterator<Item = Vec<NewEvent>>,
) -> Vec<Result<Vec<Appended>, AppendError>> {
    let append = |events: Vec<NewEvent>| {
        let store = store.clone();
        tokio::spawn(async move { store.append(&events).await })
    };
    let tasks: Vec<_> = appends.into_iter().map(append).collect();
    join_all(tasks).await.into_iter().map(|joined| joined.expect("the store does not panic")).collect()
}

/// Of all writers that expect the version `head` of an aggregate, exactly one must get through.
async fn race_for(store: &Store, aggregate_id: Uuid, expected: ExpectedVersion) {
    let head = expected.version().expect("the case expects a version");
    let appends = (0..WRITERS).map(|_| vec![happened(aggregate_id).expecting(expected)]);
    let outcomes = append_at_once(store, appends).await;
    let mut winners = 0;
    for outcome in outcomes {
        match outcome {
            Ok(appended) => {
                assert_eq!(appended[0].version, head.next());
                winners += 1;
            }
            Err(AppendError::Conflict { aggregate_id: id, expected, actual }) => {
                assert_eq!((id, expected, actual), (aggregate_id.into(), head, head.next()));
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(winners, 1);
}

pub(super) async fn of_many_who_create_an_aggregate_one_wins(store: Store) {
    for _ in 0..ROUNDS {
        race_for(&store, Uuid::new_v4(), Absent).await;
    }
    assert_eq!(read_all(&store).await.len(), ROUNDS);
}

pub(super) async fn of_many_who_expect_a_version_one_wins(store: Store) {
    let a = Uuid::new_v4();
    for version in 0..12 {
        race_for(&store, a, Exact(version.into())).await;
    }
    assert_eq!(versions(&read_aggregate(&store, a).await), (1..=12).collect::<Vec<_>>());
}

pub(super) async fn appends_without_expectation_all_get_through(store: Store) {
    let a = Uuid::new_v4();
    for _ in 0..ROUNDS {
        // One event, several, several with others between.
        let lengths = (0..WRITERS).map(|writer| writer % 3 + 1);
        let appends = lengths.map(|length| {
            (0..length).flat_map(|_| [happened(a), happened(Uuid::new_v4())]).skip(length % 2).collect()
        });
        for outcome in append_at_once(&store, appends).await {
            outcome.expect("nothing was expected");
        }
    }
    let events = read_aggregate(&store, a).await;
    let expected: Vec<_> = (1..).take(events.len()).collect();
    assert_eq!(versions(&events), expected);
    assert!(events.is_sorted_by(|one, next| one.id < next.id), "ids ascend with versions");
}

pub(super) async fn the_same_append_at_the_same_time_is_stored_once(store: Store) {
    for round in 0..ROUNDS {
        let a = Uuid::new_v4();
        let mut events = vec![happened(a), happened(Uuid::new_v4()), happened(a)];
        events.truncate(round % 3 + 1);
        if round % 2 == 0 {
            events[0].expected_version = Absent;
        }
        let outcomes = append_at_once(&store, (0..WRITERS).map(|_| events.clone())).await;
        let places: Vec<_> = outcomes.into_iter().map(|outcome| outcome.expect("it is one append")).collect();
        assert!(places.iter().all(|place| *place == places[0]), "{places:?}");
    }
    let stored = read_all(&store).await;
    let uuids: HashSet<_> = stored.iter().map(|event| event.uuid).collect();
    assert_eq!(uuids.len(), stored.len());
}

pub(super) async fn appends_to_many_aggregates_all_get_through(store: Store) {
    let aggregates: Vec<_> = (0..4).map(|_| Uuid::new_v4()).collect();
    append(&store, &aggregates.iter().copied().map(happened).collect::<Vec<_>>()).await;
    // A database may take a second to notice that two writers wait for each other.
    let rounds = 3;
    for _ in 0..rounds {
        // Half of the writers take the aggregates in the opposite order, which makes locks collide.
        let appends = (0..WRITERS).map(|writer| {
            let mut events: Vec<_> = aggregates.iter().copied().map(happened).collect();
            if writer % 2 == 1 {
                events.reverse();
            }
            events
        });
        for outcome in append_at_once(&store, appends).await {
            outcome.expect("nothing was expected");
        }
    }
    for id in aggregates {
        let expected: Vec<_> = (1..).take(rounds * WRITERS + 1).collect();
        assert_eq!(versions(&read_aggregate(&store, id).await), expected);
    }
}
