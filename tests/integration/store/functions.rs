//! The SQL functions, as a program in any language calls them.

use espd::event::ExpectedVersion::{Absent, Exact};
use espd::event::{Appended, NewEvent, Position};
use espd::schema::migrate_event_store;
use espd::store::Layout;
use espd::store::{AppendError, EventStore, PostgresEventStore};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};
use uuid::Uuid;

use tokio::time::timeout;

use super::{LONG, happened, layout, refusal, store};

const A: &str = "00000000-0000-0000-0000-00000000000a";
const B: &str = "00000000-0000-0000-0000-00000000000b";

/// Runs one statement and returns its rows as JSON, or SQLSTATE and DETAIL of its error.
async fn run(pool: &PgPool, sql: &str) -> Result<Value, (String, Value)> {
    let sql = format!("select coalesce(jsonb_agg(to_jsonb(r)), '[]') from ({sql}) as r");
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(pool).await.map_err(|error| {
        let (code, _, detail) = refusal(&error);
        (code, detail)
    })
}

async fn count(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from espd.events").fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn append_events_needs_only_what_has_no_default() {
    let (pool, _) = store().await;
    let sql = format!(
        "select version from espd.append_events(array['{A}', '{B}', '{A}']::uuid[], array['X', 'Y', 'Z'],
           array['1', '2', '3']::jsonb[])"
    );
    assert_eq!(run(&pool, &sql).await, Ok(json!([{"version": 1}, {"version": 1}, {"version": 2}])));
    let sql = "select type, body, metadata, correlation_id, causation_id, uuid is not null as has_uuid,
                 created_at > now() - interval '1 hour' as is_new
               from espd.events where id = (select max(id) from espd.events)";
    let stored = json!([{"type": "Z", "body": 3, "metadata": {}, "correlation_id": null, "causation_id": null,
                         "has_uuid": true, "is_new": true}]);
    assert_eq!(run(&pool, sql).await, Ok(stored));
}

#[tokio::test]
async fn append_events_refuses_arrays_that_describe_no_events() {
    let (pool, _) = store().await;
    for (arguments, detail) in [
        ("array[a, a], array['X'], array[j, j]", json!({"event": null})),
        ("array[a], array['X', 'Y'], array[j]", json!({"event": null})),
        ("array[a], null, array[j]", json!({"event": null})),
        ("null, array['X'], null", json!({"event": null})),
        ("array[a, a], array['X', 'Y'], array[j, j], array[0::bigint]", json!({"event": null})),
        ("array[a], array['X'], array[j], uuids => array[]::uuid[]", json!({"event": null})),
        ("array[a], array['X'], array[j], created_ats => array[now(), now()]", json!({"event": null})),
        ("array[a, null], array['X', 'Y'], array[j, j]", json!({"event": 2})),
        ("array[a], array[null::text], array[j]", json!({"event": 1})),
        ("array[a, a, a], array['X', 'Y', ''], array[j, j, j]", json!({"event": 3})),
        ("array[a, a], array['X', 'Y'], array[null, j]", json!({"event": 1})),
        ("array[a], array['X'], array[j], array[-1::bigint]", json!({"event": 1})),
        ("array[a, a], array['X', 'Y'], array[j, j], array[null, -1::bigint]", json!({"event": 2})),
    ] {
        let sql = format!(
            "select r.* from (values ('{A}'::uuid, '1'::jsonb)) as v (a, j), espd.append_events({arguments}) as r"
        );
        assert_eq!(run(&pool, &sql).await, Err(("ES003".to_owned(), detail)), "{arguments}");
    }
    assert_eq!(count(&pool).await, 0);
}

#[tokio::test]
async fn append_events_takes_no_events_for_an_empty_append() {
    let (pool, _) = store().await;
    for arguments in ["'{}', '{}', '{}'", "null, null, null", "'{}', '{}', '{}', '{}', '{}'"] {
        let sql = format!("select * from espd.append_events({arguments})");
        assert_eq!(run(&pool, &sql).await, Ok(json!([])), "{arguments}");
    }
}

#[tokio::test]
async fn append_names_the_event_that_it_refuses() {
    let (pool, _) = store().await;
    let good = json!({"aggregate_id": A, "type": "X", "body": null});
    let with = |key: &str, value: Value| {
        let mut event = good.clone();
        event[key] = value;
        event
    };
    let mut without_body = good.clone();
    without_body.as_object_mut().unwrap().remove("body");
    for bad in [
        json!(null),
        json!(1),
        json!([]),
        json!({}),
        without_body,
        with("boddy", json!(1)),
        with("aggregate_id", json!(null)),
        with("aggregate_id", json!("not a uuid")),
        with("type", json!(1)),
        with("type", json!("")),
        with("expected_version", json!("1")),
        with("expected_version", json!(1.5)),
        with("expected_version", json!(u64::MAX)),
        with("uuid", json!("1")),
        with("uuid", json!(1)),
        with("metadata", json!([])),
        with("correlation_id", json!("x")),
        with("causation_id", json!({})),
        with("created_at", json!("yesterday")),
        with("created_at", json!("infinity")),
        with("created_at", json!(1)),
        with("created_at", json!("2024-02-29")),
        with("created_at", json!("2024-02-29T12:00:00")),
        with("created_at", json!("2024-02-30T12:00:00Z")),
    ] {
        for (events, number) in [(bad.clone(), 1), (json!([good, bad]), 2)] {
            if events.is_array() && number == 1 {
                continue;
            }
            let sql = format!("select * from espd.append('{events}')");
            assert_eq!(
                run(&pool, &sql).await,
                Err(("ES003".to_owned(), json!({"event": number}))),
                "{events}"
            );
        }
    }
    assert_eq!(count(&pool).await, 0);
    assert_eq!(run(&pool, "select * from espd.append('[]')").await, Ok(json!([])));
    assert_eq!(run(&pool, "select * from espd.append(null)").await.unwrap_err().0, "ES003");
}

/// The message names the key: the same text may stand under several.
#[tokio::test]
async fn append_names_the_key_that_it_cannot_read() {
    let (pool, _) = store().await;
    for (key, value) in [
        ("aggregate_id", json!("x")),
        ("uuid", json!("x")),
        ("correlation_id", json!("x")),
        ("causation_id", json!("x")),
        ("expected_version", json!(1.5)),
        ("created_at", json!("2024-02-30T12:00:00Z")),
    ] {
        let mut event = json!({"aggregate_id": A, "type": "X", "body": null});
        event[key] = value;
        for call in ["append($1)", "append($1, null)", "append_at(now(), $1)"] {
            if key == "expected_version" && call.starts_with("append_at") {
                continue;
            }
            let call = AssertSqlSafe(format!("select * from espd.{call}"));
            let error = sqlx::query(call).bind(&event).execute(&pool).await.unwrap_err();
            let message = error.as_database_error().unwrap().message();
            assert!(message.starts_with(&format!("event 1: {key}: ")), "{message}");
            assert_eq!(refusal(&error).0, "ES003");
        }
    }
}

/// `01/02/2024` is 2 January in one session and 1 February in another.
#[tokio::test]
async fn a_time_that_a_setting_of_the_session_would_decide_is_refused() {
    let (pool, _) = store().await;
    for style in ["ISO, MDY", "ISO, DMY", "German"] {
        let mut session = pool.acquire().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(format!("set datestyle = '{style}'")))
            .execute(&mut *session)
            .await
            .unwrap();
        for time in ["01/02/2024 00:00Z", "01.02.2024 00:00:00+01", "1 Feb 2024 00:00Z", "24-02-01T00:00:00Z"]
        {
            let event = json!({"aggregate_id": A, "type": "X", "body": null, "created_at": time});
            for call in ["append($1)", "append($1, null)", "append_at(now(), $1)"] {
                let call = AssertSqlSafe(format!("select * from espd.{call}"));
                let error = sqlx::query(call).bind(&event).execute(&mut *session).await.unwrap_err();
                assert_eq!(refusal(&error).0, "ES003", "{style}: {time}: {error}");
            }
        }
        sqlx::raw_sql("reset datestyle").execute(&mut *session).await.unwrap();
    }
}

#[tokio::test]
async fn append_takes_null_for_left_out() {
    let (pool, _) = store().await;
    let event = json!({"aggregate_id": A, "type": "X", "body": null, "expected_version": null, "uuid": null,
                       "metadata": null, "correlation_id": null, "causation_id": null, "created_at": null});
    let sql = format!("select version from espd.append('[{event}, {event}]')");
    assert_eq!(run(&pool, &sql).await, Ok(json!([{"version": 1}, {"version": 2}])));
    let sql = "select distinct body, metadata from espd.events";
    assert_eq!(run(&pool, sql).await, Ok(json!([{"body": null, "metadata": {}}])));
}

#[tokio::test]
async fn append_understands_times_with_a_zone() {
    let (pool, _) = store().await;
    for time in
        ["2024-02-29T12:00:00.123456Z", "2024-02-29 14:00:00.123456+02", "2024-02-29T10:30:00.123456-01:30"]
    {
        let event = json!({"aggregate_id": A, "type": "X", "body": null, "created_at": time});
        run(&pool, &format!("select * from espd.append('{event}')")).await.unwrap();
    }
    let times = "select distinct created_at at time zone 'utc' as t from espd.events";
    assert_eq!(run(&pool, times).await, Ok(json!([{"t": "2024-02-29T12:00:00.123456"}])));
}

#[tokio::test]
async fn append_accepts_a_valid_time_whatever_the_session_has_set() {
    let (pool, _) = store().await;
    let mut session = pool.acquire().await.unwrap();
    let append = |time: &str| {
        format!(
            "select id from espd.append(jsonb_build_object(
               'aggregate_id', gen_random_uuid(), 'type', 'X', 'body', null, 'created_at', {time}))"
        )
    };
    for settings in [
        "set standard_conforming_strings = off",
        "set datestyle = 'SQL, DMY'; set timezone = 'America/New_York'",
        "set datestyle = 'German'; set timezone = 'Europe/Berlin'; set intervalstyle = 'iso_8601'",
        "set datestyle = 'Postgres, MDY'; set timezone = 'Etc/UTC'; set quote_all_identifiers = on",
        "set datestyle = 'ISO, YMD'; set timezone = 'Asia/Kolkata'; set transform_null_equals = on",
    ] {
        sqlx::raw_sql(AssertSqlSafe(format!("reset all; {settings}"))).execute(&mut *session).await.unwrap();
        // As JSON has it.
        for time in [
            "to_jsonb(clock_timestamp()) #>> '{}'",
            "to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.USZ')",
        ] {
            let appended = sqlx::query_scalar(AssertSqlSafe(append(time))).persistent(false);
            let id: i64 = appended
                .fetch_one(&mut *session)
                .await
                .unwrap_or_else(|error| panic!("{settings}: {time}: {error}"));
            let is_now =
                "select abs(extract(epoch from created_at - now())) < 60 from espd.events where id = $1";
            let is_now: bool =
                sqlx::query_scalar(is_now).persistent(false).bind(id).fetch_one(&mut *session).await.unwrap();
            assert!(is_now, "{settings}: {time}");
        }
        for time in [
            "2024-02-29T12:00:00",
            "29.02.2024 12:00",
            "29.02.2024 12:00+01",
            "2024-02-29",
            "today",
            "now",
            "infinity",
            "12:00:00",
            "2024-02-29 12:00 pm",
            "no time 12:00 at all",
        ] {
            let refused = sqlx::query(AssertSqlSafe(append(&format!("'{time}'")))).persistent(false);
            let error = refused.execute(&mut *session).await.expect_err(&format!("{settings}: {time}"));
            assert_eq!(refusal(&error).0, "ES003", "{settings}: {time}");
        }
    }
}

#[tokio::test]
async fn a_conflict_carries_what_was_expected_and_what_is() {
    let (pool, _) = store().await;
    let append = |expected: &str| {
        format!(
            "select version from espd.append_events(array['{A}']::uuid[], array['X'], array['1']::jsonb[],
               array[{expected}]::bigint[])"
        )
    };
    run(&pool, &append("0")).await.unwrap();
    for expected in ["0", "9223372036854775807"] {
        let expected_number: i64 = expected.parse().unwrap();
        let detail = json!({"aggregate_id": A, "expected": expected_number, "actual": 1});
        assert_eq!(run(&pool, &append(expected)).await, Err(("ES001".to_owned(), detail)));
    }
}

/// Appends in a transaction of its own, on this connection.
pub(super) async fn append_on(
    store: &PostgresEventStore,
    connection: &mut PgConnection,
    events: &[NewEvent],
) -> Result<Vec<Appended>, AppendError> {
    let mut transaction = connection.begin().await.unwrap();
    let uncommitted = store.append_in(&mut transaction, events).await?;
    // Without the look that `Uncommitted::commit` takes before: a test counts scans.
    transaction.commit().await?;
    Ok(uncommitted.committed().await)
}

/// Plans outlive the size that the table had when they were made.
#[tokio::test]
async fn a_bulk_load_into_a_small_table_does_not_scan_it() {
    let (pool, store) = store().await;
    let mut connection = pool.acquire().await.unwrap();
    let few: Vec<_> = (0..60).map(|_| happened(Uuid::new_v4())).collect();
    append_on(&store, &mut connection, &few).await.unwrap();
    sqlx::raw_sql("vacuum analyze espd.events").execute(&mut *connection).await.unwrap();
    for event in &few {
        let repeated = [happened(&event.aggregate_id).expecting(Exact(1.into()))];
        append_on(&store, &mut connection, &repeated).await.unwrap();
        append_on(&store, &mut connection, &repeated).await.unwrap();
        let two = [happened(&event.aggregate_id), happened(Uuid::new_v4())];
        append_on(&store, &mut connection, &two).await.unwrap();
    }
    // A session reports what it did when it ends, at the latest.
    connection.close().await.unwrap();
    let counts = "select seq_scan, idx_scan from pg_stat_user_tables where relid = 'espd.events'::regclass";
    let until_reported = async {
        loop {
            let (scans, index_scans): (i64, i64) = sqlx::query_as(counts).fetch_one(&pool).await.unwrap();
            if index_scans >= 180 {
                return scans;
            }
        }
    };
    assert_eq!(timeout(LONG, until_reported).await.expect("a report"), 0);
}

#[tokio::test]
async fn an_error_of_a_foreign_index_is_passed_on() {
    let (pool, store) = store().await;
    let index = "create unique index one_email on espd.events ((body->>'email'))";
    sqlx::raw_sql(index).execute(&pool).await.unwrap();
    let event =
        || NewEvent { body: super::json(r#"{"email": "a@example.com"}"#), ..happened(Uuid::new_v4()) };
    store.append(&[event()]).await.unwrap();
    for events in [vec![event()], vec![event(), event()], vec![event().expecting(Absent)]] {
        match timeout(LONG, store.append(&events)).await.expect("an answer") {
            Err(AppendError::Database(error)) => {
                assert_eq!(refusal(&error).0, "23505");
                assert_eq!(refusal(&error).1, "one_email");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(count(&pool).await, 1);
}

#[tokio::test]
async fn a_writer_needs_no_right_to_change_or_delete() {
    let (pool, _) = store().await;
    // Roles belong to the server, which other tests share.
    let role = format!("writer_{}", Uuid::new_v4().simple());
    let grants = format!(
        "create role {role};
         grant usage on schema espd to {role};
         grant select, insert on espd.events to {role};"
    );
    sqlx::raw_sql(AssertSqlSafe(grants)).execute(&pool).await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    let set_role = format!("set role {role}; set search_path = public");
    sqlx::raw_sql(AssertSqlSafe(set_role)).execute(&mut *connection).await.unwrap();

    let store = PostgresEventStore::new(pool.clone(), layout()).without_notifications();
    let a = Uuid::new_v4();
    let events = [happened(a), happened(a)];
    append_on(&store, &mut connection, &events[..1]).await.unwrap();
    append_on(&store, &mut connection, &events[..1]).await.unwrap();
    let two = [happened(a), happened(a).expecting(Exact(2.into()))];
    append_on(&store, &mut connection, &two).await.unwrap();
    append_on(&store, &mut connection, &events).await.unwrap_err();
    let update = sqlx::query("update espd.events set version = 9").execute(&mut *connection).await;
    assert_eq!(refusal(&update.unwrap_err()).0, "42501");
    connection.close().await.unwrap();

    let drop_role = format!("drop owned by {role}; drop role {role}");
    sqlx::raw_sql(AssertSqlSafe(drop_role)).execute(&pool).await.unwrap();
    assert_eq!(count(&pool).await, 3);
}

#[tokio::test]
async fn a_store_may_live_in_any_schema() {
    let (pool, espd) = store().await;
    migrate_event_store(&pool, "select").await.unwrap();
    let other = PostgresEventStore::new(pool.clone(), Layout::espd("select").unwrap());
    let a = Uuid::new_v4();
    other.append(&[happened(a).expecting(Absent)]).await.unwrap();
    other.append(&[happened(a), happened(a)]).await.unwrap();
    espd.append(&[happened(a).expecting(Absent)]).await.unwrap();
    let event = json!({"aggregate_id": a, "type": "X", "body": 1, "expected_version": 3});
    run(&pool, &format!(r#"select * from "select".append('{event}')"#)).await.unwrap();
    assert_eq!(other.read_after(Position::START, None, None, 10).await.unwrap().len(), 4);
    assert_eq!(espd.read_after(Position::START, None, None, 10).await.unwrap().len(), 1);
}

/// Runs one statement as `run` does and leaves nothing of it.
async fn try_out(pool: &PgPool, sql: &str) -> Result<Value, (String, Value)> {
    let sql = format!("select coalesce(jsonb_agg(to_jsonb(r) - 'id'), '[]') from ({sql}) as r");
    let mut transaction = pool.begin().await.unwrap();
    let outcome = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut *transaction).await;
    transaction.rollback().await.unwrap();
    outcome.map_err(|error| {
        let (code, _, detail) = refusal(&error);
        (code, detail)
    })
}

/// One event is stored by one statement, which has to do just what the functions do that take any number of events.
#[tokio::test]
async fn one_event_fares_alike_by_its_statement_and_among_several() {
    let (pool, _) = store().await;
    let stored = format!("uuids => array['{B}'::uuid]");
    let first = format!(
        "select version from espd.append_events(array['{A}'::uuid], array['X'], array['1'::jsonb], {stored})"
    );
    run(&pool, &first).await.unwrap();
    for arguments in [
        "array[a], array['X'], array[j], array[0::bigint], array[b]",
        "array[a], array['X'], array[j], array[1::bigint], array[b]",
        "array[a], array['Y'], array[j], array[1::bigint], array[b]",
        "array[a], array['X'], array[j], array[0::bigint], array[a]",
        "array[a], array['X'], array[j], array[1::bigint], array[a]",
        "array[a], array['X'], array[j], array[2::bigint], array[a]",
        "array[a], array['X'], array[j], null, array[a], array['{\"k\": 1}'::jsonb], array[a], array[b], array[now()]",
        "array[b], array['X'], array[j], array[0::bigint], array[a], array[null::jsonb]",
        "array[b], array['X'], array[j], array[1::bigint], array[a]",
        "array[b], array['X'], array[j], array[-1::bigint], array[a]",
        "array[b], array['X'], array[j], array[null::bigint], array[a], array['[]'::jsonb]",
        "array[b], array[''], array[j], null, array[a]",
        "array[b], array['X'], array[null::jsonb], null, array[a]",
        "array[b], array['X'], array['null'::jsonb], null, array[a]",
        "array[b], array['X'], array[j], '{}', array[a]",
        "array[b], array['X'], array[j], array[0, 0]::bigint[], array[a]",
        "array[b], array['X'], array[j], null, array[a], correlation_ids => array[a, a]",
        "array[null::uuid], array['X'], array[j], null, array[a]",
        "null, array['X'], array[j]",
    ] {
        let call = |function: &str| {
            format!(
                "select r.* from (values ('{A}'::uuid, '{B}'::uuid, '1'::jsonb)) as v (a, b, j), espd.{function}({arguments}) as r"
            )
        };
        let several = try_out(&pool, &call("append_listed")).await;
        assert_eq!(try_out(&pool, &call("append_events")).await, several, "{arguments}");
    }
    // Without a uuid of its own, an event gets another each time.
    for arguments in [
        "array[a], array['X'], array[j], array[0::bigint]",
        "array[a], array['X'], array[j], array[1::bigint]",
        "array[b], array['X'], array[j], array[0::bigint]",
        "array[b], array['X'], array[j], array[1::bigint]",
        "array[b], array['X'], array[j], array[-1::bigint]",
        "array[b], array['X'], array[j], array[9223372036854775807]",
        "array[b], array['X'], array[j], array[null::bigint]",
        "array[b], array['X'], array[j], array[0, 0]::bigint[]",
        "array[b, b], array['X'], array[j], array[0::bigint]",
        "array[b], array['X', 'X'], array[j], array[0::bigint]",
        "array[b], array['X'], array[j, j], array[0::bigint]",
        "array[b], array[''], array[j], array[0::bigint]",
        "array[b], array[null], array[j], array[0::bigint]",
        "array[b], array['X'], array[null::jsonb], array[0::bigint]",
        "array[null::uuid], array['X'], array[j], array[0::bigint]",
        "array[b], array['X'], array[j], array[0::bigint], metadata => array['[]'::jsonb]",
        "array[b], array['X'], array[j], array[0::bigint], created_ats => '{}'",
    ] {
        let call = |function: &str| {
            format!(
                "select r.version from (values ('{A}'::uuid, '{B}'::uuid, '1'::jsonb)) as v (a, b, j), espd.{function}({arguments}) as r"
            )
        };
        let several = try_out(&pool, &call("append_listed")).await;
        assert_eq!(try_out(&pool, &call("append_events")).await, several, "{arguments}");
    }
    for others in [
        json!({"expected_version": 1}),
        json!({"expected_version": 0}),
        json!({"uuid": B, "expected_version": 0, "metadata": []}),
        json!({"uuid": B, "expected_version": 1, "metadata": "k"}),
        json!({"uuid": B, "expected_version": 1, "metadata": {"k": 1}, "correlation_id": A, "causation_id": B}),
        json!({"uuid": B, "expected_version": "1"}),
        json!({"uuid": B, "expected_version": true}),
        json!({"uuid": B, "expected_version": 9_223_372_036_854_775_807_i64}),
        json!({"uuid": B, "expected_version": 9_223_372_036_854_775_808_u64}),
        json!({"uuid": B, "metadata": 1}),
        json!({"uuid": B, "type": ""}),
        json!({"uuid": B, "type": 1}),
        json!({"uuid": B, "aggregate_id": 1}),
        json!({"expected_version": null, "metadata": null, "uuid": A, "correlation_id": A, "causation_id": null}),
        json!({"uuid": B, "expected_version": 7}),
        json!({"uuid": "{0000000000000000000000000000000C}"}),
        json!({"uuid": B, "body": 2}),
        json!({"body": null}),
        json!({"created_at": null}),
        json!({"created_at": "2024-05-01T00:00:00Z"}),
        json!({"metadata": {"k": 1}, "expected_version": 1.0}),
        json!({"expected_version": -1}),
        json!({"causation_id": 1}),
        json!({"tags": []}),
    ] {
        let mut event = json!({"aggregate_id": A, "type": "X", "body": 1, "uuid": A});
        event.as_object_mut().unwrap().extend(others.as_object().unwrap().clone());
        let several = try_out(&pool, &format!("select * from espd.append_several('[{event}]')")).await;
        assert_eq!(
            try_out(&pool, &format!("select * from espd.append('{event}')")).await,
            several,
            "{event}"
        );
    }
}

/// Settings of a function cost each call of it a good part of what the append costs, so these name all that they use by the schema.
#[tokio::test]
async fn appends_have_no_settings_and_mean_the_same_under_any_search_path() {
    let (pool, _) = store().await;
    let with_settings = "select count(*) as n from pg_proc where pronamespace = 'espd'::regnamespace
       and (proname = 'append_events' or proname = 'append' and pronargs = 1) and proconfig is not null";
    assert_eq!(run(&pool, with_settings).await, Ok(json!([{"n": 0}])));
    let mut connection = pool.acquire().await.unwrap();
    let others = "create schema other; set search_path = other;
       create table events (like espd.events including all); create table event_schemas (like espd.event_schemas including all);
       insert into event_schemas (type, schema, check_at_append) values ('X', 'false', true);
       create temp table events (like espd.events);
       create function cardinality(uuid[]) returns int language sql as 'select 1/0';
       create function row_security_active(regclass) returns boolean language sql as 'select 1/0 = 1';
       create function has_sequence_privilege(regclass, text) returns boolean language sql as 'select 1/0 = 1'";
    sqlx::raw_sql(others).execute(&mut *connection).await.unwrap();
    let append = format!(
        "select version from espd.append_events(array['{A}'::uuid], array['X'], array['1'::jsonb])
         union all select version from espd.append('{{\"aggregate_id\": \"{B}\", \"type\": \"X\", \"body\": 1}}')"
    );
    let versions: Vec<i64> =
        sqlx::query_scalar(AssertSqlSafe(append)).fetch_all(&mut *connection).await.unwrap();
    assert_eq!((versions, count(&pool).await), (vec![1, 1], 2));
}
