//! Dead letters through the admin endpoint.

use serde_json::json;

use super::{add, dead_letters, failed, noted, waiting};
use crate::admin::client::Client;
use crate::support;
use crate::support::facts::{eventually, reaches};
use crate::support::program::Installation;

const OPERATE: &str = "fedcba9876543210fedcba9876543210";
const DEAD_LETTERS: &str = "/api/v1/processors/notes/dead-letters";

#[tokio::test]
async fn dead_letters_are_listed_shown_retried_and_discarded() {
    let db = support::database().await;
    let settings = format!(
        "[runner]\npoll_interval_max = '50ms'\n[retry]\nmax_attempts = 1\non_failure = 'park'\n\
         [admin]\nlisten = '127.0.0.1:0'\noperator_token = '{OPERATE}'\n"
    );
    let installation = Installation::new(&db.url, &settings);
    installation.declare_notes("notes", "perform 1 / (event.body->>'n')::bigint;");
    let (x1, x2, y1) = (add(&db.pool, 1, 0).await, add(&db.pool, 1, 2).await, add(&db.pool, 2, 0).await);
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", y1).await;
    let client = Client::new(daemon.says("the admin endpoint listens").await["url"].as_str().unwrap());

    // The very objects of espctl.
    let listed = installation.espctl(&["dead-letters", "list", "--json"]).await.json();
    assert_eq!(client.get("/api/v1/dead-letters").await.json(200), listed);
    assert_eq!(client.get(DEAD_LETTERS).await.json(200), listed);
    let narrowed = client.get("/api/v1/dead-letters?processor=notes&error=by%20zero&limit=1").await.json(200);
    assert_eq!(narrowed, json!([listed[0]]));
    let shown = installation.espctl(&["dead-letters", "show", "notes", "1", "--json"]).await.json();
    assert_eq!(client.get(&format!("{DEAD_LETTERS}/{x1}")).await.json(200), shown);
    let metrics = client.get("/metrics").await.body;
    assert!(metrics.contains("\nespd_dead_letters{processor=\"notes\"} 3\n"), "{metrics}");
    assert!(metrics.contains("\nespd_emissions_pending{processor=\"notes\"} 0\n"), "{metrics}");

    let post =
        async |verb: &str, body: &str| client.post(&format!("{DEAD_LETTERS}/{verb}"), OPERATE, body).await;
    for (verb, body, status, words) in [
        ("retry", "", 400, "the body names no dead letters"),
        ("discard", "{}", 400, "the body names no dead letters"),
        ("retry", "{\"evnt\": 1}", 400, "unknown field `evnt`"),
        ("retry", "{\"event\": 9}", 404, "event 9 is not a dead letter of notes"),
        ("retry", &format!("{{\"event\": {x2}}}"), 409, "waits behind event"),
        ("forget", "{\"all\": true}", 404, "nothing at this path"),
    ] {
        let refusal = post(verb, body).await.json(status);
        assert!(refusal["error"].as_str().unwrap().contains(words), "{refusal}");
        assert!(!refusal["remedy"].as_str().unwrap().is_empty(), "{refusal}");
    }
    let path = format!("{DEAD_LETTERS}/retry");
    let tokenless = client.post_with(&path, "Content-Type: application/json\r\n", "{\"all\": true}").await;
    assert_eq!((tokenless.status, client.get(&path).await.status), (401, 405));
    assert_eq!(client.get("/api/v1/processors/nots/dead-letters").await.status, 404);
    assert_eq!(client.get("/api/v1/dead-letters?limit=1001").await.status, 400);

    sqlx::query("update espd.events set body = '{\"n\": 1}' where id = $1")
        .bind(x1)
        .execute(&db.pool)
        .await
        .unwrap();
    let asked = post("retry", &format!("{{\"event\": {x1}}}")).await.json(200);
    assert_eq!(
        (&asked["requested"], &asked["left_out"], &asked["owned"]),
        (&json!(2), &json!(0), &json!(true)),
        "{asked}"
    );
    eventually("the retry", async || (noted(&db.pool).await == [x1, x2]).then_some(())).await;
    let discarded = post("discard", "{\"all\": true}").await.json(200);
    assert_eq!(discarded, json!({ "name": "notes", "discarded": 1, "left_behind": 0 }));
    assert_eq!(dead_letters(&db.pool).await, []);
    let log: Vec<(String, String)> =
        sqlx::query_as("select operator, action from espd.operator_log order by id")
            .fetch_all(&db.pool)
            .await
            .unwrap();
    let by = |action: &str| ("admin endpoint, 127.0.0.1".to_owned(), action.to_owned());
    assert_eq!(log, [by("retry_dead_letters"), by("discard_dead_letters")]);
    daemon.says("handled a dead letter").await;
    daemon.stop().await;
}

#[tokio::test]
async fn the_event_that_fails_is_set_aside_at_once() {
    let db = support::database().await;
    let settings = format!(
        "[runner]\npoll_interval_max = '50ms'\n[retry]\ninitial = '1h'\nmax = '1h'\n\
         [admin]\nlisten = '127.0.0.1:0'\noperator_token = '{OPERATE}'\n"
    );
    let installation = Installation::new(&db.url, &settings);
    installation.declare_notes("notes", "perform 1 / (event.body->>'n')::bigint;");
    let first = add(&db.pool, 1, 0).await;
    let second = add(&db.pool, 2, 0).await;
    let last = add(&db.pool, 2, 1).await;
    let daemon = installation.start_daemon();
    let client = Client::new(daemon.says("the admin endpoint listens").await["url"].as_str().unwrap());
    let post =
        async |verb: &str, body: &str| client.post(&format!("{DEAD_LETTERS}/{verb}"), OPERATE, body).await;
    eventually("the failure", async || {
        let status = installation.status("notes").await;
        (status["last_error"]["event_id"] == first).then_some(())
    })
    .await;
    assert_eq!(post("skip", "{\"evnt\": 1}").await.status, 400);
    assert_eq!(post("skip", "{\"event\": 99}").await.status, 404);
    let parked = post("park", &format!("{{\"event\": {second}}}")).await.json(200);
    assert_eq!(parked, json!({ "name": "notes", "set_aside": second, "type": "A", "blocks": true }));
    let skipped = post("skip", "").await.json(200);
    assert_eq!(skipped, json!({ "name": "notes", "set_aside": first, "type": "A", "blocks": false }));
    reaches(&db.pool, "notes", last).await;
    assert_eq!(dead_letters(&db.pool).await, [failed(first, 1), failed(second, 0), waiting(last)]);
    assert_eq!(post("skip", "").await.status, 409);
    daemon.stop().await;
}
