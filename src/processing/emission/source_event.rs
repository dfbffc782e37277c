//! A source event is the event that a reactor handles when it emits another.

use serde::Deserialize;
use uuid::Uuid;

use crate::event::{AggregateId, Event, Position};
use crate::processing::failure::{FailedEvent, Failure};
use crate::processing::processor::Delivery;

/// What an emission takes from the event that it answers.
#[derive(Debug, Clone)]
pub(crate) struct SourceEvent {
    pub(crate) id: Position,
    pub(crate) uuid: Uuid,
    pub(crate) event_type: String,
    pub(crate) aggregate_id: AggregateId,
    /// The correlation id of the event; its own uuid if it has none, because it begins a correlation then.
    pub(crate) correlation_id: Uuid,
    /// How many emitted events led to the event, one after the other.
    pub(crate) depth: u32,
    /// Whether the event was handled before a reset, so that nothing is emitted for it again.
    pub(crate) replaying: bool,
    /// The instance of a workflow that the event belongs to, once that is known.
    pub(crate) instance: Option<String>,
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
            instance: None,
        }
    }

    /// Attributes a failure to this event.
    pub(crate) fn attribute(&self, failure: Failure) -> Failure {
        let Self { id, uuid, ref aggregate_id, .. } = *self;
        let failure = Failure { instance: self.instance.clone(), ..failure };
        failure.attribute(FailedEvent {
            id,
            uuid,
            event_type: self.event_type.clone(),
            aggregate_id: aggregate_id.clone(),
        })
    }
}

/// What espd writes into the metadata of the events that it emits. Other writers may put anything there.
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
