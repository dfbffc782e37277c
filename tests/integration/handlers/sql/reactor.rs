//! SQL reactors on a real database: what they emit, the tables and the position together, and never twice.

use espd::internals::declaration::{ProcessorDeclaration, ReactorDeclaration};
use espd::internals::failure::Failure;
use espd::internals::handlers::check;
use espd::internals::processor::Events;
use espd::internals::processor::Outcome;
use espd::internals::tracker::ReplayEffects;
use espd::native::Start;
use espd::store::Layout;
use espd::store::PostgresEventStore;
use serde_json::{Value, json};
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row as _};
use uuid::Uuid;

use crate::support;
use crate::support::projectors::{Running, declare, insert, numbers};

const ANSWER: &str =
    "perform espd.emit('Answered', event.aggregate_id, jsonb_build_object('to', event.body->'n'))";

/// A reactor that answers every `Asked`.
fn answering(sql: &str, start: Start) -> ProcessorDeclaration {
    let reactor = Some(ReactorDeclaration { emits: vec!["Answered".into()], ..Default::default() });
    let tables = [("answers", "place serial primary key, event_id bigint")];
    let note = "insert into answers (event_id) values (event.id)";
    let handlers: [(&[&str], &str); 2] = [(&["Asked"], sql), (&["Asked"], note)];
    ProcessorDeclaration { reactor, start: Some(start), ..declare("answering", &tables, &handlers) }
}

#[derive(Debug)]
struct Emitted {
    id: i64,
    uuid: Uuid,
    aggregate_id: Uuid,
    body: Value,
    metadata: Value,
    correlation_id: Option<Uuid>,
    causation_id: Option<Uuid>,
}

async fn emitted(pool: &PgPool) -> Vec<Emitted> {
    let query = "select * from espd.events where type = 'Answered' order by id";
    let event = |row: PgRow| Emitted {
        id: row.get("id"),
        uuid: row.get("uuid"),
        aggregate_id: row.get("aggregate_id"),
        body: row.get("body"),
        metadata: row.get("metadata"),
        correlation_id: row.get("correlation_id"),
        causation_id: row.get("causation_id"),
    };
    sqlx::query(query).map(event).fetch_all(pool).await.unwrap()
}

async fn identity(pool: &PgPool, id: i64) -> (Uuid, Uuid) {
    let query = sqlx::query_as("select uuid, aggregate_id from espd.events where id = $1").bind(id);
    query.fetch_one(pool).await.unwrap()
}

fn failure(outcome: Outcome) -> Failure {
    match outcome {
        Outcome::Committed { failure: Some(failure), .. } => *failure,
        other => panic!("no failure: {other:?}"),
    }
}

async fn head(pool: &PgPool) -> i64 {
    numbers(pool, "select coalesce(max(id), 0) from espd.events").await[0]
}

#[tokio::test]
async fn an_emitted_event_names_the_event_that_led_to_it() {
    let db = support::database().await;
    let mut running = Running::start(&db.pool, answering(ANSWER, Start::Beginning)).await.unwrap();
    let ids = insert(&db.pool, &["Asked", "Other", "Asked"]).await;
    let outcome = running.process(ids[2]).await.unwrap();
    assert_eq!(outcome, Outcome::Committed { position: ids[2].into(), handled: 2, failure: None });
    let answers = emitted(&db.pool).await;
    assert_eq!(answers.len(), 2);
    for (answer, (source, n)) in answers.iter().zip([(ids[0], 1), (ids[2], 3)]) {
        let (uuid, aggregate_id) = identity(&db.pool, source).await;
        assert!(answer.id > ids[2]);
        assert_eq!((answer.aggregate_id, &answer.body), (aggregate_id, &json!({ "to": n })));
        assert_eq!((answer.causation_id, answer.correlation_id), (Some(uuid), Some(uuid)));
        assert_eq!(answer.metadata, json!({ "espd": { "reactor": "answering", "depth": 1 } }));
        assert_eq!(answer.uuid.get_version_num(), 8);
    }
    assert_eq!(numbers(&db.pool, "select event_id from answers order by place").await, [ids[0], ids[2]]);
}

#[tokio::test]
async fn a_correlation_is_handed_on() {
    let db = support::database().await;
    let mut running = Running::start(&db.pool, answering(ANSWER, Start::Beginning)).await.unwrap();
    let correlation = Uuid::new_v4();
    let ids = insert(&db.pool, &["Asked"]).await;
    let update = sqlx::query("update espd.events set correlation_id = $1").bind(correlation);
    update.execute(&db.pool).await.unwrap();
    running.process(ids[0]).await.unwrap();
    assert_eq!(emitted(&db.pool).await[0].correlation_id, Some(correlation));
}

#[tokio::test]
async fn a_failing_event_takes_back_what_it_has_emitted() {
    let db = support::database().await;
    let sql = format!("{ANSWER};\nperform 1 / ((event.body->>'n')::int - 2)");
    let mut running = Running::start(&db.pool, answering(&sql, Start::Beginning)).await.unwrap();
    let ids = insert(&db.pool, &["Asked"; 3]).await;
    for _ in 0..2 {
        assert_eq!(failure(running.process(ids[2]).await.unwrap()).event_id(), Some(ids[1].into()));
        assert_eq!(emitted(&db.pool).await.len(), 1, "for the event before it, once");
    }
    assert_eq!(numbers(&db.pool, "select position from espd.trackers").await, [ids[1] - 1]);
}

#[tokio::test]
async fn a_type_that_is_not_declared_is_refused_by_name() {
    let db = support::database().await;
    let sql = "perform espd.emit('Shouted', event.aggregate_id, '{}')";
    let mut running = Running::start(&db.pool, answering(sql, Start::Beginning)).await.unwrap();
    let ids = insert(&db.pool, &["Asked"]).await;
    let failure = failure(running.process(ids[0]).await.unwrap());
    assert_eq!(failure.sqlstate.as_deref(), Some("ES004"));
    assert!(failure.message.contains("answering") && failure.message.contains("Shouted"), "{failure}");
    assert_eq!(head(&db.pool).await, ids[0]);

    let mut connection = db.pool.acquire().await.unwrap();
    let faults = check(&mut connection, &[answering(sql, Start::Now)], "public").await.unwrap();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].message.contains("Shouted"), "{faults:?}");
    let faults = check(&mut connection, &[answering(ANSWER, Start::Now)], "public").await.unwrap();
    assert_eq!(faults, []);
}

#[tokio::test]
async fn a_projector_emits_nothing() {
    let db = support::database().await;
    let declaration = declare("p", &[], &[(&["Asked"], ANSWER)]);
    let mut connection = db.pool.acquire().await.unwrap();
    let faults = check(&mut connection, std::slice::from_ref(&declaration), "public").await.unwrap();
    assert_eq!(faults.len(), 1, "{faults:?}");
    let mut running = Running::start(&db.pool, declaration).await.unwrap();
    let ids = insert(&db.pool, &["Asked"]).await;
    assert_eq!(failure(running.process(ids[0]).await.unwrap()).sqlstate.as_deref(), Some("ES004"));
    assert_eq!(head(&db.pool).await, ids[0]);
}

#[tokio::test]
async fn a_reset_repeats_no_effect_but_builds_the_tables_again() {
    let db = support::database().await;
    let sql = format!("{ANSWER};\ninsert into answers (event_id) select -event.id where espd.is_replaying()");
    let declaration = answering(&sql, Start::Beginning);
    let mut running = Running::start(&db.pool, declaration.clone()).await.unwrap();
    let ids = insert(&db.pool, &["Asked", "Asked"]).await;
    running.process(ids[1]).await.unwrap();
    let before: Vec<Uuid> = emitted(&db.pool).await.iter().map(|event| event.uuid).collect();
    // What was emitted is lost to the store, so that a repetition would be seen.
    sqlx::query("delete from espd.events where type = 'Answered'").execute(&db.pool).await.unwrap();

    let reset = async |running: Running, effects| {
        let mut running = running;
        assert!(running.reset("alice@here", effects).await);
        Running::start(&db.pool, declaration.clone()).await.unwrap()
    };
    let third = insert(&db.pool, &["Asked"]).await[0];
    let mut running = reset(running, ReplayEffects::Suppress).await;
    running.process(third).await.unwrap();
    let noted = numbers(&db.pool, "select event_id from answers order by place").await;
    assert_eq!(noted, [-ids[0], ids[0], -ids[1], ids[1], third]);
    let answers = emitted(&db.pool).await;
    assert_eq!(answers.len(), 1, "for the new event only: {answers:?}");

    for _ in 0..2 {
        running = reset(running, ReplayEffects::Repeat).await;
        running.process(third).await.unwrap();
        let mut again: Vec<Uuid> = emitted(&db.pool).await.iter().map(|event| event.uuid).collect();
        assert_eq!(again.len(), 3, "each once, however often it is repeated");
        again.retain(|uuid| *uuid != answers[0].uuid);
        assert_eq!(again, before, "and under the uuid that it had");
    }
}

#[tokio::test]
async fn a_reactor_begins_at_its_configured_start() {
    let db = support::database().await;
    let ids = insert(&db.pool, &["Asked"; 4]).await;
    let time =
        "update espd.events set created_at = '2026-01-01T00:00:00Z'::timestamptz + id * interval '1 day'";
    sqlx::query(time).execute(&db.pool).await.unwrap();
    let second = format!("select created_at from espd.events where id = {}", ids[1]);
    let second = sqlx::query_scalar(sqlx::AssertSqlSafe(second)).fetch_one(&db.pool).await.unwrap();
    let starts = [
        (Start::Now, ids[3]),
        (Start::Beginning, 0),
        (Start::Position(ids[2].into()), ids[2]),
        (Start::Time(second), ids[1] - 1),
        (Start::Time(chrono::Utc::now() + chrono::Duration::days(365)), ids[3]),
    ];
    for (number, (start, position)) in starts.into_iter().enumerate() {
        let declaration = answering(ANSWER, start);
        let declaration = ProcessorDeclaration { name: format!("r{number}"), tables: vec![], ..declaration };
        let running = Running::start(&db.pool, declaration).await.unwrap();
        assert_eq!(running.claim.position, position, "{start:?}");
    }
}

#[tokio::test]
async fn an_emitted_event_has_the_metadata_that_the_handler_gives_it() {
    let db = support::database().await;
    let emit = "perform espd.emit('Answered', event.aggregate_id, '{}', metadata => event.body->'with');
                perform espd.emit('Answered', event.aggregate_id, '{}', null, null);
                perform espd.emit_after('Answered', event.aggregate_id, '{}', '1 hour', metadata => event.body->'with');
                perform espd.emit_at('Answered', event.aggregate_id, '{}', now() + interval '1 hour', 'k')";
    let mut running = Running::start(&db.pool, answering(emit, Start::Beginning)).await.unwrap();
    let append = "insert into espd.events (aggregate_id, type, version, body)
                  values (gen_random_uuid(), 'Asked', 1, jsonb_build_object('with', $1::jsonb)) returning id";
    let append = async |with: Value| -> i64 {
        sqlx::query_scalar(append).bind(with).fetch_one(&db.pool).await.unwrap()
    };
    let first = append(json!({ "tenant": 7 })).await;
    running.process(first).await.unwrap();
    let metadata: Vec<Value> = emitted(&db.pool).await.into_iter().map(|event| event.metadata).collect();
    let of_espd = json!({ "reactor": "answering", "depth": 1 });
    assert_eq!(metadata, [json!({ "tenant": 7, "espd": of_espd }), json!({ "espd": of_espd })]);
    let query = "select metadata from espd.emissions order by due_at, id";
    let later: Vec<Value> = sqlx::query_scalar(query).fetch_all(&db.pool).await.unwrap();
    assert!(later.contains(&metadata[0]) && later.contains(&metadata[1]), "{later:?}");

    for (with, words) in [
        (json!({ "espd": { "depth": 0 } }), "has the key \"espd\", which is espd's own"),
        (json!([]), "is no JSON object"),
    ] {
        append(with).await;
        let refused = failure(running.process(head(&db.pool).await).await.unwrap());
        assert!(refused.message.contains(words), "{refused}");
        assert_eq!(refused.sqlstate.as_deref(), Some("ES004"));
        sqlx::query("delete from espd.events where id > $1 and type = 'Asked'")
            .bind(first)
            .execute(&db.pool)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_delay_that_is_negative_is_refused() {
    let db = support::database().await;
    let emit = "perform espd.emit_after('Answered', event.aggregate_id, '{}', '-1 hour')";
    let mut running = Running::start(&db.pool, answering(emit, Start::Beginning)).await.unwrap();
    insert(&db.pool, &["Asked"]).await;
    let refused = failure(running.process(head(&db.pool).await).await.unwrap());
    assert!(refused.message.contains("Answered is emitted after -01:00:00, which is negative"), "{refused}");
    assert_eq!(refused.sqlstate.as_deref(), Some("ES004"));
}

#[tokio::test]
async fn reactors_that_answer_themselves_for_ever_are_stopped() {
    let db = support::database().await;
    let reactor = Some(ReactorDeclaration { emits: vec!["Asked".into()], ..Default::default() });
    let sql = "perform espd.emit('Asked', event.aggregate_id, '{}')";
    let declaration = ProcessorDeclaration {
        reactor,
        start: Some(Start::Beginning),
        ..declare("echo", &[], &[(&["Asked"], sql)])
    };
    let mut running = Running::start(&db.pool, declaration).await.unwrap();
    insert(&db.pool, &["Asked"]).await;
    let failure = loop {
        match running.process(head(&db.pool).await).await.unwrap() {
            Outcome::Committed { failure: Some(failure), .. } => break failure,
            Outcome::Committed { handled: 1, .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(failure.sqlstate.as_deref(), Some("ES004"), "{failure}");
    assert_eq!(numbers(&db.pool, "select count(*) from espd.events").await, [101]);
}

#[tokio::test]
async fn what_is_emitted_for_another_database_is_kept_until_it_is_moved() {
    let (db, other) = (support::database().await, support::database().await);
    let store = PostgresEventStore::new(db.pool.clone(), Layout::espd("espd").unwrap());
    let events = Events::Elsewhere(store);
    let mut running =
        Running::start_with(&other.pool, answering(ANSWER, Start::Beginning), events).await.unwrap();
    let ids = insert(&db.pool, &["Asked"]).await;
    let outcome = running.process(ids[0]).await.unwrap();
    assert_eq!(outcome, Outcome::Committed { position: ids[0].into(), handled: 1, failure: None });
    let (source, _) = identity(&db.pool, ids[0]).await;
    let kept: Vec<(String, Uuid)> =
        sqlx::query_as("select type, causation_id from espd.emissions").fetch_all(&other.pool).await.unwrap();
    assert_eq!(kept, [("Answered".to_owned(), source)]);
    assert_eq!((head(&db.pool).await, head(&other.pool).await), (ids[0], 0));
}

#[tokio::test]
async fn an_empty_key_and_no_type_are_refused_in_words_and_so_is_a_cancel_elsewhere() {
    for (call, words) in [
        (
            "emit_after('Answered', event.aggregate_id, '{}', '1 hour', key => '')",
            "Answered is emitted under an empty key",
        ),
        (
            "emit_at('Answered', event.aggregate_id, '{}', now(), key => '')",
            "Answered is emitted under an empty key",
        ),
        ("emit(null, event.aggregate_id, '{}')", "reactor answering emits an event whose type is null"),
    ] {
        let db = support::database().await;
        let ids = insert(&db.pool, &["Asked"]).await;
        let declaration = answering(&format!("perform espd.{call}"), Start::Beginning);
        let mut running = Running::start(&db.pool, declaration).await.unwrap();
        let refused = failure(running.process(ids[0]).await.unwrap());
        assert!(refused.message.contains(words), "{refused}");
        assert_eq!(refused.sqlstate.as_deref(), Some("ES004"));
    }
    let db = support::database().await;
    let ids = insert(&db.pool, &["Asked"]).await;
    let cancel = "perform espd.cancel('')";
    let mut running = Running::start(&db.pool, answering(cancel, Start::Beginning)).await.unwrap();
    let outcome = running.process(ids[0]).await.unwrap();
    assert!(matches!(outcome, Outcome::Committed { failure: None, .. }), "{outcome:?}");
    let error = sqlx::query("select espd.cancel('k')").execute(&db.pool).await.unwrap_err().to_string();
    assert!(error.contains("cancel is for the handlers of reactors"), "{error}");
}
