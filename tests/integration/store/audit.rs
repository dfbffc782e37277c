//! Deleting for good by the library, and the archive of events that somebody has changed or deleted by hand.

use espd::event::{ExpectedVersion, NewEvent};
use espd::store::{DeletionError, EventStore, Layout, PostgresEventStore};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::support::facts::append;
use crate::support::{self, SCHEMA};

async fn run(pool: &PgPool, statements: &str) {
    sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(pool).await.unwrap();
}

async fn archived(pool: &PgPool) -> Vec<(String, i64, Value, Option<Value>)> {
    let query =
        "select operation, event_id, before->'body', after->'body' from espd.changed_events order by id";
    sqlx::query_as(query).fetch_all(pool).await.unwrap()
}

#[tokio::test]
async fn what_is_changed_or_deleted_by_hand_is_archived_while_that_is_wanted() {
    let db = support::database().await;
    append(&db.pool, 4).await;
    run(&db.pool, "update espd.events set body = '{\"n\": 10}' where id = 1").await;
    assert_eq!(archived(&db.pool).await, [], "nobody has asked for it");
    run(&db.pool, "select espd.archive_changes(); select espd.archive_changes()").await;
    let on_insert: i64 = sqlx::query_scalar(
        "select count(*) from pg_trigger where tgrelid = 'espd.events'::regclass and tgtype & 4 <> 0",
    )
    .fetch_one(&db.pool)
    .await
    .unwrap();
    assert_eq!(on_insert, 0, "an append pays for nothing");
    run(
        &db.pool,
        "update espd.events set body = '{\"n\": 20}' where id = 2; delete from espd.events where id = 3",
    )
    .await;
    let changed = ("update".to_owned(), 2, json!({ "n": 2 }), Some(json!({ "n": 20 })));
    let deleted = ("delete".to_owned(), 3, json!({ "n": 3 }), None);
    assert_eq!(archived(&db.pool).await, [changed.clone(), deleted.clone()]);
    let who: (String, bool) =
        sqlx::query_as("select login, changed_at > now() - interval '1 hour' from espd.changed_events")
            .fetch_one(&db.pool)
            .await
            .unwrap();
    assert_eq!(who, ("espd".to_owned(), true));
    run(&db.pool, "truncate espd.events").await;
    let truncated: Vec<i64> = archived(&db.pool).await.into_iter().skip(2).map(|row| row.1).collect();
    assert_eq!(truncated, [1, 2, 4]);
    run(&db.pool, "select espd.archive_changes(false)").await;
    append(&db.pool, 1).await;
    run(&db.pool, "delete from espd.events").await;
    assert_eq!(archived(&db.pool).await.len(), 5);
}

#[tokio::test]
async fn the_library_deletes_for_good_also_from_the_archive_of_changes() {
    let db = support::database().await;
    let store = PostgresEventStore::new(db.pool.clone(), Layout::espd(SCHEMA).unwrap());
    run(&db.pool, "select espd.archive_changes()").await;
    let id = Uuid::new_v4();
    let body = || RawValue::from_string("{}".to_owned()).unwrap();
    let event = |event_type: &str| NewEvent::new(id, event_type, body());
    let tagged = event("A").tagged("customer:1").claiming("names", "Ada");
    store.append(&[tagged, event("B"), event("A")]).await.unwrap();
    store.append_at(std::time::Duration::from_secs(3_600), None, &[event("Later")]).await.unwrap();
    run(&db.pool, "update espd.events set body = '1' where type = 'B'").await;
    let command = format!(
        "insert into espd.commands values (gen_random_uuid(), 'Do', '{id}', '{{}}', '{{}}', 'done', '{{}}', now())"
    );
    run(&db.pool, &command).await;
    assert!(matches!(store.delete_aggregate(id, "me", "").await, Err(DeletionError::Unfounded)));
    let deleted = store.delete_aggregate(id, "me", "asked for").await.unwrap().unwrap();
    assert_eq!((deleted.event_count, deleted.types.0["A"], deleted.last_version.get()), (3, 2, 3));
    assert_eq!((deleted.removed.0["scheduled_events"], deleted.removed.0["changed_events"]), (1, 4));
    assert_eq!(deleted.removed.0["commands"], 1);
    assert_eq!((deleted.removed.0["tag_events"], deleted.removed.0["unique_keys"]), (1, 1));
    assert_eq!(archived(&db.pool).await, []);
    assert_eq!(store.delete_aggregate(id, "me", "asked for").await.unwrap(), None);
    let begun = store.append(&[event("A").expecting(ExpectedVersion::Absent)]).await.unwrap();
    assert_eq!(begun[0].version.get(), 1);
}
