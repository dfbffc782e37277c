//! Keys that one aggregate has at a time.

use futures_util::future::join_all;
use uuid::Uuid;

use super::{Store, append, happened, read_all};
use crate::event::{AggregateId, NewEvent, UniqueKey};
use crate::store::AppendError;

/// Which event claims a key that is taken, which key, and who has it.
async fn fail(store: &Store, events: &[NewEvent]) -> (usize, UniqueKey, AggregateId) {
    match store.append(events).await {
        Err(AppendError::KeyTaken { index, key, owner }) => (index, key, owner),
        other => panic!("{other:?}"),
    }
}

pub(super) async fn a_key_belongs_to_one_aggregate(store: Store) {
    let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
    append(&store, &[happened(a).claiming("email", "ann@example.org")]).await;
    let taken = fail(&store, &[happened(b), happened(b).claiming("email", "ann@example.org")]).await;
    assert_eq!(taken, (1, UniqueKey::new("email", "ann@example.org"), a.into()));
    // Another scope, another key, and who has it already.
    append(&store, &[happened(b).claiming("name", "ann@example.org").claiming("email", "Ann@example.org")])
        .await;
    append(&store, &[happened(a).claiming("email", "ann@example.org")]).await;
    assert_eq!(read_all(&store).await.len(), 3);
    let invalid = store.append(&[happened(a).claiming("email", "")]).await;
    assert!(matches!(invalid, Err(AppendError::Invalid { index: Some(0), .. })), "{invalid:?}");
}

pub(super) async fn a_released_key_is_free(store: Store) {
    let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
    append(&store, &[happened(a).claiming("email", "old")]).await;
    // Nobody gives back what is not his.
    append(&store, &[happened(b).releasing("email", "old")]).await;
    assert_eq!(fail(&store, &[happened(b).claiming("email", "old")]).await.2, AggregateId::from(a));
    append(&store, &[happened(a).releasing("email", "old").claiming("email", "new")]).await;
    append(&store, &[happened(b).claiming("email", "old")]).await;
    assert_eq!(fail(&store, &[happened(b).claiming("email", "new")]).await.2, AggregateId::from(a));
}

pub(super) async fn two_aggregates_may_change_places(store: Store) {
    let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
    append(&store, &[happened(a).claiming("seat", "1"), happened(b).claiming("seat", "2")]).await;
    let moved = |id, from, to| happened(id).releasing("seat", from).claiming("seat", to);
    append(&store, &[moved(a, "1", "2"), moved(b, "2", "1")]).await;
    assert_eq!(fail(&store, &[happened(a).claiming("seat", "1")]).await.2, AggregateId::from(b));
    assert_eq!(fail(&store, &[happened(b).claiming("seat", "2")]).await.2, AggregateId::from(a));
}

pub(super) async fn who_claims_and_releases_has_released(store: Store) {
    let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
    append(&store, &[happened(a).claiming("seat", "1"), happened(a).releasing("seat", "1")]).await;
    append(&store, &[happened(b).claiming("seat", "1")]).await;
}

pub(super) async fn a_claim_is_checked_although_it_is_released_later(store: Store) {
    let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
    append(&store, &[happened(a).claiming("seat", "1")]).await;
    let for_a_moment = [happened(b), happened(b).claiming("seat", "1"), happened(b).releasing("seat", "1")];
    assert_eq!(fail(&store, &for_a_moment).await, (1, UniqueKey::new("seat", "1"), a.into()));
    assert_eq!(read_all(&store).await.len(), 1);
}

pub(super) async fn the_keys_of_an_append_change_in_the_order_of_its_events(store: Store) {
    let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
    let (claim, release) =
        (|id| happened(id).claiming("seat", "1"), |id| happened(id).releasing("seat", "1"));
    // The second one has it while the first one has not released it.
    assert_eq!(fail(&store, &[claim(a), claim(b), release(a)]).await.0, 1);
    append(&store, &[claim(a), release(a), claim(b)]).await;
    assert_eq!(fail(&store, &[claim(a)]).await.2, AggregateId::from(b));
    // Whoever had it before the append is asked for nothing but to release it somewhere in it.
    append(&store, &[claim(a), release(b), release(a), claim(b), release(b), claim(a)]).await;
    assert_eq!(fail(&store, &[claim(b)]).await.2, AggregateId::from(a));
    append(&store, &[release(a), claim(a)]).await;
    assert_eq!(fail(&store, &[claim(b)]).await.2, AggregateId::from(a));
    append(&store, &[claim(a), release(a)]).await;
    append(&store, &[claim(b)]).await;
}

pub(super) async fn a_repeated_claim_is_recognised(store: Store) {
    let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
    let claim = [happened(a).claiming("email", "ann")];
    let stored = append(&store, &claim).await;
    append(&store, &[happened(a).releasing("email", "ann"), happened(b).claiming("email", "ann")]).await;
    assert_eq!(append(&store, &claim).await, stored);
    assert_eq!(fail(&store, &[happened(a).claiming("email", "ann")]).await.2, AggregateId::from(b));
}

pub(super) async fn of_many_who_claim_a_key_one_wins(store: Store) {
    for round in 0..20 {
        let claim = |_| {
            let store = store.clone();
            let claim = happened(Uuid::new_v4()).claiming("email", format!("user {round}"));
            tokio::spawn(async move { store.append(&[claim]).await })
        };
        let outcomes = join_all((0..8).map(claim)).await;
        let mut winners = 0;
        for outcome in outcomes {
            match outcome.expect("the store does not panic") {
                Ok(_) => winners += 1,
                Err(AppendError::KeyTaken { .. }) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
        assert_eq!(winners, 1);
    }
    assert_eq!(read_all(&store).await.len(), 20);
}
