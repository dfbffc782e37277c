//! A client that sends exactly what a test says.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::facts::PATIENCE;

/// Where an endpoint is.
#[derive(Clone)]
pub struct Client {
    pub address: String,
}

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Client {
    pub fn new(url: &str) -> Self {
        Self { address: url.strip_prefix("http://").unwrap().to_owned() }
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).await.unwrap()
    }

    /// Sends a request and reads the answer until the connection is closed.
    pub async fn send(&self, request: &str) -> Reply {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        read_reply(&mut stream).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.get_with(path, "").await
    }

    /// `headers` are whole lines.
    pub async fn get_with(&self, path: &str, headers: &str) -> Reply {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", self.address)).await
    }

    /// Sends JSON as the bearer of a token.
    pub async fn post(&self, path: &str, token: &str, body: &str) -> Reply {
        let headers = format!("Authorization: Bearer {token}\r\nContent-Type: application/json\r\n");
        self.post_with(path, &headers, body).await
    }

    pub async fn post_with(&self, path: &str, headers: &str, body: &str) -> Reply {
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\n{headers}\r\n",
            self.address
        );
        self.send(&(head + body)).await
    }
}

/// Reads until the other side closes.
pub async fn read_reply(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Reply {
    let mut bytes = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes))
        .await
        .expect("no end of the answer")
        .unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Reply { status, head: head.to_owned(), body: body.to_owned() }
}

/// How long it takes until the other side closes without a word.
pub async fn time_to_close(stream: &mut TcpStream) -> Duration {
    let begun = std::time::Instant::now();
    let mut bytes = Vec::new();
    // It may be closed with a reset.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("it stays open");
    assert!(bytes.is_empty(), "{}", String::from_utf8_lossy(&bytes));
    begun.elapsed()
}

impl Reply {
    /// The JSON of an answer that must have this status.
    pub fn json(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}
