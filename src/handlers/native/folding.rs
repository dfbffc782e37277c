//! Projectors that fold events into a state and save it. A state-stored one loads the state and lets the events of a batch
//! change it; an event-sourced one folds the whole history of an aggregate.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use sqlx::PgConnection;

use super::context::ProjectorContext;
use super::error::HandlerError;
use super::handler::Projector;
use crate::event::{AggregateId, Event, Version};
use crate::processing::processor::Delivery;

/// Keeps one state for each key: it is loaded, changed by events, and saved.
///
/// Run by a [`StateStoredProjector`].
#[async_trait]
pub trait StateStored: Send + Sync {
    /// The state of a key. Its default is the state before the first event.
    type State: Default + Send;

    /// Returns the key whose state an event changes. By default it is the event's aggregate. A key of another kind is
    /// made from a uuid (`customer_id.into()`) or from a text (`text.parse()`).
    fn key(&self, event: &Event) -> AggregateId {
        event.aggregate_id.clone()
    }

    /// Loads the saved state of a key. Returns `None` if there is none.
    ///
    /// # Errors
    /// As for [`Projector::project`].
    async fn load(
        &self,
        key: &AggregateId,
        connection: &mut PgConnection,
    ) -> Result<Option<Self::State>, HandlerError>;

    /// Changes the state by an event.
    ///
    /// # Errors
    /// The event cannot be handled. It need not be named.
    fn evolve(&self, state: &mut Self::State, event: &Delivery) -> Result<(), HandlerError>;

    /// Saves the state of a key.
    ///
    /// # Errors
    /// As for [`Projector::project`].
    async fn save(
        &self,
        key: &AggregateId,
        state: &Self::State,
        connection: &mut PgConnection,
    ) -> Result<(), HandlerError>;
}

/// The projector of a [`StateStored`]. A batch loads and saves each key once.
#[derive(Debug, Clone, Copy, Default)]
pub struct StateStoredProjector<S>(pub S);

#[async_trait]
impl<S: StateStored> Projector for StateStoredProjector<S> {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for (key, events) in by_key(events, |event| self.0.key(event)) {
            let last = events[events.len() - 1];
            let loaded = self.0.load(&key, context.connection()).await;
            let mut state = loaded.map_err(|error| last.failed(error))?.unwrap_or_default();
            for event in &events {
                self.0.evolve(&mut state, event).map_err(|error| event.failed(error))?;
            }
            let saved = self.0.save(&key, &state, context.connection()).await;
            // Of several events, any may have led to the state that cannot be saved.
            saved.map_err(|error| if events.len() == 1 { last.failed(error) } else { error })?;
        }
        Ok(())
    }
}

/// Folds the history of an aggregate into a state, and saves the state.
///
/// Run by an [`EventSourcedProjector`].
#[async_trait]
pub trait EventSourced: Send + Sync {
    /// The state of an aggregate. Its default is the state before the first event.
    type State: Default + Send;

    /// Changes the state by an event. Called with every event of the aggregate, including types that the projector does not
    /// handle.
    ///
    /// # Errors
    /// The event cannot be handled.
    fn evolve(&self, state: &mut Self::State, event: &Event) -> Result<(), HandlerError>;

    /// Saves the state that an aggregate has at a version.
    ///
    /// # Errors
    /// As for [`Projector::project`].
    async fn save(
        &self,
        aggregate_id: &AggregateId,
        version: Version,
        state: &Self::State,
        connection: &mut PgConnection,
    ) -> Result<(), HandlerError>;
}

/// The projector of an [`EventSourced`]. A batch folds and saves each aggregate once. Histories are streamed, so memory stays
/// flat however long they are; the time of a batch grows with them.
#[derive(Debug, Clone, Copy, Default)]
pub struct EventSourcedProjector<S>(pub S);

#[async_trait]
impl<S: EventSourced> Projector for EventSourcedProjector<S> {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for (aggregate_id, events) in by_key(events, |event| event.aggregate_id.clone()) {
            let last = events[events.len() - 1];
            let mut state = S::State::default();
            let mut history = context.stream_aggregate(&aggregate_id, last.version);
            while let Some(event) = history.try_next().await? {
                self.0.evolve(&mut state, &event).map_err(|error| attribute(&events, &event, error))?;
            }
            drop(history);
            let saved = self.0.save(&aggregate_id, last.version, &state, context.connection()).await;
            saved.map_err(|error| if events.len() == 1 { last.failed(error) } else { error })?;
        }
        Ok(())
    }
}

/// Names the event of the batch that fails with an event of the history. If that was handled by an earlier batch, the first
/// event behind it fails.
fn attribute(events: &[&Delivery], event: &Event, error: HandlerError) -> HandlerError {
    let failed = events.iter().find(|delivery| delivery.id >= event.id).unwrap_or(&events[0]);
    failed.failed(error)
}

/// Groups events by key. Within a group they stay in order.
fn by_key(events: &[Delivery], key: impl Fn(&Event) -> AggregateId) -> Vec<(AggregateId, Vec<&Delivery>)> {
    let mut groups: BTreeMap<AggregateId, Vec<&Delivery>> = BTreeMap::new();
    for event in events {
        groups.entry(key(event)).or_default().push(event);
    }
    groups.into_iter().collect()
}
