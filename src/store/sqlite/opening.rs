//! Opening the file, and creating what is in it.

use std::path::Path;
use std::str::FromStr as _;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{SqliteConnection, SqlitePool};
use thiserror::Error;

/// The version of what is in the file.
const VERSION: i64 = 1;

/// How long a statement waits for another program that is writing.
pub(super) const BUSY_MAX: Duration = Duration::from_secs(10);

/// The most connections to a file: one writes, the others read.
const CONNECTIONS: u32 = 5;

/// The name of a store that is nowhere but in memory.
pub(super) const IN_MEMORY: &str = ":memory:";

/// Why a file could not be opened as an event store.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SqliteOpenError {
    /// The file cannot be opened, read or written.
    #[error("{file}: it cannot be opened as an event store{}", advice(source))]
    Unusable {
        /// The file.
        file: String,
        /// What SQLite says.
        source: sqlx::Error,
    },
    /// The file is of a later version of espd, or another program has given it a number of its own.
    #[error(
        "{file}: its user_version is {version}, and this espd knows up to {VERSION}: open it with the espd that has made it, or \
         use another file"
    )]
    Unknown {
        /// The file.
        file: String,
        /// The number that it has.
        version: i64,
    },
    /// The file has a table `events` that is not one of espd.
    #[error("{file}: it has a table `events` already, which is not espd's: use another file")]
    Foreign {
        /// The file.
        file: String,
    },
}

/// What to do about an error of SQLite.
fn advice(error: &sqlx::Error) -> &'static str {
    let code = error.as_database_error().and_then(|answer| answer.code());
    match code.as_deref() {
        Some("14") => ": does the folder exist, and may you write in it?",
        Some("8" | "1032") => ": it may be read only",
        Some("26") => ": it is no file of SQLite",
        Some("5" | "261" | "517") => ": another program is writing to it and does not end",
        _ => "",
    }
}

/// Opens a file, which is created if it is not there, or a store in memory.
pub(super) async fn open(path: &Path) -> Result<SqlitePool, SqliteOpenError> {
    let file = || path.display().to_string();
    let unusable = |source| SqliteOpenError::Unusable { file: file(), source };
    let pool = connect(path).await.map_err(unusable)?;
    let mut connection = pool.acquire().await.map_err(unusable)?;
    let found = prepare(&mut connection).await.map_err(unusable)?;
    match found {
        Found::Ours => Ok(pool),
        Found::Unknown(version) => Err(SqliteOpenError::Unknown { file: file(), version }),
        Found::Foreign => Err(SqliteOpenError::Foreign { file: file() }),
    }
}

async fn connect(path: &Path) -> Result<SqlitePool, sqlx::Error> {
    let is_in_memory = path == Path::new(IN_MEMORY);
    let options = if is_in_memory {
        SqliteConnectOptions::from_str("sqlite::memory:")?
    } else {
        SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            // Readers do not wait for the writer.
            .journal_mode(SqliteJournalMode::Wal)
    };
    // An event that is stored survives a failure of power.
    let options = options.busy_timeout(BUSY_MAX).synchronous(SqliteSynchronous::Full);
    let pool = if is_in_memory {
        // What is in memory is gone with its connection.
        let one = SqlitePoolOptions::new().max_connections(1).min_connections(1);
        one.idle_timeout(None).max_lifetime(None)
    } else {
        SqlitePoolOptions::new().max_connections(CONNECTIONS)
    };
    pool.connect_with(options).await
}

/// What there is in a file.
enum Found {
    /// The tables of this version, perhaps created just now.
    Ours,
    /// The tables of a version that this program does not know.
    Unknown(i64),
    /// A table of somebody else, where espd's has to be.
    Foreign,
}

async fn prepare(connection: &mut SqliteConnection) -> Result<Found, sqlx::Error> {
    use sqlx::Connection as _;
    // Another process may create the tables at the same moment.
    let mut transaction = connection.begin_with("begin immediate").await?;
    let version: i64 =
        sqlx::query_scalar("-- read_version\npragma user_version").fetch_one(&mut *transaction).await?;
    if version != 0 {
        return Ok(if version == VERSION { Found::Ours } else { Found::Unknown(version) });
    }
    let find = "-- find_events\nselect count(*) from sqlite_schema where name = 'events'";
    let there: i64 = sqlx::query_scalar(find).fetch_one(&mut *transaction).await?;
    if there > 0 {
        return Ok(Found::Foreign);
    }
    sqlx::raw_sql(include_str!("schema.sql")).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(Found::Ours)
}
