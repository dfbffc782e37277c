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

#[tokio::test]
async fn a_stream_goes_on_where_the_runtime_of_its_watcher_has_ended() {
    let db = support::database().await;
    let pool = db.pool.clone();
    append(&pool, 2).await;
    // Connections of the pool belong to the runtimes that have opened them.
    let store = espd::store::PostgresEventStore::new(PgPool::connect_lazy(&db.url).unwrap(), layout());
    let others = store.clone();
    let runtime = std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let first = runtime.block_on(async {
            let mut first = others.subscribe(None, Some(Position::START));
            assert_eq!(next(&mut first).await.id, 1);
            first
        });
        (runtime, first)
    });
    let (runtime, mut first) = runtime.join().unwrap();
    let mut events = store.subscribe(None, Some(Position::START));
    assert_eq!(next_ids(&mut events, 2).await, [1, 2]);
    assert_eq!(watchers(&pool).await, 1, "they share it");
    // An error of a connection that went with the runtime is one of the moment.
    let next_in_the_end = async |events: &mut EventStream| loop {
        match tokio::time::timeout(PATIENCE, events.next()).await.expect("an event").expect("no end") {
            Ok(event) => return event.id,
            Err(error) => assert!(error.is_transient(), "{error:?}"),
        }
    };
    runtime.shutdown_background();
    assert_eq!(next_in_the_end(&mut first).await, 2);
    assert_eq!(append(&pool, 1).await, 3);
    assert_eq!(next_in_the_end(&mut events).await, 3);
    assert_eq!(next_in_the_end(&mut first).await, 3);
}

#[tokio::test]
async fn a_stream_tells_that_its_store_cannot_be_reached() {
    let db = support::database().await;
    let nowhere = db.url.replace(&db.name, "no_such_database");
    for url in [nowhere.as_str(), "postgres://espd@127.0.0.1:1/espd"] {
        let pool = PgPool::connect_lazy(url).unwrap();
        let store = espd::store::PostgresEventStore::new(pool, layout());
        for after in [None, Some(Position::START)] {
            let mut events = store.subscribe(None, after);
            let found = tokio::time::timeout(PATIENCE, events.next()).await.expect("an answer").unwrap();
            let error = found.unwrap_err();
            assert!(matches!(error, ReadError::Database(_)) && error.is_transient(), "{error:?}");
        }
    }
    // One that is lost for a moment is no error.
    let store = espd::store::PostgresEventStore::new(db.pool.clone(), layout());
    let mut events = store.subscribe(None, Some(Position::START));
    append(&db.pool, 1).await;
    assert_eq!(next(&mut events).await.id, 1);
    let end = "select pg_terminate_backend(pid) from pg_stat_activity
               where datname = current_database() and application_name = 'espd: subscriptions'";
    sqlx::query(end).execute(&db.pool).await.unwrap();
    append(&db.pool, 1).await;
    assert_eq!(next(&mut events).await.id, 2);
}

#[tokio::test]
async fn a_stream_leaps_over_ids_that_were_never_used() {
    let (pool, store) = store().await;
    append(&pool, 1).await;
    let far = 1_000_000_000_000_i64;
    sqlx::query("select setval('espd.events_id_seq', $1)").bind(far).execute(&pool).await.unwrap();
    append_typed(&pool, "B", 1).await;
    append(&pool, 1).await;
    for (types, ids) in [(None, vec![1, far + 1, far + 2]), (Some(["A".to_owned()]), vec![1, far + 2])] {
        let mut events = store.subscribe(types.as_ref().map(<[String; 1]>::as_slice), Some(Position::START));
        let ids: Vec<Position> = ids.into_iter().map(Position::new).collect();
        assert_eq!(next_ids(&mut events, ids.len()).await, ids);
    }
    let memory = MemoryEventStore::new();
    memory.append(&[happened(Uuid::new_v4())]).await.unwrap();
    let mut events = memory.subscribe(None, Some(Position::new(i64::MIN)));
    assert_eq!(next(&mut events).await.id, 1);
}
