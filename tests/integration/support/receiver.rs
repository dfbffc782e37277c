//! A real receiver of HTTP requests on loopback, which answers as a script says, badly where that is wanted.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::facts::eventually;

/// A request, as it came.
#[derive(Debug, Clone)]
pub struct Received {
    pub method: String,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub at: Instant,
    /// How many requests with the same key came before.
    pub earlier: usize,
}

impl Received {
    /// A header that has to be there, once.
    pub fn header(&self, name: &str) -> &str {
        let values: Vec<_> = self.headers.get_all(name).iter().collect();
        let [value] = values.as_slice() else { panic!("{name}: {values:?}") };
        value.to_str().unwrap()
    }

    pub fn key(&self) -> &str {
        self.header("webhook-id")
    }

    /// `n` of the event's body.
    pub fn n(&self) -> i64 {
        serde_json::from_slice::<Value>(&self.body).unwrap()["n"].as_i64().unwrap()
    }

    pub fn aggregate(&self) -> &str {
        self.header("ce-subject")
    }
}

/// What it does with a request.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Answers with this status.
    Status(u16),
    /// Answers with headers and a body.
    Full(u16, Vec<(&'static str, String)>, String),
    /// As another reply, after this time.
    After(Duration, Box<Reply>),
    /// Says nothing for ever.
    Silence,
    /// Ends the connection without an answer.
    Reset,
    /// Begins a good answer and continues byte by byte, for ever.
    Trickle,
    /// Begins a good answer and ends the connection in it.
    BreakOff,
}

impl Reply {
    /// A good answer with JSON in it.
    pub fn json(value: &Value) -> Self {
        Self::Full(200, vec![("content-type", "application/json".into())], value.to_string())
    }
}

type Script = dyn Fn(&Received) -> Reply + Send + Sync;

#[derive(Default)]
struct Notes {
    received: Vec<Received>,
    answered: usize,
}

/// A receiver, which ends with this value.
pub struct Receiver {
    pub address: SocketAddr,
    notes: Arc<Mutex<Notes>>,
    connections: Arc<AtomicUsize>,
    /// Requests that are being handled now, and the most that ever were.
    busy: Arc<(AtomicUsize, AtomicUsize)>,
    task: JoinHandle<()>,
}

impl Receiver {
    pub async fn start(script: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen("127.0.0.1:0".parse().unwrap(), None, script).await
    }

    /// With TLS.
    pub async fn start_secured(
        acceptor: TlsAcceptor,
        script: impl Fn(&Received) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen("127.0.0.1:0".parse().unwrap(), Some(acceptor), script).await
    }

    pub async fn listen(
        address: SocketAddr,
        acceptor: Option<TlsAcceptor>,
        script: impl Fn(&Received) -> Reply + Send + Sync + 'static,
    ) -> Self {
        // A process that another test has just forked may have the socket that was there before for a moment.
        let listener = eventually("a free address", async || TcpListener::bind(address).await.ok()).await;
        let address = listener.local_addr().unwrap();
        let (notes, connections) = (Arc::default(), Arc::default());
        let busy = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
        let responder =
            Responder { script: Arc::new(script), notes: Arc::clone(&notes), busy: Arc::clone(&busy) };
        let task = tokio::spawn(accept(listener, acceptor, responder, Arc::clone(&connections)));
        Self { address, notes, connections, busy, task }
    }

    /// The URL of a path on it.
    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    pub fn received(&self) -> Vec<Received> {
        self.notes.lock().unwrap().received.clone()
    }

    /// Connections that were ever made.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The most requests that were handled at the same time.
    pub fn most_busy(&self) -> usize {
        self.busy.1.load(Ordering::Relaxed)
    }

    /// Waits until this many requests have come, and returns all that have.
    pub async fn receives(&self, count: usize) -> Vec<Received> {
        let what = format!("{count} requests");
        eventually(&what, async || Some(self.received()).filter(|received| received.len() >= count)).await
    }

    /// The `n`s of what came, in order.
    pub fn numbers(&self) -> Vec<i64> {
        self.received().iter().map(Received::n).collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Responder {
    script: Arc<Script>,
    notes: Arc<Mutex<Notes>>,
    busy: Arc<(AtomicUsize, AtomicUsize)>,
}

async fn accept(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    responder: Responder,
    connections: Arc<AtomicUsize>,
) {
    // Those that are open end with this task.
    let mut open = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.fetch_add(1, Ordering::Relaxed);
        let (acceptor, responder) = (acceptor.clone(), responder.clone());
        open.spawn(async move {
            match acceptor {
                None => serve(stream, responder).await,
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, responder).await;
                    }
                }
            }
        });
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, responder: Responder) {
    let service = service_fn(move |request| responder.clone().answer(request));
    // An end without an answer is an error here, and meant.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

type Body = BoxBody<Bytes, io::Error>;

/// A request is busy until its answer is given or given up.
struct Busy(Arc<(AtomicUsize, AtomicUsize)>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Responder {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
        let busy = self.busy.0.fetch_add(1, Ordering::Relaxed) + 1;
        self.busy.1.fetch_max(busy, Ordering::Relaxed);
        let _busy = Busy(Arc::clone(&self.busy));
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let received = self.note(Received {
            method: head.method.to_string(),
            path: head.uri.to_string(),
            headers: head.headers,
            body,
            at: Instant::now(),
            earlier: 0,
        });
        let mut reply = (self.script)(&received);
        while let Reply::After(time, then) = reply {
            tokio::time::sleep(time).await;
            reply = *then;
        }
        let response = give(reply).await;
        self.notes.lock().unwrap().answered += 1;
        response
    }

    fn note(&self, mut received: Received) -> Received {
        let mut notes = self.notes.lock().unwrap();
        let key = received.headers.get("webhook-id");
        received.earlier =
            notes.received.iter().filter(|other| other.headers.get("webhook-id") == key).count();
        notes.received.push(received.clone());
        received
    }
}

async fn give(reply: Reply) -> Result<Response<Body>, io::Error> {
    let full =
        |text: String| Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {}).boxed();
    let response = match reply {
        Reply::Status(status) => Response::builder().status(status).body(full(String::new())),
        Reply::Full(status, headers, body) => {
            let builder = Response::builder().status(status);
            headers
                .iter()
                .fold(builder, |builder, (name, value)| builder.header(*name, value))
                .body(full(body))
        }
        Reply::Silence => std::future::pending().await,
        Reply::Reset => return Err(io::ErrorKind::ConnectionReset.into()),
        Reply::Trickle => Response::builder().header("content-length", 1_000_000).body(bytes(None)),
        Reply::BreakOff => Response::builder().header("content-length", 1_000_000).body(bytes(Some(3))),
        Reply::After(..) => unreachable!("it is over"),
    };
    Ok(response.unwrap())
}

/// A body that comes byte by byte, and ends badly after so many.
fn bytes(count: Option<usize>) -> Body {
    let stream = futures_util::stream::unfold(0, move |sent| async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        match count {
            Some(count) if sent > count => None,
            Some(count) if sent == count => Some((Err(io::ErrorKind::ConnectionReset.into()), sent + 1)),
            _ => Some((Ok(Frame::data(Bytes::from_static(b" "))), sent + 1)),
        }
    });
    StreamBody::new(stream).boxed()
}
