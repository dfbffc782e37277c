//! A connection to a receiver, over which one request follows another.
//!
//! It has no task of its own: whoever waits for an answer drives the connection meanwhile, so that no other task has to be
//! woken, neither for a request nor for its answer.

mod stream;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use stream::{Extent, NotedStream};

/// The head of an answer that is refused, in bytes: this much has come, and more is to come of it. What a read brings beyond it
/// is accepted. A head has no more than 100 headers, which is what the client allows by itself.
const HEAD_MAX: usize = 32 << 10;

/// How long a connection is kept for the next request. Many servers close theirs after five seconds.
const IDLE_TIME: Duration = Duration::from_secs(4);

/// One connection, with no request under way or with one.
pub(super) struct Connection {
    requests: SendRequest<Full<Bytes>>,
    /// What reads and writes; `None`: the connection is closed.
    driver: Option<Driver>,
    extent: Arc<Extent>,
}

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// Why a request has no answer.
pub(super) enum Unanswered {
    /// The connection was closed, or was not ready, before anything of the request was written.
    Unsent(hyper::Error),
    /// The connection broke before anything of an answer had come. The receiver may have seen the request.
    Broken(hyper::Error),
    /// The exchange broke off in the answer.
    Interrupted(hyper::Error),
}

/// The other side has closed a connection on which nothing was sent: with an error, or simply.
pub(super) struct Closed(pub(super) Option<hyper::Error>);

impl Connection {
    /// Speaks HTTP over a stream that is connected.
    pub(super) async fn over<S>(stream: S) -> hyper::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let extent = Arc::default();
        let stream = TokioIo::new(NotedStream::new(stream, Arc::clone(&extent)));
        let (requests, driver) = Builder::new().max_buf_size(HEAD_MAX).handshake(stream).await?;
        Ok(Self { requests, driver: Some(Box::pin(driver)), extent })
    }

    /// Waits for so long, and for whether the other side closes the connection meanwhile, on which nothing has been sent.
    pub(super) async fn stay_open(&mut self, time: Duration) -> Result<(), Closed> {
        let Some(driver) = &mut self.driver else { return Err(Closed(None)) };
        let Ok(ended) = tokio::time::timeout(time, driver).await else { return Ok(()) };
        self.driver = None;
        Err(Closed(ended.err()))
    }

    /// Sends a request and waits for the head of the answer, which may come before the request is written to its end.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Unanswered> {
        let Self { requests, driver, extent } = self;
        extent.reset();
        // A connection that is not ready gives the request back: nothing is waited for.
        let sending = async { requests.try_send_request(request).await };
        drive(driver, sending).await.map_err(|mut error| {
            let is_unsent = error.take_message().is_some();
            let error = error.into_error();
            match (is_unsent, extent.is_answered()) {
                (true, _) => Unanswered::Unsent(error),
                (false, false) => Unanswered::Broken(error),
                (false, true) => Unanswered::Interrupted(error),
            }
        })
    }

    /// Waits until the request is written to its end. Returns `false` if the connection was closed before.
    pub(super) async fn finish(&mut self) -> bool {
        let Self { driver, extent, .. } = self;
        poll_fn(|context| {
            poll_driver(driver, context);
            let is_over = extent.is_written() || driver.is_none();
            if is_over { Poll::Ready(extent.is_written()) } else { Poll::Pending }
        })
        .await
    }

    /// Waits for more of the answer.
    pub(super) async fn receive<T>(&mut self, receiving: impl Future<Output = T>) -> T {
        drive(&mut self.driver, receiving).await
    }

    /// Whether nothing is under way any more, so that another request can be sent.
    fn is_ready(&self) -> bool {
        self.driver.is_some() && self.extent.is_written() && self.requests.is_ready()
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

    /// Keeps a connection for the next request, or closes it if it is not ready for one.
    pub(super) fn keep(self: &Arc<Self>, connection: Connection) {
        if !connection.is_ready() {
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

    fn request(body: impl Into<Bytes>) -> Request<Full<Bytes>> {
        Request::post("/").header("host", "example.org").body(Full::new(body.into())).unwrap()
    }

    async fn connect(buffer: usize) -> (Connection, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(buffer);
        (Connection::over(ours).await.unwrap(), theirs)
    }

    /// Receives what ends like this.
    async fn receive(stream: &mut DuplexStream, end: &[u8]) {
        let mut received = Vec::new();
        while !received.ends_with(end) {
            received.push(stream.read_u8().await.unwrap());
        }
    }

    /// Answers one request.
    async fn answer(stream: &mut DuplexStream) {
        receive(stream, b"\r\n\r\n{}").await;
        stream.write_all(ANSWER).await.unwrap();
    }

    async fn answered_once(connection: &mut Connection, stream: &mut DuplexStream) {
        let (answered, ()) = tokio::join!(connection.send(request("{}")), answer(stream));
        assert!(answered.is_ok_and(|answer| answer.status().is_success()));
        assert!(connection.finish().await && connection.is_ready());
    }

    #[tokio::test]
    async fn nothing_is_sent_over_a_connection_that_was_closed_after_the_last_request() {
        let (mut connection, mut theirs) = connect(4_096).await;
        answered_once(&mut connection, &mut theirs).await;
        answered_once(&mut connection, &mut theirs).await;
        drop(theirs);
        assert!(matches!(connection.send(request("{}")).await, Err(Unanswered::Unsent(_))));
        assert!(!connection.is_ready());
    }

    #[tokio::test]
    async fn a_connection_that_is_closed_at_once_has_not_sent_anything() {
        let (mut connection, theirs) = connect(4_096).await;
        drop(theirs);
        assert!(matches!(connection.send(request("{}")).await, Err(Unanswered::Unsent(_))));
    }

    #[tokio::test]
    async fn a_connection_on_which_nothing_is_sent_is_seen_to_close() {
        let (mut connection, theirs) = connect(4_096).await;
        assert!(connection.stay_open(Duration::from_millis(10)).await.is_ok());
        let closing = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            drop(theirs);
        };
        let (closed, ()) = tokio::join!(connection.stay_open(Duration::from_mins(1)), closing);
        assert!(closed.is_err());
        // One that has stayed open is as good as before.
        let (mut connection, mut theirs) = connect(4_096).await;
        assert!(connection.stay_open(Duration::from_millis(10)).await.is_ok());
        answered_once(&mut connection, &mut theirs).await;
    }

    #[tokio::test]
    async fn what_was_written_may_have_been_received_also_without_an_answer() {
        for (said, is_interrupted) in [(&b""[..], false), (b"H", true), (&ANSWER[..20], true)] {
            let (mut connection, mut theirs) = connect(4_096).await;
            answered_once(&mut connection, &mut theirs).await;
            let hang_up = async move {
                receive(&mut theirs, b"\r\n\r\n{}").await;
                theirs.write_all(said).await.unwrap();
            };
            let (answered, ()) = tokio::join!(connection.send(request("{}")), hang_up);
            let unanswered = answered.unwrap_err();
            assert_eq!(matches!(unanswered, Unanswered::Interrupted(_)), is_interrupted, "{said:?}");
            assert_eq!(matches!(unanswered, Unanswered::Broken(_)), !is_interrupted, "{said:?}");
        }
    }

    /// More than a stream takes at once, answered when the head has come.
    async fn answered_early(answer: &[u8]) -> (Connection, DuplexStream) {
        let (mut connection, mut theirs) = connect(1_000).await;
        let answering = async {
            receive(&mut theirs, b"\r\n\r\n").await;
            theirs.write_all(answer).await.unwrap();
        };
        let (answered, ()) = tokio::join!(connection.send(request(vec![b'x'; 100_000])), answering);
        assert!(answered.is_ok());
        assert!(!connection.is_ready());
        (connection, theirs)
    }

    #[tokio::test]
    async fn a_request_that_is_answered_early_is_written_to_its_end() {
        for head in ["HTTP/1.1 200 OK", "HTTP/1.1 200 OK\r\nconnection: close", "HTTP/1.0 200 OK"] {
            let answer = format!("{head}\r\ncontent-length: 0\r\n\r\n");
            let (mut connection, mut theirs) = answered_early(answer.as_bytes()).await;
            let mut body = vec![0; 100_000];
            let (is_written, read) = tokio::join!(connection.finish(), theirs.read_exact(&mut body));
            assert!(is_written && read.is_ok(), "{head}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_is_closed_after_an_early_answer_is_known_to_have_cut_the_request() {
        let (mut connection, theirs) = answered_early(ANSWER).await;
        drop(theirs);
        assert!(!connection.finish().await);
        assert!(!connection.is_ready());
    }
}
