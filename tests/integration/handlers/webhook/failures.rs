//! What counts as a failure of the event, and what comes of it.

use std::time::Duration;

use serde_json::Value;

use super::{QUICK, append, declare, installation, shows};
use crate::support;
use crate::support::facts::{eventually, reaches};
use crate::support::receiver::{Received, Receiver, Reply};

/// The reply to the first request, and what the status says of it.
async fn fails_once(webhook: &str, reply: Reply, words: &str) -> Vec<Received> {
    let db = support::database().await;
    let receiver = Receiver::start(move |request| match (request.n(), request.earlier) {
        (1, 0) => reply.clone(),
        _ => Reply::Status(200),
    })
    .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", webhook, "initial = '300ms'\nmax = '300ms'\njitter = 0\n");
    let last = append(&db.pool, &[(1, 1), (1, 2)]).await;
    let daemon = installation.start_daemon();
    let warning = daemon.says("could not handle an event").await;
    let error = warning["error"].as_str().unwrap();
    assert!(error.contains(words) && error.contains("event 1 (A)"), "{error}");
    reaches(&db.pool, "hook", last).await;
    let received = receiver.received();
    assert_eq!(received.iter().map(Received::n).collect::<Vec<_>>(), [1, 1, 2], "nothing overtakes it");
    assert_eq!(received[0].key(), received[1].key(), "a try has the key of the one before");
    assert!(received[1].at - received[0].at >= Duration::from_millis(290));
    daemon.stop().await;
    received
}

#[tokio::test]
async fn an_error_of_the_receiver_is_tried_again() {
    fails_once("", Reply::Status(500), "500 Internal Server Error").await;
}

#[tokio::test]
async fn a_refusal_of_the_receiver_is_tried_again_and_its_words_are_kept() {
    let db = support::database().await;
    let receiver = Receiver::start(|_| Reply::Full(422, vec![], "no such todo\nlook".into())).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", QUICK);
    append(&db.pool, &[(1, 1)]).await;
    let daemon = installation.start_daemon();
    let status = shows(&installation, "the failure", |status| status["attempts"].as_i64() > Some(1)).await;
    assert_eq!(status["last_error"]["detail"], "no such todo\\nlook", "{status}");
    assert_eq!(status["last_error"]["event_id"], 1);
    daemon.stop().await;
}

#[tokio::test]
async fn an_event_that_waits_for_its_time_fails_no_further_time_when_others_do() {
    let db = support::database().await;
    let hour = ("retry-after", "3600".to_owned());
    let receiver = Receiver::start(move |request| match (request.n(), request.earlier) {
        (1, _) => Reply::Full(400, vec![hour.clone()], String::new()),
        (_, 0) => Reply::Status(500),
        _ => Reply::Status(200),
    })
    .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", QUICK);
    append(&db.pool, &[(1, 1)]).await;
    let daemon = installation.start_daemon();
    let is_first = |status: &Value| status["last_error"]["event_id"] == 1;
    let first = shows(&installation, "the failure", is_first).await;
    append(&db.pool, &[(2, 2), (3, 3)]).await;
    receiver.receives(5).await;
    append(&db.pool, &[(4, 4)]).await;
    receiver.receives(7).await;
    // What was handled is committed with what is known of the one that waits.
    let all = |status: &Value| is_first(status) && status["handled"] == 3;
    let later = shows(&installation, "the others handled", all).await;
    assert_eq!(later["last_error"]["at"], first["last_error"]["at"], "{later}");
    let told = daemon.logged("could not handle an event");
    let of_first = told.iter().filter(|line| line["event.id"] == 1).count();
    assert_eq!(of_first, 1, "{told:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Receiver::start(|_| Reply::Status(200)).await;
    let target = format!("http://{}/elsewhere", elsewhere.address);
    fails_once("", Reply::Full(307, vec![("location", target.clone())], String::new()), &target).await;
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_named_so() {
    fails_once("", Reply::Status(410), "there will never be a receiver").await;
}

#[tokio::test]
async fn a_connection_that_ends_without_an_answer_is_a_failure() {
    fails_once("", Reply::Reset, "the exchange with the receiver broke off").await;
}

#[tokio::test]
async fn an_answer_that_ends_in_the_middle_is_a_failure() {
    fails_once("", Reply::BreakOff, "the answer broke off").await;
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_a_failure() {
    fails_once("", Reply::Full(200, vec![], "x".repeat(65_537)), "more than 64 KiB").await;
}

#[tokio::test]
async fn headers_that_are_too_large_are_a_failure() {
    fails_once("", Reply::Full(200, vec![("x-large", "x".repeat(200_000))], String::new()), "broke off")
        .await;
}

#[tokio::test]
async fn an_answer_just_large_enough_is_none() {
    let db = support::database().await;
    let receiver = Receiver::start(|_| Reply::Full(200, vec![], "x".repeat(65_536))).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", QUICK);
    let last = append(&db.pool, &[(1, 1)]).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", last).await;
    assert_eq!(receiver.numbers(), [1]);
    daemon.stop().await;
}

const SHORT: &str = "connect_timeout = '100ms'\ntimeout = '500ms'";

#[tokio::test]
async fn a_receiver_that_says_nothing_is_a_failure_in_time() {
    fails_once(SHORT, Reply::Silence, "has not answered within 500ms").await;
}

/// The only slot is free again when the time is up, however steadily bytes come.
#[tokio::test]
async fn a_trickling_answer_holds_no_slot_beyond_the_timeout() {
    let webhook = format!("{SHORT}\nconcurrency = 1");
    let received = fails_once(&webhook, Reply::Trickle, "has not answered within 500ms").await;
    let waited = received[1].at - received[0].at;
    assert!((Duration::from_millis(500)..Duration::from_secs(5)).contains(&waited), "{waited:?}");
}

#[tokio::test]
async fn a_receiver_that_says_when_to_retry_is_asked_then_and_no_attempt_is_counted() {
    for status in [429, 503] {
        let db = support::database().await;
        let receiver = Receiver::start(move |request| match request.earlier {
            0 => Reply::Full(status, vec![("retry-after", "2".into())], String::new()),
            _ => Reply::Status(200),
        })
        .await;
        let installation = installation(&db);
        // The first failure would be the last.
        let retry = format!("{QUICK}max_attempts = 1\non_failure = 'skip'\n");
        declare(&installation, &receiver, "", "concurrency = 1", &retry);
        let last = append(&db.pool, &[(1, 1), (2, 2)]).await;
        let daemon = installation.start_daemon();
        let said = daemon.says("something that the handlers need is not there").await;
        assert!(said["error"].as_str().unwrap().contains(&status.to_string()), "{said}");
        let outage = shows(&installation, "the outage", |status| status["outage"].is_object()).await;
        assert_eq!(outage["attempts"], 0, "{outage}");
        reaches(&db.pool, "hook", last).await;
        let received = receiver.received();
        let waited = received[1].at - received[0].at;
        assert!(waited >= Duration::from_secs(2) && waited < Duration::from_secs(10), "{waited:?}");
        assert_eq!(super::count(&db.pool, "select count(*) from espd.dead_letters").await, 0);
        daemon.stop().await;
    }
}

/// The count of attempts and the time of the next one outlive the process.
#[tokio::test]
async fn another_process_continues_counting_and_waiting() {
    let db = support::database().await;
    let receiver =
        Receiver::start(|request| if request.n() == 1 { Reply::Status(500) } else { Reply::Status(200) })
            .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", "strategy = 'constant'\ninitial = '12s'\njitter = 0\n");
    append(&db.pool, &[(1, 1), (2, 2)]).await;
    let daemon = installation.start_daemon();
    shows(&installation, "the failure", |status| status["attempts"] == 1).await;
    daemon.stop().await;
    let daemon = installation.start_daemon();
    append(&db.pool, &[(3, 3)]).await;
    let numbers = |received: &[Received]| received.iter().map(Received::n).collect::<Vec<_>>();
    let received = receiver.receives(4).await;
    assert_eq!(
        numbers(&received)[2..],
        [3, 1],
        "the new one at once, the failing one when it is due, the other never"
    );
    let first = received.iter().find(|one| one.n() == 1).unwrap();
    let waited = received[3].at - first.at;
    assert!(waited > Duration::from_millis(11_900), "{waited:?}");
    shows(&installation, "the second failure", |status| status["attempts"] == 2).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_failure_is_over_when_the_event_is_received() {
    let db = support::database().await;
    let receiver =
        Receiver::start(|request| Reply::Status(if request.earlier < 2 { 500 } else { 200 })).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", QUICK);
    let last = append(&db.pool, &[(1, 1)]).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", last).await;
    let status = shows(&installation, "no failure", |status| status["attempts"] == 0).await;
    assert_eq!((&status["last_error"], status["state"].as_str()), (&Value::Null, Some("live")), "{status}");
    daemon.stop().await;
}

/// Whoever shows the failure shows what the receiver has said, and that may be what it was told.
#[tokio::test]
async fn a_receiver_that_repeats_a_secret_does_not_get_it_shown() {
    let db = support::database().await;
    let receiver = Receiver::start(|request| {
        let told = request.header("authorization").to_owned();
        Reply::Full(301, vec![("location", format!("https://a.example{}", request.path))], told)
    })
    .await;
    let installation = installation(&db);
    let url = format!("{}?token=querySECRET", receiver.url());
    let webhook = "allow_private = true\nheaders = { authorization = 'Bearer headerSECRET' }";
    super::declare_at(&installation, &url, "", webhook, "max_attempts = 1\non_failure = 'skip'\n");
    let last = append(&db.pool, &[(1, 1)]).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", last).await;
    let shown = installation.espctl(&["dead-letters", "show", "hook", "1"]).await.printed();
    assert!(shown.contains("redirects") && shown.contains("***"), "{shown}");
    let log = daemon.log().iter().map(ToString::to_string).collect::<String>();
    assert!(!shown.contains("SECRET") && !log.contains("SECRET"), "{shown}\n{log}");
    daemon.stop().await;
}

/// As they were declared, as they were sent, and as the receiver has read them; also where an escape or the end of what is kept
/// is in the middle of one.
#[tokio::test]
async fn credentials_that_a_receiver_repeats_are_not_shown_in_any_form() {
    let db = support::database().await;
    let receiver = Receiver::start(|request| {
        let (key, basic) = (request.header("x-key"), request.header("authorization"));
        let padding = "x".repeat(if request.n() == 1 { 0 } else { 295 });
        Reply::Full(500, vec![("x-told", key.to_owned())], format!("{padding}{key} {basic} passSECRET@ ###"))
    })
    .await;
    let installation = installation(&db);
    let url = format!("http://jo:passSECRET%40@{}/hook", receiver.address);
    let webhook = "allow_private = true\nheaders = { x-key = 'key\"SECRET' }";
    super::declare_at(&installation, &url, "", webhook, "initial = '1h'\nmax = '1h'\n");
    append(&db.pool, &[(1, 1), (2, 2)]).await;
    let daemon = installation.start_daemon();
    let query = "select failure::text from espd.deliveries where failure is not null";
    let stored = eventually("two failures", async || {
        let stored: Vec<String> = sqlx::query_scalar(query).fetch_all(&db.pool).await.unwrap();
        (stored.len() == 2).then(|| stored.concat())
    })
    .await;
    assert!(stored.contains("*** *** ***"), "{stored}");
    let sent = installation.espctl(&["webhook-test", "hook", "--event", "1", "--send"]).await;
    let sent = format!("{}{}", sent.stdout, sent.stderr);
    assert!(sent.contains("x-told: ***\n") && sent.contains("###"), "{sent}");
    let status = installation.espctl(&["status", "--json"]).await.printed();
    let log = daemon.log().iter().map(ToString::to_string).collect::<String>();
    for shown in [stored, sent, status, log] {
        for secret in ["SECRET", "key\"", "key\\", "am86cGFzc1NFQ1JFVEA"] {
            assert!(!shown.contains(secret), "{secret}: {shown}");
        }
    }
    daemon.stop().await;
}
