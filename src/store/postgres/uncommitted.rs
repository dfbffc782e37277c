//! Events that were appended in a transaction of the caller.

use std::collections::BTreeSet;
use std::ops::Deref;

use sqlx::{PgConnection, Postgres, Transaction};

use super::PostgresEventStore;
use crate::event::Appended;

/// Events that were appended in the caller's own transaction, which only the caller can commit: where they are stored, once it
/// is. It is a slice of [`Appended`].
///
/// Say what has become of the transaction, by [`Self::commit`], [`Self::committed`] or [`Self::rolled_back`]: then those who
/// follow the store are notified, and what [`PostgresEventStore::on_appended`] names is called. A value that is dropped without
/// that, where there is such a closure, writes a warning to the log.
#[derive(Debug)]
pub struct Uncommitted {
    store: PostgresEventStore,
    appended: Vec<Appended>,
    /// Whether somebody still has to say what has become of the transaction.
    open: bool,
}

impl Uncommitted {
    pub(super) fn new(store: &PostgresEventStore, appended: Vec<Appended>) -> Self {
        Self { store: store.clone(), appended, open: true }
    }

    /// Commits the transaction, notifies those who follow the store, and calls what `on_appended` names. Where events were
    /// appended several times in one transaction, join the values with [`Self::and`] before.
    ///
    /// # Errors
    /// The commit has failed, or its outcome is not known. Nothing is committed where the events are not in the transaction: an error
    /// of one of its statements was passed over, so that it can only be rolled back, or it was rolled back to a savepoint before them.
    pub async fn commit(
        mut self,
        mut transaction: Transaction<'_, Postgres>,
    ) -> Result<Vec<Appended>, sqlx::Error> {
        // If it fails, nothing more is to be said.
        self.open = false;
        // The server answers the commit of a transaction that can only be rolled back without an error.
        self.require_in(&mut transaction).await?;
        transaction.commit().await?;
        Ok(self.committed().await)
    }

    /// A serializable transaction is only asked whether it goes on: what it reads would conflict with what others append.
    ///
    /// # Errors
    /// Not all of the events would be there after a commit.
    async fn require_in(&self, transaction: &mut PgConnection) -> Result<(), sqlx::Error> {
        // What was appended twice is there once.
        let ids: BTreeSet<i64> = self.appended.iter().map(|appended| appended.id.get()).collect();
        // Planned each time: a plan of a small table would read all of it when it is large.
        let counting = sqlx::query_scalar(self.store.statements.count_events.clone()).persistent(false);
        let there: i64 = counting.bind(Vec::from_iter(ids.iter().copied())).fetch_one(transaction).await?;
        if usize::try_from(there) == Ok(ids.len()) {
            return Ok(());
        }
        let message = "the appended events are not in this transaction: it was rolled back to a savepoint before them, or they were \
                       appended in another one. Nothing of it is committed";
        Err(sqlx::Error::InvalidArgument(message.to_owned()))
    }

    /// To be called when the transaction is committed: notifies those who follow the store, and calls what `on_appended` names.
    pub async fn committed(mut self) -> Vec<Appended> {
        self.open = false;
        let appended = std::mem::take(&mut self.appended);
        if !appended.is_empty() {
            self.store.notify();
            self.store.tell_appended(&appended).await;
        }
        appended
    }

    /// To be called when the transaction is rolled back, or not to be spoken of: nothing follows.
    pub fn rolled_back(mut self) {
        self.open = false;
    }

    /// Joins what was appended before and after in the same transaction.
    #[must_use]
    pub fn and(mut self, mut later: Self) -> Self {
        later.open = false;
        self.appended.append(&mut later.appended);
        self
    }
}

impl Deref for Uncommitted {
    type Target = [Appended];

    fn deref(&self) -> &[Appended] {
        &self.appended
    }
}

impl PartialEq<Uncommitted> for Vec<Appended> {
    fn eq(&self, other: &Uncommitted) -> bool {
        *self == other.appended
    }
}

impl Drop for Uncommitted {
    fn drop(&mut self) {
        if self.open && !self.appended.is_empty() && self.store.on_appended.is_set() {
            tracing::warn!(
                events = self.appended.len(),
                first = self.appended[0].id.get(),
                "on_appended is not called: nobody has said what became of the transaction that these events were appended in"
            );
        }
    }
}
