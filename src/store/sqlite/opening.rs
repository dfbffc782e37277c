//! Opening the file, and creating what is in it.

use std::path::Path;
use std::str::FromStr as _;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, SqlitePool};
use thiserror::Error;
use tokio::time::{Instant, sleep};

use super::append::texts;
use super::opened_file::OpenedFile;
use super::{answer, row};
use crate::retry::spread;

/// The version of what is in the file.
const VERSION: i64 = 1;

/// How long a statement waits for another program that is writing.
pub(super) const BUSY_MAX: Duration = Duration::from_secs(10);

/// How long to wait about, before a file is asked again that SQLite did not wait for.
const PAUSE: Duration = Duration::from_millis(10);

/// The most connections to a file: one writes, the others read.
const CONNECTIONS: u32 = 5;

/// The name of a store that is nowhere but in memory.
pub(super) const IN_MEMORY: &str = ":memory:";

/// How addresses begin that some tools take where they take a path.
const ADDRESSES: [&str; 3] = ["file:", "sqlite:", IN_MEMORY];

/// The names of what is made in a file.
const NAMES: [&str; 7] = [
    "events",
    "events_of_correlations",
    "espd_positions",
    "espd_emissions",
    "espd_emissions_by_key",
    "espd_effects",
    "espd_dead_letters",
];

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
    /// The file belongs to another program, whose tables are where those of espd have to be.
    #[error("{file}: {what}: use another file")]
    Foreign {
        /// The file.
        file: String,
        /// What of the other program is there.
        what: String,
    },
    /// What was given is no path.
    #[error(
        "{file:?} is no path of a file: give the path, with `./` before a name that begins like an address, or `:memory:`"
    )]
    NoPath {
        /// What was given.
        file: String,
    },
}

/// What to do about an error of SQLite.
fn advice(error: &sqlx::Error) -> &'static str {
    match answer::primary_code(error) {
        Some(answer::CANNOT_OPEN) => ": does the folder exist, and may you write in it?",
        Some(answer::READ_ONLY) => ": it may be read only",
        Some(answer::NO_FILE_OF_SQLITE) => ": it is no file of SQLite",
        Some(answer::DAMAGED) => ": it is damaged, restore a copy",
        Some(answer::BUSY) => ": another program is writing to it and does not end",
        _ => "",
    }
}

/// What was opened.
pub(super) struct Opened {
    pub(super) pool: SqlitePool,
    /// Keeps a store in memory, which is gone with its last connection: the pool closes one where a caller has given up waiting
    /// for it, or whose runtime has ended.
    pub(super) keeper: Option<SqliteConnection>,
    /// `None`: the store is in memory.
    pub(super) file: Option<OpenedFile>,
}

/// Opens a file, which is created if it is not there, or a store in memory.
pub(super) async fn open(path: &Path) -> Result<Opened, SqliteOpenError> {
    let name = || path.display().to_string();
    let is_in_memory = path == Path::new(IN_MEMORY);
    if !is_in_memory && !is_path(path) {
        return Err(SqliteOpenError::NoPath { file: name() });
    }
    let unusable = |source| SqliteOpenError::Unusable { file: name(), source };
    let options = options(path, is_in_memory).map_err(unusable)?;
    let mut first = options.clone().create_if_missing(!is_in_memory).connect().await.map_err(unusable)?;
    // A file of somebody else stays as it is: nothing is set in it before this.
    look(&mut first).await.map_err(unusable)?.require_ours(path)?;
    let (pool, keeper, file) = if is_in_memory {
        (in_memory().connect_with(options).await.map_err(unusable)?, Some(first), None)
    } else {
        let file = OpenedFile::find(path).map_err(|error| unusable(error.into()))?;
        first.close().await.map_err(unusable)?;
        let pool = connect(options.filename(file.path())).await.map_err(unusable)?;
        (pool, None, Some(file))
    };
    let mut connection = pool.acquire().await.map_err(unusable)?;
    prepare(&mut connection).await.map_err(unusable)?.require_ours(path)?;
    Ok(Opened { pool, keeper, file })
}

/// Whether SQLite takes the text for the path of a file. It opens a file of its own for each connection where there is no path, and
/// what it likes for an address.
fn is_path(path: &Path) -> bool {
    let text = path.as_os_str().as_encoded_bytes();
    !text.is_empty() && !ADDRESSES.iter().any(|beginning| text.starts_with(beginning.as_bytes()))
}

/// How a connection is made to what is there: a file that was deleted meanwhile is not replaced by an empty one.
fn options(path: &Path, is_in_memory: bool) -> Result<SqliteConnectOptions, sqlx::Error> {
    let options = if is_in_memory {
        SqliteConnectOptions::from_str("sqlite::memory:")?
    } else {
        SqliteConnectOptions::new().filename(path)
    };
    // An event that is stored survives a failure of power.
    Ok(options.busy_timeout(BUSY_MAX).synchronous(SqliteSynchronous::Full))
}

/// Connects to a file in such a way that readers do not wait for the writer.
async fn connect(options: SqliteConnectOptions) -> Result<SqlitePool, sqlx::Error> {
    let options = options.journal_mode(SqliteJournalMode::Wal);
    let deadline = Instant::now() + BUSY_MAX;
    loop {
        let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS);
        match pool.connect_with(options.clone()).await {
            // Where two change the mode of a new file at the same moment, SQLite refuses one of them at once: each reads already, and
            // would wait for the other.
            Err(error) if is_busy(&error) && Instant::now() < deadline => sleep(spread(PAUSE)).await,
            connected => return connected,
        }
    }
}

fn is_busy(error: &sqlx::Error) -> bool {
    answer::primary_code(error) == Some(answer::BUSY)
}

/// One connection: those to the same memory do not wait for one another as those to a file do.
fn in_memory() -> SqlitePoolOptions {
    let one = SqlitePoolOptions::new().max_connections(1).min_connections(1);
    one.idle_timeout(None).max_lifetime(None)
}

/// What there is in a file.
enum Found {
    /// Nothing that is in the way of the tables.
    Room,
    /// The tables of this version.
    Ours,
    /// The tables of a version that this program does not know.
    Unknown(i64),
    /// Something of somebody else, where espd's has to be: what.
    Foreign(String),
}

impl Found {
    fn require_ours(self, path: &Path) -> Result<(), SqliteOpenError> {
        let file = path.display().to_string();
        match self {
            Self::Room | Self::Ours => Ok(()),
            Self::Unknown(version) => Err(SqliteOpenError::Unknown { file, version }),
            Self::Foreign(what) => Err(SqliteOpenError::Foreign { file, what }),
        }
    }
}

/// Looks without changing anything.
async fn look(connection: &mut SqliteConnection) -> Result<Found, sqlx::Error> {
    // Another process may create the tables between two statements.
    let mut transaction = connection.begin().await?;
    let found = find(&mut transaction).await?;
    transaction.rollback().await?;
    Ok(found)
}

/// Creates the tables if there is room.
async fn prepare(connection: &mut SqliteConnection) -> Result<Found, sqlx::Error> {
    // Another process may create the tables at the same moment.
    let mut transaction = connection.begin_with("begin immediate").await?;
    let found = find(&mut transaction).await?;
    if let Found::Room = found {
        sqlx::raw_sql(include_str!("schema.sql")).execute(&mut *transaction).await?;
        transaction.commit().await?;
    }
    Ok(found)
}

async fn find(connection: &mut SqliteConnection) -> Result<Found, sqlx::Error> {
    let version: i64 =
        sqlx::query_scalar("-- read_version\npragma user_version").fetch_one(&mut *connection).await?;
    match version {
        0 => Ok(find_in_the_way(connection).await?.map_or(Found::Room, Found::Foreign)),
        VERSION if has_events(connection).await? => Ok(Found::Ours),
        VERSION => {
            let what =
                "another program has given it the user_version 1, and it has no table `events` of espd";
            Ok(Found::Foreign(what.to_owned()))
        }
        version => Ok(Found::Unknown(version)),
    }
}

/// What has a name that a table or an index of espd has to have. Names are the same in capitals.
async fn find_in_the_way(connection: &mut SqliteConnection) -> Result<Option<String>, sqlx::Error> {
    let statement = "-- find_taken_names
        select format('it has %s %s `%s` already, which is not espd''s', iif(type = 'index', 'an', 'a'), type, name)
        from sqlite_schema where lower(name) in (select value from json_each(?)) order by lower(name) <> 'events', name limit 1";
    let names = NAMES.map(str::to_owned);
    sqlx::query_scalar(statement).bind(texts(&names)).fetch_optional(connection).await
}

/// Whether the table `events` has the columns of espd's.
async fn has_events(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    let statement = "-- find_columns
        select count(*) from pragma_table_info('events') where name in (select value from json_each(?))";
    let columns: Vec<String> = row::columns!().split(", ").map(str::to_owned).collect();
    let there: i64 = sqlx::query_scalar(statement).bind(texts(&columns)).fetch_one(connection).await?;
    Ok(usize::try_from(there) == Ok(columns.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_names_that_have_to_be_free_are_those_that_are_made() {
        let opened = open(Path::new(IN_MEMORY)).await.unwrap();
        let statement = "select name from sqlite_schema where name not like 'sqlite_%' order by name";
        let made: Vec<String> = sqlx::query_scalar(statement).fetch_all(&opened.pool).await.unwrap();
        let mut names = NAMES.to_vec();
        names.sort_unstable();
        assert_eq!(made, names);
    }
}
