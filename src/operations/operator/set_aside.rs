//! Setting one event aside at once, whatever the policy of its processor says.

use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

use super::{Operator, OperatorError};
use crate::event::{Event, Position};
use crate::processing::dead_letters::DeadLetters;
use crate::processing::failure::{FailedEvent, Failure};
use crate::processing::tracker::{ProcessorKey, TrackerRow};
use crate::store::EventStore as _;

/// How long the batch at hand may keep an operator waiting who sets an event aside. Then it is ended, and handled again.
const PATIENCE: Duration = Duration::from_secs(5);

/// An event that an operator wants set aside.
#[derive(Debug)]
pub(crate) struct ToSetAside {
    row: TrackerRow,
    failure: Failure,
    /// The event.
    pub(crate) event: FailedEvent,
}

impl Operator<'_> {
    /// The event to set aside for a processor: `event_id`, or the event that the processor fails at; of several, the first.
    ///
    /// # Errors
    /// As for [`Self::find`]; [`OperatorError::NothingFails`] if no event is named and none fails;
    /// [`OperatorError::NoSuchEvent`].
    pub(crate) async fn find_to_set_aside(
        &self,
        name: &str,
        event_id: Option<Position>,
    ) -> Result<ToSetAside, OperatorError> {
        let row = self.find(name).await?;
        let (failure, event) = self.failure_at(&row, event_id).await?;
        Ok(ToSetAside { row, failure, event })
    }

    /// Sets an event aside. With `blocks`, later events of its aggregate wait behind it, as with `on_failure = "park"`;
    /// otherwise they go on. Returns the event.
    ///
    /// # Errors
    /// [`OperatorError::AlreadyHandled`], or the database does not answer.
    pub(crate) async fn set_aside(
        &self,
        wanted: ToSetAside,
        blocks: bool,
    ) -> Result<FailedEvent, OperatorError> {
        let ToSetAside { row, failure, event } = wanted;
        let table = DeadLetters::new(&self.trackers());
        let mut connection = self.databases.projections.acquire().await?;
        let key = row.key();
        let mut setting = pin!(table.set_aside_now(&mut connection, &key, &failure, blocks, self.name));
        let done = loop {
            match timeout(PATIENCE, &mut setting).await {
                Ok(done) => break done?,
                // Where this role may not end it, the batch is waited for.
                Err(_) => drop(self.end_batch(&key).await),
            }
        };
        if !done {
            return Err(OperatorError::AlreadyHandled { name: row.name, event_id: event.id });
        }
        self.databases.notify_runners().await;
        Ok(event)
    }

    /// Ends the batch that holds the tracker: its handler may not return before somebody sets the event aside.
    async fn end_batch(&self, key: &ProcessorKey) -> Result<bool, OperatorError> {
        let mut connection = self.databases.projections.acquire().await?;
        Ok(self.trackers().end_batch(&mut *connection, key).await?)
    }

    /// Why the event is set aside: the failure that the tracker has of it, or else that an operator wants it.
    async fn failure_at(
        &self,
        row: &TrackerRow,
        event_id: Option<Position>,
    ) -> Result<(Failure, FailedEvent), OperatorError> {
        let failing =
            row.last_error.as_ref().and_then(|failure| Some((&failure.0, failure.0.event.as_ref()?)));
        match (failing, event_id) {
            (Some((failure, event)), wanted) if wanted.is_none_or(|wanted| wanted == event.id) => {
                Ok((failure.clone(), event.clone()))
            }
            (_, None) => Err(OperatorError::NothingFails { name: row.name.clone() }),
            (_, Some(id)) => {
                if let Some(failure) = self.failed_beyond(row, id).await?
                    && let Some(event) = failure.event.clone()
                {
                    return Ok((failure, event));
                }
                let event = self.identify(id).await?;
                let message = format!("set aside by {} before it was handled", self.name);
                Ok((Failure::of_processor(message).attribute(event.clone()), event))
            }
        }
    }

    /// Why the event has failed, if it is one of several that do.
    async fn failed_beyond(&self, row: &TrackerRow, id: Position) -> Result<Option<Failure>, OperatorError> {
        let mut connection = self.databases.projections.acquire().await?;
        let table = DeadLetters::new(&self.trackers());
        Ok(table.find_failed_beyond(&mut connection, &row.key(), id).await?)
    }

    async fn identify(&self, event_id: Position) -> Result<FailedEvent, OperatorError> {
        let found = self.store().read_after(event_id.previous(), Some(event_id), None, 1).await?;
        let Event { id, uuid, event_type, aggregate_id, .. } =
            found.into_iter().next().ok_or(OperatorError::NoSuchEvent { event_id })?;
        Ok(FailedEvent { id, uuid, event_type, aggregate_id })
    }
}
