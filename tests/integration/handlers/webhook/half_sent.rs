//! Receivers that answer before they have the whole request, and connections that end when the next request begins.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::PgPool;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::{append, count, declare, declare_at, installation, shows};
use crate::support;
use crate::support::facts::{eventually, reaches};
use crate::support::receiver::{Received, Receiver, Reply};

/// The first failure would be the last.
const NO_MERCY: &str = "max_attempts = 1\non_failure = 'skip'\n";

const ONE_AT_A_TIME: &str = "allow_private = true\nconcurrency = 1\ntimeout = '8s'";

/// How much came of the body of a request, and how much was announced.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Body {
    position: u64,
    came: u64,
    announced: u64,
}

/// A receiver that answers when it has the head of a request.
struct HastyReceiver {
    address: SocketAddr,
    bodies: Arc<Mutex<Vec<Body>>>,
}

impl HastyReceiver {
    /// It answers the first event with `first`, and reads its body then if it `reads_on`.
    async fn start(first: &'static str, reads_on: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Self { address: listener.local_addr().unwrap(), bodies: Arc::default() };
        let bodies = Arc::clone(&receiver.bodies);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(BufReader::new(stream), first, reads_on, Arc::clone(&bodies)));
            }
        });
        receiver
    }

    fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    async fn reads(&self, count: usize) -> Vec<Body> {
        let bodies = || self.bodies.lock().unwrap().clone();
        eventually("bodies", async || Some(bodies()).filter(|bodies| bodies.len() >= count)).await
    }
}

async fn serve(
    mut stream: BufReader<TcpStream>,
    first: &'static str,
    reads_on: bool,
    bodies: Arc<Mutex<Vec<Body>>>,
) {
    while let Some((position, announced)) = read_head(&mut stream).await {
        let status = if position == 1 { first } else { "200 OK" };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
        if position == 1 && !reads_on {
            return std::future::pending().await;
        }
        // It works a little before it reads on.
        tokio::time::sleep(Duration::from_millis(if position == 1 { 300 } else { 0 })).await;
        let came = tokio::io::copy(&mut (&mut stream).take(announced), &mut tokio::io::sink()).await;
        bodies.lock().unwrap().push(Body { position, came: came.unwrap_or(0), announced });
    }
}

/// The position of the event, and the length of its body.
async fn read_head(stream: &mut BufReader<TcpStream>) -> Option<(u64, u64)> {
    let (mut position, mut length) = (0, 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        match line.trim_end().split_once(": ") {
            Some(("ce-position", value)) => position = value.parse().unwrap(),
            Some(("content-length", value)) => length = value.parse().unwrap(),
            Some(_) => {}
            None if line == "\r\n" => return Some((position, length)),
            None => {}
        }
    }
}

/// Appends an event that is larger than what the system keeps of a connection.
async fn append_large(pool: &PgPool) {
    let insert = "insert into espd.events (aggregate_id, type, version, body)
         values (gen_random_uuid(), 'A', 1, jsonb_build_object('n', 1, 'text', repeat('x', 16000000)))";
    sqlx::query(insert).execute(pool).await.unwrap();
}

#[tokio::test]
async fn an_event_that_is_answered_early_is_sent_to_its_end() {
    let db = support::database().await;
    let receiver = HastyReceiver::start("200 OK", true).await;
    let installation = installation(&db);
    declare_at(&installation, &receiver.url(), "", ONE_AT_A_TIME, NO_MERCY);
    append_large(&db.pool).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", 1).await;
    // No other event uses the connection.
    let bodies = receiver.reads(1).await;
    assert!(bodies.iter().all(|body| body.came == body.announced), "{bodies:?}");
    let last = append(&db.pool, &[(2, 2)]).await;
    reaches(&db.pool, "hook", last).await;
    let bodies = receiver.reads(2).await;
    assert_eq!(bodies.iter().map(|body| body.position).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(count(&db.pool, "select count(*) from espd.dead_letters").await, 0);
    daemon.stop().await;
}

#[tokio::test]
async fn an_event_whose_body_is_not_read_is_not_received() {
    let db = support::database().await;
    let receiver = HastyReceiver::start("200 OK", false).await;
    let installation = installation(&db);
    let webhook = "allow_private = true\nconnect_timeout = '100ms'\ntimeout = '500ms'";
    declare_at(&installation, &receiver.url(), "", webhook, "");
    append_large(&db.pool).await;
    let daemon = installation.start_daemon();
    let status = shows(&installation, "the failure", |status| {
        status["attempts"].as_i64() > Some(0) || status["position"] != 0
    })
    .await;
    assert_eq!(status["position"], 0, "{status}");
    assert!(status["last_error"]["message"].as_str().unwrap().contains("within 500ms"), "{status}");
    daemon.stop().await;
}

/// The connection has the rest of an event that nobody wants: the next one is sent over another connection.
#[tokio::test]
async fn an_early_refusal_counts_at_once_and_is_not_in_the_way_of_the_next_event() {
    let db = support::database().await;
    let receiver = HastyReceiver::start("413 Content Too Large", false).await;
    let installation = installation(&db);
    declare_at(&installation, &receiver.url(), "", ONE_AT_A_TIME, NO_MERCY);
    append_large(&db.pool).await;
    let last = append(&db.pool, &[(2, 2)]).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", last).await;
    let refused: Vec<(i64, String)> =
        sqlx::query_as("select event_id, failure->>'message' from espd.dead_letters order by 1")
            .fetch_all(&db.pool)
            .await
            .unwrap();
    let [(1, message)] = refused.as_slice() else { panic!("{refused:?}") };
    assert!(message.contains("413"), "{message}");
    assert_eq!(receiver.reads(1).await[0].position, 2);
    daemon.stop().await;
}

/// Has three events sent one after the other over one connection, and counts the dead letters.
async fn after_three_events(reply: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> (Receiver, i64) {
    let db = support::database().await;
    let receiver = Receiver::start(reply).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "concurrency = 1", NO_MERCY);
    let last = append(&db.pool, &[(1, 1), (2, 2), (3, 3)]).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", last).await;
    let dead_letters = count(&db.pool, "select count(*) from espd.dead_letters").await;
    daemon.stop().await;
    (receiver, dead_letters)
}

/// Receivers end connections whenever they like, and may do so just when the next request begins.
#[tokio::test]
async fn a_kept_connection_that_ends_without_an_answer_counts_as_no_attempt() {
    let (receiver, dead_letters) = after_three_events(|request| match (request.n(), request.earlier) {
        (2, 0) => Reply::Reset,
        _ => Reply::Status(200),
    })
    .await;
    let received = receiver.received();
    assert_eq!((receiver.numbers(), receiver.connections()), (vec![1, 2, 2, 3], 2));
    assert_eq!(received[1].key(), received[2].key());
    assert_eq!(dead_letters, 0);
}

#[tokio::test]
async fn a_request_is_sent_once_more_without_counting_and_not_twice() {
    let (receiver, dead_letters) = after_three_events(|request| match request.n() {
        2 => Reply::Reset,
        _ => Reply::Status(200),
    })
    .await;
    assert_eq!((receiver.numbers(), dead_letters), (vec![1, 2, 2, 3], 1));
}

/// Once there is a part of an answer, the receiver has made up its mind about the event.
#[tokio::test]
async fn a_kept_connection_that_ends_in_an_answer_counts() {
    let (receiver, dead_letters) = after_three_events(|request| match request.n() {
        2 => Reply::BreakOff,
        _ => Reply::Status(200),
    })
    .await;
    assert_eq!((receiver.numbers(), dead_letters), (vec![1, 2, 3], 1));
}
