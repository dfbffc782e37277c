//! How long a database may take to answer.

use std::io;
use std::time::Duration;

/// What the database answers, or an error if it does not answer within `limit`: the server may have vanished without a
/// word.
pub(crate) async fn in_time<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| Err(timed_out("the database")))
}

/// The error that `database` has not answered in time.
pub(crate) fn timed_out(database: &str) -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, format!("{database} does not answer")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_database_that_does_not_answer_is_not_waited_for() {
        let limit = Duration::from_millis(5);
        assert!(in_time(limit, async { Ok(1) }).await.is_ok_and(|answer| answer == 1));
        let late = in_time(limit, std::future::pending::<Result<(), sqlx::Error>>()).await;
        assert!(late.is_err_and(|error| error.to_string().ends_with("the database does not answer")));
    }
}
