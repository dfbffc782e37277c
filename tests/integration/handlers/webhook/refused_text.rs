//! Answers with texts that no database keeps: each is the failure of its event, and the policy applies.

use serde_json::{Value, json};

use super::{QUICK, append, declare, installation};
use crate::support;
use crate::support::facts::reaches;
use crate::support::receiver::{Receiver, Reply};

#[tokio::test]
async fn what_an_answer_cannot_have_is_a_failure_of_its_event() {
    let db = support::database().await;
    let receiver = Receiver::start(|request| {
        let emit = |more: Value| {
            let mut event = json!({ "type": "E", "aggregate_id": request.aggregate(), "body": {} });
            event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            Reply::json(&json!({ "emit": [event] }))
        };
        match request.n() {
            1 => emit(json!({ "type": "E\0" })),
            2 => emit(json!({ "after": 9, "key": "k\0" })),
            3 => Reply::json(&json!({ "cancel": ["k\0"] })),
            4 => emit(json!({ "body": "b\0" })),
            5 => Reply::Full(500, vec![("content-type", "text/plain".into())], "no\0\u{1b}[2J".into()),
            _ => emit(json!({})),
        }
    })
    .await;
    let installation = installation(&db);
    let retry = format!("{QUICK}max_attempts = 1\non_failure = 'park'\n");
    declare(&installation, &receiver, "emits = ['E']", "", &retry);
    let last = append(&db.pool, &[(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6)]).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", last).await;
    let parked: Vec<i64> = sqlx::query_scalar("select event_id from espd.dead_letters order by 1")
        .fetch_all(&db.pool)
        .await
        .unwrap();
    assert_eq!(parked, [1, 2, 3, 4, 5]);
    daemon.stop().await;
}
