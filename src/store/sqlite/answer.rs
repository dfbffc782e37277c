//! What SQLite answers, what to do about it, and whether it helps to ask again.

use std::path::Path;

use sqlx::sqlite::SqliteError;
use thiserror::Error;

/// The codes of answers that may be others a moment later. What is refused by another code is refused again.
const PASSING: [i32; 8] = [BUSY, LOCKED, NO_MEMORY, INTERRUPTED, IO, FULL, CANNOT_OPEN, SCHEMA];

pub(super) const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const NO_MEMORY: i32 = 7;
pub(super) const READ_ONLY: i32 = 8;
const INTERRUPTED: i32 = 9;
const IO: i32 = 10;
pub(super) const DAMAGED: i32 = 11;
const FULL: i32 = 13;
pub(super) const CANNOT_OPEN: i32 = 14;
const SCHEMA: i32 = 17;
pub(super) const NO_FILE_OF_SQLITE: i32 = 26;

/// What to do where the file is not under its name any more.
const GONE: &str = "it is gone: bring it back, and open the store again";

/// An error that is about the file and not about the statement.
#[derive(Debug, Error)]
#[error("{file}: {advice} ({answer})")]
struct OfFile {
    file: String,
    advice: &'static str,
    is_final: bool,
    answer: String,
}

/// The file is not under its name any more; `answer`: what is there.
pub(super) fn gone(file: &str, answer: &str) -> sqlx::Error {
    let (file, answer) = (file.to_owned(), answer.to_owned());
    sqlx::Error::Io(std::io::Error::other(OfFile { file, advice: GONE, is_final: true, answer }))
}

/// Names the file, and what to do, in an error that is about the file and not about the statement.
pub(super) fn explain(file: &str, answer: sqlx::Error) -> sqlx::Error {
    let code = primary_code(&answer);
    let is_gone = code == Some(CANNOT_OPEN) && !Path::new(file).exists();
    let advice = match code {
        Some(BUSY) => {
            "another transaction, of this program or another, has been writing for too long: end it, and try again"
        }
        Some(READ_ONLY) => "it may be read only: look at its rights, and those of its folder",
        Some(FULL) => "the disk is full",
        Some(DAMAGED | NO_FILE_OF_SQLITE) => "the file is damaged: restore a copy",
        Some(CANNOT_OPEN) if is_gone => GONE,
        _ => return answer,
    };
    let is_final = is_gone || is_final(&answer);
    let (file, answer) = (file.to_owned(), answer.to_string());
    sqlx::Error::Io(std::io::Error::other(OfFile { file, advice, is_final, answer }))
}

/// Whether SQLite would give the same answer again.
pub(in crate::store) fn is_final(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => {
            let of_file = error.get_ref().and_then(|inner| inner.downcast_ref::<OfFile>());
            of_file.is_some_and(|of_file| of_file.is_final)
        }
        other => primary_code(other).is_some_and(|code| !PASSING.contains(&code)),
    }
}

/// The code of an answer without what SQLite adds to some of them; `None`: SQLite has not answered.
pub(super) fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let answer = error.as_database_error()?;
    answer.try_downcast_ref::<SqliteError>()?;
    Some(answer.code()?.parse::<i32>().ok()? & 0xff)
}

#[cfg(test)]
mod tests {
    use sqlx::sqlite::SqliteConnectOptions;
    use sqlx::{AssertSqlSafe, ConnectOptions as _, SqliteConnection};

    use super::*;

    async fn refusal(connection: &mut SqliteConnection, statement: &str) -> sqlx::Error {
        let statement = AssertSqlSafe(statement.to_owned());
        explain("a.db", sqlx::raw_sql(statement).execute(connection).await.unwrap_err())
    }

    #[tokio::test]
    async fn what_is_refused_for_ever_is_told_from_what_may_pass() {
        let file = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
        let options = SqliteConnectOptions::new().filename(&file);
        let options = options.create_if_missing(true).busy_timeout(std::time::Duration::ZERO);
        let (mut one, mut other) = (options.connect().await.unwrap(), options.connect().await.unwrap());
        let made = "create table t (a integer primary key); insert into t values (1)";
        sqlx::raw_sql(made).execute(&mut one).await.unwrap();

        for statement in ["select * from nothing", "insert into t values (1)"] {
            assert!(is_final(&refusal(&mut one, statement).await), "{statement}");
        }
        sqlx::raw_sql("pragma query_only = true").execute(&mut one).await.unwrap();
        let read_only = refusal(&mut one, "insert into t values (2)").await;
        assert!(is_final(&read_only) && read_only.to_string().contains("a.db: it may be read only"));

        sqlx::raw_sql("pragma query_only = false; begin immediate").execute(&mut one).await.unwrap();
        let busy = refusal(&mut other, "insert into t values (2)").await;
        assert!(!is_final(&busy) && busy.to_string().contains("another transaction"));
        std::fs::remove_file(file).unwrap();
    }
}
