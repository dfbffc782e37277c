//! Transactions that nobody knows of.
//!
//! The `begin` of sqlx 0.9, given up before the server has answered, leaves a connection within a transaction, and the pool gives it to
//! others. What they append there seems to be done, and is lost. So an append says whether its statement was not the first one of
//! its transaction.

use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, Postgres};

use crate::event::Appended;
use crate::store::{AppendError, Kept};

/// An expression that is true where a statement is not the first one of its transaction. Behind a pooler that prepares statements it may be true of
/// others as well.
pub(super) const MAY_BE_WITHIN: &str = "now() < statement_timestamp()";

const IN_FAILED_TRANSACTION: &str = "25P02";

/// What a statement has stored.
pub(super) struct Stored {
    pub(super) appended: Vec<Appended>,
    /// Whether it was not the first one of its transaction, most likely.
    pub(super) may_be_within: bool,
}

impl Stored {
    /// What is stored for good; `None`: the connection is within a transaction that was begun before.
    pub(super) async fn for_good(
        self,
        connection: &mut PgConnection,
    ) -> Result<Option<Vec<Appended>>, AppendError> {
        // What a statement of its own has stored is committed, and the next one has no id of a transaction yet.
        let is_within = self.may_be_within
            && sqlx::query_scalar("-- find_transaction\nselect pg_current_xact_id_if_assigned() is not null")
                .persistent(false)
                .fetch_one(connection)
                .await?;
        Ok((!is_within).then_some(self.appended))
    }
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
        "a connection of the pool was within a transaction that nobody knows of, as one is after the future of `pool.begin()` was \
         dropped: it is closed, and the events are appended on another one"
    );
}

/// The error of an append that has met nothing else.
pub(super) fn error() -> AppendError {
    AppendError::Database(sqlx::Error::Protocol(
        "each connection of the pool was within a transaction that nobody knows of; nothing was appended"
            .to_owned(),
    ))
}
