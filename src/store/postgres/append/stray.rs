//! Transactions that nobody knows of.
//!
//! The `begin` of sqlx 0.9, given up before the server has answered, leaves a connection within a transaction, and the pool gives it to
//! others. What they do there seems to be done, and is lost if nobody commits it. Whoever began it has done nothing in it, so all that
//! is in it was meant to be committed at once. An append that finds itself in one commits it.

use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, Postgres};

use crate::event::Appended;
use crate::store::{AppendError, Kept};

/// An expression that is true where the transaction of a statement is older than it takes to plan the statement: it may have been begun
/// before. One that is younger is found by the next append on its connection.
pub(super) const MAY_BE_WITHIN: &str = "statement_timestamp() - now() > interval '1 millisecond'";

const IN_FAILED_TRANSACTION: &str = "25P02";

/// What a statement has stored.
pub(super) struct Stored {
    pub(super) appended: Vec<Appended>,
    /// What [`MAY_BE_WITHIN`] says.
    pub(super) may_be_within: bool,
}

impl Stored {
    /// What is stored, once that is committed.
    pub(super) async fn for_good(self, connection: &mut PgConnection) -> Result<Vec<Appended>, AppendError> {
        if self.may_be_within && is_within(connection).await? {
            sqlx::raw_sql("-- commit_stray\ncommit").execute(connection).await?;
            tracing::warn!(
                "a connection of the pool was within a transaction that nobody knows of, as one is after the future of the pool's \
                 `begin` was dropped: it is committed"
            );
        }
        Ok(self.appended)
    }
}

/// Whether a connection on which something was stored is still in the transaction of that.
async fn is_within(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    // What a statement of its own has stored is committed, and the next one has no id of a transaction yet.
    sqlx::query_scalar("-- find_transaction\nselect pg_current_xact_id_if_assigned() is not null")
        .persistent(false)
        .fetch_one(connection)
        .await
}

/// Whether a statement has failed because an earlier one of a transaction had.
pub(super) fn is_in_failed_transaction(error: &AppendError) -> bool {
    let AppendError::Database(sqlx::Error::Database(refusal)) = error else { return false };
    refusal.code().is_some_and(|code| code == IN_FAILED_TRANSACTION)
}

/// Closes the connection that is kept, which ends the transaction.
pub(super) fn close(kept: &mut Kept) {
    if let Some(connection) = kept.get::<PoolConnection<Postgres>>() {
        connection.close_on_drop();
    }
    kept.release();
    tracing::warn!(
        "a connection of the pool was within a failed transaction that nobody knows of, as one is after the future of the pool's \
         `begin` was dropped: it is closed, and the events are appended on another one"
    );
}
