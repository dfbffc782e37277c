//! A private PostgreSQL server, started from the binaries that the machine has.
//!
//! The daemon uses it when no server is configured; the demo and the tests always do. The server listens on a Unix socket
//! in a folder of mode 0700 and nowhere else, so there is no port to collide on and no password to keep. Started
//! as root, it runs as `postgres` or, failing that, as `nobody`. It ends with its [`EmbeddedPostgres`], or with
//! the process that holds it, however that dies.
//!
//! ```no_run
//! # async fn example() -> Result<(), espd::embedded::Error> {
//! use espd::embedded::{EmbeddedPostgres, Options};
//!
//! let server = EmbeddedPostgres::start_at(".espd".as_ref(), Options::default()).await?;
//! server.create_database("orders", None).await?;
//! println!("psql '{}'", server.url("orders"));
//! server.stop().await;
//! # Ok(())
//! # }
//! ```

mod account;
mod binaries;
mod error;
mod folder;
mod process;

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::postgres::quote::quote_identifier;

pub use binaries::{BINARIES_VARIABLE, Binaries, NotFound, find_binaries};
pub use error::{Error, Result};
pub use process::StopMode;

use folder::Folder;
use process::{Janitor, Process};

/// The only role of an embedded server, a superuser.
const ROLE: &str = "espd";

/// The port, which names the socket's file. It is given explicitly everywhere, because `PGPORT` in the environment would
/// change the default.
const PORT: u16 = 5432;

/// What a URL has to encode: everything but the unreserved characters of RFC 3986.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How an embedded server is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether committed data survives a crash of the machine (`fsync`). It always survives one of the server.
    /// Default: yes.
    pub durable: bool,
    /// Connections that the server takes at the same time. Default: 100.
    pub max_connections: u16,
    /// Further server settings, name and value, as in `postgresql.conf`; they win over espd's own.
    pub settings: Vec<(String, String)>,
    /// How long the server may take until it answers, recovery after a crash included, and
    /// before that, how long a server that lost its owner may take to leave the folder. Default: 60 s.
    pub start_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            durable: true,
            max_connections: 100,
            settings: Vec::new(),
            start_timeout: Duration::from_secs(60),
        }
    }
}

/// A running server. Dropping it stops it, which blocks for the tenth of a second that takes; where that
/// matters, and to be sure that it happened, use [`stop`](Self::stop).
#[derive(Debug)]
pub struct EmbeddedPostgres {
    // In the order in which they have to be dropped: first the server, last the files.
    process: Process,
    janitor: Janitor,
    folder: Folder,
    binaries: Binaries,
    options: Options,
}

fn url_of(socket: &Path, database: &str) -> String {
    let database = percent_encode(database.as_bytes(), UNRESERVED);
    let socket = percent_encode(socket.as_os_str().as_bytes(), UNRESERVED);
    format!("postgres://{ROLE}@localhost:{PORT}/{database}?host={socket}")
}

impl EmbeddedPostgres {
    /// Starts a server on an empty temporary folder, which is removed when the server stops.
    ///
    /// # Errors
    /// When there are no binaries or the server does not start; the message has the end of its log.
    pub async fn start_temporary(options: Options) -> Result<Self> {
        blocking(|| Self::launch(find_binaries()?, Folder::temporary()?, options)).await?.ready().await
    }

    /// Starts a server on `folder` with the data that is there; on the first start there is none and the folder
    /// is created.
    ///
    /// # Errors
    /// As [`start_temporary`](Self::start_temporary), and [`Error::Locked`] when another espd uses the folder.
    pub async fn start_at(folder: &Path, options: Options) -> Result<Self> {
        let folder = folder.to_owned();
        let launch = move || {
            let folder = Folder::persistent(&folder, options.start_timeout)?;
            Self::launch(find_binaries()?, folder, options)
        };
        blocking(launch).await?.ready().await
    }

    /// The URL of `database`, for sqlx and for `psql` alike.
    pub fn url(&self, database: &str) -> String {
        url_of(self.folder.socket(), database)
    }

    /// The URL of `database` on the server that runs on `folder`, whoever has started it; `None`: none runs there.
    pub fn url_of_running(folder: &Path, database: &str) -> Option<String> {
        folder::running_socket(folder).map(|socket| url_of(&socket, database))
    }

    /// The process id of the server.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The folder with the server's data and its log, `server.log`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Creates the database `name`, empty or as a copy of `template`. No session may be connected to the template.
    ///
    /// # Errors
    /// [`Error::Sql`], with SQLSTATE 42P04 when the database exists.
    pub async fn create_database(&self, name: &str, template: Option<&str>) -> Result<()> {
        let template = template.unwrap_or("template0");
        let mut connection = PgConnection::connect(&self.url("postgres")).await?;
        let statement = format!(
            "-- create_database\ncreate database {} template {}",
            quote_identifier(name),
            quote_identifier(template)
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await?;
        Ok(connection.close().await?)
    }

    /// Stops the server and starts it again on the same data, under the same URL.
    ///
    /// # Errors
    /// When it does not start; the server is gone then.
    pub async fn restart(self, mode: StopMode) -> Result<Self> {
        let relaunch = move || {
            let mut server = self;
            server.process.stop(mode)?;
            server.process = start_server(&server.binaries, &server.folder, &server.options)?;
            server.janitor.watch(&server.process)?;
            Ok(server)
        };
        blocking(relaunch).await?.ready().await
    }

    /// Stops the server, and removes a temporary folder. Open transactions are rolled back.
    pub async fn stop(self) {
        // A panic would come from a bug in `drop`, and is on standard error already.
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }

    fn launch(binaries: Binaries, folder: Folder, options: Options) -> Result<Self> {
        let mut janitor = Janitor::start(folder.temporary_path())?;
        if !folder.data().exists() {
            create_data(&binaries, &folder)?;
        }
        let process = start_server(&binaries, &folder, &options)?;
        janitor.watch(&process)?;
        Ok(Self { process, janitor, folder, binaries, options })
    }

    /// Returns when the server answers.
    async fn ready(mut self) -> Result<Self> {
        let deadline = Instant::now() + self.options.start_timeout;
        let url = self.url("postgres");
        loop {
            let refusal = match PgConnection::connect(&url).await {
                Ok(connection) => {
                    connection.close().await?;
                    return Ok(self);
                }
                Err(refusal) => refusal,
            };
            if let Some(status) = self.process.exit_status()? {
                return Err(Error::Ended { status, log: self.folder.log_tail() });
            }
            if Instant::now() > deadline {
                let after = self.options.start_timeout;
                return Err(Error::Silent { after, log: self.folder.log_tail(), source: refusal });
            }
            tokio::time::sleep(process::POLL).await;
        }
    }
}

impl Drop for EmbeddedPostgres {
    fn drop(&mut self) {
        if let Err(error) = self.process.stop(StopMode::Fast) {
            tracing::warn!(%error, pid = self.pid(), "cannot stop embedded PostgreSQL");
        }
    }
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::from)?
}

fn create_data(binaries: &Binaries, folder: &Folder) -> Result<()> {
    let unfinished = folder.unfinished_data();
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    let program = binaries.initdb();
    let mut command = Command::new(&program);
    command
        .args(["-A", "trust", "-N", "-E", "UTF8", "--no-locale", "-U", ROLE, "-D"])
        .arg(&unfinished)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    folder.account.apply(&mut command);
    let output = command.output().map_err(|source| Error::Program { program, source })?;
    if !output.status.success() {
        return Err(Error::Initdb { output: String::from_utf8_lossy(&output.stderr).trim_end().to_owned() });
    }
    Ok(fs::rename(unfinished, folder.data())?)
}

fn start_server(binaries: &Binaries, folder: &Folder, options: &Options) -> Result<Process> {
    let program = binaries.postgres();
    let log = folder.new_log()?;
    let mut command = Command::new(&program);
    command
        .arg("-D")
        .arg(folder.data())
        .arg("-k")
        .arg(folder.socket())
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    for (name, value) in settings(options) {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    folder.account.apply(&mut command);
    Process::spawn(command).map_err(|source| Error::Program { program, source })
}

/// The server's settings; of two with the same name the later one counts.
fn settings(options: &Options) -> Vec<(String, String)> {
    let onoff = if options.durable { "on" } else { "off" };
    let own = [
        ("listen_addresses", String::new()),
        ("port", PORT.to_string()),
        ("max_connections", options.max_connections.to_string()),
        ("fsync", onoff.to_owned()),
        // Without fsync, half-written pages cannot be repaired anyway.
        ("full_page_writes", onoff.to_owned()),
    ];
    let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
    own.chain(options.settings.iter().cloned()).collect()
}
