//! What a receiver is sent, and how it knows who has sent it.

use serde_json::Value;
use sqlx::Row as _;
use standardwebhooks::Webhook;
use uuid::Uuid;

use super::{QUICK, append, declare, installation};
use crate::support;
use crate::support::facts::reaches;
use crate::support::receiver::{Receiver, Reply};

const SECRETS: [&str; 3] = [
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
    "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX",
];

#[tokio::test]
async fn an_event_is_sent_as_a_cloud_event() {
    let db = support::database().await;
    let receiver = Receiver::start(|_| Reply::Status(204)).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "headers = { authorization = 'Bearer t', X-Team = 'blue' }", QUICK);
    let body = r#"{"n": 1, "amount": 12345678901234567890.10, "text": "grün"}"#;
    let insert = "insert into espd.events (aggregate_id, type, version, body, correlation_id, causation_id)
         values (gen_random_uuid(), 'A', 1, $1::jsonb, gen_random_uuid(), gen_random_uuid()) returning *, body::text as text";
    let event = sqlx::query(insert).bind(body).fetch_one(&db.pool).await.unwrap();
    let daemon = installation.start_daemon();
    let received = receiver.receives(1).await.remove(0);
    let uuid = |column: &str| event.get::<Uuid, _>(column).to_string();
    assert_eq!((received.method.as_str(), received.path.as_str()), ("POST", "/hook"));
    assert_eq!(received.header("host"), receiver.address.to_string());
    assert_eq!(received.header("content-type"), "application/json");
    assert_eq!(received.body, event.get::<String, _>("text"));
    for (name, value) in [
        ("ce-specversion", "1.0".to_owned()),
        ("ce-id", uuid("uuid")),
        ("ce-source", "/espd/espd".into()),
        ("ce-type", "A".into()),
        ("ce-subject", uuid("aggregate_id")),
        ("ce-position", event.get::<i64, _>("id").to_string()),
        ("ce-version", "1".into()),
        ("ce-correlationid", uuid("correlation_id")),
        ("ce-causationid", uuid("causation_id")),
        ("authorization", "Bearer t".into()),
        ("x-team", "blue".into()),
    ] {
        assert_eq!(received.header(name), value, "{name}");
    }
    let time: chrono::DateTime<chrono::Utc> = received.header("ce-time").parse().unwrap();
    assert_eq!(time, event.get::<chrono::DateTime<chrono::Utc>, _>("created_at"));
    assert_eq!(received.header("idempotency-key"), received.key());
    assert!(!received.headers.contains_key("webhook-signature"), "there are no secrets");
    daemon.stop().await;
}

/// The verification is that of the makers of the standard.
#[tokio::test]
async fn a_receiver_verifies_with_the_old_secret_or_with_the_new_one() {
    let db = support::database().await;
    let receiver = Receiver::start(|_| Reply::Status(200)).await;
    let installation = installation(&db);
    let secrets = format!("secrets = ['{}', '{}']", SECRETS[0], SECRETS[1]);
    declare(&installation, &receiver, "", &secrets, QUICK);
    append(&db.pool, &[(1, 1)]).await;
    let daemon = installation.start_daemon();
    let received = receiver.receives(1).await.remove(0);
    for (secret, is_valid) in [(SECRETS[0], true), (SECRETS[1], true), (SECRETS[2], false)] {
        let verified = Webhook::new(secret).unwrap().verify(&received.body, &received.headers);
        assert_eq!(verified.is_ok(), is_valid, "{secret}: {verified:?}");
    }
    let mut forged = received.clone();
    forged.headers.insert("webhook-id", "another".parse().unwrap());
    assert!(Webhook::new(SECRETS[0]).unwrap().verify(&forged.body, &forged.headers).is_err());
    daemon.stop().await;
}

#[tokio::test]
async fn no_text_of_an_event_gets_into_other_headers() {
    let db = support::database().await;
    let receiver = Receiver::start(|_| Reply::Status(200)).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", QUICK);
    let config = "events = ['A', 'B']";
    let file = installation.path().join("processors/hook.toml");
    let text = std::fs::read_to_string(&file).unwrap().replace(config, "events = ['*']");
    std::fs::write(&file, text).unwrap();
    let event_type = "A\r\nx-evil: 1\r\n\r\nGrüße \"100 %\"";
    let insert =
        "insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), $1, 1, '{}')";
    sqlx::query(insert).bind(event_type).execute(&db.pool).await.unwrap();
    let daemon = installation.start_daemon();
    let received = receiver.receives(1).await.remove(0);
    assert!(!received.headers.contains_key("x-evil"), "{received:?}");
    let decoded = percent_encoding::percent_decode_str(received.header("ce-type")).decode_utf8().unwrap();
    assert_eq!(decoded, event_type);
    daemon.stop().await;
}

#[tokio::test]
async fn a_name_and_a_password_in_the_url_become_a_header_that_is_never_shown() {
    let db = support::database().await;
    let receiver = Receiver::start(|_| Reply::Status(500)).await;
    let installation = installation(&db);
    let url = format!("http://jo:s3cret%40@{}/hook?key=s3cret", receiver.address);
    let headers = "allow_private = true\nheaders = { x-key = 's3cret' }";
    super::declare_at(&installation, &url, "", &format!("{headers}\nsecrets = ['{}']", SECRETS[0]), QUICK);
    append(&db.pool, &[(1, 1)]).await;
    let daemon = installation.start_daemon();
    let received = receiver.receives(2).await.remove(0);
    assert_eq!(received.header("authorization"), "Basic am86czNjcmV0QA==");
    assert_eq!(received.path, "/hook?key=s3cret");
    super::shows(&installation, "a failure", |status| status["attempts"].as_i64() > Some(0)).await;
    let status = installation.espctl(&["status", "--json"]).await.printed();
    let config = installation.espctl(&["config", "show"]).await.printed();
    let test = installation.espctl(&["webhook-test", "hook", "--event", "1"]).await.printed();
    let log = Value::from(daemon.log()).to_string();
    for (what, shown) in [("status", &status), ("config", &config), ("webhook-test", &test), ("log", &log)] {
        assert!(!shown.contains("s3cret") && !shown.contains("MfKQ9"), "{what}: {shown}");
    }
    assert!(config.contains("***"), "{config}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_declared_header_replaces_that_of_the_url_or_of_espd() {
    let db = support::database().await;
    let receiver = Receiver::start(|_| Reply::Status(200)).await;
    let installation = installation(&db);
    let url = format!("http://jo:s3cret@{}/hook", receiver.address);
    let headers = "allow_private = true\nheaders = { authorization = 'Bearer t', User-Agent = 'me' }";
    super::declare_at(&installation, &url, "", headers, QUICK);
    append(&db.pool, &[(1, 1)]).await;
    let daemon = installation.start_daemon();
    let received = receiver.receives(1).await.remove(0);
    // There is one of each.
    assert_eq!((received.header("authorization"), received.header("user-agent")), ("Bearer t", "me"));
    daemon.stop().await;
}

#[tokio::test]
async fn a_proxy_of_the_environment_is_not_asked() {
    let db = support::database().await;
    let (receiver, proxy) =
        (Receiver::start(|_| Reply::Status(200)).await, Receiver::start(|_| Reply::Status(200)).await);
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", QUICK);
    let last = append(&db.pool, &[(1, 1), (2, 2)]).await;
    let mut command = installation.espd_command(&["run"]);
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"] {
        command.env(name, proxy.url());
    }
    let daemon = support::program::Program::start(command);
    reaches(&db.pool, "hook", last).await;
    assert_eq!((receiver.numbers().len(), proxy.connections()), (2, 0));
    daemon.stop().await;
}
