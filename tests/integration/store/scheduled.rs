//! Events that applications append for later: scheduled in a transaction of the caller, appended once when they are due.

use std::time::Duration;

use chrono::{DateTime, Utc};
use espd::event::{ExpectedVersion, NewEvent};
use espd::store::{AppendError, EventStore, PostgresEventStore};
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use super::{happened, layout, store};
use crate::support;
use crate::support::facts::{append, eventually};
use crate::support::program::Installation;
use crate::support::projectors::numbers;

const HOUR: Duration = Duration::from_secs(3_600);

async fn pending(pool: &PgPool) -> Vec<(Uuid, Option<String>)> {
    sqlx::query_as("select uuid, key from espd.scheduled_events order by id").fetch_all(pool).await.unwrap()
}

async fn make_due(pool: &PgPool) {
    sqlx::raw_sql("update espd.scheduled_events set next_try_at = clock_timestamp() - interval '1 second'")
        .execute(pool)
        .await
        .unwrap();
}

async fn stored(store: &PostgresEventStore) -> Vec<Uuid> {
    let events = store.read_after(0.into(), None, None, 100).await.unwrap();
    events.iter().map(|event| event.uuid).collect()
}

#[tokio::test]
async fn an_event_is_scheduled_in_the_transaction_of_its_caller() {
    let (pool, store) = store().await;
    let (undone, kept) = (happened(Uuid::new_v4()), happened(Uuid::new_v4()));
    let mut transaction = pool.begin().await.unwrap();
    store.append_at_in(&mut transaction, HOUR, None, &[undone]).await.unwrap();
    transaction.rollback().await.unwrap();
    let mut transaction = pool.begin().await.unwrap();
    store.append_at_in(&mut transaction, HOUR, None, std::slice::from_ref(&kept)).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(pending(&pool).await, [(kept.uuid, None)]);
    assert_eq!(store.append_due().await.unwrap(), 0);
    make_due(&pool).await;
    assert_eq!(store.append_due().await.unwrap(), 1);
    assert_eq!((stored(&store).await, pending(&pool).await), (vec![kept.uuid], vec![]));

    // Scheduling it again, as a caller does who does not know whether it was committed, does nothing.
    store.append_at(Utc::now(), None, &[kept]).await.unwrap();
    assert_eq!(pending(&pool).await, []);
}

#[tokio::test]
async fn a_time_is_one_that_the_database_has_and_no_delay_is_cut() {
    let (pool, store) = store().await;
    for time in
        [DateTime::<Utc>::MAX_UTC, "10000-01-01T00:00:00Z".parse().unwrap_or(DateTime::<Utc>::MAX_UTC)]
    {
        store.append_at(time, None, &[happened(Uuid::new_v4())]).await.unwrap();
    }
    let early = store.append_at(DateTime::<Utc>::MIN_UTC, None, &[happened(Uuid::new_v4())]).await;
    assert!(matches!(early, Err(AppendError::Invalid { .. })), "{early:?}");
    let late = store.append_at(Duration::MAX, None, &[happened(Uuid::new_v4())]).await;
    let Err(AppendError::Invalid { reason, .. }) = late else { panic!("{late:?}") };
    assert!(reason.contains("longer than a thousand years"), "{reason}");
    assert_eq!(pending(&pool).await.len(), 2);
}

#[tokio::test]
async fn a_uuid_that_comes_twice_and_a_key_with_a_nul_are_the_callers_mistake() {
    let (pool, store) = store().await;
    let event = happened(Uuid::new_v4());
    let twice = store.append_at(HOUR, None, &[event.clone(), event]).await;
    let Err(AppendError::Invalid { reason, .. }) = twice else { panic!("{twice:?}") };
    assert!(reason.contains("is given twice"), "{reason}");
    assert_eq!(pending(&pool).await, []);
    let cancelled = store.cancel_scheduled("a\0").await;
    assert!(matches!(cancelled, Err(AppendError::Invalid { .. })), "{cancelled:?}");
    // What reactors emit for a time before all that PostgreSQL has is due from the first that it has on.
    let first = "select '4714-11-24T00:00:00+00:00 BC'::timestamptz < now()";
    let is_due: bool = sqlx::query_scalar(first).fetch_one(&pool).await.unwrap();
    assert!(is_due);
}

#[tokio::test]
async fn a_key_replaces_what_was_scheduled_and_cancels_it() {
    let (pool, store) = store().await;
    let [first, second, third] = [(); 3].map(|()| happened(Uuid::new_v4()));
    store.append_at(HOUR, Some("todo-7"), &[first.clone(), second.clone()]).await.unwrap();
    store.append_at(HOUR * 2, Some("todo-7"), &[second.clone(), third.clone()]).await.unwrap();
    let named = |event: &NewEvent| (event.uuid, Some("todo-7".to_owned()));
    assert_eq!(pending(&pool).await, [named(&second), named(&third)]);
    assert!(store.cancel_scheduled("todo-7").await.unwrap());
    assert!(!store.cancel_scheduled("todo-7").await.unwrap());
    make_due(&pool).await;
    assert_eq!((store.append_due().await.unwrap(), pending(&pool).await), (0, vec![]));
}

/// A call is made again whose answer was lost, after its events were appended and others were scheduled under its key.
#[tokio::test]
async fn a_repetition_of_what_is_appended_leaves_what_was_scheduled_since() {
    let (pool, store) = store().await;
    let [first, second, later, more] = [(); 4].map(|()| happened(Uuid::new_v4()));
    let both = [first.clone(), second.clone()];
    store.append_at(Duration::ZERO, Some("k"), &both).await.unwrap();
    assert_eq!(store.append_due().await.unwrap(), 2);
    store.append_at(HOUR, Some("k"), std::slice::from_ref(&later)).await.unwrap();
    let named = |event: &NewEvent| (event.uuid, Some("k".to_owned()));
    store.append_at(Duration::ZERO, Some("k"), &both).await.unwrap();
    store.append_at(Duration::ZERO, Some("k"), &both[1..]).await.unwrap();
    assert_eq!(pending(&pool).await, [named(&later)]);
    let again = "select uuid from espd.append_after('0 s', $1, 'k')";
    let event = serde_json::json!({"uuid": first.uuid, "aggregate_id": first.aggregate_id, "type": first.event_type, "body": {}});
    let uuid: Uuid = sqlx::query_scalar(again).bind(event).fetch_one(&pool).await.unwrap();
    assert_eq!((uuid, pending(&pool).await), (first.uuid, vec![named(&later)]));
    // Of a mixture, what is not appended is scheduled, and nothing is lost.
    store.append_at(HOUR, Some("k"), &[second, more.clone()]).await.unwrap();
    assert_eq!(pending(&pool).await, [named(&later), named(&more)]);
    // What is all new takes the place of it.
    let new = happened(Uuid::new_v4());
    store.append_at(HOUR, Some("k"), std::slice::from_ref(&new)).await.unwrap();
    assert_eq!(pending(&pool).await, [named(&new)]);
}

/// A call is made again while a daemon appends its event.
#[tokio::test]
async fn a_repetition_waits_for_who_appends_its_event() {
    let (pool, store) = store().await;
    let [first, later] = [(); 2].map(|()| happened(Uuid::new_v4()));
    store.append_at(Duration::ZERO, None, std::slice::from_ref(&first)).await.unwrap();
    store.append_at(HOUR, Some("k"), std::slice::from_ref(&later)).await.unwrap();
    let mut daemon = pool.begin().await.unwrap();
    sqlx::query("select espd.append_due()").execute(&mut *daemon).await.unwrap();
    let again = tokio::spawn(async move { store.append_at(Duration::ZERO, Some("k"), &[first]).await });
    eventually("a repetition waits", async || {
        let waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
        (numbers(&pool, waits).await[0] > 0).then_some(())
    })
    .await;
    daemon.commit().await.unwrap();
    again.await.unwrap().unwrap();
    assert_eq!(pending(&pool).await, [(later.uuid, Some("k".to_owned()))]);
}

#[tokio::test]
async fn what_cannot_be_appended_later_is_refused_at_once() {
    let (pool, store) = store().await;
    let expecting = happened(Uuid::new_v4()).expecting(ExpectedVersion::Absent);
    let refused = store.append_at(HOUR, None, &[happened(Uuid::new_v4()), expecting]).await.unwrap_err();
    assert!(matches!(&refused, AppendError::Invalid { index: Some(1), .. }), "{refused}");
    let event = happened(Uuid::new_v4());
    store.append_at(HOUR, None, std::slice::from_ref(&event)).await.unwrap();
    let other = NewEvent { event_type: "Other".into(), ..event.clone() };
    let reused = store.append_at(HOUR, None, &[other]).await.unwrap_err();
    assert!(matches!(&reused, AppendError::UuidReused { uuid } if *uuid == event.uuid), "{reused}");
    for call in
        ["append_at('infinity', '[]')", "append_at(null, '[]')", "append_at(now(), '{\"type\":\"A\"}')"]
    {
        let call = sqlx::AssertSqlSafe(format!("select from espd.{call}"));
        let error = sqlx::query(call).execute(&pool).await.unwrap_err();
        assert_eq!(super::refusal(&error).0, "ES003");
    }
}

#[tokio::test]
async fn a_scheduled_event_that_the_store_refuses_holds_up_no_other() {
    let db = support::database().await;
    let (pool, store) = (db.pool.clone(), PostgresEventStore::new(db.pool.clone(), layout()));
    let installation = Installation::new(&db.url, "");
    sqlx::raw_sql("alter table espd.events add constraint no_bad check (type <> 'Bad')")
        .execute(&pool)
        .await
        .unwrap();
    let bad = NewEvent { event_type: "Bad".into(), ..happened(Uuid::new_v4()) };
    let good = happened(Uuid::new_v4());
    store.append_at(HOUR, Some("k"), &[bad.clone(), good.clone()]).await.unwrap();
    make_due(&pool).await;
    assert_eq!(store.append_due().await.unwrap(), 1);
    assert_eq!(stored(&store).await, [good.uuid]);
    let listed = installation.espctl(&["emissions", "list", "-", "--refused", "--json"]).await.json();
    assert_eq!((&listed[0]["reactor"], &listed[0]["state"]), (&"-".into(), &"refused".into()), "{listed}");
    assert_eq!((&listed[0]["sqlstate"], &listed[0]["key"]), (&"23514".into(), &"k".into()), "{listed}");
    let status = installation.espctl(&["status"]).await.printed();
    assert!(status.contains("The event store refuses 1 scheduled event that is due"), "{status}");
    assert!(status.contains("no_bad"), "{status}");
    let doctor = installation.espctl(&["doctor"]).await.stdout;
    assert!(doctor.contains("The event store refuses 1 scheduled event that is due"), "{doctor}");
    let waited = installation.espctl(&["wait", "--all", "--idle", "--timeout", "100ms"]).await.complained(75);
    assert!(waited.contains("the event store has refused 1 scheduled event that is due"), "{waited}");
    let retried = installation.espctl(&["emissions", "retry", "-", "--key", "k"]).await.printed();
    assert!(retried.contains("requested a retry of 1 scheduled event"), "{retried}");
    let cancelled = installation.espctl(&["emissions", "cancel", "-", "--all", "--yes"]).await.printed();
    assert_eq!(cancelled, "cancelled 1 scheduled event\n");
    let none = installation.espctl(&["emissions", "cancel", "-", "--all", "--yes"]).await.printed();
    assert_eq!(none, "no scheduled events match: nothing was done\n");
    assert_eq!(pending(&pool).await, []);
    assert_eq!(numbers(&pool, "select count(*) from espd.operator_log where processor = '-'").await, [2]);
}

#[tokio::test]
async fn daemons_append_what_is_due_once_and_tell_processors() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    installation.declare_notes("notes", "");
    append(&db.pool, 1).await;
    let line = |n: i32| {
        format!("{{\"aggregate_id\":\"00000000-0000-4000-8000-000000000001\",\"type\":\"A\",\"body\":{n}}}\n")
    };
    let past = "2026-01-31T12:00:00Z";
    let lines: String = (1..=300).map(line).collect();
    let uuids = installation.espctl_fed(&["append", "--at", past], &lines).await.printed();
    installation
        .espctl_fed(&["append", "--at", "2126-01-31T12:00:00Z", "--key", "far"], &line(0))
        .await
        .printed();
    let listed: Value = installation.espctl(&["emissions", "list", "--json", "-n", "1000"]).await.json();
    assert_eq!(listed.as_array().unwrap().len(), 301);
    let (one, two) = (installation.start_daemon(), installation.start_daemon());
    let noted = async || numbers(&db.pool, "select count(*) from notes").await[0];
    eventually("a table", async || {
        let made = numbers(&db.pool, "select count(*) from espd.declarations").await[0];
        (made == 1).then_some(())
    })
    .await;
    eventually("all are noted", async || (noted().await == 301).then_some(())).await;
    let appended: Vec<Uuid> = sqlx::query_scalar("select uuid from espd.events where id > 1 order by id")
        .fetch_all(&db.pool)
        .await
        .unwrap();
    let scheduled: Vec<Uuid> = uuids.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(appended, scheduled);
    let left = installation.espctl(&["emissions", "list", "-"]).await.printed();
    assert!(left.contains("far") && left.contains("later") && left.contains("2126-01-31"), "{left}");
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn nothing_under_a_key_does_not_cancel_what_is_there() {
    let (pool, store) = store().await;
    store.append_at(HOUR, Some("k"), &[happened(Uuid::new_v4())]).await.unwrap();
    let nothing = "select from espd.append_at(now(), '[]', key => 'k')";
    let error = sqlx::query(nothing).execute(&pool).await.unwrap_err();
    let hint = error.as_database_error().unwrap().downcast_ref::<sqlx::postgres::PgDatabaseError>().hint();
    assert_eq!(
        (super::refusal(&error).0.as_str(), hint),
        ("ES003", Some("to cancel it, call cancel_scheduled (the key)"))
    );
    assert!(store.append_at(HOUR, Some("k"), &[]).await.is_err());
    assert_eq!(pending(&pool).await.len(), 1);
    sqlx::query("select from espd.append_at(now(), '[]')").execute(&pool).await.unwrap();
}
