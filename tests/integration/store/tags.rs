//! Consistency by tags on PostgreSQL: what no other store can show, and the ways into it that are not Rust.

use std::sync::Arc;
use std::time::Duration;

use espd::event::{NewEvent, Tag, UniqueKey};
use espd::store::{AppendError, EventStore, PostgresEventStore, TagQuery};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use uuid::Uuid;

use super::{happened, refusal, store};

/// Waits until a session waits for a lock that `holder` holds.
async fn wait_for_waiter(pool: &PgPool, holder: i32) {
    let waits = "select exists (select from pg_stat_activity where $1 = any (pg_blocking_pids(pid)))";
    while !sqlx::query_scalar::<_, bool>(waits).bind(holder).fetch_one(pool).await.unwrap() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn pid(connection: &mut PgConnection) -> i32 {
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(connection).await.unwrap()
}

fn enrolled(tags: &[&str]) -> NewEvent {
    tags.iter().fold(happened(Uuid::new_v4()), |event, tag| event.tagged(*tag))
}

/// A writer has drawn a position and has not committed; the decision is made without its event; another event is stored after
/// it, and would be the last position that the reader of the decision knows.
async fn decide_beside_a_late_commit(pool: &PgPool, store: &PostgresEventStore) -> LateCommit {
    let mut late = pool.begin().await.unwrap();
    let holder = pid(&mut late).await;
    store.append_in(&mut late, &[enrolled(&["x"])]).await.unwrap().rolled_back();
    let beyond = store.append(&[enrolled(&["y"])]).await.unwrap()[0].id;
    let read = store.read_tagged(&TagQuery::tag("x"), None).await.unwrap();
    assert!(read.events.is_empty());
    LateCommit { late, holder, read, beyond: beyond.get() }
}

struct LateCommit {
    late: sqlx::Transaction<'static, sqlx::Postgres>,
    holder: i32,
    read: espd::store::TaggedEvents,
    beyond: i64,
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_commits_late_is_not_overlooked() {
    let (pool, store) = store().await;
    let LateCommit { late, holder, read, .. } = decide_beside_a_late_commit(&pool, &store).await;
    let condition = TagQuery::tag("x").unchanged_since(read.token);
    let deciding = {
        let store = store.clone();
        tokio::spawn(async move { store.append_if(&[enrolled(&["x"])], &condition).await })
    };
    wait_for_waiter(&pool, holder).await;
    late.commit().await.unwrap();
    let refused = deciding.await.unwrap();
    assert!(matches!(refused, Err(AppendError::ConditionFailed { item: 0, .. })), "{refused:?}");
}

/// The negative control: the same decision by positions, with the same locks and the same waiting, stores both events.
#[tokio::test(flavor = "multi_thread")]
async fn a_condition_on_positions_would_store_both() {
    let (pool, store) = store().await;
    let LateCommit { late, holder, beyond, .. } = decide_beside_a_late_commit(&pool, &store).await;
    let deciding = {
        let (pool, store) = (pool.clone(), store.clone());
        tokio::spawn(async move {
            let mut transaction = pool.begin().await.unwrap();
            let lock = "select from espd.tag_heads where tag = 'x' for update";
            // The late writer has made the row, so its lock is met where the row is written.
            store.append_in(&mut transaction, &[enrolled(&["x"])]).await.unwrap().rolled_back();
            sqlx::query(lock).execute(&mut *transaction).await.unwrap();
            let since = "select count(*) from espd.events as e join espd.tag_events as t on t.event_id = e.id
                where t.tag = 'x' and e.id > $1 and e.xmin <> pg_current_xact_id()::xid";
            let came: i64 =
                sqlx::query_scalar(since).bind(beyond).fetch_one(&mut *transaction).await.unwrap();
            assert_eq!(came, 0, "by its position, nothing came");
            transaction.commit().await.unwrap();
        })
    };
    wait_for_waiter(&pool, holder).await;
    late.commit().await.unwrap();
    deciding.await.unwrap();
    let both = store.read_tagged(&TagQuery::tag("x"), None).await.unwrap();
    assert_eq!(both.events.len(), 2);
}

/// Appends and locks of a condition last as long as the caller's transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_condition_holds_until_the_transaction_of_the_caller_ends() {
    let (pool, store) = store().await;
    sqlx::raw_sql("create table rooms (name text)").execute(&pool).await.unwrap();
    store.append(&[enrolled(&["room:1"])]).await.unwrap();
    let mut transaction = pool.begin().await.unwrap();
    let holder = pid(&mut transaction).await;
    let read = store.read_tagged_in(&mut transaction, &TagQuery::tag("room:1"), None).await.unwrap();
    let condition = TagQuery::tag("room:1").unchanged_since(read.token.clone());
    // Neither of the two events has the tag of the condition.
    let events = [enrolled(&["guest:1"]), enrolled(&[])];
    let appended = store.append_if_in(&mut transaction, &events, &condition).await.unwrap();
    sqlx::raw_sql("insert into rooms values ('1')").execute(&mut *transaction).await.unwrap();
    let other = {
        let (store, condition) = (store.clone(), condition.clone());
        tokio::spawn(async move { store.append_if(&[enrolled(&["room:1"])], &condition).await })
    };
    wait_for_waiter(&pool, holder).await;
    assert_eq!(appended.commit(transaction).await.unwrap().len(), 2);
    other.await.unwrap().unwrap();

    let mut transaction = pool.begin().await.unwrap();
    let refused = store.append_if_in(&mut transaction, &events, &condition).await;
    assert!(refused.is_ok(), "it is stored already: {refused:?}");
    refused.unwrap().rolled_back();
    let refused = store.append_if_in(&mut transaction, &[enrolled(&["guest:1"])], &condition).await;
    assert!(matches!(refused, Err(AppendError::ConditionFailed { .. })), "{refused:?}");
}

/// A snapshot that is older than what it waits for cannot answer, and says so.
#[tokio::test]
async fn above_read_committed_an_overtaken_decision_is_a_serialization_failure() {
    let (pool, store) = store().await;
    let query = TagQuery::tag("x");
    store.append(&[enrolled(&["x"])]).await.unwrap();
    for is_written in [true, false] {
        let mut transaction = pool.begin_with("begin isolation level repeatable read").await.unwrap();
        let read = store.read_tagged_in(&mut transaction, &query, None).await.unwrap();
        store.append(&[enrolled(&["x"])]).await.unwrap();
        let event = if is_written { enrolled(&["x"]) } else { enrolled(&["y"]) };
        let condition = query.clone().unchanged_since(read.token);
        let refused = store.append_if_in(&mut transaction, &[event], &condition).await.unwrap_err();
        let AppendError::Database(error) = refused else { panic!("{refused:?}") };
        assert_eq!(refusal(&error).0, "40001");
    }
}

async fn call(pool: &PgPool, events: Value, condition: Option<Value>) -> Result<Vec<i64>, sqlx::Error> {
    let append = "select id from espd.append($1, $2)";
    sqlx::query_scalar(append).bind(events).bind(condition).fetch_all(pool).await
}

#[tokio::test]
async fn the_function_says_which_event_came_and_who_has_a_key() {
    let (pool, _) = store().await;
    let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
    let event = |id: Uuid| json!({"aggregate_id": id, "type": "A", "body": {}, "tags": ["x", "y"]});
    let first = call(&pool, event(a), None).await.unwrap()[0];
    let items = json!([{"tags": ["z"]}, {"tags": ["x", "y"], "types": ["A", "B"]}]);
    let read = "select events, token from espd.read_tagged($1)";
    let (events, token): (Value, Value) = sqlx::query_as(read).bind(&items).fetch_one(&pool).await.unwrap();
    assert_eq!((events[0]["id"].as_i64(), events.as_array().unwrap().len()), (Some(first), 1));
    assert_eq!(token, json!({"x": 1, "y": 1, "z": 0}));

    let condition = json!({"items": items, "token": token});
    let second = call(&pool, event(b), Some(condition.clone())).await.unwrap()[0];
    let (state, _, detail) = refusal(&call(&pool, event(a), Some(condition)).await.unwrap_err());
    assert_eq!((state.as_str(), &detail["item"], &detail["tag"]), ("ES008", &json!(2), &json!("x")));
    assert_eq!((&detail["n"], &detail["id"], &detail["type"]), (&json!(2), &json!(second), &json!("A")));
    assert_eq!(detail["aggregate_id"], json!(b));

    let claim = |id: Uuid| json!({"aggregate_id": id, "type": "A", "body": {}, "claims": {"email": "ann", "seat": ["1", "2"]}});
    sqlx::query("select * from espd.append($1)").bind(claim(a)).execute(&pool).await.unwrap();
    let (state, _, detail) = refusal(&call(&pool, json!([event(b), claim(b)]), None).await.unwrap_err());
    assert_eq!(state, "ES009");
    assert_eq!(detail, json!({"event": 2, "scope": "email", "key": "ann", "owner": a}));
    let release =
        json!({"aggregate_id": a, "type": "A", "body": {}, "releases": {"email": "ann", "seat": ["1", "2"]}});
    sqlx::query("select * from espd.append($1)").bind(release).execute(&pool).await.unwrap();
    call(&pool, claim(b), None).await.unwrap();
}

/// The keys of one append in SQL, where one event claims what a later one releases.
#[tokio::test]
async fn a_claim_counts_although_a_later_event_releases_it() {
    let (pool, _) = store().await;
    let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
    let event = |id: Uuid, keys: &str| json!({"aggregate_id": id, "type": "A", "body": {}, keys: {"q": "1"}});
    let owners = "select aggregate_id from espd.unique_keys";
    let owners = async || sqlx::query_scalar::<_, Uuid>(owners).fetch_all(&pool).await.unwrap();
    call(&pool, json!([event(a, "claims"), event(a, "releases")]), None).await.unwrap();
    assert_eq!(owners().await, Vec::<Uuid>::new());
    call(&pool, event(b, "claims"), None).await.unwrap();
    let claimed = json!([event(a, "claims"), event(a, "releases")]);
    let (state, _, detail) = refusal(&call(&pool, claimed, None).await.unwrap_err());
    assert_eq!((state.as_str(), &detail["event"], &detail["owner"]), ("ES009", &json!(1), &json!(b)));
    call(&pool, json!([event(a, "claims"), event(b, "releases")]), None).await.unwrap();
    assert_eq!(owners().await, [a]);
}

/// A repetition is what has the same uuid, content and tags. The keys are those of the first append.
#[tokio::test]
async fn a_repetition_with_other_keys_claims_nothing() {
    let (pool, _) = store().await;
    let event = |claims: Value| json!({"uuid": Uuid::from_u128(1), "aggregate_id": Uuid::from_u128(2), "type": "A", "body": {}, "claims": claims});
    let first = call(&pool, event(json!({"q": "1"})), None).await.unwrap();
    assert_eq!(call(&pool, event(json!({"q": "2"})), None).await.unwrap(), first);
    let keys = sqlx::query_scalar::<_, String>("select key from espd.unique_keys").fetch_all(&pool).await;
    assert_eq!(keys.unwrap(), ["1"]);
}

#[tokio::test]
async fn what_the_function_cannot_take_is_refused() {
    let (pool, store) = store().await;
    let event = |more: Value| {
        let mut event = json!({"aggregate_id": Uuid::new_v4(), "type": "A", "body": {}});
        event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        event
    };
    for more in [
        json!({"tags": "x"}),
        json!({"tags": ["x", 1]}),
        json!({"tags": [""]}),
        json!({"tags": ["x".repeat(1_001)]}),
        json!({"claims": ["email"]}),
        json!({"claims": {"email": 1}}),
        json!({"releases": {"email": [""]}}),
        json!({"tag": ["x"]}),
    ] {
        let events = json!([event(json!({"tags": ["x"], "claims": null})), event(more.clone())]);
        let (state, _, detail) = refusal(&call(&pool, events, None).await.unwrap_err());
        assert_eq!((state.as_str(), detail), ("ES003", json!({"event": 2})), "{more}");
    }
    for condition in [
        json!([]),
        json!({"items": []}),
        json!({"items": [{}]}),
        json!({"items": [{"types": ["A"]}]}),
        json!({"items": [{"tags": ["x"]}, {"tags": []}]}),
        json!({"items": [{"tags": "x"}]}),
        json!({"items": [{"tags": ["x"], "types": []}]}),
        json!({"items": [{"tags": ["x"], "type": ["A"]}]}),
        json!({"items": [{"tags": ["x"]}], "token": 5}),
        json!({"items": [{"tags": ["x"]}], "token": {"x": "5"}}),
        json!({"items": [{"tags": ["x"]}], "after": 5}),
        json!({"items": [{"tags": [""]}]}),
        json!({"items": [{"tags": ["x", "y".repeat(1_001)]}]}),
        json!({"items": [{"tags": ["x"]}], "token": {"x": -1}}),
        json!({"items": [{"tags": ["x"]}], "token": {"x": 1.5}}),
        json!({"items": [{"tags": ["x"]}], "token": {"x": [1]}}),
        json!({"items": [{"tags": ["x"]}], "token": {"x": 1e30}}),
    ] {
        let error = call(&pool, event(json!({"tags": ["x"]})), Some(condition.clone())).await.unwrap_err();
        assert_eq!(refusal(&error).0, "ES003", "{condition}: {error}");
    }
    let read = "select token from espd.read_tagged('[{\"tags\": [\"x\"]}]', $1)";
    for token in [json!({"x": -1}), json!([1])] {
        let error = sqlx::query(read).bind(token.clone()).execute(&pool).await.unwrap_err();
        assert_eq!(refusal(&error).0, "ES003", "{token}: {error}");
    }
    // What is appended later would lose its tags and keys on the way.
    let later = store.append_at(Duration::from_secs(1), None, &[happened(Uuid::new_v4()).tagged("x")]).await;
    assert!(matches!(later, Err(AppendError::Invalid { index: Some(0), .. })), "{later:?}");
    let later = "select espd.append_at(now(), $1)";
    let error = sqlx::query(later).bind(event(json!({"tags": ["x"]}))).execute(&pool).await.unwrap_err();
    assert_eq!(refusal(&error).0, "ES003");
    assert!(store.read_tagged(&TagQuery::tag("x"), None).await.unwrap().events.is_empty());
}

/// What an append without tags stores must not be found by a condition, and must leave no row behind.
#[tokio::test]
async fn an_append_without_tags_leaves_the_tables_of_tags_alone() {
    let (pool, store) = store().await;
    store.append(&[happened(Uuid::new_v4()), happened(Uuid::new_v4())]).await.unwrap();
    sqlx::query("select * from espd.append($1)")
        .bind(json!({"aggregate_id": Uuid::new_v4(), "type": "A", "body": {"tags": ["x"]}}))
        .execute(&pool)
        .await
        .unwrap();
    for table in ["tag_heads", "tag_events", "unique_keys"] {
        let count = AssertSqlSafe(format!("select count(*) from espd.{table}"));
        assert_eq!(sqlx::query_scalar::<_, i64>(count).fetch_one(&pool).await.unwrap(), 0, "{table}");
    }
}

#[tokio::test]
async fn an_error_says_what_to_do_in_words() {
    let (_, store) = store().await;
    let a = Uuid::new_v4();
    store.append(&[happened(a).tagged(Tag::of("course", 1)).claiming("email", "ann")]).await.unwrap();
    let condition = TagQuery::tag("course:1").without_any();
    let failed = store.append_if(&[happened(a)], &condition).await.unwrap_err();
    assert_eq!(
        failed.to_string(),
        "event 1 (Happened) came on tag course:1, which item 1 of the condition excludes"
    );
    let taken = store.append(&[happened(Uuid::new_v4()).claiming("email", "ann")]).await.unwrap_err();
    assert_eq!(taken.to_string(), format!("event 1: email ann belongs to aggregate {a}"));
    let AppendError::KeyTaken { key, owner, .. } = taken else { panic!("{taken:?}") };
    assert_eq!((key, owner), (UniqueKey::new("email", "ann"), a.into()));
}

/// A store that knows nothing of tags says so.
#[tokio::test]
async fn a_store_of_another_kind_refuses_what_it_would_lose() {
    let store: Arc<dyn EventStore> = Arc::new(super::other_ways::Forgetful::default());
    let condition = TagQuery::tag("x").without_any();
    let refused = store.append_if(&[happened(Uuid::new_v4())], &condition).await;
    assert!(matches!(refused, Err(AppendError::Invalid { index: None, .. })), "{refused:?}");
    assert!(store.read_tagged(&TagQuery::tag("x"), None).await.is_err());
}

fn of_type(event_type: &str, tags: &[&str]) -> NewEvent {
    let body = serde_json::value::to_raw_value(&json!({})).unwrap();
    let event = NewEvent::new(Uuid::new_v4(), event_type, body);
    tags.iter().fold(event, |event, tag| event.tagged(*tag))
}

/// What heads say that is not what the events of their tags say: the number of the last event, and that of the last one of each type.
async fn differing_heads(pool: &PgPool) -> Vec<(String, String)> {
    let query = "select coalesce(h.tag, t.tag), concat(h.n, ' ', h.by_type, ' ', t.n, ' ', t.by_type)
        from (select tag, n, (select jsonb_object_agg(key, value->0) from jsonb_each(by_type)) as by_type
            from espd.tag_heads where n > 0) as h
          full join (select tag, sum(count)::bigint as n, jsonb_object_agg(type, last) as by_type
            from (select tag, type, count(*), max(n) as last from espd.tag_events group by 1, 2) as t group by 1) as t
          on h.tag = t.tag
        where (h.n, h.by_type) is distinct from (t.n, t.by_type)";
    sqlx::query_as(query).fetch_all(pool).await.unwrap()
}

/// By whatever way an event is stored, refused or found to be stored already, its tags know the last event of each type.
#[tokio::test(flavor = "multi_thread")]
async fn tags_know_the_last_event_of_each_type() {
    let (pool, store) = store().await;
    let (a, b, none) = (of_type("A", &["x", "y"]), of_type("B", &["y", "z"]), of_type("A", &["new"]));
    let read = store.read_tagged(&TagQuery::tag("y"), None).await.unwrap();
    store.append(std::slice::from_ref(&a)).await.unwrap();
    store.append(&[b.clone(), of_type("A", &["y"]), of_type("C", &["z", "x"])]).await.unwrap();
    assert_eq!(differing_heads(&pool).await, []);

    // Stored already: by the statement for one event, by the function, with others.
    for again in [std::slice::from_ref(&a), std::slice::from_ref(&b)] {
        store.append(again).await.unwrap();
        let mut transaction = pool.begin().await.unwrap();
        store.append_in(&mut transaction, again).await.unwrap().commit(transaction).await.unwrap();
    }
    assert_eq!(differing_heads(&pool).await, []);

    // Refused: an event came, the version is not the expected one, the token is of another store.
    let came = TagQuery::tag("y").of_types(["B"]).unchanged_since(read.token);
    let refused = store.append_if(&[of_type("A", &["y"])], &came).await;
    assert!(matches!(refused, Err(AppendError::ConditionFailed { item: 0, .. })), "{refused:?}");
    let expected = espd::event::ExpectedVersion::exactly(3);
    let refused = store.append(&[of_type("A", &["y", "fresh"]).expecting(expected)]).await;
    assert!(matches!(refused, Err(AppendError::Conflict { .. })), "{refused:?}");
    let token = serde_json::from_value(json!({ "new": 7 })).unwrap();
    let refused =
        store.append_if(std::slice::from_ref(&none), &TagQuery::tag("new").unchanged_since(token)).await;
    assert!(matches!(refused, Err(AppendError::ConditionFailed { .. })), "{refused:?}");
    assert_eq!(differing_heads(&pool).await, []);

    // A condition on types that did not come, and on its own type, however much else has come.
    let condition = TagQuery::tag("y").of_types(["Z"]).without_any();
    store.append_if(&[of_type("Y", &["y"])], &condition).await.unwrap();
    let condition = TagQuery::tag("y").of_types(["Y"]).without_any();
    let refused = store.append_if(&[of_type("Y", &["y"])], &condition).await;
    assert!(matches!(refused, Err(AppendError::ConditionFailed { .. })), "{refused:?}");
    let own = TagQuery::tag("new").of_types(["A"]).without_any();
    store.append_if(&[none], &own).await.unwrap();
    assert_eq!(differing_heads(&pool).await, []);
}

/// A store that had tags before they knew of types knows them once it is migrated.
#[tokio::test]
async fn tags_learn_of_their_types_when_a_store_is_migrated() {
    let (pool, store) = store().await;
    store.append(&[of_type("A", &["x"]), of_type("B", &["x", "y"]), of_type("A", &["x"])]).await.unwrap();
    sqlx::raw_sql("alter table espd.tag_heads drop column by_type").execute(&pool).await.unwrap();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/event_store");
    let migration = std::fs::read_to_string(folder.join("0014_last_of_type.sql")).unwrap();
    sqlx::raw_sql(AssertSqlSafe(migration.replace(":\"schema\"", "espd"))).execute(&pool).await.unwrap();
    assert_eq!(differing_heads(&pool).await, []);
}

#[tokio::test]
async fn a_token_of_the_future_reads_nothing_that_a_decision_could_be_made_from() {
    let (pool, store) = store().await;
    store.append(&[enrolled(&["x", "y"])]).await.unwrap();
    let read = "select events, token from espd.read_tagged('[{\"tags\": [\"x\"]}]', $1)";
    for token in [json!({"x": 1, "gone": 7}), json!({}), json!(null)] {
        sqlx::query(read).bind(token).execute(&pool).await.unwrap();
    }
    let error = sqlx::query(read).bind(json!({"x": 2})).execute(&pool).await.unwrap_err();
    let (message, (state, _, detail)) = (error.to_string(), refusal(&error));
    assert_eq!(
        (state.as_str(), &detail["tag"], &detail["n"], &detail["id"]),
        ("ES008", &json!("x"), &json!(2), &json!(null))
    );
    assert!(message.contains("which this store does not have: read again"), "{message}");
}

#[tokio::test]
async fn an_empty_list_of_tags_is_not_left_out() {
    let (pool, _) = store().await;
    let id = Uuid::new_v4();
    let event = |uuid: Uuid, tags: Value| json!({"aggregate_id": id, "uuid": uuid, "type": "A", "body": {}, "tags": tags});
    let (tagged, bare) = (Uuid::new_v4(), Uuid::new_v4());
    let first =
        call(&pool, json!([event(tagged, json!(["x"])), event(bare, json!([]))]), None).await.unwrap();
    for same in [json!(["x"]), json!(null)] {
        let again = call(&pool, json!([event(tagged, same), event(bare, json!([]))]), None).await.unwrap();
        assert_eq!(again, first);
    }
    let error =
        call(&pool, json!([event(tagged, json!([])), event(bare, json!(null))]), None).await.unwrap_err();
    let (state, _, detail) = refusal(&error);
    assert_eq!((state.as_str(), detail), ("ES002", json!({"uuid": tagged})));
    let single = "select id from espd.append($1)";
    let error = sqlx::query(single).bind(event(tagged, json!([]))).execute(&pool).await.unwrap_err();
    assert_eq!(refusal(&error).0, "ES002");
}
