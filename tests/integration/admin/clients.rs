//! Clients that are slow, send much or are many.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;

use super::client::{read_reply, time_to_close};
use super::{OPERATE, refused, running};
use crate::support::facts::{append, eventually, reaches};

#[tokio::test]
async fn a_client_that_does_not_continue_is_disconnected() {
    let (_db, _installation, daemon, client) = running(&format!("operator_token = '{OPERATE}'")).await;
    let (mut silent, mut halting, mut dripping) =
        (client.connect().await, client.connect().await, client.connect().await);
    halting.write_all(b"GET /livez HTTP/1.1\r\nHost: loc").await.unwrap();
    let drip = async {
        // Sending a byte now and then does not extend the time; at last the connection is closed.
        let closed = async |stream: &mut tokio::net::TcpStream| {
            tokio::time::timeout(Duration::from_millis(100), read_or_close(stream)).await.is_ok()
        };
        while dripping.write_all(b"G").await.is_ok() && !closed(&mut dripping).await {}
    };
    let begun = Instant::now();
    tokio::join!(time_to_close(&mut silent), read_or_close(&mut halting), drip);
    let time = begun.elapsed();
    assert!((Duration::from_secs(4)..Duration::from_secs(20)).contains(&time), "{time:?}");

    let mut stream = client.connect().await;
    let head = format!(
        "POST /api/v1/processors/notes/reset HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {OPERATE}\r\n\
         Content-Type: application/json\r\nContent-Length: 10\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    refused(&read_reply(&mut stream).await.json(408), "has not arrived within 3s");
    daemon.stop().await;
}

/// Waits for the end of a connection that may be answered before.
async fn read_or_close(stream: &mut tokio::net::TcpStream) {
    use tokio::io::AsyncReadExt as _;
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let (_db, _installation, daemon, client) = running(&format!("operator_token = '{OPERATE}'")).await;
    let reset = "/api/v1/processors/notes/reset";
    for size in [16 * 1024 + 1, 500_000] {
        let body = format!("{{\"to\": {}1}}", " ".repeat(size));
        refused(&client.post(reset, OPERATE, &body).await.json(413), "more than 16384 bytes");
        let head = format!(
            "POST {reset} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {OPERATE}\r\n\
             Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        let chunked = format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        refused(&client.send(&chunked).await.json(413), "more than 16384 bytes");
    }
    let body = format!("{{\"to\": {}10}}", " ".repeat(10_000));
    client.post(reset, OPERATE, &body).await.json(200);
    let headers: String = (0..65).map(|number| format!("X-{number}: 1\r\n")).collect();
    assert_eq!(client.get_with("/livez", &headers).await.status, 431);
    assert_eq!(client.get_with("/livez", &format!("X: {}\r\n", "x".repeat(20_000))).await.status, 431);
    daemon.stop().await;
}

#[tokio::test]
async fn half_open_connections_lock_no_one_out() {
    let (db, _installation, daemon, client) = running("").await;
    let files = format!("/proc/{}/fd", daemon.pid());
    let open_files = || std::fs::read_dir(&files).unwrap().count();
    let before = open_files();
    let mut half_open = Vec::new();
    for _ in 0..500 {
        let mut stream = client.connect().await;
        // It may have been evicted meanwhile.
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\n").await;
        half_open.push(stream);
    }
    let begun = Instant::now();
    client.get("/livez").await.json(200);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(open_files() <= before + 64 + 5, "{before} {}", open_files());
    let last = append(&db.pool, 10).await;
    reaches(&db.pool, "notes", last).await;
    eventually("the end of all of them", async || (open_files() <= before + 3).then_some(())).await;
    daemon.stop().await;
}
