//! Expected versions.

use uuid::Uuid;

use super::{Store, append, happened, read_aggregate, read_all, versions};
use crate::event::ExpectedVersion::{self, Absent, Any, Exact};
use crate::event::{NewEvent, Version};
use crate::store::AppendError;

/// Appends what must fail, and returns whose conflict it was, the version expected and the actual one.
async fn fail(store: &Store, events: &[NewEvent]) -> (Uuid, i64, i64) {
    match store.append(events).await {
        Err(AppendError::Conflict { aggregate_id, expected, actual }) => {
            (aggregate_id.as_uuid().expect("the id is a uuid"), expected.get(), actual.get())
        }
        other => panic!("{other:?}"),
    }
}

pub(super) async fn an_expected_version_must_be_the_version(store: Store) {
    for existing in 0..3 {
        for expected in [Any, Absent, Exact(0.into()), Exact(1.into()), Exact(2.into()), Exact(3.into())] {
            let aggregate_id = Uuid::new_v4();
            let history: Vec<_> = (0..existing).map(|_| happened(aggregate_id)).collect();
            append(&store, &history).await;
            for count in [1, 2] {
                let mut events: Vec<_> = (0..count).map(|_| happened(aggregate_id)).collect();
                events[0].expected_version = expected;
                let actual = i64::try_from(read_aggregate(&store, aggregate_id).await.len()).unwrap_or(0);
                match expected.version().map(Version::get) {
                    Some(version) if version != actual => {
                        assert_eq!(fail(&store, &events).await, (aggregate_id, version, actual));
                    }
                    _ => assert_eq!(append(&store, &events).await[0].version, actual + 1),
                }
            }
        }
    }
}

pub(super) async fn a_conflict_stores_nothing(store: Store) {
    let a = Uuid::new_v4();
    append(&store, &[happened(a)]).await;
    let event = happened(a).expecting(Exact(2.into()));
    assert_eq!(fail(&store, std::slice::from_ref(&event)).await, (a, 2, 1));
    assert_eq!(read_all(&store).await.len(), 1);

    // Its uuid is still free.
    append(&store, &[event.expecting(Exact(1.into()))]).await;
    assert_eq!(versions(&read_aggregate(&store, a).await), [1, 2]);
}

pub(super) async fn expectations_are_judged_event_by_event(store: Store) {
    let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
    let expecting = |list: &[(Uuid, Option<i64>)]| -> Vec<_> {
        let event = |&(id, version): &(Uuid, Option<i64>)| {
            happened(id).expecting(version.map_or(Any, ExpectedVersion::exactly))
        };
        list.iter().map(event).collect()
    };
    append(&store, &expecting(&[(a, None), (a, Some(1)), (b, Some(0)), (a, None), (a, Some(3))])).await;
    append(&store, &expecting(&[(b, Some(1)), (a, Some(4)), (b, Some(2))])).await;
    assert_eq!(versions(&read_aggregate(&store, a).await), [1, 2, 3, 4, 5]);

    assert_eq!(fail(&store, &expecting(&[(a, Some(5)), (a, Some(5))])).await, (a, 5, 6));
    assert_eq!(fail(&store, &expecting(&[(a, None), (a, Some(5))])).await, (a, 5, 6));
    assert_eq!(fail(&store, &expecting(&[(a, Some(5)), (a, Some(7))])).await, (a, 7, 6));
    let fresh = Uuid::new_v4();
    assert_eq!(fail(&store, &expecting(&[(fresh, Some(0)), (fresh, Some(0))])).await, (fresh, 0, 1));
}

pub(super) async fn the_first_conflict_in_the_order_given_is_reported(store: Store) {
    let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
    append(&store, &[happened(a), happened(b), happened(b)]).await;
    let events = [happened(b).expecting(Exact(1.into())), happened(a).expecting(Exact(7.into()))];
    assert_eq!(fail(&store, &events).await, (b, 1, 2));
    let events = [happened(a).expecting(Exact(7.into())), happened(b).expecting(Exact(1.into()))];
    assert_eq!(fail(&store, &events).await, (a, 7, 1));
}

pub(super) async fn expected_versions_have_64_bits(store: Store) {
    let a = Uuid::new_v4();
    append(&store, &[happened(a)]).await;
    for expected in [1 << 31, (1 << 32) + 1, i64::MAX - 1, i64::MAX] {
        assert_eq!(fail(&store, &[happened(a).expecting(Exact(expected.into()))]).await, (a, expected, 1));
        let events = [happened(a).expecting(Exact(expected.into())), happened(a)];
        assert_eq!(fail(&store, &events).await, (a, expected, 1));
    }
}
