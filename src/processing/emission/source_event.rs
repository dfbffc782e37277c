//! The event that an emission answers.

use serde::Deserialize;
use uuid::Uuid;

use crate::event::{AggregateId, Event, Position};
use crate::processing::failure::{FailedEvent, Failure};
use crate::processing::processor::Delivery;

/// What has to be known of an event to answer it.
#[derive(Debug, Clone)]
pub(crate) struct SourceEvent {
    pub(crate) id: Position,
    pub(crate) uuid: Uuid,
    pub(crate) event_type: String,
    pub(crate) aggregate_id: AggregateId,
    /// The conversation that it belongs to, or begins.
    pub(crate) correlation_id: Uuid,
    /// How many emitted events led to it.
    pub(crate) depth: u32,
    /// Whether it was answered before a reset.
    pub(crate) replaying: bool,
}

impl SourceEvent {
    pub(crate) fn of(delivery: &Delivery) -> Self {
        let Delivery { event, replaying } = delivery;
        Self {
            id: event.id,
            uuid: event.uuid,
            event_type: event.event_type.clone(),
            aggregate_id: event.aggregate_id.clone(),
            correlation_id: event.correlation_id.unwrap_or(event.uuid),
            depth: depth(event),
            replaying: *replaying,
        }
    }

    /// The failure, attributed to this event.
    pub(crate) fn attribute(&self, failure: Failure) -> Failure {
        let Self { id, uuid, ref aggregate_id, .. } = *self;
        failure.attribute(FailedEvent {
            id,
            uuid,
            event_type: self.event_type.clone(),
            aggregate_id: aggregate_id.clone(),
        })
    }
}

/// What espd writes into the metadata of events that it emits. Anybody may write anything there.
#[derive(Deserialize, Default)]
struct Metadata {
    espd: Option<OfEspd>,
}

#[derive(Deserialize, Default)]
struct OfEspd {
    depth: Option<u32>,
}

fn depth(event: &Event) -> u32 {
    let text = event.metadata.get();
    if !text.contains("\"espd\"") {
        return 0;
    }
    let metadata: Metadata = serde_json::from_str(text).unwrap_or_default();
    metadata.espd.and_then(|espd| espd.depth).unwrap_or(0)
}
