//! `espctl webhook-test`.

use serde_json::json;
use standardwebhooks::Webhook;

use super::{append, count, declare, installation};
use crate::support;
use crate::support::receiver::{Receiver, Reply};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

#[tokio::test]
async fn a_request_is_shown_and_sent_only_where_that_is_wanted() {
    let db = support::database().await;
    let receiver = Receiver::start(|request| {
        let event = json!({ "type": "Answered", "aggregate_id": request.aggregate(), "body": {} });
        Reply::json(&json!({ "emit": [event] }))
    })
    .await;
    let installation = installation(&db);
    let webhook = format!("secrets = ['{SECRET}']\nheaders = {{ x-key = 's3cret' }}");
    declare(&installation, &receiver, "emits = ['Answered']", &webhook, "");
    append(&db.pool, &[(1, 7)]).await;
    let shown = installation.espctl(&["webhook-test", "hook", "--event", "1"]).await.printed();
    assert_eq!(receiver.connections(), 0);
    assert!(shown.starts_with(&format!("POST {}\n", receiver.url())), "{shown}");
    for words in ["ce-type: A\n", "x-key: ***\n", "\n{\"n\": 7}\n", "webhook-signature: v1,", "HMAC-SHA256"] {
        assert!(shown.contains(words), "{words}: {shown}");
    }

    let sent = installation.espctl(&["webhook-test", "hook", "--event", "1", "--send"]).await.printed();
    assert!(sent.contains("200 OK") && sent.contains("wants Answered emitted"), "{sent}");
    let received = receiver.received().remove(0);
    Webhook::new(SECRET).unwrap().verify(&received.body, &received.headers).unwrap();
    for line in sent.lines().filter(|line| line.starts_with("webhook-") && !line.contains(" has ")) {
        let (name, value) = line.split_once(": ").unwrap();
        assert_eq!(received.header(name), value);
    }
    assert_eq!(count(&db.pool, "select count(*) from espd.events").await, 1, "nothing is emitted");
    assert_eq!(count(&db.pool, "select count(*) from espd.trackers").await, 0, "nothing moves");
}

#[tokio::test]
async fn a_request_that_cannot_be_tried_is_refused_with_a_reason() {
    let db = support::database().await;
    let receiver = Receiver::start(|_| Reply::Full(422, vec![], "never heard of it".into())).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", "");
    installation.declare_notes("notes", "");
    append(&db.pool, &[(1, 7)]).await;
    for (arguments, words) in [
        (["webhook-test", "hook", "--event", "2", "--send"], "there is no event at position 2"),
        (["webhook-test", "notes", "--event", "1", "--send"], "notes is not a webhook"),
        (["webhook-test", "other", "--event", "1", "--send"], "declares no processor other"),
        (
            ["webhook-test", "hook", "--event", "1", "--send"],
            "would be tried again: the receiver answered 422",
        ),
    ] {
        let complaint = installation.espctl(&arguments).await.complained(1);
        assert!(complaint.contains(words), "{complaint}");
    }
}
