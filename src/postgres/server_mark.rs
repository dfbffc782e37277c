//! How one session proves that it is on the same server, and in the same database, as another.
//!
//! A session that stays where it is takes an advisory lock under a random key: the mark. Whoever can take that lock as well
//! is somewhere else. Nothing is written, no right is needed, and neither a copy of the database nor a standby has the
//! mark, because locks are in the memory of one running server.

use sqlx::{AssertSqlSafe, PgConnection, PgExecutor};
use uuid::Uuid;

/// SQLSTATE of the error that tells a session that it is somewhere else. Its class is that of lost connections.
pub(crate) const ELSEWHERE: &str = "08ES1";

/// What every transaction of espd begins with where its session may be one of a pooler, which keeps no settings: a row
/// that a policy hides is an error, and never looks like a row that is not there.
pub(crate) const SEE_ALL_ROWS: &str = "set local row_security = off;";

/// What a transaction begins with that sees what others commit before it has its locks, whatever the role or the database has by default.
pub(crate) const READ_COMMITTED: &str = "begin isolation level read committed; set local row_security = off;";

/// The same for a transaction that has begun and done nothing yet.
const READ_COMMITTED_NOW: &str = "set transaction isolation level read committed;";

/// An advisory lock that one session holds for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerMark(i64);

impl ServerMark {
    /// A mark that no session holds.
    pub(crate) fn nowhere() -> Self {
        let (high, low) = Uuid::new_v4().as_u64_pair();
        Self((high ^ low).cast_signed())
    }

    /// Takes the lock for this session, under a key that nobody has used before.
    pub(crate) async fn set(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let mark = Self::nowhere();
        let statement = format!("-- set_server_mark\nselect pg_advisory_lock({})", mark.0);
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await?;
        Ok(mark)
    }

    /// Gives the lock up, in the session that has taken it.
    pub(crate) async fn remove(self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let statement = format!("-- remove_server_mark\nselect pg_advisory_unlock({})", self.0);
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
    }

    /// A statement that fails, with [`ELSEWHERE`], in a session of another server or database. It says something about the
    /// transaction that it runs in only: a pooler may give the next one to another server.
    pub(crate) fn requirement(self) -> String {
        format!(
            "do $espd$ begin
               if pg_try_advisory_xact_lock_shared({}) then
                 raise exception using errcode = '{ELSEWHERE}', message =
                   '`url` leads to another database than `direct_url`, or the session there has just ended';
               end if;
             end $espd$;",
            self.0
        )
    }

    /// Fails if the session is in another database than the mark.
    pub(crate) async fn require(self, connection: impl PgExecutor<'_>) -> Result<(), sqlx::Error> {
        let statement = format!("-- require_server\n{}", self.requirement());
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
    }
}

/// What a transaction begins with, so that it sees every row, and runs where it belongs.
pub(crate) fn prelude(mark: Option<ServerMark>) -> String {
    match mark {
        // A pooler keeps no settings of a session.
        Some(mark) => format!("{READ_COMMITTED_NOW} {SEE_ALL_ROWS} {}", mark.requirement()),
        None => SEE_ALL_ROWS.to_owned(),
    }
}

/// As [`prelude`], with the `begin` of the transaction.
pub(crate) fn begin(mark: Option<ServerMark>) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!("begin isolation level read committed; {}", prelude(mark)))
}

/// Whether a session says with this error that it is somewhere else than the mark.
pub(crate) fn is_elsewhere(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(answer) if answer.code().is_some_and(|code| code == ELSEWHERE))
}
