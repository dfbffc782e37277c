//! What handlers can do in the transaction that also moves the position.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use sqlx::PgConnection;

use super::error::HandlerError;
use super::transaction::Transaction;
use crate::event::{AggregateId, Event, EventType, Version, to_readable_json};
use crate::handlers::batch::Action;
use crate::processing::effects::NewEffect;
use crate::processing::emission::{Due, Emission, Emitter, SourceEvent};
use crate::processing::processor::Delivery;
use crate::store::{Codec, find_bad_text};

/// The transaction in which a projector handles a batch.
pub struct ProjectorContext<'p> {
    pub(super) transaction: &'p mut (dyn Transaction + 'p),
    pub(super) codec: &'p Codec,
    pub(super) effects: AskedEffects,
}

/// What a handler has asked to be done after the commit.
pub(super) struct AskedEffects {
    /// Whether the registration allows it.
    pub(super) allowed: bool,
    pub(super) asked: Vec<NewEffect>,
}

impl AskedEffects {
    pub(super) fn new(allowed: bool) -> Self {
        Self { allowed, asked: Vec::new() }
    }

    fn ask(&mut self, event: &Event, replaying: bool, payload: &impl Serialize) -> Result<(), HandlerError> {
        if !self.allowed {
            return Err(
                "the registration does not allow work after the commit: add `.after_commit()` to it".into()
            );
        }
        // It was done when the event was handled for the first time.
        if !replaying {
            self.asked.push(NewEffect {
                event_id: event.id,
                event_uuid: event.uuid,
                event_type: event.event_type.clone(),
                payload: storable(to_raw_value(payload)?)
                    .map_err(|what| format!("what is to be done after the commit contains {what}"))?,
            });
        }
        Ok(())
    }
}

/// The JSON, or what it contains that no text of a database can: found out at its event, whatever the store is.
pub(super) fn storable(json: Box<RawValue>) -> Result<Box<RawValue>, &'static str> {
    // JSON has neither but behind an escape.
    let bad = if json.get().contains("\\u") { find_bad_text(&json) } else { None };
    bad.map_or(Ok(json), Err)
}

/// The transaction in which a reactor handles an event, and the events that it emits.
pub struct ReactorContext<'r> {
    pub(super) transaction: &'r mut (dyn Transaction + 'r),
    pub(super) codec: &'r Codec,
    pub(super) replaying: bool,
    pub(super) actions: Vec<Action>,
    /// Whether the reactor has asked for the connection, and so may have written.
    pub(super) may_have_written: bool,
    pub(super) event: &'r Event,
    pub(super) source: &'r SourceEvent,
    pub(super) emitter: &'r Emitter,
    pub(super) effects: AskedEffects,
    pub(super) commands: Commands,
    /// The instance of a workflow that the event belongs to, once that is known.
    pub(super) instance: Option<String>,
}

/// The commands that a reactor has given for one event.
pub(super) struct Commands {
    /// Whether the registration allows it.
    pub(super) allowed: bool,
    pub(super) given: u32,
}

impl Commands {
    pub(super) fn new(allowed: bool) -> Self {
        Self { allowed, given: 0 }
    }
}

impl ProjectorContext<'_> {
    /// The connection of the open transaction. Its search path begins with the schema of the projector's tables: that of the
    /// projections, or the one that a version is built in beside them; so name tables without a schema. A handler must not
    /// begin, commit or roll back; it may use savepoints. One that does fails, and so does one that goes on after a statement has failed. What it
    /// has committed stays.
    ///
    /// On a store without PostgreSQL (`espd::testing`) it does not return: the event fails with an error that says what to do.
    pub fn connection(&mut self) -> &mut PgConnection {
        self.transaction.connection().unwrap_or_else(|missing| missing.end_handler())
    }

    /// Has [`Projector::after_commit`](super::Projector::after_commit) called with `payload` once this batch is committed: for
    /// what must not happen if it is not, such as a request to a cache. It is called at least once: what is asked for is
    /// recorded in the transaction of the batch, and removed when the call has succeeded. An event that is handled again after a
    /// reset ([`Delivery::replaying`]) asks for nothing: that was done the first time.
    ///
    /// # Errors
    /// [`Registration::after_commit`](super::Registration::after_commit) is not called, or the payload cannot be written as
    /// JSON.
    pub fn after_commit(&mut self, event: &Delivery, payload: &impl Serialize) -> Result<(), HandlerError> {
        self.effects.ask(event, event.replaying, payload)
    }

    /// Reads the events of an aggregate up to a version, in order. All of them are held in memory; for long histories there is
    /// [`Self::stream_aggregate`].
    ///
    /// # Errors
    /// The event store could not be read.
    pub async fn read_aggregate(
        &mut self,
        id: impl Into<AggregateId>,
        upto: Version,
    ) -> Result<Vec<Event>, HandlerError> {
        self.stream_aggregate(id, upto).try_collect().await
    }

    /// Streams the events of an aggregate up to a version, in order, one at a time: memory stays flat however many there are.
    /// An item is an error if the event store could not be read.
    pub fn stream_aggregate(
        &mut self,
        id: impl Into<AggregateId>,
        upto: Version,
    ) -> BoxStream<'_, Result<Event, HandlerError>> {
        let codec = self.codec;
        self.transaction.stream_aggregate(id.into(), upto).map(|event| Ok(codec.decode(event?)?)).boxed()
    }
}

impl ReactorContext<'_> {
    /// The connection of the open transaction, as [`ProjectorContext::connection`]. What is written on it is undone if
    /// handling the event fails.
    ///
    /// # Errors
    /// The database could not set the savepoint for that, or the store is without PostgreSQL (`espd::testing`).
    pub async fn connection(&mut self) -> Result<&mut PgConnection, HandlerError> {
        self.transaction.connection()?;
        self.begin_writing().await?;
        Ok(self.transaction.connection()?)
    }

    /// Sets the savepoint of this event, so that what is written from now on can be undone.
    pub(super) async fn begin_writing(&mut self) -> Result<(), sqlx::Error> {
        if !self.may_have_written {
            self.transaction.begin_event().await?;
            self.may_have_written = true;
        }
        Ok(())
    }

    /// Has [`Reactor::after_commit`](super::Reactor::after_commit) called with `payload` once the event is committed as handled:
    /// for what must not happen if it is not, such as an e-mail. It is called at least once: what is asked for is recorded in
    /// the transaction of the batch, and removed when the call has succeeded. While the event is handled again after a reset
    /// ([`Self::is_replaying`]) this asks for nothing: that was done the first time.
    ///
    /// # Errors
    /// [`Registration::after_commit`](super::Registration::after_commit) is not called, or the payload cannot be written as
    /// JSON.
    pub fn after_commit(&mut self, payload: &impl Serialize) -> Result<(), HandlerError> {
        self.effects.ask(self.event, self.replaying, payload)
    }

    /// Whether the event was handled before a reset. Events that are emitted now were emitted then, and espd does not emit
    /// them again. The reactor has to leave out what else must not be repeated.
    pub fn is_replaying(&self) -> bool {
        self.replaying
    }

    /// Reads the events of an aggregate up to a version, in order. All of them are held in memory; for long histories there is
    /// [`Self::stream_aggregate`].
    ///
    /// # Errors
    /// The event store could not be read.
    pub async fn read_aggregate(
        &mut self,
        id: impl Into<AggregateId>,
        upto: Version,
    ) -> Result<Vec<Event>, HandlerError> {
        self.stream_aggregate(id, upto).try_collect().await
    }

    /// Streams the events of an aggregate up to a version, in order, one at a time: memory stays flat however many there are.
    /// An item is an error if the event store could not be read.
    pub fn stream_aggregate(
        &mut self,
        id: impl Into<AggregateId>,
        upto: Version,
    ) -> BoxStream<'_, Result<Event, HandlerError>> {
        let codec = self.codec;
        self.transaction.stream_aggregate(id.into(), upto).map(|event| Ok(codec.decode(event?)?)).boxed()
    }

    /// Emits an event. espd sets its causation, correlation and uuid.
    ///
    /// # Errors
    /// The body cannot be written as JSON, or not be read again. If the registration does not name this type, the event fails when the handler
    /// has returned.
    pub fn emit<E: EventType>(
        &mut self,
        aggregate_id: impl Into<AggregateId>,
        body: &E,
    ) -> Result<(), HandlerError> {
        self.emit_untyped(emission(aggregate_id, body)?);
        Ok(())
    }

    /// Emits an event with metadata, which is written as a JSON object. espd adds what is its own under the key `espd`.
    ///
    /// # Errors
    /// As for [`Self::emit`]. If the metadata is no object, or has the key `espd`, the event fails when the handler has
    /// returned.
    pub fn emit_with_metadata<E: EventType>(
        &mut self,
        aggregate_id: impl Into<AggregateId>,
        body: &E,
        metadata: &impl Serialize,
    ) -> Result<(), HandlerError> {
        let metadata = Some(to_raw_value(metadata)?);
        self.emit_untyped(Emission { metadata, ..emission(aggregate_id, body)? });
        Ok(())
    }

    /// Emits an event on condition that the aggregate is at version `expected`.
    ///
    /// # Errors
    /// As for [`Self::emit`]. If the aggregate is at another version, the event fails when the handler has returned.
    pub fn emit_expecting<E: EventType>(
        &mut self,
        aggregate_id: impl Into<AggregateId>,
        expected: Version,
        body: &E,
    ) -> Result<(), HandlerError> {
        self.emit_untyped(Emission { expected_version: Some(expected), ..emission(aggregate_id, body)? });
        Ok(())
    }

    /// Emits an event at a later time. One with a key replaces what the reactor was to emit later under that key, and can be
    /// cancelled by it.
    ///
    /// # Errors
    /// As for [`Self::emit`].
    pub fn emit_at<E: EventType>(
        &mut self,
        time: DateTime<Utc>,
        key: Option<&str>,
        aggregate_id: impl Into<AggregateId>,
        body: &E,
    ) -> Result<(), HandlerError> {
        let emission = emission(aggregate_id, body)?;
        self.emit_untyped(Emission { due: Due::At(time), key: key.map(str::to_owned), ..emission });
        Ok(())
    }

    /// Emits an event after a delay, which the database counts from when it stores the emission; otherwise as
    /// [`Self::emit_at`].
    ///
    /// # Errors
    /// As for [`Self::emit`], or the delay is longer than a thousand years.
    pub fn emit_after<E: EventType>(
        &mut self,
        delay: Duration,
        key: Option<&str>,
        aggregate_id: impl Into<AggregateId>,
        body: &E,
    ) -> Result<(), HandlerError> {
        let emission = emission(aggregate_id, body)?;
        self.emit_untyped(Emission { due: Due::after(delay)?, key: key.map(str::to_owned), ..emission });
        Ok(())
    }

    /// Emits an event whose type and body are known only at run time.
    pub fn emit_untyped(&mut self, emission: Emission) {
        self.actions.push(Action::Emit(emission));
    }

    /// Cancels the event that the reactor was to emit later under this key, if there is one.
    pub fn cancel(&mut self, key: &str) {
        self.actions.push(Action::Cancel { key: key.to_owned() });
    }
}

pub(super) fn emission<E: EventType>(
    aggregate_id: impl Into<AggregateId>,
    body: &E,
) -> Result<Emission, HandlerError> {
    Ok(Emission {
        event_type: E::NAME.to_owned(),
        aggregate_id: aggregate_id.into(),
        body: to_readable_json(body)?,
        expected_version: None,
        due: Due::AtOnce,
        key: None,
        metadata: None,
    })
}
