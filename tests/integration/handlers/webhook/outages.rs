//! A receiver that is not there: no event is to blame, and nothing is lost.

use std::collections::HashSet;
use std::net::TcpListener;
use std::time::Duration;

use sqlx::PgPool;

use super::{QUICK, append, declare_at, installation, shows};
use crate::support;
use crate::support::certificates::Authority;
use crate::support::facts::{eventually, reaches};
use crate::support::receiver::{Receiver, Reply};

/// The first failure would be the last.
const NO_MERCY: &str = "max_attempts = 1\non_failure = 'skip'\n";

#[tokio::test]
async fn a_receiver_that_is_down_is_waited_for_and_no_event_is_blamed() {
    let db = support::database().await;
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let installation = installation(&db);
    let url = format!("http://{address}/hook");
    declare_at(&installation, &url, "", "allow_private = true", NO_MERCY);
    let last = append(&db.pool, &[(1, 1), (2, 2), (1, 3)]).await;
    let daemon = installation.start_daemon();
    let status =
        shows(&installation, "the outage", |status| status["outage"]["tries"].as_i64() > Some(2)).await;
    assert_eq!((&status["attempts"], &status["position"]), (&0.into(), &0.into()), "{status}");
    let message = status["outage"]["message"].as_str().unwrap();
    assert!(message.contains("cannot be reached") && message.contains("refused"), "{message}");

    let receiver = Receiver::listen(address, None, |_| Reply::Status(200)).await;
    reaches(&db.pool, "hook", last).await;
    let received = receiver.received();
    assert_eq!(received.len(), 3);
    assert_eq!(super::count(&db.pool, "select count(*) from espd.dead_letters").await, 0);
    shows(&installation, "no outage", |status| status["outage"].is_null()).await;
    daemon.stop().await;
}

/// While it is down one request at a time asks whether it still is.
#[tokio::test]
async fn a_busy_receiver_is_asked_by_one_request_at_a_time() {
    let db = support::database().await;
    let receiver =
        Receiver::start(|_| Reply::After(Duration::from_millis(20), Box::new(Reply::Status(429)))).await;
    let installation = installation(&db);
    super::declare(&installation, &receiver, "", "concurrency = 4", QUICK);
    let events: Vec<(u128, i64)> = (1..=20).map(|n| (u128::try_from(n).unwrap(), n)).collect();
    append(&db.pool, &events).await;
    let daemon = installation.start_daemon();
    let received = receiver.receives(7).await;
    assert_eq!(received[..4].iter().filter(|request| request.earlier == 0).count(), 4);
    assert!(received[4..].iter().all(|request| request.key() == received[0].key()), "the first one only");
    daemon.stop().await;
}

#[tokio::test]
async fn an_operator_need_not_wait_as_long_as_a_busy_receiver_has_asked_for() {
    let db = support::database().await;
    let hour = ("retry-after", "3600".to_owned());
    let receiver = Receiver::start(move |request| match request.earlier {
        0 => Reply::Full(429, vec![hour.clone()], String::new()),
        _ => Reply::Status(200),
    })
    .await;
    let installation = installation(&db);
    super::declare(&installation, &receiver, "", "", QUICK);
    let last = append(&db.pool, &[(1, 1)]).await;
    let daemon = installation.start_daemon();
    shows(&installation, "the outage", |status| status["outage"].is_object()).await;
    let said = installation.espctl(&["retry", "hook"]).await.printed();
    assert!(said.contains("tries again now"), "{said}");
    reaches(&db.pool, "hook", last).await;
    assert_eq!(receiver.received().len(), 2);
    daemon.stop().await;
}

/// Waits until the lease has been renewed so many times.
async fn is_renewed(pool: &PgPool, times: usize) {
    let query = "select lease_until::text from espd.trackers where name = 'hook'";
    let mut seen = HashSet::new();
    eventually("renewals of the lease", async || {
        let lease: Option<String> = sqlx::query_scalar(query).fetch_one(pool).await.unwrap();
        seen.extend(lease);
        (seen.len() > times).then_some(())
    })
    .await;
}

/// A receiver that counts what comes while it is closed would never open again.
#[tokio::test]
async fn a_busy_receiver_is_left_alone_whatever_becomes_of_other_events_and_claims() {
    let db = support::database().await;
    let hour = ("retry-after", "3600".to_owned());
    let receiver = Receiver::start(move |request| match (request.n(), request.earlier) {
        (1, 0) => {
            let busy = Reply::Full(429, vec![hour.clone()], String::new());
            Reply::After(Duration::from_secs(1), Box::new(busy))
        }
        // It fails after that, so that it is not tried again before.
        (2, 0) => Reply::After(Duration::from_secs(2), Box::new(Reply::Status(500))),
        _ => Reply::Status(200),
    })
    .await;
    let installation = installation(&db);
    super::declare(&installation, &receiver, "", "", QUICK);
    let last = append(&db.pool, &[(1, 1), (2, 2)]).await;
    let daemon = installation.start_daemon();
    let is_both = |status: &serde_json::Value| status["outage"].is_object() && status["attempts"] == 1;
    shows(&installation, "the outage and the failure", is_both).await;
    is_renewed(&db.pool, 3).await;
    assert_eq!(receiver.received().len(), 2, "the failing event is due, and waits for the receiver as well");

    installation.espctl(&["dead-letters", "skip", "hook", "--event", "2"]).await.printed();
    is_renewed(&db.pool, 2).await;
    assert_eq!(receiver.received().len(), 2, "an operator's act that is about another event");

    let epoch = async || super::count(&db.pool, "select epoch from espd.trackers where name = 'hook'").await;
    let before = epoch().await;
    let end = "select pg_terminate_backend(backend_pid) from espd.trackers where name = 'hook'";
    sqlx::query(end).execute(&db.pool).await.unwrap();
    eventually("another claim", async || (epoch().await > before).then_some(())).await;
    is_renewed(&db.pool, 2).await;
    assert_eq!(receiver.received().len(), 2, "a lost connection");
    shows(&installation, "the outage still", |status| status["state"] == "waiting").await;

    installation.espctl(&["retry", "hook"]).await.printed();
    reaches(&db.pool, "hook", last).await;
    assert_eq!(receiver.numbers()[2..], [1], "at once");
    daemon.stop().await;
}

/// Who asks again at once is told of the second answer as well, though it comes soon after the first.
#[tokio::test]
async fn a_busy_receiver_that_an_operator_has_asked_again_is_an_outage_until_it_answers() {
    let db = support::database().await;
    let hour = ("retry-after", "3600".to_owned());
    let receiver = Receiver::start(move |_| Reply::Full(429, vec![hour.clone()], String::new())).await;
    let installation = installation(&db);
    super::declare(&installation, &receiver, "", "", QUICK);
    append(&db.pool, &[(1, 1)]).await;
    let daemon = installation.start_daemon();
    let next_try = |status: &serde_json::Value| status["outage"]["next_try_at"].as_str().map(str::to_owned);
    let first = shows(&installation, "the outage", |status| status["outage"].is_object()).await;
    installation.espctl(&["retry", "hook"]).await.printed();
    receiver.receives(2).await;
    let again = |status: &serde_json::Value| next_try(status) > next_try(&first);
    let second = shows(&installation, "the outage after the second answer", again).await;
    assert_eq!(second["state"], "waiting", "{second}");
    daemon.stop().await;
}

/// To find out takes longer than the step that sends, and in between nothing has been reached.
#[tokio::test]
async fn a_receiver_that_hangs_while_connecting_is_an_outage_until_it_answers() {
    let db = support::database().await;
    // The system accepts the connection, and nobody answers the handshake.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let installation = installation(&db);
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let webhook = "allow_private = true\nconnect_timeout = '1500ms'";
    declare_at(&installation, &url, "", webhook, NO_MERCY);
    append(&db.pool, &[(1, 1)]).await;
    let daemon = installation.start_daemon();
    let first = shows(&installation, "the outage", |status| status["outage"].is_object()).await;
    let tries = |status: &serde_json::Value| status["outage"]["tries"].as_i64();
    let mut last = first.clone();
    while tries(&last) < Some(5) {
        last = installation.status("hook").await;
        assert_eq!(last["state"], "waiting", "{last}");
        assert_eq!(last["outage"]["since"], first["outage"]["since"], "{last}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn an_unknown_host_name_is_an_outage() {
    let db = support::database().await;
    let installation = installation(&db);
    declare_at(&installation, "https://receiver.invalid/", "", "", NO_MERCY);
    append(&db.pool, &[(1, 1)]).await;
    let daemon = installation.start_daemon();
    let status = shows(&installation, "the outage", |status| status["outage"].is_object()).await;
    assert!(status["outage"]["message"].as_str().unwrap().contains("cannot be reached"), "{status}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_certificate_is_verified_by_the_authorities_that_are_declared() {
    let db = support::database().await;
    let (authority, another) = (Authority::new(), Authority::new());
    let receiver = Receiver::start_secured(authority.acceptor("localhost"), |_| Reply::Status(200)).await;
    let installation = installation(&db);
    let port = receiver.address.port();
    let ca_file = installation.path().join("processors/ca.pem");
    let webhook = "allow_private = true\nca_file = 'ca.pem'";
    let last = append(&db.pool, &[(1, 1)]).await;

    for (authority, host) in [(&another, "localhost"), (&authority, "127.0.0.1")] {
        std::fs::write(&ca_file, authority.pem()).unwrap();
        declare_at(&installation, &format!("https://{host}:{port}/"), "", webhook, NO_MERCY);
        let daemon = installation.start_daemon();
        let said = daemon.says("something that the handlers need is not there").await;
        assert!(said["error"].as_str().unwrap().contains("certificate"), "{said}");
        daemon.stop().await;
    }
    assert_eq!(receiver.received().len(), 0);

    declare_at(&installation, &format!("https://localhost:{port}/"), "", webhook, NO_MERCY);
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", last).await;
    assert_eq!(receiver.numbers(), [1]);
    daemon.stop().await;
}

/// A certificate that no authority of the system has signed is refused where nothing else is declared.
#[tokio::test]
async fn without_a_declaration_the_authorities_of_the_system_decide() {
    let db = support::database().await;
    let receiver =
        Receiver::start_secured(Authority::new().acceptor("localhost"), |_| Reply::Status(200)).await;
    let installation = installation(&db);
    let url = format!("https://localhost:{}/", receiver.address.port());
    declare_at(&installation, &url, "", "allow_private = true", NO_MERCY);
    append(&db.pool, &[(1, 1)]).await;
    let daemon = installation.start_daemon();
    let said = daemon.says("something that the handlers need is not there").await;
    assert!(said["error"].as_str().unwrap().contains("certificate"), "{said}");
    assert_eq!(receiver.received().len(), 0);
    daemon.stop().await;
}
