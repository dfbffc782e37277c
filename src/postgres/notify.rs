//! Sends notifications, which tell the listeners of a channel to look again.
//!
//! A notification carries no truth: listeners look from time to time anyway, so a lost one costs latency only.

use sqlx::{AssertSqlSafe, PgExecutor};

use super::quote::quote_literal;

/// Payload that says that events may have been appended.
pub(crate) const EVENTS: &str = "";

/// Payload that says that a tracker was changed, and that runners have to read theirs again.
pub(crate) const CONTROL: &str = "control";

/// Notifies `channel` in a statement of its own.
///
/// Nothing is prepared, so the statement works behind any pooler. Its commit does not wait for the disk: a notification
/// need not survive a crash, and the lock under which PostgreSQL commits it must be free again soon.
pub(crate) async fn notify(
    connection: impl PgExecutor<'_>,
    channel: &str,
    payload: &str,
) -> Result<(), sqlx::Error> {
    let statement = format!(
        "-- notify_channel\nselect set_config('synchronous_commit', 'off', true), {}",
        notify_call(channel, payload)
    );
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
}

/// The call that notifies `channel`, as an expression for a larger statement, with whose commit it goes out.
pub(crate) fn notify_call(channel: &str, payload: &str) -> String {
    format!("pg_notify({}, {})", quote_literal(channel), quote_literal(payload))
}
