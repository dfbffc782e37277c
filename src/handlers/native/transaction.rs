//! The transaction in which handlers in Rust handle a batch.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use serde_json::value::RawValue;
use sqlx::PgConnection;
use thiserror::Error;
use uuid::Uuid;

use crate::event::{AggregateId, Appended, Event, NewEvent, Version};
use crate::handlers::batch::{Applied, BatchTransaction, EventEffects, RowTables};
use crate::processing::emission::Emitter;
use crate::processing::processor::{Events, ProcessorBase, ProcessorError};
use crate::processing::workflow::{Step, WorkflowInstance, WorkflowTables};
use crate::store::{AppendError, EventStore as _};

/// The transaction of a batch, as far as handlers and what they ask for need it.
#[async_trait]
pub(crate) trait Transaction: Send {
    /// The connection to PostgreSQL on which it is open, for the handler.
    ///
    /// # Errors
    /// It is a transaction of another store.
    fn connection(&mut self) -> Result<&mut PgConnection, NoPostgres>;

    /// Whether the handler has ended it, which it must not do.
    async fn has_ended(&mut self) -> Result<bool, sqlx::Error>;

    /// Opens a savepoint before events are handled.
    async fn savepoint(&mut self) -> Result<(), sqlx::Error>;

    /// Undoes what was done since the last savepoint.
    async fn rollback_to_savepoint(&mut self) -> Result<(), sqlx::Error>;

    /// Opens the savepoint of one event, so that what the event does can be undone.
    async fn begin_event(&mut self) -> Result<(), sqlx::Error>;

    /// Undoes what was done since [`Self::begin_event`].
    async fn undo_event(&mut self) -> Result<(), sqlx::Error>;

    /// Stores what events have led to, in order, up to the first event of which that is not accepted.
    async fn apply(&mut self, emitter: &Emitter, effects: &[EventEffects])
    -> Result<Applied, ProcessorError>;

    fn stream_aggregate(
        &mut self,
        id: AggregateId,
        upto: Version,
    ) -> BoxStream<'_, Result<Event, sqlx::Error>>;

    /// The time that decisions are told.
    fn now(&self) -> DateTime<Utc>;

    /// Reads the events with these uuids, those of this transaction included.
    async fn read_uuids(&mut self, uuids: &[Uuid]) -> Result<Vec<Event>, sqlx::Error>;

    /// Appends what a command has led to: in this transaction, or at once where the event store is elsewhere.
    async fn append(
        &mut self,
        emitter: &Emitter,
        events: Vec<NewEvent>,
    ) -> Result<Vec<Appended>, AppendError>;

    async fn load_instance(&mut self, instance: &str) -> Result<Option<WorkflowInstance>, sqlx::Error>;

    /// Keeps an instance, and forgets the steps of this event.
    async fn save_instance(&mut self, instance: WorkflowInstance, done: Uuid) -> Result<(), sqlx::Error>;

    /// Forgets an instance, and the steps of this event.
    async fn remove_instance(&mut self, instance: &str, done: Uuid) -> Result<(), sqlx::Error>;

    /// Sets the event aside, where it must not overtake a dead letter of its instance. Returns whether there is one.
    async fn set_aside_behind(&mut self, event: &Event, instance: &str) -> Result<bool, sqlx::Error>;

    /// Whether an event that had failed, and was set aside, is handled again.
    async fn retries_failed(&mut self) -> Result<bool, sqlx::Error>;

    /// Those of the events with these uuids that the position is beyond although they were not there for the event at hand, which
    /// was set aside: they never come again.
    async fn find_passed_over(&mut self, uuids: &[Uuid]) -> Result<Vec<Uuid>, sqlx::Error>;

    /// The result of a step, if it was done.
    async fn find_step(&mut self, step: Step<'_>) -> Result<Option<Box<RawValue>>, sqlx::Error>;

    /// Records the result of a step at once, whatever becomes of this transaction. Returns what is recorded.
    async fn record_step(
        &mut self,
        step: Step<'_>,
        result: Box<RawValue>,
    ) -> Result<Box<RawValue>, sqlx::Error>;
}

/// The handler wants a connection to PostgreSQL, and the processor runs on a store that has none.
#[derive(Debug, Clone, Copy, Error)]
#[error(
    "the handler wants a connection to PostgreSQL, and this store has none. Run it with `Program::start` on a PostgreSQL of \
     its own (`espd::embedded`), or have it keep its state elsewhere"
)]
pub(crate) struct NoPostgres;

impl NoPostgres {
    /// Ends the handler with this error, which it cannot return.
    pub(super) fn end_handler(self) -> ! {
        if cfg!(panic = "unwind") {
            // No message of a panic: whoever has called the handler turns this into its error.
            std::panic::resume_unwind(Box::new(self))
        }
        panic!("{self}")
    }
}

#[async_trait]
impl Transaction for BatchTransaction<'_> {
    fn connection(&mut self) -> Result<&mut PgConnection, NoPostgres> {
        Ok(self.hand_out())
    }

    async fn has_ended(&mut self) -> Result<bool, sqlx::Error> {
        BatchTransaction::has_ended(self).await
    }

    async fn savepoint(&mut self) -> Result<(), sqlx::Error> {
        BatchTransaction::savepoint(self).await
    }

    async fn rollback_to_savepoint(&mut self) -> Result<(), sqlx::Error> {
        BatchTransaction::rollback_to_savepoint(self).await
    }

    async fn begin_event(&mut self) -> Result<(), sqlx::Error> {
        BatchTransaction::begin_event(self).await
    }

    async fn undo_event(&mut self) -> Result<(), sqlx::Error> {
        BatchTransaction::undo_event(self).await
    }

    async fn apply(
        &mut self,
        emitter: &Emitter,
        effects: &[EventEffects],
    ) -> Result<Applied, ProcessorError> {
        BatchTransaction::apply(self, &RowTables::default(), emitter, effects).await
    }

    fn stream_aggregate(
        &mut self,
        id: AggregateId,
        upto: Version,
    ) -> BoxStream<'_, Result<Event, sqlx::Error>> {
        BatchTransaction::stream_aggregate(self, id, upto)
    }

    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    async fn read_uuids(&mut self, uuids: &[Uuid]) -> Result<Vec<Event>, sqlx::Error> {
        BatchTransaction::read_uuids(self, uuids).await
    }

    async fn append(
        &mut self,
        emitter: &Emitter,
        events: Vec<NewEvent>,
    ) -> Result<Vec<Appended>, AppendError> {
        if let Events::Elsewhere(store) = &self.base().events {
            return store.append(&events).await;
        }
        BatchTransaction::savepoint(self).await?;
        let appended = emitter.append(BatchTransaction::connection(self), &events).await;
        match &appended {
            Ok(_) => self.release_savepoint().await?,
            Err(_) => BatchTransaction::rollback_to_savepoint(self).await?,
        }
        appended
    }

    async fn load_instance(&mut self, instance: &str) -> Result<Option<WorkflowInstance>, sqlx::Error> {
        let tables = tables(self.base());
        tables.load(BatchTransaction::connection(self), instance).await
    }

    async fn save_instance(&mut self, instance: WorkflowInstance, done: Uuid) -> Result<(), sqlx::Error> {
        let tables = tables(self.base());
        tables.save(BatchTransaction::connection(self), &instance, done).await
    }

    async fn remove_instance(&mut self, instance: &str, done: Uuid) -> Result<(), sqlx::Error> {
        let tables = tables(self.base());
        tables.remove(BatchTransaction::connection(self), instance, done).await
    }

    async fn set_aside_behind(&mut self, event: &Event, instance: &str) -> Result<bool, sqlx::Error> {
        self.set_aside_behind_instance(event, instance).await
    }

    async fn retries_failed(&mut self) -> Result<bool, sqlx::Error> {
        self.is_of_failed_dead_letter().await
    }

    async fn find_passed_over(&mut self, uuids: &[Uuid]) -> Result<Vec<Uuid>, sqlx::Error> {
        BatchTransaction::find_passed_over(self, uuids).await
    }

    async fn find_step(&mut self, step: Step<'_>) -> Result<Option<Box<RawValue>>, sqlx::Error> {
        let tables = tables(self.base());
        tables.find_step(BatchTransaction::connection(self), step).await
    }

    async fn record_step(
        &mut self,
        step: Step<'_>,
        result: Box<RawValue>,
    ) -> Result<Box<RawValue>, sqlx::Error> {
        let base = self.base();
        match &base.step_records {
            Some(pool) => {
                let trackers = base.trackers();
                let recorded = tables(base).record_step(pool, trackers.table(), step, &result).await?;
                // Whoever has handled the event meanwhile leaves this transaction nothing to commit.
                Ok(recorded.unwrap_or(result))
            }
            // It is only handed batches by a test, which kills nobody between steps.
            None => Ok(result),
        }
    }
}

fn tables(base: &ProcessorBase) -> WorkflowTables<'_> {
    WorkflowTables::new(&base.schema, base.name())
}
