//! Permissions: the matrix of requests that must be refused.

use std::os::unix::fs::PermissionsExt as _;

use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

use super::client::read_reply;
use super::{OPERATE, READ, endpoint, operator_log, refused, running, settings};
use crate::support;
use crate::support::facts::{append, is_listed, reaches};
use crate::support::program::Installation;

const PAUSE: &str = "/api/v1/processors/notes/pause";

#[tokio::test]
async fn without_an_operator_token_nothing_can_be_changed() {
    let (db, _installation, daemon, client) = running("").await;
    let refusal = client.post_with(PAUSE, "", "").await.json(403);
    refused(&refusal, "changes are not allowed through this endpoint");
    assert!(refusal["remedy"].as_str().unwrap().contains("operator_token"), "{refusal}");
    client.post(PAUSE, OPERATE, "").await.json(403);
    assert_eq!(operator_log(&db).await, []);
    daemon.stop().await;
}

#[tokio::test]
async fn every_request_from_elsewhere_is_refused_and_none_changes_anything() {
    let tokens =
        format!("read_token = '{READ}'\noperator_token = '{OPERATE}'\nallowed_hosts = ['espd.example.org']");
    let (db, _installation, daemon, client) = running(&tokens).await;
    let ours = client.address.clone();
    let port = ours.rsplit_once(':').unwrap().1;
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let mut answers = Vec::new();
    for (credentials, own_status) in [
        (String::new(), 401),
        (bearer("wrong"), 401),
        (bearer(&READ.to_uppercase()), 401),
        (format!("Authorization: Basic {OPERATE}\r\n"), 401),
        (format!("Authorization: {OPERATE}\r\n"), 401),
        (bearer(READ), 403),
        (bearer(OPERATE), 0),
    ] {
        for (host, origin) in [
            (ours.as_str(), ""),
            ("attacker.example.org", ""),
            (&format!("localhost.example.org:{port}"), ""),
            ("10.1.2.3", ""),
            (&ours, "Origin: http://attacker.example.org\r\n"),
            (&ours, "Origin: null\r\n"),
            (&ours, "Sec-Fetch-Site: cross-site\r\n"),
        ] {
            let is_own = host == ours && origin.is_empty();
            let expected = if is_own { own_status } else { 403 };
            if expected == 0 {
                continue;
            }
            let request = format!(
                "POST {PAUSE} HTTP/1.1\r\nHost: {host}\r\n{origin}{credentials}Content-Length: 0\r\n\r\n"
            );
            let reply = client.send(&request).await;
            assert_eq!(reply.status, expected, "{request}\n{reply:?}");
            assert_eq!(reply.header("www-authenticate").is_some(), expected == 401, "{reply:?}");
            reply.json(expected);
            answers.push(expected);
        }
    }
    assert_eq!(answers.len(), 48);
    assert_eq!(operator_log(&db).await, []);
    let allowed = format!(
        "POST {PAUSE} HTTP/1.1\r\nHost: espd.example.org\r\n{}Content-Length: 0\r\n\r\n",
        bearer(OPERATE)
    );
    client.send(&allowed).await.json(200);
    assert_eq!(operator_log(&db).await.len(), 1);
    let log = daemon.log();
    assert!(log.iter().all(|line| !line.to_string().contains(READ) && !line.to_string().contains(OPERATE)));
    daemon.stop().await;
}

#[tokio::test]
async fn an_address_that_others_reach_shows_clients_without_a_token_only_whether_it_is_ready() {
    let db = support::database().await;
    let keys = settings(&format!("read_token = '{READ}'")).replace("127.0.0.1:0", "0.0.0.0:0");
    let installation = Installation::new(&db.url, &keys);
    installation.declare_notes("notes", "");
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", 0).await;
    daemon.says("worker started").await;
    let mut client = endpoint(&daemon).await;
    client.address = client.address.replace("0.0.0.0", "127.0.0.1");
    client.get("/livez").await.json(200);
    let ready = support::facts::eventually("readiness", async || {
        let reply = client.get("/readyz").await;
        (reply.status == 200).then(|| reply.json(200))
    })
    .await;
    let ok = serde_json::json!({ "ok": true });
    assert_eq!(ready["checks"], serde_json::json!({ "database": ok, "schema": ok, "workers": ok }));
    for path in ["/metrics", "/api/v1/processors", "/api/v1/processors/notes"] {
        refused(&client.get(path).await.json(401), "this needs a token");
        let reply = client.get_with(path, &format!("Authorization: Bearer {READ}\r\n")).await;
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_socket_is_for_its_owner_and_goes_with_the_daemon() {
    let db = support::database().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin");
    let listen = format!("unix:{}", path.display());
    let installation = Installation::new(&db.url, &settings("").replace("127.0.0.1:0", &listen));
    installation.declare_notes("notes", "");
    // As a daemon that was killed leaves it.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let daemon = installation.start_daemon();
    assert_eq!(daemon.says("the admin endpoint listens").await["url"], listen);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: espd\r\n\r\n").await.unwrap();
    read_reply(&mut stream).await.json(200);
    daemon.stop().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone() {
    let db = support::database().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    std::fs::write(&path, "precious").unwrap();
    std::os::unix::fs::symlink(&path, folder.path().join("link")).unwrap();
    for name in ["precious", "link"] {
        let listen = format!("unix:{}", folder.path().join(name).display());
        let installation = Installation::new(&db.url, &settings("").replace("127.0.0.1:0", &listen));
        installation.declare_notes("notes", "");
        let complaint = installation.espd(&["run"]).await.complained(1);
        assert!(complaint.contains("something that is no socket is there"), "{complaint}");
        assert_eq!(std::fs::read_to_string(folder.path().join(name)).unwrap(), "precious");
    }
}

#[tokio::test]
async fn a_token_that_was_replaced_is_void_after_a_reload() {
    let db = support::database().await;
    let keys = settings("operator_token = '${file:token}'");
    let installation = Installation::new(&db.url, &keys);
    let file = installation.path().join("token");
    std::fs::write(&file, OPERATE).unwrap();
    installation.declare_notes("notes", "");
    let daemon = installation.start_daemon();
    let client = endpoint(&daemon).await;
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "notes", last).await;
    client.post(PAUSE, OPERATE, "").await.json(200);
    let other = OPERATE.replace('f', "0");
    std::fs::write(&file, &other).unwrap();
    let said = installation.espctl(&["reload"]).await.printed();
    assert!(!said.contains("next start"), "{said}");
    client.post(PAUSE, OPERATE, "").await.json(401);
    client.post(PAUSE, &other, "").await.json(200);

    // Where it listens stays, and the command says so.
    std::fs::write(&file, READ).unwrap();
    let main = installation.path().join("espd.toml");
    let text = std::fs::read_to_string(&main).unwrap();
    std::fs::write(&main, text.replace("127.0.0.1:0", "127.0.0.1:1")).unwrap();
    let said = installation.espctl(&["reload"]).await.printed();
    assert!(said.contains("the admin endpoint listens as configured at the daemon's next start"), "{said}");
    client.post(PAUSE, READ, "").await.json(200);
    daemon.stop().await;
}

/// The endpoint stays until the next start. So does what was protected, and what was taken back stays taken back.
#[tokio::test]
async fn without_its_section_the_endpoint_goes_on_with_the_newest_tokens() {
    let newer = OPERATE.replace('f', "0");
    let db = support::database().await;
    let installation = Installation::new(&db.url, &settings(&format!("operator_token = '{OPERATE}'")));
    installation.declare_notes("notes", "");
    let main = installation.path().join("espd.toml");
    let started_with = std::fs::read_to_string(&main).unwrap();
    let daemon = installation.start_daemon();
    let client = endpoint(&daemon).await;
    reaches(&db.pool, "notes", append(&db.pool, 1).await).await;
    assert_eq!(client.get("/metrics").await.status, 200);
    client.post(PAUSE, OPERATE, "").await.json(200);
    is_listed(&db.pool).await;

    let rotated = started_with.replace(OPERATE, &newer)
        + &format!("read_token = '{READ}'\nallowed_hosts = ['espd.example.org']\n");
    let without = started_with.split("[admin]").next().unwrap().to_owned();
    for (text, said) in
        [(rotated, ""), (without, "the admin endpoint is there until the daemon's next start")]
    {
        std::fs::write(&main, text).unwrap();
        let report = installation.espctl(&["reload"]).await.printed();
        assert!(report.contains(said), "{report}");
        client.post(PAUSE, OPERATE, "").await.json(401);
        client.post(PAUSE, &newer, "").await.json(200);
        client.get("/metrics").await.json(401);
        let request = format!(
            "GET /metrics HTTP/1.1\r\nHost: espd.example.org\r\nAuthorization: Bearer {READ}\r\n\r\n"
        );
        assert_eq!(client.send(&request).await.status, 200);
    }

    // A socket's file protects what comes through it, and not the port that is open until the next start.
    let socket =
        started_with.replace("127.0.0.1:0", &format!("unix:{}", installation.path().join("s").display()));
    std::fs::write(&main, socket).unwrap();
    installation.espctl(&["reload"]).await.printed();
    client.get("/metrics").await.json(401);
    std::fs::write(&main, started_with).unwrap();
    installation.espctl(&["reload"]).await.printed();
    assert_eq!(client.get("/metrics").await.status, 200);
    daemon.stop().await;
}
