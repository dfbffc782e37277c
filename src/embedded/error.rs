//! The errors of an embedded server.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use thiserror::Error;

use super::binaries::NotFound;

/// Why an embedded server could not be started, used or stopped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// There are no server binaries on this machine.
    #[error(transparent)]
    NotFound(#[from] NotFound),

    /// Another espd runs a server in this folder.
    #[error("another espd is using {}: stop it, or choose another folder", folder.display())]
    Locked {
        /// The folder.
        folder: PathBuf,
    },

    /// A server that espd did not start runs in this folder.
    #[error("a PostgreSQL server that espd did not start (process {pid}) is using {}: stop it first", folder.display())]
    ForeignServer {
        /// The folder.
        folder: PathBuf,
        /// The process id of that server.
        pid: u32,
    },

    /// espd runs as root, and the user that it runs the server as cannot reach the folder.
    #[error(
        "PostgreSQL refuses to run as root and runs as `{user}`, who cannot reach {} because of the permissions \
         of {}: choose another folder, run espd as an ordinary user, or `chmod o+x {}`",
        folder.display(), barrier.display(), barrier.display()
    )]
    Unreachable {
        /// The folder.
        folder: PathBuf,
        /// The folder above it that keeps the user out.
        barrier: PathBuf,
        /// The user.
        user: String,
    },

    /// The folder cannot be used.
    #[error("cannot use the folder {}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The reason.
        source: io::Error,
    },

    /// A program cannot be started.
    #[error("cannot run {}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// The reason.
        source: io::Error,
    },

    /// `initdb` failed.
    #[error("initdb failed:\n{output}")]
    Initdb {
        /// What it said.
        output: String,
    },

    /// The server ended before it answered.
    #[error("PostgreSQL ended while starting ({status}); the end of its log:\n{log}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its log.
        log: String,
    },

    /// The server did not answer in time.
    #[error("PostgreSQL did not answer within {} s; the end of its log:\n{log}", after.as_secs())]
    Silent {
        /// How long it had.
        after: Duration,
        /// The last lines of its log.
        log: String,
        /// What the last attempt to connect said.
        source: sqlx::Error,
    },

    /// The server refused a statement.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),

    /// The operating system refused something.
    #[error("embedded PostgreSQL")]
    Io(#[from] io::Error),
}

/// The result of an operation on an embedded server.
pub type Result<T> = std::result::Result<T, Error>;
