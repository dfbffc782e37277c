//! Answers that want events emitted.

use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use super::{QUICK, append, declare, installation, shows};
use crate::support;
use crate::support::facts::{eventually, reaches};
use crate::support::receiver::{Received, Receiver, Reply};

type Emitted = (Uuid, Value, Option<Uuid>, Option<Uuid>);

async fn emitted(pool: &PgPool) -> Vec<Emitted> {
    let query = "select uuid, body, correlation_id, causation_id from espd.events where type = 'Answered' order by id";
    sqlx::query_as(query).fetch_all(pool).await.unwrap()
}

fn answer(request: &Received) -> Value {
    json!({ "type": "Answered", "aggregate_id": request.aggregate(), "body": { "to": request.n() } })
}

#[tokio::test]
async fn what_an_answer_wants_is_emitted_once_whatever_is_repeated() {
    let db = support::database().await;
    // The first answer to each is lost on the way.
    let receiver = Receiver::start(|request| match request.earlier {
        0 => Reply::BreakOff,
        _ => Reply::json(&json!({ "emit": [answer(request), answer(request)] })),
    })
    .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "emits = ['Answered']", "", QUICK);
    let last = append(&db.pool, &[(1, 1), (2, 2)]).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", last).await;
    let events = emitted(&db.pool).await;
    let mut bodies: Vec<i64> = events.iter().map(|event| event.1["to"].as_i64().unwrap()).collect();
    bodies.sort_unstable();
    assert_eq!(bodies, [1, 1, 2, 2]);
    for (_, body, correlation_id, causation_id) in &events {
        let source = receiver.received().into_iter().find(|one| one.n() == body["to"]).unwrap();
        assert_eq!(*causation_id, Some(source.header("ce-id").parse().unwrap()));
        assert_eq!(correlation_id, causation_id);
    }

    // Sent once more, and answered once more, under the identities that they have.
    let uuids: Vec<Uuid> = events.iter().map(|event| event.0).collect();
    installation.espctl(&["reset", "hook", "--to", "0", "--repeat-effects", "--yes"]).await.printed();
    receiver.receives(6).await;
    reaches(&db.pool, "hook", last).await;
    assert_eq!(emitted(&db.pool).await.iter().map(|event| event.0).collect::<Vec<_>>(), uuids);
    daemon.stop().await;
}

#[tokio::test]
async fn an_emitted_event_has_the_metadata_that_the_answer_gives_it() {
    let db = support::database().await;
    let receiver = Receiver::start(|request| {
        let mut event = answer(request);
        event["metadata"] = json!({ "tenant": request.n() });
        Reply::json(&json!({ "emit": [event] }))
    })
    .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "emits = ['Answered']", "", QUICK);
    let last = append(&db.pool, &[(1, 1)]).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", last).await;
    let query = "select metadata from espd.events where type = 'Answered'";
    let metadata: Vec<Value> = sqlx::query_scalar(query).fetch_all(&db.pool).await.unwrap();
    assert_eq!(metadata, [json!({ "tenant": 1, "espd": { "reactor": "hook", "depth": 1 } })]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_type_that_is_not_declared_is_a_failure_of_the_event_that_names_both() {
    let db = support::database().await;
    let receiver = Receiver::start(|request| match request.n() {
        2 => Reply::json(
            &json!({ "emit": [{ "type": "Shouted", "aggregate_id": request.aggregate(), "body": {} }] }),
        ),
        _ => Reply::json(&json!({ "emit": [answer(request)] })),
    })
    .await;
    let installation = installation(&db);
    let retry = format!("{QUICK}max_attempts = 2\non_failure = 'park'\n");
    declare(&installation, &receiver, "emits = ['Answered']", "", &retry);
    let last = append(&db.pool, &[(1, 1), (2, 2), (3, 3)]).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", last).await;
    let failure: Value = sqlx::query_scalar("select failure from espd.dead_letters where event_id = 2")
        .fetch_one(&db.pool)
        .await
        .unwrap();
    let message = failure["message"].as_str().unwrap();
    assert!(message.contains("hook") && message.contains("Shouted"), "{message}");
    assert_eq!(emitted(&db.pool).await.len(), 2, "those of the others");
    daemon.stop().await;
}

#[tokio::test]
async fn an_expected_version_that_is_not_there_is_a_failure_of_the_event() {
    let db = support::database().await;
    let receiver = Receiver::start(|request| {
        let mut event = answer(request);
        event["expected_version"] = json!(if request.earlier == 0 { 7 } else { 1 });
        Reply::json(&json!({ "emit": [event] }))
    })
    .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "emits = ['Answered']", "", "initial = '300ms'\n");
    let last = append(&db.pool, &[(1, 1), (2, 2)]).await;
    let daemon = installation.start_daemon();
    let said = daemon.says("could not handle an event").await;
    assert!(said["error"].as_str().unwrap().contains("version"), "{said}");
    reaches(&db.pool, "hook", last).await;
    assert_eq!((emitted(&db.pool).await.len(), receiver.numbers().len()), (2, 4));
    daemon.stop().await;
}

#[tokio::test]
async fn an_answer_may_emit_later_and_cancel_it() {
    let db = support::database().await;
    let receiver = Receiver::start(|request| match request.n() {
        1 => {
            let (mut soon, mut late) = (answer(request), answer(request));
            (soon["after"], late["after"], late["key"]) = (json!(0.2), json!(3600), json!("late"));
            Reply::json(&json!({ "emit": [soon, late] }))
        }
        _ => Reply::json(&json!({ "cancel": ["late"] })),
    })
    .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "emits = ['Answered']", "", QUICK);
    append(&db.pool, &[(1, 1)]).await;
    let daemon = installation.start_daemon();
    eventually("the first one", async || (emitted(&db.pool).await.len() == 1).then_some(())).await;
    assert_eq!(super::count(&db.pool, "select count(*) from espd.emissions").await, 1);
    let last = append(&db.pool, &[(1, 2)]).await;
    reaches(&db.pool, "hook", last).await;
    assert_eq!(super::count(&db.pool, "select count(*) from espd.emissions").await, 0);
    daemon.stop().await;
}

#[tokio::test]
async fn an_answer_that_is_not_understood_is_a_failure() {
    let db = support::database().await;
    let receiver = Receiver::start(|_| {
        Reply::Full(200, vec![("content-type", "application/json".into())], "{\"emit\":7}".into())
    })
    .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "emits = ['Answered']", "", QUICK);
    append(&db.pool, &[(1, 1)]).await;
    let daemon = installation.start_daemon();
    let status = shows(&installation, "the failure", |status| status["attempts"].as_i64() > Some(0)).await;
    assert!(status["last_error"]["message"].as_str().unwrap().contains("not understood"), "{status}");
    daemon.stop().await;
}
