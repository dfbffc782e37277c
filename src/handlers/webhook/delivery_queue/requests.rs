//! What is known of requests, and of nothing else: it outlives what the queue knows of the database.
//!
//! If a commit is lost, or it is not known whether it was, everything that is in the database is read again. What a receiver
//! has answered is still true, and a request under way still is, as long as no other owner and no other server has been
//! there. So these events are not sent a second time.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{Completion, DeliveryQueue};
use crate::event::{Event, Position};
use crate::handlers::batch::Action;

/// One request, by the event that was sent.
#[derive(Debug)]
pub(super) enum SentRequest {
    UnderWay,
    /// The receiver has accepted the event, and wants these actions.
    Accepted(Vec<Action>),
}

/// The requests of events that are not read again yet.
#[derive(Debug, Default)]
pub(super) struct SentRequests(BTreeMap<Position, (Uuid, SentRequest)>);

impl SentRequests {
    /// Takes the request of an event, if it was this event that was sent.
    pub(super) fn take(&mut self, event: &Event) -> Option<SentRequest> {
        let (uuid, request) = self.0.remove(&event.id)?;
        (uuid == event.uuid).then_some(request)
    }

    /// Records what has come of a request, if it is known: `None` if the event has to be sent again.
    pub(super) fn record(&mut self, id: Position, uuid: Uuid, accepted: Option<Vec<Action>>) {
        if self.0.get(&id).is_some_and(|(known, _)| *known == uuid) {
            self.0.remove(&id);
            let request = accepted.map(|actions| (id, (uuid, SentRequest::Accepted(actions))));
            self.0.extend(request);
        }
    }

    /// The number of requests under way.
    pub(super) fn under_way(&self) -> usize {
        self.0.values().filter(|(_, request)| matches!(request, SentRequest::UnderWay)).count()
    }

    /// Whether the receiver has accepted one of them.
    pub(super) fn has_answers(&self) -> bool {
        self.0.values().any(|(_, request)| matches!(request, SentRequest::Accepted(_)))
    }

    /// Forgets the requests of events up to a position, and of those beyond it that are done.
    pub(super) fn forget(&mut self, upto: Position, is_done: impl Fn(Position) -> bool) {
        self.0.retain(|id, _| *id > upto && !is_done(*id));
    }
}

impl DeliveryQueue {
    /// Takes what is known of requests out of the queue.
    pub(super) fn take_requests(&mut self) -> SentRequests {
        let mut requests = std::mem::take(&mut self.requests);
        for id in self.schedule.all_under_way() {
            let sent = self.schedule.get(id).map(|queued| (id, (queued.event.uuid, SentRequest::UnderWay)));
            requests.0.extend(sent);
        }
        let completed: Vec<Position> = self.schedule.completed().collect();
        for id in completed {
            let Some(queued) = self.schedule.get_mut(id) else { continue };
            if let Some(Completion::Received(actions)) = queued.completion.take() {
                requests.0.insert(id, (queued.event.uuid, SentRequest::Accepted(actions)));
            }
        }
        requests
    }
}
