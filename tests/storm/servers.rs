//! The PostgreSQL servers: real, durable, and crashed on purpose.

use std::fs;
use std::mem;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use chrono::{DateTime, Utc};
use espd::embedded::{EmbeddedPostgres, Options, StopMode};
use fastrand::Rng;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, PgConnection};
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// The database that everything happens in.
const DATABASE: &str = "storm";

/// The driver's own sessions, which no fault touches.
const DRIVER: &str = "storm driver";

/// How often and how fast it is looked whether a session has ended.
const PROOF_TRIES: u32 = 400;
const PROOF_PAUSE: Duration = Duration::from_millis(5);

/// A server that may crash at any time.
pub struct Server {
    life: Life,
    folder: PathBuf,
    url: String,
}

enum Life {
    Up(Box<EmbeddedPostgres>),
    /// Crashed, as the process with this id, and on the way back.
    Crashed(u32, JoinHandle<espd::embedded::Result<EmbeddedPostgres>>),
    Gone,
}

/// Some of the writers prepare transactions.
fn options() -> Options {
    let settings = vec![("max_prepared_transactions".to_owned(), "10".to_owned())];
    Options { settings, ..Options::default() }
}

impl Server {
    /// Starts a server in `folder`, which is created.
    pub async fn start(folder: &Path) -> anyhow::Result<Self> {
        let postgres = EmbeddedPostgres::start_at(folder, options()).await?;
        postgres.create_database(DATABASE, None).await?;
        let url = postgres.url(DATABASE);
        Ok(Self { life: Life::Up(Box::new(postgres)), folder: folder.to_owned(), url })
    }

    /// The URL of the database, in all lives of the server.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A session of the driver.
    pub async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        connect_driver(&self.url).await
    }

    /// Stops the server at once, as a crash would, and lets it start again. `false`: it is down already.
    pub fn crash(&mut self) -> bool {
        let (life, crashed) = match mem::replace(&mut self.life, Life::Gone) {
            Life::Up(postgres) => {
                let pid = postgres.pid();
                (Life::Crashed(pid, tokio::spawn(postgres.restart(StopMode::Immediate))), true)
            }
            other => (other, false),
        };
        self.life = life;
        crashed
    }

    /// Returns whether it has come back from a crash just now; waits for that if need be and wanted.
    ///
    /// # Errors
    /// When it does not come back, or as the same process.
    pub async fn come_back(&mut self, wait: bool) -> anyhow::Result<bool> {
        let Life::Crashed(before, restart) = &mut self.life else { return Ok(false) };
        if !wait && !restart.is_finished() {
            return Ok(false);
        }
        let postgres = restart.await.context("the restart has failed")??;
        ensure!(postgres.pid() != *before, "the server was not restarted");
        self.life = Life::Up(Box::new(postgres));
        Ok(true)
    }

    /// Ends a random session of a daemon or an appender. Returns whether there was one and it has ended.
    pub async fn terminate_backend(&self, rng: &mut Rng) -> Result<bool, sqlx::Error> {
        let mut connection = self.connect().await?;
        let statement = "-- list_backends
             select pid, backend_start from pg_stat_activity
             where backend_type = 'client backend' and application_name <> $1 and pid <> pg_backend_pid()
             order by pid";
        let backends: Vec<(i32, DateTime<Utc>)> =
            sqlx::query_as(statement).bind(DRIVER).fetch_all(&mut connection).await?;
        let Some((pid, start)) = rng.choice(backends) else { return Ok(false) };
        let statement = "-- terminate_backend\nselect pg_terminate_backend($1)";
        sqlx::query_scalar::<_, bool>(statement).bind(pid).fetch_one(&mut connection).await?;
        let statement = "-- find_backend
             select exists (select from pg_stat_activity where pid = $1 and backend_start = $2)";
        for _ in 0..PROOF_TRIES {
            let lives: bool =
                sqlx::query_scalar(statement).bind(pid).bind(start).fetch_one(&mut connection).await?;
            if !lives {
                return Ok(true);
            }
            sleep(PROOF_PAUSE).await;
        }
        Ok(false)
    }

    /// The sessions that espd still has.
    pub async fn sessions_of_espd(&self) -> Result<Vec<String>, sqlx::Error> {
        let statement = "-- list_sessions
             select application_name from pg_stat_activity where application_name like 'espd%' order by 1";
        sqlx::query_scalar(statement).fetch_all(&mut self.connect().await?).await
    }

    /// Copies the data to another folder while the server is down, and starts it again.
    pub async fn copy_data(&mut self, to: &Path) -> anyhow::Result<()> {
        self.stop().await;
        copy(&self.folder.join("data"), to)?;
        self.start_again().await
    }

    /// Puts a copy of the data in the place of the data. `promote`: as a standby that becomes the primary.
    pub async fn replace_data(&mut self, with: &Path, promote: bool) -> anyhow::Result<()> {
        self.stop().await;
        let data = self.folder.join("data");
        fs::remove_dir_all(&data)?;
        fs::rename(with, &data)?;
        if promote {
            // A copy of another file, so that it belongs to the account that the server runs under.
            let signal = data.join("standby.signal");
            copy(&data.join("PG_VERSION"), &signal)?;
            fs::write(signal, "")?;
        }
        self.start_again().await?;
        if promote {
            let promoted: bool = sqlx::query_scalar("-- promote\nselect pg_promote()")
                .fetch_one(&mut self.connect().await?)
                .await?;
            ensure!(promoted, "the standby was not promoted");
        }
        Ok(())
    }

    async fn start_again(&mut self) -> anyhow::Result<()> {
        self.life = Life::Up(Box::new(EmbeddedPostgres::start_at(&self.folder, options()).await?));
        Ok(())
    }

    /// Stops the server.
    pub async fn stop(&mut self) {
        if let Life::Up(postgres) = mem::replace(&mut self.life, Life::Gone) {
            postgres.stop().await;
        }
    }
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let copied = std::process::Command::new("cp").arg("-a").args([from, to]).status()?;
    ensure!(copied.success(), "could not copy {}", from.display());
    Ok(())
}

/// A session of the driver on the database at `url`.
pub async fn connect_driver(url: &str) -> Result<PgConnection, sqlx::Error> {
    url.parse::<PgConnectOptions>()?.application_name(DRIVER).connect().await
}
