//! Appending the same events again.

use uuid::Uuid;

use super::{Store, append, happened, json, read_all, time};
use crate::event::ExpectedVersion::{Absent, Exact};
use crate::event::NewEvent;
use crate::store::AppendError;

fn full() -> NewEvent {
    NewEvent {
        body: json(r#"{"title": "Milk", "amount": 2}"#),
        metadata: json(r#"{"user": "ann"}"#),
        correlation_id: Some(Uuid::new_v4()),
        causation_id: Some(Uuid::new_v4()),
        created_at: Some(time(0)),
        ..happened(Uuid::new_v4())
    }
}

async fn fail(store: &Store, events: &[NewEvent]) -> Uuid {
    match store.append(events).await {
        Err(AppendError::UuidReused { uuid }) => uuid,
        other => panic!("{other:?}"),
    }
}

pub(super) async fn the_same_append_again_returns_what_is_stored(store: Store) {
    for count in [1, 2, 3] {
        let events: Vec<_> = (0..count).map(|_| full()).collect();
        let first = append(&store, &events).await;
        append(&store, &[happened(&events[0].aggregate_id)]).await;
        assert_eq!(append(&store, &events).await, first);
    }
    assert_eq!(read_all(&store).await.len(), 9);
}

pub(super) async fn an_append_is_the_same_whatever_version_it_expects(store: Store) {
    let a = Uuid::new_v4();
    let one = happened(a).expecting(Absent);
    let two = [happened(a).expecting(Exact(1.into())), happened(a)];
    let stored_one = append(&store, std::slice::from_ref(&one)).await;
    let stored_two = append(&store, &two).await;
    assert_eq!(append(&store, std::slice::from_ref(&one)).await, stored_one);
    assert_eq!(append(&store, &two).await, stored_two);
    assert_eq!(append(&store, &[one.expecting(Exact(77.into()))]).await, stored_one);
    assert_eq!(append(&store, &two.map(|event| event.expecting(Exact(77.into())))).await, stored_two);
    assert_eq!(read_all(&store).await.len(), 3);
}

pub(super) async fn json_that_means_the_same_is_the_same(store: Store) {
    let event = full();
    let stored = append(&store, std::slice::from_ref(&event)).await;
    let repeated = NewEvent {
        body: json(r#"{"amount":2.0,"title":"\u004dilk","amount":20e-1}"#),
        metadata: json(r#"{"user":"bob","user":"ann"}"#),
        ..event.clone()
    };
    assert_eq!(append(&store, &[repeated]).await, stored);
    // Who repeats an append need not remember when it happened.
    assert_eq!(append(&store, &[NewEvent { created_at: None, ..event }]).await, stored);
}

pub(super) async fn other_content_under_a_stored_uuid_is_refused(store: Store) {
    let event = full();
    append(&store, std::slice::from_ref(&event)).await;
    let others = [
        NewEvent { aggregate_id: Uuid::new_v4().into(), ..event.clone() },
        NewEvent { event_type: "Other".to_owned(), ..event.clone() },
        NewEvent { body: json(r#"{"title": "Milk", "amount": 3}"#), ..event.clone() },
        NewEvent { metadata: json("{}"), ..event.clone() },
        NewEvent { correlation_id: None, ..event.clone() },
        NewEvent { correlation_id: Some(Uuid::new_v4()), ..event.clone() },
        NewEvent { causation_id: None, ..event.clone() },
        NewEvent { created_at: Some(time(1)), ..event.clone() },
    ];
    for other in others {
        assert_eq!(fail(&store, std::slice::from_ref(&other)).await, event.uuid, "{other:?}");
        assert_eq!(fail(&store, &[other.clone().expecting(Absent)]).await, event.uuid, "{other:?}");
        assert_eq!(fail(&store, &[happened(Uuid::new_v4()), other]).await, event.uuid);
    }
    assert_eq!(read_all(&store).await.len(), 1);
}

pub(super) async fn an_append_of_stored_and_new_events_is_refused(store: Store) {
    let (stored, new) = (full(), full());
    append(&store, std::slice::from_ref(&stored)).await;
    assert_eq!(fail(&store, &[new.clone(), stored.clone()]).await, stored.uuid);
    assert_eq!(fail(&store, &[stored.clone(), new.clone()]).await, stored.uuid);
    let expecting = [new.clone().expecting(Absent), stored.clone().expecting(Absent)];
    assert_eq!(fail(&store, &expecting).await, stored.uuid);
    // Also in an append so large that it takes several statements.
    let mut many = vec![stored.clone()];
    many.extend((0..2_500).map(|_| happened(Uuid::new_v4())));
    assert_eq!(fail(&store, &many).await, stored.uuid);
    many.rotate_left(1);
    assert_eq!(fail(&store, &many).await, stored.uuid);
    assert_eq!(read_all(&store).await.len(), 1);
}

pub(super) async fn a_part_of_an_append_may_be_repeated(store: Store) {
    let events = [full(), full(), full()];
    let stored = append(&store, &events).await;
    assert_eq!(append(&store, &events[1..2]).await, stored[1..2]);
    assert_eq!(append(&store, &events[..2]).await, stored[..2]);
    let backward = [events[2].clone(), events[0].clone()];
    assert_eq!(append(&store, &backward).await, [stored[2], stored[0]]);
}

pub(super) async fn a_huge_append_is_repeated_like_a_small_one(store: Store) {
    let a = Uuid::new_v4();
    let events: Vec<_> = (0..2_500).map(|_| happened(a)).collect();
    let stored = append(&store, &events).await;
    assert_eq!(append(&store, &events).await, stored);
    assert_eq!(read_all(&store).await.len(), 2_500);
}

pub(super) async fn a_uuid_may_not_come_twice(store: Store) {
    let event = happened(Uuid::new_v4());
    let mut many: Vec<_> = (0..2_500).map(|_| happened(Uuid::new_v4())).collect();
    many.extend([event.clone(), many[0].clone()]);
    // Whatever else is wrong with them, no other append of the same events could succeed.
    let also_conflicting = vec![event.clone().expecting(Exact(7.into())); 2];
    for events in [vec![event.clone(), event.clone()], also_conflicting, many] {
        match store.append(&events).await {
            Err(AppendError::Invalid { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(read_all(&store).await.len(), 0);
    append(&store, std::slice::from_ref(&event)).await;
    match store.append(&[event.clone(), event]).await {
        Err(AppendError::Invalid { .. }) => {}
        other => panic!("{other:?}"),
    }
}
