//! The connection of a runner, and how long the database may take to answer.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::postgres::connector::Connector;
use crate::postgres::deadline;
use crate::postgres::notify::{CONTROL, notify};
use crate::processing::heartbeat;
use crate::processing::runner::{ReleaseChannel, RunnerContext};

/// How long the database may take to answer a statement on a tracker row. After that the runner gives the connection up,
/// because the server may have vanished without a word.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a notification through another server may take. Without it, standbys look by themselves soon.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(2);

/// What is set on a session that keeps it. A batch has a time limit of its own, and a shorter one of the server would never let it
/// end; and a row that a policy hides is an error, as in [`SEE_ALL_ROWS`](crate::postgres::server_mark::SEE_ALL_ROWS).
pub(super) const PREPARE_SESSION: &str = "set statement_timeout = 0; set row_security = off";

/// Connects to the database of the projections.
/// Returns whether the session keeps what is set in it as well.
pub(super) async fn connect(
    context: &RunnerContext,
    name: &str,
) -> Result<(PgConnection, bool), sqlx::Error> {
    let connected = in_time(context.database.named(&format!("espd: {name}")).connect()).await?;
    let mut connection = connected.connection;
    // Behind a transaction pooler the statement would change the session of somebody else.
    let keeps_settings = context.direct.is_none() && connected.pooler.is_none();
    if keeps_settings {
        let statement = format!("-- prepare_session\n{PREPARE_SESSION}");
        in_time(sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection)).await?;
    }
    Ok((connection, keeps_settings))
}

/// How long a transaction may last before the server ends the session; `None`: as long as it takes. PostgreSQL has had the
/// setting since version 17.
pub(super) async fn transaction_timeout(
    connection: &mut PgConnection,
) -> Result<Option<Duration>, sqlx::Error> {
    let statement = "-- read_transaction_timeout
        select setting::bigint as milliseconds from pg_settings where name = 'transaction_timeout'";
    let row = in_time(sqlx::raw_sql(statement).fetch_optional(connection)).await?;
    let milliseconds: Option<i64> = row.map(|row| row.try_get("milliseconds")).transpose()?;
    Ok(milliseconds.filter(|time| *time > 0).map(|time| Duration::from_millis(time.unsigned_abs())))
}

/// Tells standbys that a tracker is free, if their channel is in another database than the tracker.
pub(super) async fn notify_elsewhere(release: &ReleaseChannel) {
    let Some(database) = &release.elsewhere else { return };
    let notified = tokio::time::timeout(NOTIFY_TIMEOUT, notify_on(database, &release.channel)).await;
    if !matches!(notified, Ok(Ok(()))) {
        tracing::debug!(channel = release.channel, "could not notify");
    }
}

async fn notify_on(database: &Connector, channel: &str) -> Result<(), sqlx::Error> {
    let mut connection = database.connect().await?.connection;
    notify(&mut connection, channel, CONTROL).await?;
    sqlx::Connection::close(connection).await
}

/// The answer, or an error if it does not come within [`ANSWER_TIMEOUT`].
pub(super) async fn in_time<T>(
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    heartbeat::expect_within(ANSWER_TIMEOUT);
    deadline::in_time(ANSWER_TIMEOUT, answer).await
}
