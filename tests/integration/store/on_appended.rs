//! The closure that is called with what was appended, once that is committed.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use espd::event::{Event, ExpectedVersion};
use espd::store::{AppendError, EventStore, MemoryEventStore, PostgresEventStore};
use sqlx::{AssertSqlSafe, Connection as _};
use uuid::Uuid;

use super::{happened, json, store};

/// What a closure was called with, call by call.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<Vec<Event>>>>);

impl Calls {
    fn note(&self) -> impl Fn(&[Event]) + Send + Sync + 'static {
        let calls = self.clone();
        move |events| calls.0.lock().unwrap().push(events.to_vec())
    }

    fn ids(&self) -> Vec<Vec<i64>> {
        let of = |events: &Vec<Event>| events.iter().map(|event| event.id.get()).collect();
        self.0.lock().unwrap().iter().map(of).collect()
    }
}

#[tokio::test]
async fn the_closure_gets_the_events_as_they_are_stored() {
    let (_pool, postgres) = store().await;
    let calls = [Calls::default(), Calls::default()];
    let twins: [Box<dyn EventStore>; 2] = [
        Box::new(postgres.on_appended(calls[0].note())),
        Box::new(MemoryEventStore::new().on_appended(calls[1].note())),
    ];
    for (twin, calls) in twins.iter().zip(&calls) {
        let a = Uuid::new_v4();
        let mut events = vec![happened(a), happened(a)];
        events[0].body = json("{\"b\": 1,\"a\":2}");
        let appended = twin.append(&events).await.unwrap();
        let told = calls.0.lock().unwrap()[0].clone();
        let read = twin.read_after(appended[0].id.previous(), None, None, 9).await.unwrap();
        assert_eq!(serde_json::to_value(&told).unwrap(), serde_json::to_value(&read).unwrap());
        assert_eq!((told.len(), told[0].body.get()), (2, "{\"a\": 2, \"b\": 1}"));
        // What is refused is told to nobody, and nothing neither; the same append again is told again.
        let refused = twin.append(&[happened(a).expecting(ExpectedVersion::Absent)]).await;
        assert!(matches!(refused, Err(AppendError::Conflict { .. })));
        twin.append(&[]).await.unwrap();
        twin.append(&events).await.unwrap();
        let ids: Vec<i64> = appended.iter().map(|event| event.id.get()).collect();
        assert_eq!(calls.ids(), [ids.clone(), ids]);
    }
}

#[tokio::test]
async fn a_closure_that_panics_does_not_fail_the_append() {
    let (_pool, store) = store().await;
    let store = store.on_appended(|_| panic!("no"));
    assert_eq!(store.append(&[happened(Uuid::new_v4())]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn in_the_callers_transaction_it_is_called_when_that_is_committed() {
    let (pool, store) = store().await;
    let calls = Calls::default();
    let store: PostgresEventStore = store.on_appended(calls.note());
    let one = || [happened(Uuid::new_v4())];
    let mut transaction = pool.begin().await.unwrap();
    let first = store.append_in(&mut transaction, &one()).await.unwrap();
    let second = store.append_in(&mut transaction, &one()).await.unwrap();
    assert_eq!(calls.ids(), [[0; 0]; 0]);
    let ids = vec![first[0].id.get(), second[0].id.get()];
    let appended = first.and(second).commit(transaction).await.unwrap();
    assert_eq!((appended.len(), calls.ids()), (2, vec![ids.clone()]));

    // The caller may commit by other means.
    let mut transaction = pool.begin().await.unwrap();
    let third = store.append_in(&mut transaction, &one()).await.unwrap();
    let id = third[0].id.get();
    transaction.commit().await.unwrap();
    third.committed().await;
    assert_eq!(calls.ids(), [ids.clone(), vec![id]]);

    // Who says so although it is not true has nothing told.
    for said in [true, false] {
        let mut transaction = pool.begin().await.unwrap();
        let fourth = store.append_in(&mut transaction, &one()).await.unwrap();
        transaction.rollback().await.unwrap();
        if said { drop(fourth.committed().await) } else { fourth.rolled_back() }
    }
    assert_eq!(calls.ids().len(), 2);
}

/// The server ends such a transaction without an error, and nothing of it is stored.
#[tokio::test]
async fn what_would_not_be_stored_is_no_commit() {
    let (pool, store) = store().await;
    let calls = Calls::default();
    let store = store.on_appended(calls.note());
    let one = || [happened(Uuid::new_v4())];

    for isolation in ["read committed", "serializable"] {
        let mut transaction = pool.begin().await.unwrap();
        let level = AssertSqlSafe(format!("set transaction isolation level {isolation}"));
        sqlx::raw_sql(level).execute(&mut *transaction).await.unwrap();
        let appended = store.append_in(&mut transaction, &one()).await.unwrap();
        sqlx::query("select 1 / 0").execute(&mut *transaction).await.unwrap_err();
        let error = appended.commit(transaction).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "25P02", "{error}");
    }

    let mut transaction = pool.begin().await.unwrap();
    let first = store.append_in(&mut transaction, &one()).await.unwrap();
    let mut savepoint = transaction.begin().await.unwrap();
    let second = store.append_in(&mut savepoint, &one()).await.unwrap();
    savepoint.rollback().await.unwrap();
    let error = first.and(second).commit(transaction).await.unwrap_err();
    assert!(error.to_string().contains("rolled back to a savepoint before them"), "{error}");

    let appended = store.append_in(&mut pool.begin().await.unwrap(), &one()).await.unwrap();
    let error = appended.commit(pool.begin().await.unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("in another one"), "{error}");

    assert_eq!(store.latest_id(None).await.unwrap(), 0);
    assert_eq!(calls.ids(), [[0; 0]; 0]);
    // The same event twice in one transaction is one.
    let (mut transaction, event) = (pool.begin().await.unwrap(), one());
    let first = store.append_in(&mut transaction, &event).await.unwrap();
    let second = store.append_in(&mut transaction, &event).await.unwrap();
    assert_eq!(first.and(second).commit(transaction).await.unwrap().len(), 2);
}

/// A log that a test reads.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_transaction_of_which_nobody_has_said_what_became_is_told_in_the_log() {
    let (pool, store) = store().await;
    let (lines, calls) = (Lines::default(), Calls::default());
    let told = store.clone().on_appended(calls.note());
    for (store, expected) in [(&store, 0), (&told, 1)] {
        let mut transaction = pool.begin().await.unwrap();
        let forgotten = store.append_in(&mut transaction, &[happened(Uuid::new_v4())]).await.unwrap();
        transaction.commit().await.unwrap();
        let written = lines.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || written.clone()).finish();
        tracing::subscriber::with_default(log, || drop(forgotten));
        let said = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(said.matches("on_appended is not called").count(), expected, "{said}");
    }
    assert!(calls.ids().is_empty());
}

#[tokio::test]
async fn what_was_scheduled_is_told_where_it_is_appended() {
    let (_pool, store) = store().await;
    let calls = Calls::default();
    let store = store.on_appended(calls.note());
    let due = std::time::Duration::ZERO;
    store.append_at(due, None, &[happened(Uuid::new_v4()), happened(Uuid::new_v4())]).await.unwrap();
    assert_eq!(calls.ids(), Vec::<Vec<i64>>::new());
    assert_eq!(store.append_due().await.unwrap(), 2);
    let ids: Vec<i64> =
        store.read_after(0.into(), None, None, 9).await.unwrap().iter().map(|event| event.id.get()).collect();
    assert_eq!((calls.ids(), ids.len()), (vec![ids], 2));
    assert_eq!(store.append_due().await.unwrap(), 0);
    assert_eq!(calls.ids().len(), 1);
}
