//! The two kinds of handlers that an application implements.

use async_trait::async_trait;

use super::context::{ProjectorContext, ReactorContext};
use super::error::HandlerError;
use crate::processing::effects::Effect;
use crate::processing::processor::Delivery;

/// Handles events by writing tables.
#[async_trait]
pub trait Projector: Send + Sync {
    /// Handles a batch of events, in order. The rows that it writes on [`ProjectorContext::connection`] commit together with
    /// the processor's position.
    ///
    /// When it fails, it is called again with some of the same events, on another instance. So an instance must not rely on
    /// having seen an event, unless its tables show it.
    ///
    /// # Errors
    /// Whatever keeps it from handling an event. [`Delivery::failed`] names the event; without a name, the batch is halved
    /// until the event is found. The events before it are committed, and the retry policy decides about the failed one.
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError>;

    /// Does what [`ProjectorContext::after_commit`] was asked for, now that the batch is committed. Called in order, once for each, and
    /// again until it succeeds: after an error as the retry policy says, after a crash or a takeover when the processor runs
    /// again. Meanwhile the processor handles no further events.
    ///
    /// # Errors
    /// Whatever keeps it from doing that. The event stays handled.
    async fn after_commit(&mut self, effect: &Effect) -> Result<(), HandlerError> {
        Err(format!(
            "this handler does nothing after a commit, and was asked to for event {}",
            effect.event_id
        )
        .into())
    }
}

/// Handles events by acting on them, and may emit events.
#[async_trait]
pub trait Reactor: Send + Sync {
    /// Handles one event. What it emits and writes through `context` commits together with the processor's position. What
    /// else it does may happen again after a crash, with the same event; `event.uuid` identifies it.
    ///
    /// # Errors
    /// Whatever keeps it from handling the event. What it has emitted and written for this event is undone, and the retry
    /// policy decides about the event.
    async fn react(&mut self, event: &Delivery, context: &mut ReactorContext<'_>)
    -> Result<(), HandlerError>;

    /// Does what [`ReactorContext::after_commit`] was asked for, now that the batch is committed. Called in order, once for each, and
    /// again until it succeeds: after an error as the retry policy says, after a crash or a takeover when the processor runs
    /// again. Meanwhile the processor handles no further events.
    ///
    /// # Errors
    /// Whatever keeps it from doing that. The event stays handled.
    async fn after_commit(&mut self, effect: &Effect) -> Result<(), HandlerError> {
        Err(format!(
            "this handler does nothing after a commit, and was asked to for event {}",
            effect.event_id
        )
        .into())
    }
}
