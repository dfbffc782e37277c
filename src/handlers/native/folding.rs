//! Projectors that fold events into a state and save that, in the manner of Sourced: state-stored ones load the state,
//! let the events of a batch change it, and save it once; event-sourced ones fold the whole history.

use std::collections::BTreeMap;

use async_trait::async_trait;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Delivery, HandlerError, Projector, ProjectorContext};
use crate::event::{Event, Version};

/// Keeps a state of its own for each key: loads it, lets events change it, saves it.
#[async_trait]
pub trait StateStored: Send + Sync {
    /// What is kept for a key; the default is the state before the first event.
    type State: Default + Send;

    /// What the event is about; its aggregate, unless said otherwise.
    fn key(&self, event: &Event) -> Uuid {
        event.aggregate_id
    }

    /// The saved state of a key, if there is one.
    ///
    /// # Errors
    /// As for [`Projector::project`].
    async fn load(
        &self,
        key: Uuid,
        connection: &mut PgConnection,
    ) -> Result<Option<Self::State>, HandlerError>;

    /// Lets an event change the state.
    ///
    /// # Errors
    /// The event cannot be understood: it is the one that has failed.
    fn evolve(&self, state: &mut Self::State, event: &Delivery) -> Result<(), HandlerError>;

    /// Saves the state of a key.
    ///
    /// # Errors
    /// As for [`Projector::project`].
    async fn save(
        &self,
        key: Uuid,
        state: &Self::State,
        connection: &mut PgConnection,
    ) -> Result<(), HandlerError>;
}

/// A projector of a [`StateStored`]: each key of a batch is loaded once and saved once.
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
            let loaded = self.0.load(key, context.connection()).await;
            let mut state = loaded.map_err(|error| last.failed(error))?.unwrap_or_default();
            for event in &events {
                self.0.evolve(&mut state, event).map_err(|error| event.failed(error))?;
            }
            let saved = self.0.save(key, &state, context.connection()).await;
            // Nobody knows which of its events made the state one that cannot be saved.
            saved.map_err(|error| if events.len() == 1 { last.failed(error) } else { error })?;
        }
        Ok(())
    }
}

/// Folds the history of an aggregate into a state, and saves that.
#[async_trait]
pub trait EventSourced: Send + Sync {
    /// What the history comes to; the default is the state before the first event.
    type State: Default + Send;

    /// Lets an event change the state. It is given all events of the aggregate, also of types that the projector does not
    /// handle.
    ///
    /// # Errors
    /// The event cannot be understood.
    fn evolve(&self, state: &mut Self::State, event: &Event) -> Result<(), HandlerError>;

    /// Saves the state of an aggregate at a version.
    ///
    /// # Errors
    /// As for [`Projector::project`].
    async fn save(
        &self,
        aggregate_id: Uuid,
        version: Version,
        state: &Self::State,
        connection: &mut PgConnection,
    ) -> Result<(), HandlerError>;
}

/// A projector of an [`EventSourced`]: each aggregate of a batch is folded once and saved once.
#[derive(Debug, Clone, Copy, Default)]
pub struct FoldingProjector<S>(pub S);

#[async_trait]
impl<S: EventSourced> Projector for FoldingProjector<S> {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for (aggregate_id, events) in by_key(events, |event| event.aggregate_id) {
            let last = events[events.len() - 1];
            let history = context.read_aggregate(aggregate_id, last.version).await?;
            let mut state = S::State::default();
            for event in &history {
                self.0.evolve(&mut state, event).map_err(|error| attribute(&events, event, error))?;
            }
            let saved = self.0.save(aggregate_id, last.version, &state, context.connection()).await;
            saved.map_err(|error| if events.len() == 1 { last.failed(error) } else { error })?;
        }
        Ok(())
    }
}

/// An event that was handled before does not fail now: then it is the first of this batch that meets its failure.
fn attribute(events: &[&Delivery], event: &Event, error: HandlerError) -> HandlerError {
    let failed = events.iter().find(|delivery| delivery.id >= event.id).unwrap_or(&events[0]);
    failed.failed(error)
}

/// The events of each key, in order.
fn by_key(events: &[Delivery], key: impl Fn(&Event) -> Uuid) -> Vec<(Uuid, Vec<&Delivery>)> {
    let mut groups: BTreeMap<Uuid, Vec<&Delivery>> = BTreeMap::new();
    for event in events {
        groups.entry(key(event)).or_default().push(event);
    }
    groups.into_iter().collect()
}
