//! Connections that are accepted and closed before a request: there is something in front of the receiver, and nothing behind it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::{append, count, declare_at, installation, shows};
use crate::support;
use crate::support::certificates::Authority;
use crate::support::facts::reaches;
use crate::support::receiver::{Receiver, Reply};

/// The first failure would be the last.
const NO_MERCY: &str = "max_attempts = 1\non_failure = 'skip'\n";

/// Accepts connections, and does this with each.
async fn listen<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    (address, task)
}

/// A proxy or a tunnel in front of a receiver that comes up later.
async fn is_an_outage<F: Future<Output = ()> + Send + 'static>(
    close: impl Fn(TcpStream) -> F + Send + 'static,
) {
    let db = support::database().await;
    let (address, proxy) = listen(close).await;
    let installation = installation(&db);
    declare_at(&installation, &format!("http://{address}/"), "", "allow_private = true", NO_MERCY);
    let last = append(&db.pool, &[(1, 1), (2, 2), (1, 3)]).await;
    let daemon = installation.start_daemon();
    let status =
        shows(&installation, "the outage", |status| status["outage"]["tries"].as_i64() > Some(2)).await;
    let message = status["outage"]["message"].as_str().unwrap();
    assert!(message.contains("cannot be reached"), "{message}");
    proxy.abort();
    let _ = proxy.await;
    let receiver = Receiver::listen(address, None, |_| Reply::Status(200)).await;
    reaches(&db.pool, "hook", last).await;
    assert_eq!(receiver.received().len(), 3);
    assert_eq!(count(&db.pool, "select count(*) from espd.dead_letters").await, 0);
    shows(&installation, "no outage", |status| status["outage"].is_null()).await;
    daemon.stop().await;
}

#[tokio::test]
async fn connections_that_are_closed_at_once_are_an_outage() {
    is_an_outage(async |stream| drop(stream)).await;
}

#[tokio::test]
async fn connections_that_are_reset_at_once_are_an_outage() {
    is_an_outage(async |stream| stream.set_zero_linger().unwrap()).await;
}

/// As by what tries for a while to reach something behind it.
#[tokio::test]
async fn connections_that_are_closed_a_second_later_are_an_outage() {
    is_an_outage(async |stream| {
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(stream);
    })
    .await;
}

/// By TLS 1.3, the refusal comes after the handshake.
#[tokio::test]
async fn a_receiver_that_asks_for_a_certificate_of_ours_is_an_outage() {
    let db = support::database().await;
    let authority = Authority::new();
    let receiver = Receiver::start_secured(authority.exclusive_acceptor("localhost"), |_| Reply::Status(200));
    let receiver = receiver.await;
    let installation = installation(&db);
    std::fs::write(installation.path().join("processors/ca.pem"), authority.pem()).unwrap();
    let url = format!("https://localhost:{}/", receiver.address.port());
    declare_at(&installation, &url, "", "allow_private = true\nca_file = 'ca.pem'", NO_MERCY);
    append(&db.pool, &[(1, 1), (2, 2)]).await;
    let daemon = installation.start_daemon();
    let status =
        shows(&installation, "the outage", |status| status["outage"]["tries"].as_i64() > Some(2)).await;
    let message = status["outage"]["message"].as_str().unwrap();
    assert!(message.contains("closed before a request"), "{message}");
    assert_eq!(count(&db.pool, "select count(*) from espd.dead_letters").await, 0);
    daemon.stop().await;
}

/// Answers one request and closes the connection; `None`: the other side has closed it.
async fn receive(stream: &mut TcpStream) -> Option<String> {
    let mut request = String::new();
    while !request.ends_with('}') {
        let mut bytes = [0; 4_096];
        let length = stream.read(&mut bytes).await.ok().filter(|length| *length > 0)?;
        request.push_str(&String::from_utf8_lossy(&bytes[..length]));
    }
    Some(request)
}

/// The event is to blame, though what is in front of the receiver closes connections while it starts again.
#[tokio::test]
async fn an_event_that_a_receiver_goes_down_over_is_no_outage_for_ever() {
    let db = support::database().await;
    let down_until = Arc::new(Mutex::new(Instant::now()));
    let (address, _receiver) = listen(move |mut stream| {
        let down_until = Arc::clone(&down_until);
        async move {
            if Instant::now() < *down_until.lock().unwrap() {
                return;
            }
            let Some(request) = receive(&mut stream).await else { return };
            if request.contains("\"n\": 2") {
                *down_until.lock().unwrap() = Instant::now() + Duration::from_secs(1);
                return;
            }
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    })
    .await;
    let installation = installation(&db);
    declare_at(&installation, &format!("http://{address}/"), "", "allow_private = true", NO_MERCY);
    let last = append(&db.pool, &[(1, 1), (2, 2), (3, 3)]).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", last).await;
    let query = "select count(*) from espd.dead_letters where failure->>'message' like '%broke off%'";
    assert_eq!(count(&db.pool, query).await, 1);
    daemon.stop().await;
}
