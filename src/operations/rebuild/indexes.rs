//! Plain indexes of a version that is built from the beginning are made once its rows are there.

use sqlx::Connection as _;

use super::{Beside, OperatorError, Phase, Rebuilding, failed};
use crate::handlers::sql::explain_folding;
use crate::postgres::server_mark;
use crate::postgres::sqlstate::{describe, is_infrastructure_error};
use crate::processing::rebuild::{defer_indexes, list_deferred_indexes, make_first_index};
use crate::retry::OnFailure;

impl Rebuilding<'_> {
    /// Drops the plain indexes of a version of which no event has been handled, where its handlers find rows by the key alone.
    ///
    /// # Errors
    /// The database does not answer.
    pub(super) async fn defer_indexes(&mut self) -> Result<(), OperatorError> {
        let is_whole = !matches!(self.beside, Beside::Part | Beside::Archived(_)) && self.part.is_none();
        if !is_whole || self.replay.position() != self.start || !self.is_folded().await? {
            return Ok(());
        }
        // Where an event is set aside that an index refuses, the index has to be there to do so.
        let sets_aside = matches!(self.declaration.retry.on_failure, OnFailure::Park | OnFailure::Skip);
        if defer_indexes(&mut self.worker, &self.building_in, sets_aside).await? > 0 {
            // What is folded is checked against the tables as they were when that was prepared.
            self.replay.prepare(&mut self.worker).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Whether each handler is folded, so that it finds rows by their key. Others may read by any index.
    pub(super) async fn is_folded(&mut self) -> Result<bool, OperatorError> {
        let databases = self.operator.databases;
        let events = (!databases.elsewhere).then_some(&databases.layout);
        let scope = databases.scope.beside(&self.building_in);
        let mut transaction = self.worker.begin_with(server_mark::begin(None)).await?;
        let refusals =
            explain_folding(&mut transaction, &self.declaration, &databases.layout, &scope, events).await?;
        transaction.rollback().await?;
        Ok(!refusals.is_empty() && refusals.iter().all(Option::is_none))
    }

    /// Makes the indexes that were dropped, in this run or in one before.
    ///
    /// # Errors
    /// An index refuses the rows, or the database does not answer. Those that are missing still are made in the next try.
    pub(super) async fn make_indexes(&mut self) -> Result<(), OperatorError> {
        let mut missing = list_deferred_indexes(&mut self.worker, &self.building_in).await?;
        if missing.is_empty() {
            return Ok(());
        }
        self.enter(Phase::Indexing).await?;
        let scope = self.operator.databases.scope.beside(&self.building_in);
        while let Some(index) = missing.first() {
            let made = make_first_index(&mut self.worker, &scope, &missing).await;
            made.map_err(|error| self.index_failed(&index.name, error))?;
            missing.remove(0);
        }
        self.replay.prepare(&mut self.worker).await.map_err(failed)
    }

    fn index_failed(&self, index: &str, error: sqlx::Error) -> OperatorError {
        if is_infrastructure_error(&error) {
            return error.into();
        }
        let (name, version) = (&self.live.name, self.declaration.version);
        OperatorError::Rebuild(format!(
            "index {index} of version {version} of {name} cannot be made of its rows: {}. Version {} serves as before; correct \
             the handlers or the index",
            describe(&error),
            self.live.version
        ))
    }
}
