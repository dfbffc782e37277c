//! Appends that meet an unfinished transaction, and what an append does to others.

use espd::event::ExpectedVersion::{self, Absent, Any, Exact};
use espd::store::{AppendError, EventStore, PostgresEventStore, TagQuery};
use sqlx::{Connection, PgConnection, PgPool, Row};
use tokio::time::timeout;
use uuid::Uuid;

use super::{LONG, happened, layout, refusal, store};

/// Returns when some backend of this database waits for another one's transaction.
async fn until_somebody_waits(pool: &PgPool) {
    let sql = "select exists (select from pg_stat_activity
                              where datname = current_database() and wait_event = 'transactionid')";
    let waits = async { while !sqlx::query_scalar::<_, bool>(sql).fetch_one(pool).await.unwrap() {} };
    timeout(LONG, waits).await.expect("an append waits for the open transaction");
}

/// Of several statements the first would stay.
#[tokio::test]
async fn what_appends_in_a_transaction_refuses_a_connection_without_one() {
    let (pool, store) = store().await;
    let mut connection = pool.acquire().await.unwrap();
    let a = Uuid::new_v4();
    let mut many: Vec<_> = (0..2_500).map(|_| happened(a)).collect();
    many[2_400].expected_version = Exact(7.into());
    let query = TagQuery::tag("x");
    let condition = query.clone().unchanged_since(store.read_tagged(&query, None).await.unwrap().token);
    let refused = [
        store.append_in(&mut connection, &many).await.map(drop),
        store.append_in(&mut connection, &[happened(a)]).await.map(drop),
        store.append_if_in(&mut connection, &[happened(a)], &condition).await.map(drop),
        store.append_at_in(&mut connection, LONG, None, &[happened(a)]).await,
        store.cancel_scheduled_in(&mut connection, "key").await.map(drop),
    ];
    for refused in refused {
        let Err(AppendError::Invalid { index: None, reason }) = refused else { panic!("{refused:?}") };
        assert!(reason.contains("no transaction is open"), "{reason}");
    }
    assert_eq!(store.latest_id(None).await.unwrap(), 0);

    // The driver need not have begun it.
    sqlx::raw_sql("begin").execute(&mut *connection).await.unwrap();
    store.append_in(&mut connection, &[happened(a)]).await.unwrap();
    sqlx::raw_sql("rollback").execute(&mut *connection).await.unwrap();
    let refused = store.append_in(&mut connection, &[happened(a)]).await.unwrap_err();
    assert!(matches!(refused, AppendError::Invalid { .. }), "{refused:?}");
    assert_eq!(store.read_after(0.into(), None, None, 9).await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_writer_waits_and_gets_a_conflict() {
    for commits in [true, false] {
        for (count, expected) in [(1, Absent), (2, Absent), (1, Any), (2, Any)] {
            let (pool, store) = store().await;
            let a = Uuid::new_v4();
            let mut first = pool.begin().await.unwrap();
            store.append_in(&mut first, &[happened(a)]).await.unwrap();

            let mut events: Vec<_> = (0..count).map(|_| happened(a)).collect();
            events[0] = happened(a).expecting(expected);
            let second = tokio::spawn({
                let store = store.clone();
                async move { store.append(&events).await }
            });
            until_somebody_waits(&pool).await;
            if commits {
                first.commit().await.unwrap()
            } else {
                first.rollback().await.unwrap()
            }

            match second.await.unwrap() {
                Ok(appended) if expected == Any => assert_eq!(appended[0].version, 1 + i64::from(commits)),
                Ok(appended) => assert_eq!((commits, appended[0].version), (false, 1.into())),
                Err(AppendError::Conflict { aggregate_id, expected: head, actual })
                    if commits && head == 0 && actual == 1 =>
                {
                    assert_eq!(aggregate_id, a);
                    assert_eq!(expected, Absent);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_append_waits_for_itself() {
    let (pool, store) = store().await;
    for count in [1, 3] {
        let a = Uuid::new_v4();
        let events: Vec<_> = (0..count).map(|_| happened(a).expecting(Any)).collect();
        let mut first = pool.begin().await.unwrap();
        let places = store.append_in(&mut first, &events).await.unwrap();
        let second = tokio::spawn({
            let (store, events) = (store.clone(), events.clone());
            async move { store.append(&events).await }
        });
        until_somebody_waits(&pool).await;
        first.commit().await.unwrap();
        assert_eq!(second.await.unwrap().unwrap(), places);
    }
}

#[tokio::test]
async fn an_open_append_holds_up_no_other_writer() {
    let (pool, store) = store().await;
    let mut open = pool.begin().await.unwrap();
    store.append_in(&mut open, &[happened(Uuid::new_v4()), happened(Uuid::new_v4())]).await.unwrap();

    // An append must take no lock but that of a writer on the table, its indexes and its sequence.
    let locks = sqlx::query(
        "select locktype, mode from pg_locks
         where pid = $1 and mode not in ('AccessShareLock', 'RowExclusiveLock')
           and locktype not in ('virtualxid', 'transactionid')",
    )
    .bind(backend(&mut open).await)
    .fetch_all(&pool)
    .await
    .unwrap();
    assert!(locks.is_empty(), "{:?}", locks.iter().map(|row| row.get::<String, _>(0)).collect::<Vec<_>>());

    for events in [vec![happened(Uuid::new_v4())], vec![happened(Uuid::new_v4()), happened(Uuid::new_v4())]] {
        timeout(LONG, store.append(&events)).await.expect("nothing to wait for").unwrap();
    }
    open.commit().await.unwrap();
}

async fn backend(connection: &mut PgConnection) -> i32 {
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(connection).await.unwrap()
}

/// In a snapshot that is older than another writer's commit no answer is possible: the caller has to
/// begin anew. It must not be kept waiting, and must not get a wrong version.
#[tokio::test]
async fn an_old_snapshot_ends_in_a_serialization_failure() {
    let (pool, store) = store().await;
    for (count, expected) in [(1, Any), (1, Exact(1.into())), (2, Any), (2, Exact(1.into()))] {
        let a = Uuid::new_v4();
        store.append(&[happened(a)]).await.unwrap();
        let mut old = pool.begin_with("begin isolation level repeatable read").await.unwrap();
        sqlx::query("select from espd.events").fetch_all(&mut *old).await.unwrap();
        store.append(&[happened(a)]).await.unwrap();

        let mut events: Vec<_> = (0..count).map(|_| happened(a)).collect();
        events[0].expected_version = expected;
        match timeout(LONG, store.append_in(&mut old, &events)).await.expect("an answer") {
            Err(AppendError::Database(error)) => assert_eq!(refusal(&error).0, "40001"),
            other => panic!("{other:?}"),
        }
        old.rollback().await.unwrap();
    }
}

#[tokio::test]
async fn a_conflict_that_an_old_snapshot_sees_is_a_conflict() {
    let (pool, store) = store().await;
    let a = Uuid::new_v4();
    store.append(&[happened(a)]).await.unwrap();
    for count in [1, 2] {
        let mut old = pool.begin_with("begin isolation level serializable").await.unwrap();
        let mut events: Vec<_> = (0..count).map(|_| happened(a)).collect();
        events[0].expected_version = ExpectedVersion::Absent;
        match store.append_in(&mut old, &events).await {
            Err(AppendError::Conflict { expected, actual, .. }) if expected == 0 && actual == 1 => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_are_serializable_by_default_can_append() {
    let (pool, _) = store().await;
    let database: String = sqlx::query_scalar("select current_database()").fetch_one(&pool).await.unwrap();
    let sql = format!("alter database {database} set default_transaction_isolation = 'serializable'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&pool).await.unwrap();
    // Sessions get it when they begin.
    let pool = PgPool::connect_with((*pool.connect_options()).clone()).await.unwrap();
    let store = PostgresEventStore::new(pool.clone(), layout());
    let a = Uuid::new_v4();
    for round in 0..20 {
        let one = vec![happened(a)];
        let other = if round % 2 == 0 { vec![happened(a)] } else { vec![happened(a), happened(a)] };
        let (one, other) = tokio::join!(store.append(&one), store.append(&other));
        one.unwrap();
        other.unwrap();
    }
    let isolation: String = sqlx::query_scalar("show transaction_isolation").fetch_one(&pool).await.unwrap();
    assert_eq!(isolation, "serializable");
}

#[tokio::test]
async fn appending_in_a_transaction_is_part_of_it() {
    let (pool, store) = store().await;
    let a = Uuid::new_v4();
    let mut transaction = pool.begin().await.unwrap();
    store.append_in(&mut transaction, &[happened(a)]).await.unwrap();
    {
        // An application may continue after a conflict if it made a savepoint.
        let mut savepoint = transaction.begin().await.unwrap();
        store.append_in(&mut savepoint, &[happened(a).expecting(Absent)]).await.unwrap_err();
        savepoint.rollback().await.unwrap();
    }
    store.append_in(&mut transaction, &[happened(a).expecting(Exact(1.into()))]).await.unwrap();
    assert_eq!(store.latest_id(None).await.unwrap(), 0);
    transaction.commit().await.unwrap();
    assert_eq!(store.read_after(0.into(), None, None, 10).await.unwrap().len(), 2);
}
