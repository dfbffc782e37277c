//! The events that a webhook reactor has read: which of them wait, which are under way, and what their deliveries resulted
//! in.
//!
//! The queue can be lost at any time: it is rebuilt from the database at each claim. After a crash, events without a committed
//! result are sent again.

mod commit_plan;
mod requests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use uuid::Uuid;

use super::answer::DeliveryResult;
use super::deliveries::Delivered;
use super::schedule::Schedule;
use super::sender::SendAttempt;
use crate::event::{Event, Position};
use crate::handlers::batch::Action;
use crate::processing::declaration::BatchLimits;
use crate::processing::emission::SourceEvent;
use crate::processing::failure::Failure;
use crate::processing::processor::{Delivery, ProcessorError};
use crate::processing::progress::PendingRetry;
use crate::retry::{NextStep, RetryPolicy};
use crate::store::witness::{Trail, Witness};
pub(crate) use commit_plan::CommitPlan;
use requests::{SentRequest, SentRequests};

/// The queue reads no further when it holds this many batches of events, those done beyond the position included.
const BATCHES_AHEAD_MAX: usize = 10;

/// An event in the queue.
#[derive(Debug)]
struct QueuedEvent {
    event: Arc<Event>,
    source: SourceEvent,
    /// How often the event has failed, and the last failure.
    attempts: u32,
    failure: Option<Failure>,
    completion: Option<Completion>,
}

/// Why an event need not be sent any more.
#[derive(Debug)]
enum Completion {
    /// The receiver has accepted it, and wants these actions.
    Received(Vec<Action>),
    /// It has used up its attempts and becomes a dead letter.
    GivenUp { blocks: bool },
    /// It waits behind a dead letter of its aggregate.
    Waits,
}

/// The events that have been read and are not committed as done.
#[derive(Debug)]
pub(crate) struct DeliveryQueue {
    retry: RetryPolicy,
    schedule: Schedule<QueuedEvent>,
    /// All events up to here are done; the position of the tracker.
    position: Position,
    /// The position of the tracker if the last commit has succeeded; set while that is not known.
    attempted: Option<Position>,
    /// All events up to here have been read.
    seen: Position,
    /// The witnesses of what was read, from the position on.
    trail: Trail,
    /// The events beyond the position that are committed as done.
    beyond: BTreeSet<Position>,
    /// Events beyond the position that have failed before.
    tried: BTreeMap<Position, PendingRetry>,
    /// Requests of events that are still to be read again.
    requests: SentRequests,
    /// Why the receiver accepts no events at the moment, and how long it wants to be left alone.
    outage: Option<(String, Option<Duration>)>,
    /// Whether events are sent one at a time, to find out whether an outage is over.
    probing: bool,
    /// Whether the receiver has answered since [`Self::take_reached`], be it that it refuses an event.
    is_answered: bool,
    /// The event over which the reactor stops.
    stopped_over: Option<Position>,
    /// The events that have failed since the last commit.
    failed: BTreeSet<Position>,
    /// The events that have failed and are not completed.
    failing: BTreeSet<Position>,
    /// Whether no further event may be sent.
    has_stopped_sending: bool,
}

impl DeliveryQueue {
    pub(crate) fn new(retry: RetryPolicy) -> Self {
        Self {
            retry,
            schedule: Schedule::default(),
            position: Position::START,
            attempted: None,
            seen: Position::START,
            trail: Trail::default(),
            beyond: BTreeSet::new(),
            tried: BTreeMap::new(),
            requests: SentRequests::default(),
            outage: None,
            probing: false,
            is_answered: false,
            stopped_over: None,
            failed: BTreeSet::new(),
            failing: BTreeSet::new(),
            has_stopped_sending: false,
        }
    }

    /// Starts again at a position, with what the database has recorded beyond it. `forgiven` says that an operator has
    /// retried the reactor, so that attempts are counted anew. What is known of requests stays, and how long the receiver wants to be left
    /// alone.
    pub(crate) fn restart(&mut self, position: Position, delivered: Vec<Delivered>, forgiven: bool) {
        let (probing, requests, outage) = (self.probing, self.take_requests(), self.outage.take());
        *self = Self { position, seen: position, probing, requests, outage, ..Self::new(self.retry) };
        for one in delivered {
            let id = one.event_id;
            if one.is_done {
                self.beyond.insert(id);
            } else {
                let pending_retry = one.pending_retry().filter(|_| !forgiven);
                self.tried.extend(pending_retry.map(|pending_retry| (id, pending_retry)));
            }
        }
        self.requests.forget(position, |id| self.beyond.contains(&id));
    }

    /// Forgets everything, requests as well.
    pub(crate) fn clear(&mut self) {
        *self = Self { probing: self.probing, ..Self::new(self.retry) };
    }

    /// Forgets that the receiver accepts no events, because an operator wants it tried at once.
    pub(crate) fn forget_outage(&mut self) {
        self.outage = None;
    }

    /// Whether the tracker is where this queue has moved it, as far as it knows.
    pub(crate) fn matches(&self, position: Position) -> bool {
        self.position == position || self.attempted == Some(position)
    }

    /// Follows the tracker, which the runner moves past an event that cannot be read.
    pub(crate) fn skip_to(&mut self, position: Position) {
        if position > self.position {
            self.resume_at(position);
            self.seen = self.seen.max(position);
        }
    }

    fn resume_at(&mut self, position: Position) {
        self.position = position;
        self.attempted = None;
    }

    /// Whether the queue holds no event.
    pub(crate) fn is_empty(&self) -> bool {
        self.schedule.len() == 0
    }

    /// Whether an event beyond the position is committed as done.
    pub(crate) fn is_done(&self, id: Position) -> bool {
        self.beyond.contains(&id)
    }

    pub(crate) fn position(&self) -> Position {
        self.position
    }

    pub(crate) fn seen(&self) -> Position {
        self.seen
    }

    /// The witness of the last position that was read; `None`: nothing has been read since the queue was started.
    pub(crate) fn last_witness(&self) -> Option<Witness> {
        self.trail.last()
    }

    /// The number of further events that may be read. Up to the last event that is known to be done, there is always room for
    /// a batch: an event that keeps the position back may be among them, and no number of those done may keep it from being read.
    pub(crate) fn room(&self, limits: &BatchLimits) -> i64 {
        if i64::try_from(self.schedule.weight()).unwrap_or(i64::MAX) >= limits.bytes {
            return 0;
        }
        if self.beyond.last().is_some_and(|last| *last > self.seen) {
            return limits.size;
        }
        let size = usize::try_from(limits.size).unwrap_or(usize::MAX);
        let ahead = self.schedule.len() + self.beyond.len();
        let room = size.saturating_mul(BATCHES_AHEAD_MAX).saturating_sub(ahead).min(size);
        i64::try_from(room).unwrap_or(limits.size)
    }

    /// Adds what was read up to a position. Events that were handled before a reset are not sent again.
    pub(crate) fn enqueue(&mut self, deliveries: Vec<Delivery>, upto: Position, trail: Trail) {
        self.trail.append(trail);
        for delivery in deliveries {
            if delivery.replaying || self.beyond.contains(&delivery.event.id) {
                continue;
            }
            let source = SourceEvent::of(&delivery);
            let event = delivery.event;
            let request = self.requests.take(&event);
            let tried = self.tried.remove(&event.id);
            let until = tried.as_ref().and_then(|tried| tried.until);
            let (id, aggregate_id) = (event.id, event.aggregate_id.clone());
            let weight = event.body.get().len() + event.metadata.get().len();
            let attempts = tried.as_ref().map_or(0, |tried| tried.attempts);
            let failure = tried.map(|tried| tried.failure);
            if failure.is_some() {
                self.failing.insert(id);
            }
            let queued = QueuedEvent { event: Arc::new(event), source, attempts, failure, completion: None };
            self.schedule.insert(id, aggregate_id, queued, weight, until);
            match request {
                Some(SentRequest::Accepted(actions)) => self.complete(id, Completion::Received(actions)),
                Some(SentRequest::UnderWay) => self.schedule.mark_under_way(id),
                // The database did not know yet that it has to wait.
                None if self.is_behind_given_up(id) => self.complete(id, Completion::Waits),
                None => {}
            }
        }
        self.seen = self.seen.max(upto);
        self.requests.forget(self.seen, |_| false);
    }

    /// Whether an event has to wait behind one that was given up since the last commit.
    fn is_behind_given_up(&self, id: Position) -> bool {
        let blocks = |completion: &Completion| {
            matches!(completion, Completion::GivenUp { blocks: true } | Completion::Waits)
        };
        let completions = self.schedule.before(id).filter_map(|other| self.schedule.get(other));
        completions.filter_map(|queued| queued.completion.as_ref()).any(blocks)
    }

    /// The number of requests under way.
    fn under_way(&self) -> usize {
        self.schedule.under_way() + self.requests.under_way()
    }

    /// The next event to send, if one may be sent now.
    pub(crate) fn next(&mut self, concurrency: usize) -> Option<Arc<Event>> {
        let slots = if self.probing { 1 } else { concurrency };
        if self.is_halted() || self.under_way() >= slots {
            return None;
        }
        let id = self.schedule.take_ready(Instant::now())?;
        self.schedule.get(id).map(|queued| Arc::clone(&queued.event))
    }

    /// Records the result of sending an event.
    pub(crate) fn record_result(&mut self, id: Position, uuid: Uuid, attempt: SendAttempt) {
        if self.schedule.get(id).is_none_or(|queued| queued.event.uuid != uuid) {
            let accepted = match attempt {
                SendAttempt::Concluded(DeliveryResult::Accepted(actions)) => Some(actions),
                _ => None,
            };
            return self.requests.record(id, uuid, accepted);
        }
        match attempt {
            SendAttempt::Concluded(DeliveryResult::Accepted(actions)) => {
                self.note_answer();
                self.complete(id, Completion::Received(actions));
            }
            SendAttempt::Concluded(DeliveryResult::Failed { failure, wait }) => {
                self.note_answer();
                self.record_failure(id, *failure, wait);
            }
            SendAttempt::Concluded(DeliveryResult::Busy { message, wait }) => {
                self.record_outage(id, message, wait)
            }
            SendAttempt::Unreachable(message) => self.record_outage(id, message, None),
            SendAttempt::NotBegun => self.schedule.release(id),
        }
    }

    fn note_answer(&mut self) {
        (self.probing, self.is_answered) = (false, true);
    }

    /// Whether it is not known that an outage is over.
    pub(crate) fn is_probing(&self) -> bool {
        self.probing
    }

    /// Whether the receiver has been reached since this was last asked, or nothing is left to send to it.
    pub(crate) fn take_reached(&mut self) -> bool {
        std::mem::take(&mut self.is_answered) || !self.probing || self.is_empty()
    }

    /// Takes back an event of which no request was made.
    pub(crate) fn release(&mut self, id: Position) {
        self.schedule.release(id);
    }

    /// How many events can be sent as soon as there are free slots.
    pub(crate) fn ready(&self) -> usize {
        self.schedule.ready()
    }

    /// Whether no event may be sent, even if some are ready.
    pub(crate) fn is_halted(&self) -> bool {
        self.outage.is_some() || self.stopped_over.is_some() || self.has_stopped_sending
    }

    fn record_outage(&mut self, id: Position, message: String, wait: Option<Duration>) {
        self.schedule.release(id);
        self.probing = true;
        let longest = self.outage.take().and_then(|(_, wait)| wait).max(wait);
        self.outage = Some((message, longest));
    }

    /// Records that an event has failed. It is tried again or given up, or the reactor stops.
    pub(crate) fn record_failure(&mut self, id: Position, failure: Failure, wait: Option<Duration>) {
        let Some(queued) = self.schedule.get_mut(id) else { return };
        queued.attempts = queued.attempts.saturating_add(1);
        queued.failure = Some(Failure { at: Some(Utc::now()), ..queued.source.attribute(failure) });
        let attempts = queued.attempts;
        let delay = self.retry.delay_after(attempts).max(wait.unwrap_or_default());
        match self.retry.decide(attempts) {
            NextStep::TryAgain => self.postpone(id, delay),
            NextStep::Stop => {
                self.postpone(id, delay);
                self.stopped_over = Some(id);
            }
            NextStep::SetAside { blocks: false } => self.complete(id, Completion::GivenUp { blocks: false }),
            NextStep::SetAside { blocks: true } => {
                let behind: Vec<Position> = self.schedule.behind(id).collect();
                behind.into_iter().for_each(|other| self.complete(other, Completion::Waits));
                self.complete(id, Completion::GivenUp { blocks: true });
            }
        }
    }

    fn postpone(&mut self, id: Position, delay: Duration) {
        if let Some(queued) = self.schedule.get_mut(id) {
            queued.completion = None;
        }
        self.failed.insert(id);
        self.failing.insert(id);
        self.schedule.postpone(id, Instant::now() + delay);
    }

    fn complete(&mut self, id: Position, completion: Completion) {
        self.failing.remove(&id);
        if let Some(queued) = self.schedule.get_mut(id) {
            queued.completion = Some(completion);
        }
        self.schedule.complete(id);
    }

    /// Makes all postponed events due, because an operator wants them tried now: also the one over which the reactor was to stop.
    pub(crate) fn retry_now(&mut self) {
        self.stopped_over = None;
        self.schedule.make_all_due();
    }

    /// Whether the receiver accepts no events, and everything under way has ended.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.outage.is_some() && self.under_way() == 0
    }

    /// Why [`Self::is_unreachable`], as an error that is returned once.
    pub(crate) fn take_outage(&mut self) -> Option<ProcessorError> {
        let (message, wait) = if self.is_unreachable() { self.outage.take()? } else { return None };
        Some(ProcessorError::Unavailable { message, wait })
    }

    /// Whether the next call has something to do at once.
    pub(crate) fn is_busy(&self) -> bool {
        let reports_outage = self.outage.is_some() && !self.has_stopped_sending;
        self.under_way() > 0 || reports_outage || self.can_send() || self.has_results()
    }

    /// Whether an event can be sent as soon as there is a free slot.
    pub(crate) fn can_send(&self) -> bool {
        !self.is_halted() && self.schedule.has_ready(Instant::now())
    }

    /// Keeps further events from being sent; those under way may end.
    pub(crate) fn stop_sending(&mut self) {
        self.has_stopped_sending = true;
    }

    /// Whether something is to be committed: what requests resulted in during the last commit, for example.
    pub(crate) fn has_results(&self) -> bool {
        self.has_uncommitted() || self.failed.iter().any(|id| self.schedule.postponed_until(*id).is_some())
    }

    /// Whether the receiver has answered for events that are still to be read again.
    pub(crate) fn has_unread_answers(&self) -> bool {
        self.requests.has_answers()
    }

    /// Whether an event is completed and not committed.
    pub(crate) fn has_uncommitted(&self) -> bool {
        self.schedule.completed().next().is_some()
    }
}
