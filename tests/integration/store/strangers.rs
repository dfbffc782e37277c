//! Events of other writers, written in ways that the library would not.

use espd::event::ExpectedVersion::{Absent, Any, Exact};
use espd::event::{Event, Position, Version};
use espd::store::{AppendError, EventStore, PostgresEventStore};
use futures_util::TryStreamExt;
use sqlx::postgres::PgPoolCopyExt;
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use super::{happened, store};

const A: Uuid = Uuid::from_u128(0xa);

async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.unwrap();
}

async fn read(store: &PostgresEventStore) -> Vec<Event> {
    store.read_after(Position::START, None, None, 100).await.unwrap()
}

async fn insert_version(pool: &PgPool, version: Version) {
    let sql = format!(
        "insert into espd.events (aggregate_id, type, version, body) values ('{A}', 'Strange', {version}, '{{}}')"
    );
    execute(pool, &sql).await;
}

#[tokio::test]
async fn an_insert_of_the_bare_minimum_is_an_event() {
    let (pool, store) = store().await;
    let insert = format!(
        "insert into espd.events (aggregate_id, type, version, body)
         values ('{A}', 'TodoAdded', 1, '{{\"n\": 123456789012345678901234567890}}'), ('{A}', 'TodoDone', 2, 'null')"
    );
    execute(&pool, &insert).await;
    let events = read(&store).await;
    assert_eq!(events[0].body.get(), r#"{"n": 123456789012345678901234567890}"#);
    assert_eq!(events[0].metadata.get(), "{}");
    assert_ne!(events[0].uuid, events[1].uuid);
    // Each has its own moment, though one statement stored both.
    assert!(events[0].created_at < events[1].created_at);

    let appended = store.append(&[happened(A).expecting(Exact(2.into()))]).await.unwrap();
    assert_eq!(appended[0].version, 3);
}

#[tokio::test]
async fn a_copy_is_read_like_an_append() {
    let (pool, store) = store().await;
    let mut copy =
        pool.copy_in_raw("copy espd.events (aggregate_id, type, version, body) from stdin").await.unwrap();
    for version in 1..=1_000 {
        let row = format!("{A}\tTodoAdded\t{version}\t{{\"version\": {version}}}\n");
        copy.send(row.as_bytes()).await.unwrap();
    }
    copy.finish().await.unwrap();
    let events: Vec<_> = store.read_aggregate(A.into(), Version::FIRST, None).try_collect().await.unwrap();
    assert_eq!(events.len(), 1_000);
    for event in &events {
        assert_eq!(event.body.get(), format!("{{\"version\": {}}}", event.version));
    }
    assert!(events.is_sorted_by(|one, next| one.id < next.id));
    assert_eq!(store.append(&[happened(A)]).await.unwrap()[0].version, 1_001);
}

#[tokio::test]
async fn an_aggregate_may_begin_anywhere() {
    let (pool, store) = store().await;
    insert_version(&pool, 5.into()).await;
    for events in [vec![happened(A).expecting(Absent)], vec![happened(A).expecting(Absent), happened(A)]] {
        match store.append(&events).await {
            Err(AppendError::Conflict { expected, actual, .. }) if expected == 0 && actual == 5 => {}
            other => panic!("{other:?}"),
        }
    }
    // Nothing is put into a hole, although version 3 is free.
    match store.append(&[happened(A).expecting(Exact(2.into()))]).await {
        Err(AppendError::Conflict { expected, actual, .. }) if expected == 2 && actual == 5 => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(store.append(&[happened(A).expecting(Exact(5.into()))]).await.unwrap()[0].version, 6);
    assert_eq!(store.append(&[happened(A)]).await.unwrap()[0].version, 7);
}

#[tokio::test]
async fn versions_go_beyond_32_bits() {
    let (pool, store) = store().await;
    let last = Version::new(i32::MAX.into());
    insert_version(&pool, Version::new(last.get() - 1)).await;
    for (version, expected) in [
        (last, Any),
        (last.advanced_by(1), Exact(last)),
        (last.advanced_by(2), Any),
        (last.advanced_by(3), Exact(last.advanced_by(2))),
    ] {
        let appended = store.append(&[happened(A).expecting(expected)]).await.unwrap();
        assert_eq!(appended[0].version, version);
    }
    for expected in [Any, Exact(last.advanced_by(5))] {
        let appended = store.append(&[happened(A).expecting(expected), happened(A)]).await.unwrap();
        let first = if expected == Any { last.advanced_by(4) } else { last.advanced_by(6) };
        assert_eq!([appended[0].version, appended[1].version], [first, first.next()]);
    }
    let read: Vec<Event> = store
        .read_aggregate(A.into(), last.advanced_by(1), Some(last.advanced_by(2)))
        .try_collect()
        .await
        .unwrap();
    assert_eq!(read.len(), 2);

    // After the very last version there is no next one.
    insert_version(&pool, Version::MAX).await;
    for expected in [Any, Exact(Version::MAX)] {
        for events in
            [vec![happened(A).expecting(expected)], vec![happened(A).expecting(expected), happened(A)]]
        {
            match store.append(&events).await {
                Err(AppendError::Invalid { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn ids_go_beyond_32_bits() {
    let (pool, store) = store().await;
    let last = i64::from(i32::MAX);
    execute(&pool, &format!("select setval('espd.events_id_seq', {})", last - 1)).await;
    let events: Vec<_> = (0..4).map(|_| happened(A)).collect();
    let appended = store.append(&events).await.unwrap();
    let ids: Vec<_> = appended.iter().map(|appended| appended.id).collect();
    assert_eq!(ids, [last, last + 1, last + 2, last + 3]);
    let after: Vec<_> = store.read_after(last.into(), Some((last + 2).into()), None, 10).await.unwrap();
    assert_eq!(after.iter().map(|event| event.id).collect::<Vec<_>>(), [last + 1, last + 2]);
    let range: Vec<Event> =
        store.read_range((last + 1).into(), (last + 3).into(), None).try_collect().await.unwrap();
    assert_eq!(range.len(), 3);
    assert_eq!(store.latest_id(None).await.unwrap(), last + 3);
}

#[tokio::test]
async fn times_that_no_calendar_has_are_read_as_they_are_stored() {
    let (pool, store) = store().await;
    for (version, time) in
        ["infinity", "-infinity", "294276-12-31 23:59:59.999999Z", "4714-11-24 00:00:00Z BC"]
            .iter()
            .enumerate()
    {
        let sql = format!(
            "insert into espd.events (aggregate_id, type, version, body, created_at)
             values ('{A}', 'Strange', {}, '{{}}', '{time}')",
            version + 1
        );
        execute(&pool, &sql).await;
    }
    let times: Vec<_> = read(&store).await.iter().map(|event| event.created_at).collect();
    let written: Vec<String> = times.iter().map(ToString::to_string).collect();
    let in_json: Vec<String> = sqlx::query_scalar(
        "select to_jsonb(created_at at time zone 'UTC') #>> '{}' from espd.events order by id",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert_eq!(written[..2], in_json[..2]);
    assert_eq!(written[2..], ["294276-12-31T23:59:59.999999+00:00", "4714-11-24T00:00:00+00:00 BC"]);
    assert!(times[..3].iter().all(|time| time.to_utc().is_none()), "{times:?}");
    assert_eq!(times[3].to_utc().unwrap().to_rfc3339(), "-4713-11-24T00:00:00+00:00");
}

#[tokio::test]
async fn a_rolled_back_append_leaves_a_hole_that_readers_pass() {
    let (pool, store) = store().await;
    let first = store.append(&[happened(A)]).await.unwrap()[0].id;
    let mut transaction = pool.begin().await.unwrap();
    store.append_in(&mut transaction, &[happened(A), happened(A)]).await.unwrap();
    transaction.rollback().await.unwrap();
    let appended = store.append(&[happened(A).expecting(Exact(1.into()))]).await.unwrap()[0];
    assert_eq!((appended.id, appended.version), (first.advanced_by(3), 2.into()));
    let range: Vec<Event> = store.read_range(first, first.advanced_by(2), None).try_collect().await.unwrap();
    assert_eq!(range.len(), 1);
}
