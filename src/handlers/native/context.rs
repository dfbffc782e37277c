//! What a handler in Rust may do beside its own work: in the transaction that also moves the position.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::value::to_raw_value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::error::HandlerError;
use super::typed::EventType;
use crate::event::{Event, Version};
use crate::handlers::batch::{Action, BatchTransaction};
use crate::processing::emission::Emission;

/// The transaction of a projector's batch.
pub struct ProjectorContext<'p> {
    pub(super) transaction: &'p mut (dyn Transaction + 'p),
}

/// The transaction of a reactor's batch, at one event.
pub struct ReactorContext<'r> {
    pub(super) transaction: &'r mut (dyn Transaction + 'r),
    pub(super) replaying: bool,
    pub(super) actions: Vec<Action>,
    /// Whether it has been given the connection, and so may have written.
    pub(super) touched: bool,
}

/// What of the ledger handlers reach.
#[async_trait::async_trait]
pub(super) trait Transaction: Send {
    fn connection(&mut self) -> &mut PgConnection;
    async fn begin_event(&mut self) -> Result<(), sqlx::Error>;
    async fn read_aggregate(&mut self, id: Uuid, upto: Version) -> Result<Vec<Event>, sqlx::Error>;
}

#[async_trait::async_trait]
impl Transaction for BatchTransaction<'_> {
    fn connection(&mut self) -> &mut PgConnection {
        BatchTransaction::connection(self)
    }

    async fn begin_event(&mut self) -> Result<(), sqlx::Error> {
        BatchTransaction::begin_event(self).await
    }

    async fn read_aggregate(&mut self, id: Uuid, upto: Version) -> Result<Vec<Event>, sqlx::Error> {
        BatchTransaction::read_aggregate(self, id, upto).await
    }
}

impl ProjectorContext<'_> {
    /// The connection that the transaction is open on. The search path begins with the schema of the
    /// projections. Beginning, committing and rolling back are not the handler's; savepoints are.
    pub fn connection(&mut self) -> &mut PgConnection {
        self.transaction.connection()
    }

    /// The events of an aggregate up to a version, by version: all of them are in memory.
    ///
    /// # Errors
    /// The event store could not be read.
    pub async fn read_aggregate(&mut self, id: Uuid, upto: Version) -> Result<Vec<Event>, HandlerError> {
        Ok(self.transaction.read_aggregate(id, upto).await?)
    }
}

impl ReactorContext<'_> {
    /// The connection that the transaction is open on, as [`ProjectorContext::connection`].
    ///
    /// # Errors
    /// The database could not begin what it may have to undo.
    pub async fn connection(&mut self) -> Result<&mut PgConnection, HandlerError> {
        if !self.touched {
            self.transaction.begin_event().await?;
            self.touched = true;
        }
        Ok(self.transaction.connection())
    }

    /// Whether the event was handled before a reset. What is emitted then is not emitted again, which espd sees to;
    /// what else must not be done again, the handler sees to.
    pub fn is_replaying(&self) -> bool {
        self.replaying
    }

    /// The events of an aggregate up to a version, by version: all of them are in memory.
    ///
    /// # Errors
    /// The event store could not be read.
    pub async fn read_aggregate(&mut self, id: Uuid, upto: Version) -> Result<Vec<Event>, HandlerError> {
        Ok(self.transaction.read_aggregate(id, upto).await?)
    }

    /// Emits an event. Causation, correlation and its uuid are set by espd.
    ///
    /// # Errors
    /// The body cannot be written as JSON. Whether the reactor may emit this type is judged when the handler returns.
    pub fn emit<E: EventType>(&mut self, aggregate_id: Uuid, body: &E) -> Result<(), HandlerError> {
        self.add(emission(aggregate_id, body)?);
        Ok(())
    }

    /// As [`Self::emit`], if the aggregate is at this version.
    ///
    /// # Errors
    /// As [`Self::emit`]; that the aggregate is at another version is found when the handler returns.
    pub fn emit_expecting<E: EventType>(
        &mut self,
        aggregate_id: Uuid,
        expected: Version,
        body: &E,
    ) -> Result<(), HandlerError> {
        self.add(Emission { expected_version: Some(expected), ..emission(aggregate_id, body)? });
        Ok(())
    }

    /// Emits an event at a later time. With a key it can be cancelled, and takes the place of an earlier one by that
    /// key.
    ///
    /// # Errors
    /// As [`Self::emit`].
    pub fn emit_at<E: EventType>(
        &mut self,
        time: DateTime<Utc>,
        key: Option<&str>,
        aggregate_id: Uuid,
        body: &E,
    ) -> Result<(), HandlerError> {
        let emission = emission(aggregate_id, body)?;
        self.add(Emission { due_at: Some(time), key: key.map(str::to_owned), ..emission });
        Ok(())
    }

    /// As [`Self::emit_at`], some time from now.
    ///
    /// # Errors
    /// As [`Self::emit`].
    pub fn emit_after<E: EventType>(
        &mut self,
        time: Duration,
        key: Option<&str>,
        aggregate_id: Uuid,
        body: &E,
    ) -> Result<(), HandlerError> {
        let due_at = Utc::now().checked_add_signed(chrono::TimeDelta::from_std(time)?);
        self.emit_at(due_at.ok_or("there is no such time")?, key, aggregate_id, body)
    }

    /// Emits what need not be of a type of Rust.
    pub fn add(&mut self, emission: Emission) {
        self.actions.push(Action::Emit(emission));
    }

    /// Cancels what the reactor would have emitted later by this key, if there is anything.
    pub fn cancel(&mut self, key: &str) {
        self.actions.push(Action::Cancel { key: key.to_owned() });
    }
}

fn emission<E: EventType>(aggregate_id: Uuid, body: &E) -> Result<Emission, HandlerError> {
    Ok(Emission {
        event_type: E::NAME.to_owned(),
        aggregate_id,
        body: to_raw_value(body)?,
        expected_version: None,
        due_at: None,
        key: None,
    })
}
