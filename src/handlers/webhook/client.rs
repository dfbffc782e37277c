//! The HTTP client: which addresses it connects to, how much of an answer it reads, and how long it waits.
//!
//! The client follows no redirects, uses no proxies and keeps no cookies; it always verifies certificates. `Dialer` resolves
//! a name and connects to an address that it has checked itself. Only this file and `request` name hyper's client and
//! rustls.

use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, Uri};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::Error as HttpError;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, lookup_host};
use tower_service::Service;

use super::address::is_public;
use super::answer::Answer;
use crate::postgres::error::chain;
use crate::processing::declaration::{InvalidReceiver, WebhookDeclaration};

/// The largest body of an answer, in bytes.
const BODY_MAX: usize = 64 << 10;

/// The largest head of an answer, in bytes, and the most headers in it.
const HEAD_MAX: usize = 32 << 10;
const HEADERS_MAX: usize = 100;

/// How long a connection is kept for the next request. Many servers close theirs after five seconds.
const IDLE_TIME: Duration = Duration::from_secs(4);

type BoxError = Box<dyn Error + Send + Sync>;

/// Sends requests to one receiver.
#[derive(Debug)]
pub(crate) struct Client {
    http: HttpClient<ConnectTimeout<HttpsConnector<Dialer>>, Full<Bytes>>,
    timeout: Duration,
}

/// Why a request got no answer.
#[derive(Debug)]
pub(crate) enum RequestError {
    /// The receiver could not be reached, so it has not seen the request.
    Unreachable(String),
    /// The exchange ended early. The receiver may have seen the request.
    Interrupted(String),
}

impl Client {
    /// Makes a client that has no connections yet.
    ///
    /// # Errors
    /// The certificates to trust cannot be read.
    pub(crate) fn new(declaration: &WebhookDeclaration) -> Result<Self, InvalidReceiver> {
        let dialer = Dialer { allow_private: declaration.allow_private };
        let is_secure = declaration.url.expose().scheme() == "https";
        let tls = tls(declaration.ca_file.as_deref(), is_secure)?;
        let secured = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        let connector =
            ConnectTimeout { inner: secured.wrap_connector(dialer), time: declaration.connect_timeout };
        let http = HttpClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIME)
            .pool_max_idle_per_host(declaration.concurrency)
            .http1_max_buf_size(HEAD_MAX)
            .http1_max_headers(HEADERS_MAX)
            .build(connector);
        Ok(Self { http, timeout: declaration.timeout })
    }

    /// Sends a request and receives the complete answer.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer, RequestError> {
        let answer = async {
            let response = self.http.request(request).await.map_err(|error| RequestError::of(&error))?;
            receive(response).await
        };
        let too_late =
            || RequestError::Interrupted(format!("the receiver has not answered within {:?}", self.timeout));
        tokio::time::timeout(self.timeout, answer).await.unwrap_or_else(|_| Err(too_late()))
    }
}

async fn receive(response: Response<Incoming>) -> Result<Answer, RequestError> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, BODY_MAX).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            let limit = BODY_MAX >> 10;
            RequestError::Interrupted(format!(
                "the receiver answered {} with more than {limit} KiB",
                head.status
            ))
        } else {
            RequestError::Interrupted(format!("the answer broke off: {}", chain(error.as_ref())))
        }
    })?;
    Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
}

impl RequestError {
    fn of(error: &HttpError) -> Self {
        let why = error.source().map_or_else(|| error.to_string(), chain);
        if error.is_connect() {
            Self::Unreachable(format!("the receiver cannot be reached: {why}"))
        } else {
            Self::Interrupted(format!("the exchange with the receiver broke off: {why}"))
        }
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

/// Limits the time for a connection, TLS handshake included.
#[derive(Debug, Clone)]
struct ConnectTimeout<C> {
    inner: C,
    time: Duration,
}

impl<C> Service<Uri> for ConnectTimeout<C>
where
    C: Service<Uri, Error = BoxError>,
    C::Future: Send + 'static,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Connecting<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, time) = (self.inner.call(uri), self.time);
        Box::pin(async move {
            let connected = tokio::time::timeout(time, connecting).await;
            connected.unwrap_or_else(|_| Err(format!("no connection within {time:?}").into()))
        })
    }
}
