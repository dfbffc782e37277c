//! Applications follow the store as a stream: in order, up to the settled horizon, from where they were.

use espd::event::{Event, NewEvent, Position};
use espd::store::{EventStore, EventStream, MemoryEventStore, ReadError};
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use sqlx::{Connection as _, PgConnection, PgPool};
use uuid::Uuid;

use super::{happened, layout, store};
use crate::support;
use crate::support::facts::{PATIENCE, append, append_typed, eventually};

async fn next(events: &mut EventStream) -> Event {
    tokio::time::timeout(PATIENCE, events.try_next()).await.expect("an event").unwrap().expect("no end")
}

async fn next_ids(events: &mut EventStream, count: usize) -> Vec<Position> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(next(events).await.id);
    }
    ids
}

async fn watchers(pool: &PgPool) -> i64 {
    let query = "select count(*) from pg_stat_activity
                 where datname = current_database() and application_name = 'espd: subscriptions'";
    sqlx::query_scalar(query).fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn a_stream_waits_for_slow_writers_and_keeps_the_order() {
    let db = support::database().await;
    let store = espd::store::PostgresEventStore::new(db.pool.clone(), layout());
    append(&db.pool, 2).await;
    let mut events = store.subscribe(None, Some(Position::START));
    assert_eq!(next_ids(&mut events, 2).await, [1, 2]);
    let mut writer = PgConnection::connect(&db.url).await.unwrap();
    let mut slow = writer.begin().await.unwrap();
    let insert = "insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), 'A', 1, '{}')";
    sqlx::query(insert).execute(&mut *slow).await.unwrap();
    assert_eq!(append(&db.pool, 1).await, 4);
    let mut other = store.subscribe(None, Some(Position::START));
    assert_eq!(next_ids(&mut other, 2).await, [1, 2]);
    assert!(events.next().now_or_never().is_none(), "yielded before it had settled");
    slow.commit().await.unwrap();
    assert_eq!(next_ids(&mut events, 2).await, [3, 4]);
    assert_eq!(next_ids(&mut other, 2).await, [3, 4]);
}

#[tokio::test]
async fn a_stream_goes_on_where_another_has_ended() {
    let (pool, store) = store().await;
    append(&pool, 250).await;
    append_typed(&pool, "B", 3).await;
    append(&pool, 5).await;
    let types = ["B".to_owned()];
    let mut events = store.subscribe(Some(&types), Some(Position::START));
    assert_eq!(next_ids(&mut events, 2).await, [251, 252]);
    let mut again = store.subscribe(Some(&types), Some(events.position()));
    assert_eq!(next(&mut again).await.id, 253);
    // It has passed over what is of other types.
    assert!(again.next().now_or_never().is_none());
    assert_eq!(again.position(), 258);
    let mut from_now = store.subscribe(None, None);
    assert!(from_now.next().now_or_never().is_none());
    eventually("the beginning", async || {
        let _ = from_now.next().now_or_never();
        (from_now.position() == 258).then_some(())
    })
    .await;
    assert_eq!(append(&pool, 1).await, 259);
    assert_eq!(next(&mut from_now).await.id, 259);
}

#[tokio::test]
async fn many_streams_share_one_watcher_and_see_everything() {
    let (pool, store) = store().await;
    let types = ["Happened".to_owned()];
    let mut streams: Vec<EventStream> =
        (0..50).map(|_| store.clone().subscribe(Some(&types), Some(Position::START))).collect();
    for _ in 0..10 {
        store.append(&[happened(Uuid::new_v4())]).await.unwrap();
    }
    for events in &mut streams {
        assert_eq!(next_ids(events, 10).await, (1..=10).map(Position::new).collect::<Vec<_>>());
    }
    assert_eq!(watchers(&pool).await, 1);
    drop(streams);
    eventually("the end of the watcher", async || (watchers(&pool).await == 0).then_some(())).await;
}

#[tokio::test]
async fn a_stream_notices_that_the_store_has_gone_back() {
    let (pool, store) = store().await;
    append(&pool, 3).await;
    let mut events = store.subscribe(None, Some(Position::START));
    assert_eq!(next_ids(&mut events, 3).await, [1, 2, 3]);
    sqlx::raw_sql("delete from espd.events where id = 3; select pg_notify('espd_events', 'control')")
        .execute(&pool)
        .await
        .unwrap();
    let error = tokio::time::timeout(PATIENCE, events.try_next()).await.unwrap().unwrap_err();
    assert!(matches!(error, ReadError::GoneBack { position } if position == 3), "{error}");
    let mut beyond = store.subscribe(None, Some(Position::new(99)));
    let error = tokio::time::timeout(PATIENCE, beyond.try_next()).await.unwrap().unwrap_err();
    assert!(matches!(error, ReadError::GoneBack { position } if position == 99), "{error}");
}

#[tokio::test]
async fn the_memory_store_streams_as_well() {
    let store = MemoryEventStore::new();
    let mut from_now = store.subscribe(None, None);
    assert!(from_now.next().now_or_never().is_none());
    let of = |event_type: &str| NewEvent { event_type: event_type.into(), ..happened(Uuid::new_v4()) };
    store.append(&["A", "B", "A"].map(of)).await.unwrap();
    assert_eq!(next_ids(&mut from_now, 3).await, [1, 2, 3]);
    let mut events = store.subscribe(Some(&["A".to_owned()]), Some(Position::new(1)));
    assert_eq!(next(&mut events).await.id, 3);
    let waiting = tokio::spawn(async move { next(&mut events).await.id });
    store.append(&["B", "A"].map(of)).await.unwrap();
    assert_eq!(waiting.await.unwrap(), 5);
}

/// What was appended last is not written to the server's log yet, so nothing is known to be settled at the first look.
#[tokio::test]
async fn a_stream_of_what_comes_now_begins_without_another_sign() {
    let (pool, store) = store().await;
    sqlx::raw_sql(
        "begin; set local synchronous_commit = off;
         insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), 'A', 1, '{}'); commit",
    )
    .execute(&pool)
    .await
    .unwrap();
    let mut events = store.subscribe(None, None);
    tokio::time::timeout(PATIENCE, events.beginning()).await.expect("the beginning");
    let from_here = append(&pool, 1).await;
    assert_eq!(next(&mut events).await.id, Position::new(from_here));
}
