//! What an append stores and returns.

use chrono::{DateTime, Duration, Utc};
use uuid::Uuid;

use super::{
    Store, append, append_each, event_of, happened, ids, json, read_aggregate, read_all, time, versions,
};
use crate::event::{AggregateId, ExpectedVersion, NewEvent};
use crate::store::AppendError;

pub(super) async fn an_event_is_read_back_whole(store: Store) {
    let event = NewEvent {
        uuid: Uuid::new_v4(),
        aggregate_id: Uuid::new_v4().into(),
        event_type: "TodoAdded".to_owned(),
        body: json(r#"{"title": "Milk"}"#),
        metadata: json(r#"{"user": "ann"}"#),
        expected_version: ExpectedVersion::Absent,
        correlation_id: Some(Uuid::new_v4()),
        causation_id: Some(Uuid::new_v4()),
        created_at: Some(time(1)),
        tags: Vec::new(),
        keys: Vec::new(),
        personal: &[],
    };
    let appended = append(&store, std::slice::from_ref(&event)).await[0];
    let [stored] = &read_all(&store).await[..] else { panic!("one event is stored") };

    assert_eq!((stored.id, stored.uuid, stored.version), (appended.id, event.uuid, 1.into()));
    assert_eq!((appended.uuid, appended.version), (event.uuid, 1.into()));
    assert_eq!(stored.aggregate_id, event.aggregate_id);
    assert_eq!(stored.event_type, event.event_type);
    assert_eq!(stored.body.get(), event.body.get());
    assert_eq!(stored.metadata.get(), event.metadata.get());
    assert_eq!(stored.correlation_id, event.correlation_id);
    assert_eq!(stored.causation_id, event.causation_id);
    assert_eq!(stored.created_at, time(1));
}

pub(super) async fn what_is_left_out_gets_a_default(store: Store) {
    append(&store, &[happened(Uuid::new_v4())]).await;
    append(&store, &[event_of("A"), event_of("B")]).await;
    for stored in read_all(&store).await {
        assert_eq!(stored.metadata.get(), "{}");
        assert_eq!((stored.correlation_id, stored.causation_id), (None, None));
        // The store's clock may be another machine's.
        let created_at = stored.created_at.to_utc().expect("a time of now");
        assert!((Utc::now() - created_at).abs() < Duration::hours(1), "{created_at}");
    }
}

pub(super) async fn ids_ascend_and_versions_count_from_one(store: Store) {
    let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
    let appended_ids = append_each(&store, [a, b, a, a, b].map(happened)).await;
    assert!(appended_ids[0] > 0.into(), "position 0 is before the first event");
    assert!(appended_ids.is_sorted_by(|one, next| one < next), "{appended_ids:?}");

    let stored = read_all(&store).await;
    assert_eq!(ids(&stored), appended_ids);
    assert_eq!(versions(&stored), [1, 1, 2, 3, 2]);
}

pub(super) async fn an_append_returns_places_in_the_order_given(store: Store) {
    let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
    for expected in [ExpectedVersion::Any, ExpectedVersion::exactly(3)] {
        let events: Vec<_> = [b, a, b, a, a, b].map(happened).into();
        let events: Vec<_> = events
            .into_iter()
            .enumerate()
            .map(|(index, event)| if index < 2 { event.expecting(expected) } else { event })
            .collect();
        let appended = append(&store, &events).await;
        for (event, appended) in events.iter().zip(&appended) {
            assert_eq!(event.uuid, appended.uuid);
        }
        assert!(appended.is_sorted_by(|one, next| one.id < next.id), "{appended:?}");
        let first = if expected == ExpectedVersion::Any { 1 } else { 4 };
        let returned: Vec<_> = appended.iter().map(|appended| appended.version).collect();
        assert_eq!(returned, [0, 0, 1, 1, 2, 2].map(|place| first + place));
    }
    assert_eq!(versions(&read_aggregate(&store, a).await), [1, 2, 3, 4, 5, 6]);
}

pub(super) async fn an_empty_append_is_a_no_op(store: Store) {
    assert_eq!(append(&store, &[]).await, []);
    assert_eq!(store.latest_id(None).await.expect("the store reads"), 0);
}

pub(super) async fn several_aggregates_are_appended_together(store: Store) {
    let (a, b, c) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    append(&store, &[happened(a)]).await;
    let events = [
        happened(a).expecting(ExpectedVersion::exactly(1)),
        happened(b).expecting(ExpectedVersion::Absent),
        happened(c),
        happened(a).expecting(ExpectedVersion::exactly(2)),
    ];
    append(&store, &events).await;
    assert_eq!(versions(&read_all(&store).await), [1, 2, 1, 1, 3]);
}

pub(super) async fn an_append_is_stored_whole_or_not_at_all(store: Store) {
    let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
    append(&store, &[happened(b)]).await;
    for first in [ExpectedVersion::Any, ExpectedVersion::Absent] {
        let events = [happened(a).expecting(first), happened(b).expecting(ExpectedVersion::Absent)];
        store.append(&events).await.expect_err("b exists");
    }
    let unstorable = NewEvent { body: json(r#""\u0000""#), ..happened(b) };
    store.append(&[happened(a), unstorable]).await.expect_err("no store keeps NUL");
    assert_eq!(read_all(&store).await.len(), 1);
}

pub(super) async fn versions_go_on_past_9_and_99(store: Store) {
    let (one_by_one, by_tens, unchecked) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    for version in 0..101 {
        let expected = ExpectedVersion::exactly(version);
        append(&store, &[happened(one_by_one).expecting(expected)]).await;
        append(&store, &[happened(unchecked)]).await;
    }
    for tens in 0..11 {
        let mut events: Vec<_> = (0..10).map(|_| happened(by_tens)).collect();
        events[0].expected_version = ExpectedVersion::exactly(10 * tens);
        append(&store, &events).await;
    }
    assert_eq!(versions(&read_aggregate(&store, one_by_one).await), (1..=101).collect::<Vec<_>>());
    assert_eq!(versions(&read_aggregate(&store, unchecked).await), (1..=101).collect::<Vec<_>>());
    assert_eq!(versions(&read_aggregate(&store, by_tens).await), (1..=110).collect::<Vec<_>>());
}

pub(super) async fn ten_thousand_events_go_into_one_append(store: Store) {
    let aggregates: Vec<_> = (0..100).map(|_| Uuid::new_v4()).collect();
    let events: Vec<_> = (0..10_000).map(|number| happened(aggregates[number % 100])).collect();
    let appended = append(&store, &events).await;
    assert!(appended.is_sorted_by(|one, next| one.id < next.id));
    assert!(appended.iter().zip(&events).all(|(appended, event)| appended.uuid == event.uuid));
    assert_eq!(versions(&read_aggregate(&store, aggregates[7]).await), (1..=100).collect::<Vec<_>>());

    // The conflict is in the last event, and the whole append is undone.
    let mut events: Vec<_> = (0..10_000).map(|_| happened(Uuid::new_v4())).collect();
    events.push(happened(aggregates[0]).expecting(ExpectedVersion::exactly(99)));
    match store.append(&events).await {
        Err(AppendError::Conflict { expected, actual, .. }) if expected == 99 && actual == 100 => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(read_all(&store).await.len(), 10_000);
}

pub(super) async fn times_are_kept_to_the_microsecond(store: Store) {
    let parse = |text: &str| text.parse::<DateTime<Utc>>().expect("the case has valid times");
    for (given, kept) in [
        ("2024-02-29T12:34:56.123456Z", "2024-02-29T12:34:56.123456Z"),
        ("2024-02-29T12:34:56.123456999Z", "2024-02-29T12:34:56.123456Z"),
        ("1969-12-31T23:59:59.999999999Z", "1969-12-31T23:59:59.999999Z"),
        ("0001-01-01T00:00:00.000001Z", "0001-01-01T00:00:00.000001Z"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
    ] {
        let event = NewEvent { created_at: Some(parse(given)), ..happened(Uuid::new_v4()) };
        let id = append(&store, std::slice::from_ref(&event)).await[0].id;
        let stored = store.read_after(id.previous(), None, None, 1).await.expect("the store reads");
        assert_eq!(stored[0].created_at, parse(kept), "{given}");
        append(&store, &[event]).await;
    }
}

pub(super) async fn types_may_be_any_text(store: Store) {
    let long = "long".repeat(1_000);
    let names =
        ["a", " ", "it's", r#"""#, r"back\slash", "{a,NULL}", "NULL", "Größe", "事件🎉", "a\nb\t", &long];
    append_each(&store, names.map(event_of)).await;
    append(&store, &names.map(event_of)).await;
    let stored: Vec<_> = read_all(&store).await.into_iter().map(|event| event.event_type).collect();
    assert_eq!(stored, [names, names].concat());
}

pub(super) async fn what_cannot_be_stored_is_refused_by_index(store: Store) {
    let a = Uuid::new_v4();
    let with_metadata = |text| NewEvent { metadata: json(text), ..happened(a) };
    let unstorable = [
        event_of(""),
        event_of("a\0b"),
        with_metadata("[]"),
        with_metadata("null"),
        with_metadata(r#"{"a": "\u0000"}"#),
        happened(a).expecting(ExpectedVersion::exactly(-1)),
        NewEvent { created_at: Some(DateTime::<Utc>::MIN_UTC), ..happened(a) },
    ];
    for event in unstorable {
        match store.append(&[happened(a), event.clone()]).await {
            Err(AppendError::Invalid { index: Some(1), .. }) => {}
            other => panic!("{event:?}: {other:?}"),
        }
    }
    assert_eq!(read_all(&store).await.len(), 0);
}

pub(super) async fn an_aggregate_id_that_is_no_uuid_is_refused(store: Store) {
    let order: AggregateId = "order-7".parse().expect("a text may be an id");
    match store.append(&[happened(Uuid::new_v4()), happened(&order)]).await {
        Err(AppendError::Invalid { index: Some(1), reason }) => {
            assert!(reason.contains("uuid"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(read_all(&store).await.len(), 0);
    // So there is no such aggregate.
    assert_eq!(read_aggregate(&store, order).await.len(), 0);
}
