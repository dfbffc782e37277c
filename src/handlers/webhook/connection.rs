//! A connection to a receiver, over which one request follows another.
//!
//! It has no task of its own: whoever waits for an answer drives the connection meanwhile, so that no other task has to be
//! woken, neither for a request nor for its answer.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::rt::{Read, Write};
use hyper::{Request, Response};

/// The largest head of an answer, in bytes. It has no more than 100 headers, which is what the client allows by itself.
const HEAD_MAX: usize = 32 << 10;

/// How long a connection is kept for the next request. Many servers close theirs after five seconds.
const IDLE_TIME: Duration = Duration::from_secs(4);

/// One connection, with no request under way or with one.
pub(super) struct Connection {
    requests: SendRequest<Full<Bytes>>,
    /// What reads and writes; `None`: the connection is closed.
    driver: Option<Driver>,
}

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// Why a request has no answer.
pub(super) enum Unanswered {
    /// The connection was closed before anything of the request was written, which comes back.
    Unsent(Box<Request<Full<Bytes>>>, hyper::Error),
    /// The exchange broke off.
    Interrupted(hyper::Error),
}

impl Connection {
    /// Speaks HTTP over a stream that is connected.
    pub(super) async fn over<S>(stream: S) -> hyper::Result<Self>
    where
        S: Read + Write + Unpin + Send + 'static,
    {
        let (requests, driver) = Builder::new().max_buf_size(HEAD_MAX).handshake(stream).await?;
        Ok(Self { requests, driver: Some(Box::pin(driver)) })
    }

    /// Sends a request and waits for the head of the answer.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Unanswered> {
        let Self { requests, driver } = self;
        let sending = async {
            if let Err(error) = requests.ready().await {
                return Err(Unanswered::Unsent(Box::new(request), error));
            }
            requests.try_send_request(request).await.map_err(|mut error| match error.take_message() {
                Some(request) => Unanswered::Unsent(Box::new(request), error.into_error()),
                None => Unanswered::Interrupted(error.into_error()),
            })
        };
        drive(driver, sending).await
    }

    /// Waits for more of the answer.
    pub(super) async fn receive<T>(&mut self, receiving: impl Future<Output = T>) -> T {
        drive(&mut self.driver, receiving).await
    }

    fn is_closed(&self) -> bool {
        self.driver.is_none() || self.requests.is_closed()
    }
}

/// Reads and writes until the work is done that waits for it.
async fn drive<T>(driver: &mut Option<Driver>, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|context| {
        // First what has arrived, such as the end of the connection; then what the work wants written.
        poll_driver(driver, context);
        let done = work.as_mut().poll(context);
        if done.is_pending() {
            poll_driver(driver, context);
        }
        done
    })
    .await
}

/// An error of the connection is known to the request that is under way, if one is.
fn poll_driver(driver: &mut Option<Driver>, context: &mut Context<'_>) {
    if let Some(open) = driver
        && let Poll::Ready(_) = open.as_mut().poll(context)
    {
        *driver = None;
    }
}

/// The connections that no request is under way on. The one that was used last is used next, so that others can be closed.
#[derive(Default)]
pub(super) struct IdleConnections(Mutex<Idle>);

#[derive(Default)]
struct Idle {
    /// By when they were used.
    connections: VecDeque<(Instant, Connection)>,
    /// Whether there is a task that closes them.
    is_watched: bool,
}

impl IdleConnections {
    /// Takes the connection that was used last. It may have been closed since.
    pub(super) fn take(&self) -> Option<Connection> {
        let (used, connection) = self.lock().connections.pop_back()?;
        (used.elapsed() < IDLE_TIME).then_some(connection)
    }

    /// Keeps a connection for the next request, unless it is closed.
    pub(super) fn keep(self: &Arc<Self>, connection: Connection) {
        if connection.is_closed() {
            return;
        }
        let mut idle = self.lock();
        idle.connections.push_back((Instant::now(), connection));
        if !std::mem::replace(&mut idle.is_watched, true) {
            tokio::spawn(close_unused(Arc::downgrade(self)));
        }
    }

    /// Closes what was not used for some time. Returns `false` if nothing is left.
    fn close_unused(&self) -> bool {
        let mut idle = self.lock();
        let unused = idle.connections.partition_point(|(used, _)| used.elapsed() >= IDLE_TIME);
        idle.connections.drain(..unused);
        idle.is_watched = !idle.connections.is_empty();
        idle.is_watched
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends when no connection is left, or when nobody needs them any more.
async fn close_unused(connections: Weak<IdleConnections>) {
    loop {
        tokio::time::sleep(IDLE_TIME).await;
        if !connections.upgrade().is_some_and(|connections| connections.close_unused()) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    fn request(path: &'static str) -> Request<Full<Bytes>> {
        let request = Request::post(path).header("host", "example.org");
        request.body(Full::new(Bytes::from_static(b"{}"))).unwrap()
    }

    /// Answers one request.
    async fn answer(stream: &mut DuplexStream) {
        let mut received = Vec::new();
        while !received.ends_with(b"\r\n\r\n{}") {
            received.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    }

    #[tokio::test]
    async fn a_request_comes_back_from_a_connection_that_was_closed_after_the_last_one() {
        let (ours, mut theirs) = tokio::io::duplex(4_096);
        let mut connection = Connection::over(TokioIo::new(ours)).await.unwrap();
        for path in ["/first", "/second"] {
            let (answered, ()) = tokio::join!(connection.send(request(path)), answer(&mut theirs));
            assert!(answered.is_ok_and(|answer| answer.status().is_success()));
        }
        assert!(!connection.is_closed());
        drop(theirs);
        let Err(Unanswered::Unsent(again, _)) = connection.send(request("/third")).await else {
            panic!("nothing was sent, and nobody has answered")
        };
        assert_eq!(again.uri(), "/third");
        assert!(connection.is_closed());
    }

    #[tokio::test]
    async fn a_request_does_not_come_back_once_it_was_written() {
        let (ours, mut theirs) = tokio::io::duplex(4_096);
        let mut connection = Connection::over(TokioIo::new(ours)).await.unwrap();
        let hang_up = async move { theirs.read_u8().await.map(drop) };
        let (answered, _) = tokio::join!(connection.send(request("/")), hang_up);
        assert!(matches!(answered, Err(Unanswered::Interrupted(_))));
    }
}
