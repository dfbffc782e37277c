//! What operators change through the endpoint.

use serde_json::json;

use super::{OPERATE, endpoint, operator_log, refused, running, settings};
use crate::support;
use crate::support::facts::{append, assert_exactly_once, eventually, position, reaches};
use crate::support::program::Installation;

const PROCESSOR: &str = "/api/v1/processors/notes";

fn operator_token() -> String {
    format!("operator_token = '{OPERATE}'")
}

#[tokio::test]
async fn a_processor_is_paused_and_resumed() {
    let (db, installation, daemon, client) = running(&operator_token()).await;
    let post =
        async |action: &str| client.post(&format!("{PROCESSOR}/{action}"), OPERATE, "").await.json(200);
    assert_eq!(post("pause").await, json!({ "name": "notes", "changed": true, "position": 10 }));
    assert_eq!(post("pause").await, json!({ "name": "notes", "changed": false, "position": 10 }));
    daemon.says("paused").await;
    let status = installation.status("notes").await;
    assert_eq!(
        (&status["state"], &status["paused_by"]),
        (&json!("paused"), &json!("admin endpoint, 127.0.0.1"))
    );
    let last = append(&db.pool, 5).await;
    assert_eq!(position(&db.pool, "notes").await, 10);
    assert_eq!(post("resume").await["changed"], true);
    reaches(&db.pool, "notes", last).await;
    assert_eq!(operator_log(&db).await, [("pause".into(), 10, 10), ("resume".into(), 10, 10)]);
    let acted = daemon.says("an operator has acted").await;
    assert_eq!((&acted["processor"], &acted["action"]), (&json!("notes"), &json!("pause")));
    daemon.stop().await;
}

#[tokio::test]
async fn a_processor_is_reset_to_the_start_to_a_position_and_to_a_time() {
    let (db, _installation, daemon, client) = running(&operator_token()).await;
    let reset = async |body: &str| client.post(&format!("{PROCESSOR}/reset"), OPERATE, body).await;
    sqlx::query("update notes set event_id = -1").execute(&db.pool).await.unwrap();
    assert_eq!(
        reset("").await.json(200),
        json!({ "name": "notes", "changed": true, "from": 10, "position": 0 })
    );
    reaches(&db.pool, "notes", 10).await;
    assert_exactly_once(&db.pool, &db.pool, "notes").await;

    assert_eq!(reset("{\"to\": 7}").await.json(200)["position"], 7);
    eventually("three events again", async || {
        let count: i64 = sqlx::query_scalar("select count(*) from notes").fetch_one(&db.pool).await.unwrap();
        (count == 13).then_some(())
    })
    .await;
    sqlx::query("update espd.events set created_at = '2020-01-01' where id <= 4")
        .execute(&db.pool)
        .await
        .unwrap();
    assert_eq!(reset("{\"at\": \"2020-01-01T12:00:00Z\"}").await.json(200)["position"], 4);
    let log = operator_log(&db).await;
    assert_eq!(log, [("reset".into(), 10, 0), ("reset".into(), 10, 7), ("reset".into(), 10, 4)]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_change_that_makes_no_sense_changes_nothing() {
    let (db, _installation, daemon, client) = running(&operator_token()).await;
    for (body, status, words) in [
        ("{\"to\": 11}", 409, "the last settled position is 10"),
        ("{\"to\": -1}", 400, "negative"),
        ("{\"to\": 1, \"at\": \"2020-01-01T12:00:00Z\"}", 400, "cannot be combined"),
        ("{\"too\": 1}", 400, "unknown field `too`"),
        ("{\"at\": \"yesterday\"}", 400, ""),
        ("{", 400, "EOF"),
        ("7", 400, "invalid type"),
    ] {
        let reply = client.post(&format!("{PROCESSOR}/reset"), OPERATE, body).await;
        refused(&reply.json(status), words);
    }
    let form =
        format!("Authorization: Bearer {OPERATE}\r\nContent-Type: application/x-www-form-urlencoded\r\n");
    let reply = client.post_with(&format!("{PROCESSOR}/reset"), &form, "{\"to\": 1}").await;
    refused(&reply.json(415), "`Content-Type` of the body is not JSON");
    let unknown = client.post("/api/v1/processors/nots/pause", OPERATE, "").await.json(404);
    refused(&unknown, "no processor nots; there are notes");
    assert_eq!((operator_log(&db).await, position(&db.pool, "notes").await), (vec![], 10));
    daemon.stop().await;
}

#[tokio::test]
async fn a_processor_that_is_not_declared_cannot_start_over() {
    let (db, _installation, daemon, client) = running(&operator_token()).await;
    sqlx::query(
        "insert into espd.trackers (name, kind, version, position) values ('old', 'projector', 1, 3)",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let reset = async |body| client.post("/api/v1/processors/old/reset", OPERATE, body).await;
    refused(&reset("{}").await.json(409), "old is not declared");
    assert_eq!(
        reset("{\"to\": 1}").await.json(200),
        json!({ "name": "old", "changed": true, "from": 3, "position": 1 })
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_failing_event_is_tried_at_once() {
    let db = support::database().await;
    let installation =
        Installation::new(&db.url, &(settings(&operator_token()) + "[retry]\ninitial = '1h'\nmax = '1h'\n"));
    installation.declare_notes(
        "notes",
        "if (event.body->>'n')::int = 2 and not exists (select from public.remedy) then raise 'no remedy'; end if;",
    );
    sqlx::query("create table public.remedy (done int)").execute(&db.pool).await.unwrap();
    let last = append(&db.pool, 3).await;
    let daemon = installation.start_daemon();
    let client = endpoint(&daemon).await;
    eventually("the failure", async || {
        (installation.status("notes").await["state"] == "retrying").then_some(())
    })
    .await;
    sqlx::query("insert into public.remedy values (1)").execute(&db.pool).await.unwrap();
    let retried = client.post(&format!("{PROCESSOR}/retry"), OPERATE, "").await.json(200);
    assert_eq!(retried, json!({ "name": "notes", "changed": true, "position": 1 }));
    reaches(&db.pool, "notes", last).await;
    daemon.stop().await;
}
