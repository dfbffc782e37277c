//! The listening socket: TCP or Unix.

use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::config::Listen;

/// A bound listener. It is bound before the daemon starts anything, so that a taken address is an error of the start.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// The file of a Unix socket, which is removed with the value.
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

/// The client of a connection, and the address that it has reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    /// The local address of the connection; `None` for a socket in the file system.
    pub(super) local: Option<IpAddr>,
    /// Who the client is, for the log and the table `operator_log`: an IP address, or `uid 1000`.
    pub(super) client: String,
}

impl Listener {
    pub(super) fn bind(listen: &Listen) -> anyhow::Result<Self> {
        let bound = match listen {
            Listen::Tcp(address) => TcpListener::bind(address).map(Self::Tcp),
            Listen::Unix(path) => bind_unix(path),
        };
        bound.map_err(|error| {
            let remedy = match error.kind() {
                io::ErrorKind::AddrInUse => ", or stop the program that listens there",
                io::ErrorKind::NotFound => ", or make the folder",
                _ => "",
            };
            let text = format!(
                "the admin endpoint cannot listen on {listen}; choose another `listen` under [admin]{remedy}"
            );
            anyhow::Error::new(error).context(text)
        })
    }

    /// The URL of the endpoint.
    pub(super) fn url(&self) -> String {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => format!("http://{address}"),
                Err(_) => "http://?".to_owned(),
            },
            Self::Unix(_, SocketFile(path)) => format!("unix:{}", path.display()),
        }
    }

    /// Hands the listener to the current runtime.
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
    pub(super) async fn accept(&self) -> io::Result<(Box<dyn Stream>, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, client) = listener.accept().await?;
                let local = stream.local_addr()?.ip().to_canonical();
                Ok((
                    Box::new(stream),
                    Peer { local: Some(local), client: client.ip().to_canonical().to_string() },
                ))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let user = stream.peer_cred().map(|credentials| credentials.uid());
                let client = user.map_or_else(|_| "?".to_owned(), |user| format!("uid {user}"));
                Ok((Box::new(stream), Peer { local: None, client }))
            }
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<Listener> {
    let found = std::fs::symlink_metadata(path);
    if found.as_ref().is_ok_and(|found| !found.file_type().is_socket()) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket is there"));
    }
    // A socket to which no one listens was left by a daemon that was killed.
    if UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    let file = SocketFile(path.to_owned());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(Listener::Unix(listener, file))
}
