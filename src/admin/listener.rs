//! Where clients knock: a port, or a socket in the file system.

use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::config::Listen;

/// A listener that is bound, so that a taken address is an error of the start.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// The file of a Unix socket, which goes with it.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A bound listener inside a runtime.
pub(super) enum AsyncListener {
    Tcp(tokio::net::TcpListener),
    Unix(
        tokio::net::UnixListener,
        #[expect(dead_code, reason = "removes the file when it is dropped")] SocketFile,
    ),
}

/// A client's connection, of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The two ends of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ends {
    /// The address that the client has reached; `None` for a socket in the file system.
    pub(super) local: Option<IpAddr>,
    /// Who the client is, for the records.
    pub(super) client: String,
}

impl Listener {
    pub(super) fn bind(listen: &Listen) -> anyhow::Result<Self> {
        let bound = match listen {
            Listen::Tcp(address) => TcpListener::bind(address).map(Self::Tcp),
            Listen::Unix(path) => bind_unix(path),
        };
        bound.with_context(|| {
            format!("the admin endpoint cannot listen on {listen}; choose another `listen` under [admin], or end what listens there")
        })
    }

    /// How to reach it.
    pub(super) fn url(&self) -> String {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => format!("http://{address}"),
                Err(_) => "http://?".to_owned(),
            },
            Self::Unix(_, SocketFile(path)) => format!("unix:{}", path.display()),
        }
    }

    /// Hands it to the runtime that this is called in.
    pub(super) fn into_async(self) -> io::Result<AsyncListener> {
        Ok(match self {
            Self::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                AsyncListener::Tcp(tokio::net::TcpListener::from_std(listener)?)
            }
            Self::Unix(listener, file) => {
                listener.set_nonblocking(true)?;
                AsyncListener::Unix(tokio::net::UnixListener::from_std(listener)?, file)
            }
        })
    }
}

impl AsyncListener {
    pub(super) async fn accept(&self) -> io::Result<(Box<dyn Stream>, Ends)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, client) = listener.accept().await?;
                let local = stream.local_addr()?.ip().to_canonical();
                Ok((
                    Box::new(stream),
                    Ends { local: Some(local), client: client.ip().to_canonical().to_string() },
                ))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let user = stream.peer_cred().map(|credentials| credentials.uid());
                let client = user.map_or_else(|_| "?".to_owned(), |user| format!("uid {user}"));
                Ok((Box::new(stream), Ends { local: None, client }))
            }
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<Listener> {
    // A file without anybody behind it is what a killed daemon has left.
    if UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    let file = SocketFile(path.to_owned());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(Listener::Unix(listener, file))
}
