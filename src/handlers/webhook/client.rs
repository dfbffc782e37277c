//! The HTTP client: which addresses it connects to, how much of an answer it reads, and how long it waits.
//!
//! The client follows no redirects, uses no proxies and keeps no cookies; it always verifies certificates. `Dialer` resolves
//! a name and connects to an address that it has checked itself. Only this file, `connection` and `request` name hyper's
//! client and rustls.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, lookup_host};
use tower_service::Service;

use super::address::is_public;
use super::answer::Answer;
use super::connection::{Closed, Connection, IdleConnections, Unanswered};
use crate::postgres::error::chain;
use crate::processing::declaration::{InvalidReceiver, WebhookDeclaration};

/// The largest body of an answer, in bytes.
const BODY_MAX: usize = 64 << 10;

/// Sends requests to one receiver.
pub(crate) struct Client {
    connector: HttpsConnector<Dialer>,
    connections: Arc<IdleConnections>,
    receiver: Receiver,
    connect_timeout: Duration,
    timeout: Duration,
    /// For how long a connection is watched before a request; `None`: not at all. Set once one was closed on which nothing had been sent,
    /// until something is answered.
    watched_for: Mutex<Option<Duration>>,
}

/// Whether a request may begin now. Asked again when there is a connection: to get one takes long, and the process may be frozen meanwhile.
pub(crate) type MayBegin<'b> = &'b (dyn Fn() -> bool + Send + Sync);

/// Where requests go.
#[derive(Debug)]
struct Receiver {
    /// What to connect to.
    uri: Uri,
    /// The part of it that is the target of a request, and the one that is its `host`.
    target: Uri,
    host: HeaderValue,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("receiver", &self.receiver).finish_non_exhaustive()
    }
}

/// How soon a request is made again whose connection has turned out to be closed.
const AGAIN_WITHIN: Duration = Duration::from_secs(1);

/// How much longer a connection is watched than the one was there that has broken.
const WATCHED_LONGER: Duration = Duration::from_millis(500);

/// Why a request got no answer.
#[derive(Debug)]
pub(crate) enum RequestError {
    /// The receiver could not be reached, so it has not seen the request.
    Unreachable(String),
    /// The exchange ended early. The receiver may have seen the request.
    Interrupted(String),
    /// When there was a connection, the request was not to begin any more.
    NotBegun,
}

/// Why there is no answer, or how a connection broke that was new: the receiver may have seen the request, or have been away already.
enum Unfinished {
    Final(RequestError),
    Broken {
        error: hyper::Error,
        /// How long after it was there.
        after: Duration,
    },
}

impl From<RequestError> for Unfinished {
    fn from(error: RequestError) -> Self {
        Self::Final(error)
    }
}

impl Client {
    /// Makes a client that has no connections yet. The URI is that of the declaration, without credentials.
    ///
    /// # Errors
    /// The certificates to trust cannot be read, or the URI names no host.
    pub(crate) fn new(declaration: &WebhookDeclaration, uri: &Uri) -> Result<Self, InvalidReceiver> {
        let dialer = Dialer { allow_private: declaration.allow_private };
        let is_secure = declaration.url.expose().scheme() == "https";
        let tls = tls(declaration.ca_file.as_deref(), is_secure)?;
        let secured = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        Ok(Self {
            connector: secured.wrap_connector(dialer),
            connections: Arc::default(),
            receiver: Receiver::at(uri)?,
            connect_timeout: declaration.connect_timeout,
            timeout: declaration.timeout,
            watched_for: Mutex::default(),
        })
    }

    /// Sends a request, which may have to be made more than once, and receives the complete answer.
    pub(crate) async fn send(
        &self,
        make: impl Fn() -> Request<Full<Bytes>>,
        may_begin: MayBegin<'_>,
    ) -> Result<Answer, RequestError> {
        let too_late = || {
            let what = "or not read the request to its end";
            RequestError::Interrupted(format!(
                "the receiver has not answered within {:?}, {what}",
                self.timeout
            ))
        };
        match tokio::time::timeout(self.timeout, self.exchange(make, may_begin)).await {
            Ok(Ok(answer)) => {
                self.watch_for(None);
                Ok(answer)
            }
            Ok(Err(Unfinished::Final(error))) => Err(error),
            Ok(Err(Unfinished::Broken { error, after })) => Err(self.judge(&error, after).await),
            Err(_) => Err(too_late()),
        }
    }

    /// Sends a request over a connection that is there, or over a new one. What turns out late to be lost is not sent again here: the
    /// process may have been frozen meanwhile, and somebody else have sent later events.
    async fn exchange(
        &self,
        make: impl Fn() -> Request<Full<Bytes>>,
        may_begin: MayBegin<'_>,
    ) -> Result<Answer, Unfinished> {
        let begun = Instant::now();
        // Receivers close connections that are not used. Then nothing was sent, and another one is tried.
        while let Some(connection) = self.connections.take() {
            if !may_begin() {
                return Err(RequestError::NotBegun.into());
            }
            let answered = self.exchange_over(connection, make()).await;
            let is_late = begun.elapsed() > AGAIN_WITHIN;
            match answered {
                Err(Unanswered::Unsent(error)) if is_late => {
                    return Err(RequestError::unreachable(&chain(&error)).into());
                }
                Err(Unanswered::Unsent(_)) => {}
                Err(Unanswered::Broken(error)) if is_late => return Err(RequestError::of(&error).into()),
                // Closed as it was used again, most likely: it is sent once more, under the same key.
                Err(Unanswered::Broken(_)) => break,
                Err(Unanswered::Interrupted(error)) => return Err(RequestError::of(&error).into()),
                Ok(answer) => return Ok(answer?),
            }
        }
        let watched_for = *self.watched_for.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = match watched_for {
            Some(time) => self.connect_and_watch(time).await?.map_err(|closed| closed.into_error())?,
            None => self.connect().await?,
        };
        if !may_begin() {
            return Err(RequestError::NotBegun.into());
        }
        let begun = Instant::now();
        match self.exchange_over(connection, make()).await {
            Err(Unanswered::Unsent(error)) => Err(RequestError::unreachable(&chain(&error)).into()),
            // The receiver was there just before.
            Err(Unanswered::Broken(error)) if watched_for.is_some() => Err(RequestError::of(&error).into()),
            Err(Unanswered::Broken(error)) => Err(Unfinished::Broken { error, after: begun.elapsed() }),
            Err(Unanswered::Interrupted(error)) => Err(RequestError::of(&error).into()),
            Ok(answer) => Ok(answer?),
        }
    }

    /// Decides what it means that a new connection has broken without an answer. What is in front of a receiver that is away (a proxy, a
    /// tunnel, a balancer) accepts connections and closes them, and a receiver that refuses us by TLS 1.3 does so after the handshake. It
    /// does the same to a connection on which nothing is sent. A receiver that fails at the event does not.
    ///
    /// If it has gone down over the event, it does so only once without an attempt that counts: from then on, a connection is watched
    /// before the event is sent on it.
    async fn judge(&self, error: &hyper::Error, after: Duration) -> RequestError {
        let failure = RequestError::of(error);
        // It was there for longer than connecting may take.
        if after >= self.connect_timeout {
            return failure;
        }
        let time = (after + WATCHED_LONGER).min(self.connect_timeout).min(self.timeout / 4);
        let away = match self.connect_and_watch(time).await {
            Ok(Ok(_)) => return failure,
            Ok(Err(closed)) => closed.into_error(),
            // One that is reset may be so while it is made.
            Err(unreachable) => unreachable,
        };
        self.watch_for(Some(time));
        away
    }

    fn watch_for(&self, time: Option<Duration>) {
        *self.watched_for.lock().unwrap_or_else(PoisonError::into_inner) = time;
    }

    /// Connects, and returns the connection if it stays open for a time without anything being sent.
    async fn connect_and_watch(&self, time: Duration) -> Result<Result<Connection, Closed>, RequestError> {
        let mut connection = self.connect().await?;
        Ok(connection.stay_open(time).await.map(|()| connection))
    }

    /// If this is given up, the connection is closed.
    async fn exchange_over(
        &self,
        mut connection: Connection,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Result<Answer, RequestError>, Unanswered> {
        *request.uri_mut() = self.receiver.target.clone();
        request.headers_mut().insert(HOST, self.receiver.host.clone());
        let response = connection.send(request).await?;
        let answer = connection.receive(receive(response)).await;
        let Ok(answer) = answer else { return Ok(answer) };
        // A refusal may come early. Nothing is accepted before it was sent.
        let is_refusal = answer.status.is_client_error() || answer.status.is_server_error();
        if !is_refusal && !connection.finish().await {
            let message = format!("the receiver answered {} and has not read the request", answer.status);
            return Ok(Err(RequestError::Interrupted(message)));
        }
        self.connections.keep(connection);
        Ok(Ok(answer))
    }

    /// Connects to the receiver, TLS handshake included.
    async fn connect(&self) -> Result<Connection, RequestError> {
        let connecting = self.connector.clone().call(self.receiver.uri.clone());
        let unreachable = RequestError::unreachable;
        match tokio::time::timeout(self.connect_timeout, connecting).await {
            Err(_) => Err(unreachable(&format!("no connection within {:?}", self.connect_timeout))),
            Ok(Err(error)) => Err(unreachable(&explain(&chain(error.as_ref())))),
            Ok(Ok(stream)) => {
                Connection::over(TokioIo::new(stream)).await.map_err(|error| unreachable(&chain(&error)))
            }
        }
    }
}

impl Receiver {
    fn at(uri: &Uri) -> Result<Self, InvalidReceiver> {
        let unusable = || InvalidReceiver("the URL of the receiver cannot be sent".into());
        let host = uri.host().ok_or_else(unusable)?;
        let host = uri.port().map_or(host.to_owned(), |port| format!("{host}:{port}"));
        let target = uri.path_and_query().cloned().ok_or_else(unusable)?;
        Ok(Self {
            uri: uri.clone(),
            target: target.into(),
            host: HeaderValue::try_from(host).map_err(|_| unusable())?,
        })
    }
}

/// Adds what an error of TLS means where its own words do not tell.
fn explain(error: &str) -> String {
    let meaning = [
        ("InvalidContentType", "this port does not speak TLS: is the URL one of http://?"),
        (
            "CaUsedAsEndEntity",
            "the certificate is an authority's own (self-signed): have an authority sign one, and name it as `ca_file`",
        ),
    ];
    let meaning = meaning.iter().find(|(word, _)| error.contains(word));
    meaning.map_or_else(|| error.to_owned(), |(_, meaning)| format!("{error}: {meaning}"))
}

async fn receive(response: Response<Incoming>) -> Result<Answer, RequestError> {
    let (head, body) = response.into_parts();
    let body = if body.is_end_stream() { Bytes::new() } else { read(head.status, body).await? };
    Ok(Answer { status: head.status, headers: head.headers, body })
}

async fn read(status: StatusCode, body: Incoming) -> Result<Bytes, RequestError> {
    let body = Limited::new(body, BODY_MAX).collect().await.map_err(|error| {
        RequestError::Interrupted(if error.is::<LengthLimitError>() {
            format!("the receiver answered {status} with more than {} KiB", BODY_MAX >> 10)
        } else {
            format!("the answer broke off: {}", chain(error.as_ref()))
        })
    })?;
    Ok(body.to_bytes())
}

impl Closed {
    fn into_error(self) -> RequestError {
        let Self(why) = self;
        let why = why.map_or(String::new(), |error| format!(": {}", chain(&error)));
        RequestError::unreachable(&format!("connections are closed before a request{why}"))
    }
}

impl RequestError {
    fn unreachable(why: &str) -> Self {
        Self::Unreachable(format!("the receiver cannot be reached: {why}"))
    }

    fn of(error: &hyper::Error) -> Self {
        Self::Interrupted(format!("the exchange with the receiver broke off: {}", chain(error)))
    }
}

/// Trusts the authorities of the system, or those in `ca_file`. Without TLS none are read.
fn tls(ca_file: Option<&Path>, is_secure: bool) -> Result<ClientConfig, InvalidReceiver> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = versions.map_err(|error| InvalidReceiver(format!("TLS cannot be used: {error}")))?;
    let builder = match ca_file {
        Some(file) => builder.with_root_certificates(read_authorities(file)?),
        None if !is_secure => builder.with_root_certificates(RootCertStore::empty()),
        None => builder.with_native_roots().map_err(|error| {
            InvalidReceiver(format!(
                "the certificates of the system cannot be read: {error}; name others with `ca_file`"
            ))
        })?,
    };
    Ok(builder.with_no_client_auth())
}

/// Reads the certificates of a PEM file.
pub(crate) fn read_authorities(file: &Path) -> Result<RootCertStore, InvalidReceiver> {
    let refuse = |why: String| InvalidReceiver(format!("{} cannot be used: {why}", file.display()));
    let certificates = CertificateDer::pem_file_iter(file).map_err(|error| refuse(error.to_string()))?;
    let mut store = RootCertStore::empty();
    for certificate in certificates {
        let certificate = certificate.map_err(|error| refuse(error.to_string()))?;
        store.add(certificate).map_err(|error| refuse(error.to_string()))?;
    }
    if store.is_empty() { Err(refuse("there is no certificate in it".into())) } else { Ok(store) }
}

/// Connects to a host, at an address that is allowed.
#[derive(Debug, Clone)]
struct Dialer {
    allow_private: bool,
}

impl Dialer {
    async fn dial(self, uri: Uri) -> io::Result<TokioIo<TcpStream>> {
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
        let found: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
        let (allowed, refused): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|address| self.allow_private || is_public(address.ip()));
        match refused.first() {
            Some(refused) if allowed.is_empty() => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "{} is not an address on the public internet: `allow_private = true` allows it",
                    refused.ip()
                ),
            )),
            _ => {
                let stream = TcpStream::connect(allowed.as_slice()).await?;
                stream.set_nodelay(true)?;
                Ok(TokioIo::new(stream))
            }
        }
    }
}

type Connecting<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl Service<Uri> for Dialer {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Connecting<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().dial(uri))
    }
}
