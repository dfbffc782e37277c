//! What a webhook reactor knows of the events that it has looked at: which wait, which are under way, what came of them.
//!
//! All of it follows from what is in the database and what receivers have answered since; after a crash it is read anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer::DeliveryResult;
use super::deliveries::{Delivered, GivenUp, Waiting};
use super::schedule::Schedule;
use super::sender::SendAttempt;
use crate::event::{Event, Position};
use crate::handlers::batch::{Action, EventEffects};
use crate::processing::declaration::BatchLimits;
use crate::processing::emission::Source;
use crate::processing::failure::Failure;
use crate::processing::processor::{Delivery, ProcessorError, PutOff};
use crate::retry::{OnFailure, RetryPolicy};

/// How many batches of events are held, or done beyond the position, before those that keep the position back are waited
/// for.
const BATCHES_AHEAD_MAX: usize = 10;

/// An event at the queue.
#[derive(Debug)]
struct QueuedEvent {
    event: Arc<Event>,
    source: Source,
    /// How often it has failed, and how the last time.
    attempts: u32,
    failure: Option<Failure>,
    completion: Option<Completion>,
}

/// Why an event need not be sent any more.
#[derive(Debug)]
enum Completion {
    /// The receiver has it, and wants this done.
    Received(Vec<Action>),
    /// It has used up its attempts.
    GivenUp { blocks: bool },
    /// It waits behind one that has.
    Waits,
}

/// Events between being read and being done.
#[derive(Debug)]
pub(crate) struct DeliveryQueue {
    retry: RetryPolicy,
    schedule: Schedule<QueuedEvent>,
    /// Everything at or below it is done; what the tracker says.
    position: Position,
    /// What the tracker says if the last commit has happened, of which that is not known.
    attempted: Option<Position>,
    /// Everything at or below it has been looked at.
    seen: Position,
    /// What is done beyond the position.
    beyond: BTreeSet<Position>,
    /// What an earlier process has tried beyond the position.
    tried: BTreeMap<Position, PutOff>,
    /// Why no event can be sent now, as far as known; and whether one at a time tries again.
    outage: Option<(String, Option<Duration>)>,
    probing: bool,
    /// The event that the reactor stops over.
    stopping: Option<Position>,
    /// What has failed since the last commit.
    failed: BTreeSet<Position>,
    /// Whether nothing more is to be begun.
    winding_down: bool,
}

impl DeliveryQueue {
    pub(crate) fn new(retry: RetryPolicy) -> Self {
        Self {
            retry,
            schedule: Schedule::default(),
            position: Position::START,
            attempted: None,
            seen: Position::START,
            beyond: BTreeSet::new(),
            tried: BTreeMap::new(),
            outage: None,
            probing: false,
            stopping: None,
            failed: BTreeSet::new(),
            winding_down: false,
        }
    }

    /// Begins anew at a position, with what earlier processes have left beyond it. `forgiven`: an operator has, so that
    /// attempts begin anew as well.
    pub(crate) fn restart(&mut self, position: Position, delivered: Vec<Delivered>, forgiven: bool) {
        let probing = self.probing;
        *self = Self { position, seen: position, probing, ..Self::new(self.retry) };
        for one in delivered {
            let id = one.event_id;
            if one.is_done {
                self.beyond.insert(id);
            } else {
                let put_off = one.put_off().filter(|_| !forgiven);
                self.tried.extend(put_off.map(|put_off| (id, put_off)));
            }
        }
    }

    /// Whether the tracker is where this queue has left it.
    pub(crate) fn matches(&self, position: Position) -> bool {
        self.position == position || self.attempted == Some(position)
    }

    /// Goes on at a position that [`Self::matches`].
    pub(crate) fn resume_at(&mut self, position: Position) {
        self.position = position;
        self.attempted = None;
    }

    /// The runner may have moved the tracker over an event that could not be read.
    pub(crate) fn skip_to(&mut self, position: Position) {
        if position > self.position {
            self.resume_at(position);
            self.seen = self.seen.max(position);
        }
    }

    /// Whether no event is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.schedule.len() == 0
    }

    pub(crate) fn position(&self) -> Position {
        self.position
    }

    pub(crate) fn seen(&self) -> Position {
        self.seen
    }

    /// How many events more may be read.
    pub(crate) fn room(&self, limits: &BatchLimits) -> i64 {
        let size = usize::try_from(limits.size).unwrap_or(usize::MAX);
        let ahead = self.schedule.len() + self.beyond.len();
        let room = size.saturating_mul(BATCHES_AHEAD_MAX).saturating_sub(ahead).min(size);
        let bytes = i64::try_from(self.schedule.weight()).unwrap_or(i64::MAX);
        if bytes >= limits.bytes { 0 } else { i64::try_from(room).unwrap_or(limits.size) }
    }

    /// Takes in what was read up to a position. What was handled before a reset is not sent again.
    pub(crate) fn enqueue(&mut self, deliveries: Vec<Delivery>, upto: Position) {
        for delivery in deliveries {
            if delivery.replaying || self.beyond.contains(&delivery.event.id) {
                continue;
            }
            let source = Source::of(&delivery);
            let event = delivery.event;
            let tried = self.tried.remove(&event.id);
            let until = tried.as_ref().and_then(|tried| tried.until);
            let (id, aggregate_id) = (event.id, event.aggregate_id);
            let weight = event.body.get().len() + event.metadata.get().len();
            let attempts = tried.as_ref().map_or(0, |tried| tried.attempts);
            let failure = tried.map(|tried| tried.failure);
            let queued = QueuedEvent { event: Arc::new(event), source, attempts, failure, completion: None };
            self.schedule.insert(id, aggregate_id, queued, weight, until);
        }
        self.seen = self.seen.max(upto);
    }

    /// The next event to send, if one may be sent now.
    pub(crate) fn next(&mut self, concurrency: usize) -> Option<Arc<Event>> {
        let slots = if self.probing { 1 } else { concurrency };
        if self.is_halted() || self.schedule.under_way() >= slots {
            return None;
        }
        let id = self.schedule.take_ready(Instant::now())?;
        self.schedule.get(id).map(|queued| Arc::clone(&queued.event))
    }

    /// Notes what came of sending an event.
    pub(crate) fn record_result(&mut self, id: Position, attempt: SendAttempt) {
        match attempt {
            SendAttempt::Concluded(DeliveryResult::Accepted(actions)) => {
                self.probing = false;
                self.complete(id, Completion::Received(actions));
            }
            SendAttempt::Concluded(DeliveryResult::Failed { failure, wait }) => {
                self.probing = false;
                self.record_failure(id, *failure, wait);
            }
            SendAttempt::Concluded(DeliveryResult::Busy { message, wait }) => {
                self.record_outage(id, message, wait)
            }
            SendAttempt::Unreachable(message) => self.record_outage(id, message, None),
        }
    }

    /// Whether nothing may be begun, whatever is ready.
    fn is_halted(&self) -> bool {
        self.outage.is_some() || self.stopping.is_some() || self.winding_down
    }

    fn record_outage(&mut self, id: Position, message: String, wait: Option<Duration>) {
        self.schedule.release(id);
        self.probing = true;
        let longest = self.outage.take().and_then(|(_, wait)| wait).max(wait);
        self.outage = Some((message, longest));
    }

    /// An event has failed: it is tried again, or given up, or the reactor stops.
    pub(crate) fn record_failure(&mut self, id: Position, failure: Failure, wait: Option<Duration>) {
        let Some(queued) = self.schedule.get_mut(id) else { return };
        queued.attempts = queued.attempts.saturating_add(1);
        queued.failure = Some(queued.source.blame(failure));
        let attempts = queued.attempts;
        let delay = self.retry.delay_after(attempts).max(wait.unwrap_or_default());
        match self.retry.verdict(attempts) {
            OnFailure::Retry => self.postpone(id, delay),
            OnFailure::Stop => {
                self.postpone(id, delay);
                self.stopping = Some(id);
            }
            OnFailure::Skip => self.complete(id, Completion::GivenUp { blocks: false }),
            OnFailure::Park => {
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
        self.schedule.postpone(id, Instant::now() + delay);
    }

    fn complete(&mut self, id: Position, completion: Completion) {
        if let Some(queued) = self.schedule.get_mut(id) {
            queued.completion = Some(completion);
        }
        self.schedule.complete(id);
    }

    /// An operator wants everything tried now.
    pub(crate) fn retry_now(&mut self) {
        self.schedule.make_all_due();
    }

    /// Whether no event can be sent, and everything that was under way has ended.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.outage.is_some() && self.schedule.under_way() == 0
    }

    /// Why that is so, said once.
    pub(crate) fn take_outage(&mut self) -> Option<ProcessorError> {
        let (message, wait) = if self.is_unreachable() { self.outage.take()? } else { return None };
        Some(ProcessorError::Unavailable { message, wait })
    }

    /// Whether there is something to do at once, in the next turn.
    pub(crate) fn is_busy(&self) -> bool {
        let complains = self.outage.is_some() && !self.winding_down;
        self.schedule.under_way() > 0 || complains || self.can_send()
    }

    /// Whether an event may be begun, as soon as there is a slot for it.
    pub(crate) fn can_send(&self) -> bool {
        !self.is_halted() && self.schedule.has_ready(Instant::now())
    }

    /// Nothing more is to be begun.
    pub(crate) fn wind_down(&mut self) {
        self.winding_down = true;
    }

    /// Whether something is done that has not been committed.
    pub(crate) fn has_uncommitted(&self) -> bool {
        self.schedule.completed().next().is_some()
    }

    /// What receivers want done, in the order of their events.
    pub(crate) fn effects(&self) -> Vec<EventEffects> {
        let queued = self.schedule.completed().filter_map(|id| self.schedule.get(id));
        let effects = queued.filter_map(|queued| match &queued.completion {
            Some(Completion::Received(actions)) if !actions.is_empty() => {
                Some(EventEffects { source: queued.source.clone(), actions: actions.clone() })
            }
            _ => None,
        });
        effects.collect()
    }

    /// What is to be committed.
    pub(crate) fn plan_commit(&self) -> CommitPlan {
        let position = self.schedule.completed_upto(self.seen);
        let done: Vec<Position> = self.schedule.completed().collect();
        let (mut given_up, mut waiting) = (Vec::new(), Vec::new());
        for queued in done.iter().filter_map(|id| self.schedule.get(*id)) {
            match (&queued.completion, &queued.failure) {
                (Some(Completion::GivenUp { blocks }), Some(failure)) => {
                    let (failure, attempts, blocks) = (failure.clone(), queued.attempts, *blocks);
                    given_up.push(GivenUp { failure, attempts, blocks });
                }
                (Some(Completion::Waits), _) => waiting.push(Waiting::of(&queued.event)),
                _ => {}
            }
        }
        let put_off = self.failed.iter().filter_map(|id| Some((*id, self.put_off_of(*id)?))).collect();
        CommitPlan { position, done, given_up, waiting, put_off }
    }

    /// The event that is put off and due next, or that the reactor stops over.
    pub(crate) fn next_put_off(&self) -> Option<PutOff> {
        let Some(id) = self.stopping else {
            return self.schedule.next_due().and_then(|(_, id)| self.put_off_of(id));
        };
        let put_off = self.put_off_of(id)?;
        // It stops when everything under way has ended.
        Some(if self.schedule.under_way() == 0 { PutOff { until: None, ..put_off } } else { put_off })
    }

    fn put_off_of(&self, id: Position) -> Option<PutOff> {
        let until = self.schedule.postponed_until(id)?;
        let QueuedEvent { failure, attempts, .. } = self.schedule.get(id)?;
        Some(PutOff { failure: failure.clone()?, attempts: *attempts, until: Some(until) })
    }

    /// The tracker is about to be moved there.
    pub(crate) fn mark_attempted(&mut self, position: Position) {
        self.attempted = Some(position);
    }

    /// That has been committed.
    pub(crate) fn mark_committed(&mut self, plan: &CommitPlan) {
        self.resume_at(plan.position);
        self.schedule.remove_completed();
        self.failed.clear();
        self.beyond.extend(plan.done.iter().copied());
        self.beyond = self.beyond.split_off(&plan.position.next());
    }
}

/// What is to be committed.
#[derive(Debug)]
pub(crate) struct CommitPlan {
    /// Everything at or below it is done.
    pub(crate) position: Position,
    /// What was done since the last commit.
    pub(crate) done: Vec<Position>,
    /// Which of these are dead letters now.
    pub(crate) given_up: Vec<GivenUp>,
    pub(crate) waiting: Vec<Waiting>,
    /// What has failed since the last commit and is tried again.
    pub(crate) put_off: Vec<(Position, PutOff)>,
}

impl Waiting {
    fn of(event: &Event) -> Self {
        let Event { id, uuid, event_type, aggregate_id, .. } = event;
        Self { id: *id, uuid: *uuid, event_type: event_type.clone(), aggregate_id: *aggregate_id }
    }
}

impl CommitPlan {
    /// Whether nothing has happened.
    pub(crate) fn is_empty(&self) -> bool {
        self.done.is_empty() && self.put_off.is_empty()
    }
}
