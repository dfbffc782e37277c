//! Events as server-sent events.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::client::Client;
use super::{READ, endpoint, refused, running, settings};
use crate::support;
use crate::support::facts::{PATIENCE, append, append_typed, is_listed};
use crate::support::program::Installation;

/// A client that reads a stream.
struct Reader(BufReader<TcpStream>);

impl Reader {
    /// Asks for a stream, which must be granted.
    async fn open(client: &Client, query: &str, headers: &str) -> Self {
        let mut stream = client.connect().await;
        let request =
            format!("GET /api/v1/events{query} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", client.address);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reader = Self(BufReader::new(stream));
        let head = reader.line_with("retry: ", "HTTP/1.1 ").await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        reader
    }

    /// Reads up to a line with the first text, and returns the first line with the second.
    async fn line_with(&mut self, end: &str, wanted: &str) -> String {
        // Signs of life come for ever.
        tokio::time::timeout(PATIENCE, self.read_to(end, wanted)).await.expect(end)
    }

    async fn read_to(&mut self, end: &str, wanted: &str) -> String {
        let mut found = String::new();
        loop {
            let mut line = String::new();
            let read = self.0.read_line(&mut line).await.unwrap();
            assert!(read > 0, "the stream has ended");
            if line.starts_with(wanted) && found.is_empty() {
                found.clone_from(&line);
            }
            if line.starts_with(end) {
                return found;
            }
        }
    }

    /// The next event: its id, and its object.
    async fn next(&mut self) -> (i64, Value) {
        let id = self.line_with("id: ", "id: ").await;
        let data = self.line_with("data: ", "data: ").await;
        let object = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        (id.trim().strip_prefix("id: ").unwrap().parse().unwrap(), object)
    }

    /// Whether the answer has come to an orderly end, with the last chunk of its encoding.
    async fn ends(mut self) -> bool {
        let mut rest = String::new();
        tokio::time::timeout(PATIENCE, self.0.read_to_string(&mut rest)).await.expect("an end").unwrap();
        rest.ends_with("0\r\n\r\n")
    }
}

#[tokio::test]
async fn events_are_streamed_from_a_position_until_the_daemon_stops() {
    let (db, installation, daemon, client) = running("").await;
    append_typed(&db.pool, "B", 2).await;
    let mut all = Reader::open(&client, "?after=9", "").await;
    let (id, first) = all.next().await;
    assert_eq!((id, &first["id"], &first["type"]), (10, &10.into(), &"A".into()));
    let printed = installation.espctl(&["events", "--after", "9", "-n", "1", "--json"]).await.json_lines();
    assert_eq!(first, printed[0]);
    assert_eq!((all.next().await.0, all.next().await.0), (11, 12));
    let mut some = Reader::open(&client, "?types=B,C&after=3", "Last-Event-ID: 11\r\n").await;
    assert_eq!(some.next().await.0, 12);
    append(&db.pool, 3).await;
    append_typed(&db.pool, "C", 1).await;
    assert_eq!((all.next().await.0, some.next().await.0), (13, 16));
    daemon.stop().await;
    assert!(all.ends().await && some.ends().await);
}

/// Who looks must not be kept from the events behind one that an upcast cannot make.
#[tokio::test]
async fn an_event_that_no_handler_could_read_is_streamed_as_it_is_stored() {
    let upcast = "[[upcast]]\nevents = ['Old']\ntype = 'New'\nbody = \"jsonb_build_object('n', 1 / (event.id - 2))\"\n";
    let db = support::database().await;
    let installation = Installation::new(&db.url, &format!("{}{upcast}", settings("")));
    installation.declare_notes("notes", "");
    let daemon = installation.start_daemon();
    let client = endpoint(&daemon).await;
    append_typed(&db.pool, "Old", 3).await;
    append(&db.pool, 1).await;
    let mut events = Reader::open(&client, "?after=0", "").await;
    let first = events.next().await;
    assert_eq!((first.0, &first.1["type"], &first.1["body"]["n"]), (1, &"New".into(), &(-1).into()));
    assert!(first.1.get("unreadable").is_none());
    let (id, stored) = events.next().await;
    assert_eq!((id, &stored["type"], &stored["unreadable"]), (2, &"Old".into(), &"division by zero".into()));
    assert_eq!((events.next().await.0, events.next().await.0), (3, 4));
    append(&db.pool, 1).await;
    assert_eq!(events.next().await.0, 5);
    daemon.stop().await;
}

#[tokio::test]
async fn a_stream_needs_what_other_reads_need() {
    let (_db, _installation, daemon, client) = running(&format!("read_token = '{READ}'")).await;
    assert_eq!(client.get("/api/v1/events").await.status, 401);
    refused(
        &client.get_with("/api/v1/events?x=1", &format!("Authorization: Bearer {READ}\r\n")).await.json(400),
        "unknown field",
    );
    let _open =
        Reader::open(&client, "?after=0", &format!("Authorization: Bearer {READ}\r\n")).await.next().await;
    daemon.stop().await;
}

#[tokio::test]
async fn streams_are_bounded_and_lock_out_nobody() {
    let (db, _installation, daemon, client) = running("").await;
    let mut open = Vec::new();
    for _ in 0..32 {
        open.push(Reader::open(&client, "?after=0", "").await);
    }
    refused(&client.get("/api/v1/events").await.json(503), "32 streams");
    client.get("/livez").await.json(200);
    open.pop();
    let again = async || client.get("/api/v1/events?x=1").await.status == 400;
    assert!(again().await);
    // They outlive what other requests may take, and a sign of life moves the id beyond what is of other types.
    let mut quiet = loop {
        // The place of the one that has gone is given back when the daemon notices.
        let mut stream = client.connect().await;
        let request = format!("GET /api/v1/events?types=B HTTP/1.1\r\nHost: {}\r\n\r\n", client.address);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reader = Reader(BufReader::new(stream));
        let head = reader.line_with("\r\n", "HTTP/1.1 ").await;
        if head.starts_with("HTTP/1.1 200") {
            break reader;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    quiet.line_with("retry: ", "retry: ").await;
    append(&db.pool, 1).await;
    let id = quiet.line_with("id: ", "id: ").await;
    assert!(["id: 10\n", "id: 11\n"].contains(&id.as_str()), "{id}");
    if id == "id: 10\n" {
        // It began before the event; what follows tells of each id once.
        quiet.line_with("id: 11", "id: ").await;
    }
    append_typed(&db.pool, "B", 1).await;
    assert_eq!(quiet.next().await.0, 12);
    daemon.stop().await;
}

/// Nobody goes on reading with a token that was taken back.
#[tokio::test]
async fn a_stream_ends_when_other_tokens_count() {
    let (db, installation, daemon, client) = running(&format!("read_token = '{READ}'")).await;
    let with = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let mut stream = Reader::open(&client, "?after=9", &with(READ)).await;
    assert_eq!(stream.next().await.0, 10);
    is_listed(&db.pool).await;
    let newer = READ.replace('f', "0");
    let main = installation.path().join("espd.toml");
    let text = std::fs::read_to_string(&main).unwrap().replace(READ, &newer);
    std::fs::write(&main, &text).unwrap();
    installation.espctl(&["reload"]).await.printed();
    assert!(stream.ends().await);

    // One with the new token is not disturbed by a reload of something else.
    let mut stream = Reader::open(&client, "?after=9", &with(&newer)).await;
    assert_eq!(stream.next().await.0, 10);
    std::fs::write(&main, text.replace("'50ms'", "'60ms'")).unwrap();
    installation.espctl(&["reload"]).await.printed();
    append(&db.pool, 1).await;
    // The position of a sign of life may come before.
    assert_eq!(stream.next().await.1["id"], 11);
    daemon.stop().await;
}
