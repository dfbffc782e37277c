//! What is read, and what is not.

use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use uuid::Uuid;

use super::{Store, append, append_each, collect, event_of, happened, ids, read_all, time, types, versions};
use crate::event::{Event, NewEvent, Position, Version};

async fn read_after(store: &Store, position: Position, upto: Option<Position>, limit: i64) -> Vec<Position> {
    ids(&store.read_after(position, upto, None, limit).await.expect("the store reads"))
}

async fn read_range(store: &Store, from: Position, to: Position, names: Option<&[&str]>) -> Vec<Position> {
    ids(&collect(store.read_range(from, to, names.map(types))).await)
}

pub(super) async fn reading_on_begins_after_the_position(store: Store) {
    assert_eq!(read_after(&store, Position::START, None, 10).await, [0; 0]);
    let stored = append_each(&store, ["A", "B", "C"].map(event_of)).await;
    assert_eq!(read_after(&store, Position::START, None, 10).await, stored);
    assert_eq!(read_after(&store, Position::new(-5), None, 10).await, stored);
    assert_eq!(read_after(&store, stored[0], None, 10).await, stored[1..]);
    assert_eq!(read_after(&store, stored[1].previous(), None, 10).await, stored[1..]);
    assert_eq!(read_after(&store, stored[2], None, 10).await, [0; 0]);
    assert_eq!(read_after(&store, Position::MAX, None, 10).await, [0; 0]);
}

pub(super) async fn reading_on_stops_at_the_horizon(store: Store) {
    let stored = append_each(&store, ["A", "B", "C"].map(event_of)).await;
    assert_eq!(read_after(&store, Position::START, Some(stored[1]), 10).await, stored[..2]);
    assert_eq!(read_after(&store, stored[0], Some(stored[1]), 10).await, stored[1..2]);
    assert_eq!(read_after(&store, stored[1], Some(stored[1]), 10).await, [0; 0]);
    assert_eq!(read_after(&store, stored[2], Some(stored[0]), 10).await, [0; 0]);
    assert_eq!(read_after(&store, Position::START, Some(stored[2].advanced_by(100)), 10).await, stored);
    assert_eq!(read_after(&store, Position::START, Some(Position::START), 10).await, [0; 0]);
}

pub(super) async fn reading_on_keeps_to_the_limit(store: Store) {
    let stored = append_each(&store, ["A", "B", "C"].map(event_of)).await;
    assert_eq!(read_after(&store, Position::START, None, 0).await, [0; 0]);
    assert_eq!(read_after(&store, Position::START, None, 2).await, stored[..2]);
    assert_eq!(read_after(&store, stored[0], None, 1).await, stored[1..2]);
    assert_eq!(read_after(&store, Position::START, None, 3).await, stored);
    assert_eq!(read_after(&store, Position::START, None, i64::MAX).await, stored);
}

pub(super) async fn reading_on_keeps_to_the_types(store: Store) {
    let stored = append_each(&store, ["A", "B", "C", "A", "a"].map(event_of)).await;
    let read = async |names: &[&str], limit| {
        let found = store.read_after(Position::START, None, Some(&types(names)), limit).await;
        ids(&found.expect("the store reads"))
    };
    assert_eq!(read(&["A"], 10).await, [stored[0], stored[3]]);
    assert_eq!(read(&["A", "C"], 2).await, [stored[0], stored[2]]);
    assert_eq!(read(&["A", "A"], 10).await, [stored[0], stored[3]]);
    assert_eq!(read(&["Unknown"], 10).await, [0; 0]);
    assert_eq!(read(&[], 10).await, [0; 0]);
}

pub(super) async fn an_aggregate_is_read_by_version(store: Store) {
    let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
    append_each(&store, [a, b, a, a, b, a, a].map(happened)).await;
    let read = async |from: i64, to: Option<i64>| {
        let events = collect(store.read_aggregate(a.into(), Version::new(from), to.map(Version::new))).await;
        assert!(events.iter().all(|event| event.aggregate_id == a));
        assert!(events.is_sorted_by(|one, next| one.id < next.id));
        versions(&events)
    };
    assert_eq!(read(1, None).await, [1, 2, 3, 4, 5]);
    assert_eq!(read(0, Some(9)).await, [1, 2, 3, 4, 5]);
    assert_eq!(read(4, None).await, [4, 5]);
    assert_eq!(read(2, Some(3)).await, [2, 3]);
    assert_eq!(read(3, Some(3)).await, [3]);
    assert_eq!(read(4, Some(3)).await, [0; 0]);
    assert_eq!(read(6, None).await, [0; 0]);
    assert!(collect(store.read_aggregate(Uuid::new_v4().into(), Version::FIRST, None)).await.is_empty());
}

pub(super) async fn an_aggregate_is_read_up_to_a_time(store: Store) {
    let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
    // The fourth event was created before the third.
    let times = [(a, 0), (a, 1), (b, 1), (a, 500_000), (a, 2), (a, 1_000_000)];
    append_each(&store, times.map(|(id, micros)| at(happened(id), time(micros)))).await;
    let read = async |micros| versions(&collect(store.read_aggregate_until(a.into(), time(micros))).await);
    assert_eq!(read(-1).await, [0; 0]);
    assert_eq!(read(0).await, [1]);
    assert_eq!(read(1).await, [1, 2]);
    assert_eq!(read(2).await, [1, 2, 3, 4]);
    assert_eq!(read(999_999).await, [1, 2, 3, 4]);
    assert_eq!(read(1_000_000).await, [1, 2, 3, 4, 5]);
    for (time, expected) in [(DateTime::<Utc>::MIN_UTC, 0), (DateTime::<Utc>::MAX_UTC, 5)] {
        assert_eq!(collect(store.read_aggregate_until(a.into(), time)).await.len(), expected);
    }
    assert!(collect(store.read_aggregate_until(Uuid::new_v4().into(), time(9))).await.is_empty());
}

pub(super) async fn several_aggregates_are_read_each_once(store: Store) {
    let (a, b, c) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    append_each(&store, [a, b, a, c, a].map(happened)).await;
    let read = async |wanted: &[Uuid]| {
        let wanted = wanted.iter().map(|id| (*id).into()).collect();
        let events = collect(store.read_aggregates(wanted)).await;
        let of = |id: Uuid| {
            let own: Vec<Event> = events.iter().filter(|event| event.aggregate_id == id).cloned().collect();
            versions(&own)
        };
        (of(a), of(b), events.len())
    };
    let both = [1, 2, 3].map(Version::new).to_vec();
    assert_eq!(read(&[a, b]).await, (both.clone(), vec![Version::FIRST], 4));
    assert_eq!(read(&[a, b, a, Uuid::new_v4(), a]).await, (both, vec![Version::FIRST], 4));
    assert_eq!(read(&[]).await.2, 0);
}

fn at(event: NewEvent, time: DateTime<Utc>) -> NewEvent {
    NewEvent { created_at: Some(time), ..event }
}

pub(super) async fn a_range_is_exact(store: Store) {
    let stored = append_each(&store, (0..21).map(|number| event_of(["A", "B", "C"][number % 3]))).await;
    assert_eq!(read_range(&store, stored[0], stored[20], None).await, stored);
    assert_eq!(read_range(&store, Position::START, Position::MAX, None).await, stored);
    assert_eq!(read_range(&store, stored[3], stored[10], None).await, stored[3..=10]);
    assert_eq!(read_range(&store, stored[5], stored[5], None).await, stored[5..=5]);
    assert_eq!(read_range(&store, stored[6], stored[5], None).await, [0; 0]);
    // The end is of another type than those wanted.
    assert_eq!(read_range(&store, stored[0], stored[7], Some(&["A"])).await, [0, 3, 6].map(|n| stored[n]));
    assert_eq!(
        read_range(&store, stored[1], stored[5], Some(&["A", "C"])).await,
        [2, 3, 5].map(|n| stored[n])
    );
    for none in ["Unknown", "A\0"] {
        assert_eq!(read_range(&store, stored[0], stored[20], Some(&[none])).await, [0; 0]);
    }
}

pub(super) async fn a_range_is_exact_where_its_end_does_not_exist(store: Store) {
    let stored = append_each(&store, ["A", "B"].map(event_of)).await;
    assert_eq!(read_range(&store, Position::START, stored[1].advanced_by(10), None).await, stored);
    assert_eq!(read_range(&store, stored[1].next(), stored[1].advanced_by(10), None).await, [0; 0]);
    // Later events are beyond an end that was free when they came.
    let end = stored[1];
    append_each(&store, ["A", "B"].map(event_of)).await;
    assert_eq!(read_range(&store, Position::START, end, Some(&["A"])).await, stored[..1]);
}

pub(super) async fn a_range_may_be_longer_than_a_batch(store: Store) {
    let events: Vec<_> = (0..2_500).map(|_| event_of("A")).collect();
    let stored: Vec<_> = append(&store, &events).await.iter().map(|appended| appended.id).collect();
    assert_eq!(read_range(&store, stored[1], stored[2_498], None).await, stored[1..=2_498]);
}

pub(super) async fn the_position_at_a_time_is_exact(store: Store) {
    let read = async |micros| store.position_at(time(micros)).await.expect("the store reads");
    assert_eq!(read(0).await, 0);
    let micros = [0, 1, 1, 1_000_000, 2];
    let stored = append_each(&store, micros.map(|micros| at(event_of("A"), time(micros)))).await;
    assert_eq!(read(-1).await, 0);
    assert_eq!(read(0).await, stored[0]);
    assert_eq!(read(1).await, stored[2]);
    assert_eq!(read(2).await, stored[4]);
    assert_eq!(read(2_000_000).await, stored[4]);
    for (time, expected) in
        [(DateTime::<Utc>::MIN_UTC, Position::START), (DateTime::<Utc>::MAX_UTC, stored[4])]
    {
        assert_eq!(store.position_at(time).await.expect("the store reads"), expected);
    }
}

pub(super) async fn the_latest_id_may_be_asked_for_by_type(store: Store) {
    let read = async |names: Option<&[&str]>| {
        let names = names.map(types);
        store.latest_id(names.as_deref()).await.expect("the store reads")
    };
    assert_eq!(read(None).await, 0);
    let stored = append_each(&store, ["A", "B", "C"].map(event_of)).await;
    assert_eq!(read(None).await, stored[2]);
    assert_eq!(read(Some(&["A"])).await, stored[0]);
    assert_eq!(read(Some(&["B", "A"])).await, stored[1]);
    assert_eq!(read(Some(&["Unknown", "A\0"])).await, 0);
    assert_eq!(read(Some(&[])).await, 0);
}

pub(super) async fn a_stream_may_be_dropped_early(store: Store) {
    let a = Uuid::new_v4();
    append(&store, &(0..2_000).map(|_| happened(a)).collect::<Vec<_>>()).await;
    for _ in 0..30 {
        let events: Vec<Event> = store
            .read_aggregate(a.into(), Version::FIRST, None)
            .take(2)
            .map(|event| event.expect("the store reads"))
            .collect()
            .await;
        assert_eq!(versions(&events), [1, 2]);
    }
    assert_eq!(read_all(&store).await.len(), 2_000);
}

pub(super) async fn a_correlation_is_read_with_its_beginning(store: Store) {
    let begins = event_of("A");
    let of = |correlation_id| NewEvent { correlation_id: Some(correlation_id), ..event_of("B") };
    let wanted = begins.uuid;
    let stored =
        append_each(&store, [event_of("A"), begins, of(wanted), of(Uuid::new_v4()), of(wanted)]).await;
    let read = async |id| ids(&collect(store.read_correlation(id)).await);
    assert_eq!(read(wanted).await, [stored[1], stored[2], stored[4]]);
    assert_eq!(read(Uuid::new_v4()).await, [0; 0]);
}
