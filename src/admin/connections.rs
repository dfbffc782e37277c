//! Connections: a bounded number, each for one request and a bounded time.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::{AbortHandle, JoinSet};
use tracing::debug;

use super::DRAIN_TIME;
use super::deadline::Deadline;
use super::listener::{AsyncListener, Peer, Stream};
use super::requests::RequestHandler;
use crate::shutdown::Shutdown;

/// The most bytes of a request's first line and headers; more are answered with 431.
const HEAD_BYTES: usize = 16 * 1024;

/// The most headers of a request.
const HEADERS: usize = 64;

/// The pause after the system could not accept a connection, for example for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The limits for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Connections at a time. One more replaces the oldest one that has not sent its request yet.
    pub connections: usize,
    /// From connecting to the end of the headers.
    pub head_time: Duration,
    /// From there to the answer, the request's body included.
    pub request_time: Duration,
    /// From connecting to the last byte of the answer.
    pub connection_time: Duration,
}

impl Default for Limits {
    /// 64 connections; 5 s, 8 s and 15 s.
    fn default() -> Self {
        Self {
            connections: 64,
            head_time: Duration::from_secs(5),
            request_time: Duration::from_secs(8),
            connection_time: Duration::from_secs(15),
        }
    }
}

/// The present connections, the oldest first.
struct Clients {
    limit: usize,
    tasks: JoinSet<()>,
    present: VecDeque<Client>,
}

struct Client {
    task: AbortHandle,
    /// Whether the request has arrived and is being answered.
    asked: Arc<AtomicBool>,
}

/// Accepts connections until the stop is requested, then waits for the answers that are being given.
pub(super) async fn accept(
    listener: AsyncListener,
    handler: Arc<RequestHandler>,
    limits: Limits,
    mut stop: Shutdown,
) {
    let mut clients = Clients { limit: limits.connections, tasks: JoinSet::new(), present: VecDeque::new() };
    while let Some(accepted) = stop.run_until_requested(listener.accept()).await {
        match accepted {
            Ok((stream, peer)) => clients.admit(stream, peer, &handler, limits),
            Err(error) => {
                debug!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    clients.drain().await;
}

impl Clients {
    fn admit(&mut self, stream: Box<dyn Stream>, peer: Peer, handler: &Arc<RequestHandler>, limits: Limits) {
        while self.tasks.try_join_next().is_some() {}
        self.present.retain(|client| !client.task.is_finished());
        if self.present.len() >= self.limit && !self.evict_oldest_idle() {
            debug!(client = peer.client, "refused a connection: there are too many");
            return;
        }
        let asked = Arc::new(AtomicBool::new(false));
        let task = self.tasks.spawn(attend(stream, peer, Arc::clone(handler), limits, Arc::clone(&asked)));
        self.present.push_back(Client { task, asked });
    }

    /// Drops the oldest connection that has not sent its request, so that half-open connections cannot lock out probes.
    /// Returns `false` if there is none.
    fn evict_oldest_idle(&mut self) -> bool {
        let Some(index) = self.present.iter().position(|client| !client.asked.load(Ordering::Relaxed)) else {
            return false;
        };
        if let Some(client) = self.present.remove(index) {
            client.task.abort();
        }
        true
    }

    async fn drain(mut self) {
        for client in self.present.iter().filter(|client| !client.asked.load(Ordering::Relaxed)) {
            client.task.abort();
        }
        let _ =
            tokio::time::timeout(DRAIN_TIME, async { while self.tasks.join_next().await.is_some() {} }).await;
    }
}

/// Answers one request.
async fn attend(
    stream: Box<dyn Stream>,
    peer: Peer,
    handler: Arc<RequestHandler>,
    limits: Limits,
    asked: Arc<AtomicBool>,
) {
    let deadline = Deadline::after(limits.connection_time);
    let service = service_fn(|mut request| {
        asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(deadline.clone());
        let (handler, peer) = (Arc::clone(&handler), peer.clone());
        async move { Ok::<_, Infallible>(handler.answer(request, &peer).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_time)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        ended = connection => if let Err(error) = ended {
            debug!(client = peer.client, %error, "a connection was cut off");
        },
        () = deadline.passed() => debug!(client = peer.client, "a connection took too long"),
    }
}
