//! What a webhook reactor knows of the events that it has looked at: which wait, which are under way, what came of them.
//!
//! All of it follows from what is in the database and what receivers have answered since; after a crash it is read anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer::Verdict;
use super::deliveries::{Delivered, GivenUp, Waiting};
use super::schedule::Schedule;
use super::sender::Sent;
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

/// An event at the desk.
#[derive(Debug)]
struct Parcel {
    event: Arc<Event>,
    source: Source,
    /// How often it has failed, and how the last time.
    attempts: u32,
    failure: Option<Failure>,
    outcome: Option<Outcome>,
}

/// Why an event need not be sent any more.
#[derive(Debug)]
enum Outcome {
    /// The receiver has it, and wants this done.
    Received(Vec<Action>),
    /// It has used up its attempts.
    GivenUp { blocks: bool },
    /// It waits behind one that has.
    Waits,
}

/// Events between being read and being done.
#[derive(Debug)]
pub(crate) struct Desk {
    retry: RetryPolicy,
    schedule: Schedule<Parcel>,
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

impl Desk {
    pub(crate) fn new(retry: RetryPolicy) -> Self {
        Self {
            retry,
            schedule: Schedule::default(),
            position: 0,
            attempted: None,
            seen: 0,
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
    pub(crate) fn begin(&mut self, position: Position, delivered: Vec<Delivered>, forgiven: bool) {
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

    /// Whether the tracker is where this desk has left it.
    pub(crate) fn agrees(&self, position: Position) -> bool {
        self.position == position || self.attempted == Some(position)
    }

    /// Goes on at a position that [`Self::agrees`].
    pub(crate) fn go_on(&mut self, position: Position) {
        self.position = position;
        self.attempted = None;
    }

    /// The runner may have moved the tracker over an event that could not be read.
    pub(crate) fn follow(&mut self, position: Position) {
        if position > self.position {
            self.go_on(position);
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
    pub(crate) fn take_in(&mut self, deliveries: Vec<Delivery>, upto: Position) {
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
            let parcel = Parcel { event: Arc::new(event), source, attempts, failure, outcome: None };
            self.schedule.hold(id, aggregate_id, parcel, weight, until);
        }
        self.seen = self.seen.max(upto);
    }

    /// The next event to send, if one may be sent now.
    pub(crate) fn next(&mut self, concurrency: usize) -> Option<Arc<Event>> {
        let slots = if self.probing { 1 } else { concurrency };
        if self.is_halted() || self.schedule.under_way() >= slots {
            return None;
        }
        let id = self.schedule.take(Instant::now())?;
        self.schedule.get(id).map(|parcel| Arc::clone(&parcel.event))
    }

    /// Notes what came of sending an event.
    pub(crate) fn note(&mut self, id: Position, sent: Sent) {
        match sent {
            Sent::Judged(Verdict::Accepted(actions)) => {
                self.probing = false;
                self.conclude(id, Outcome::Received(actions));
            }
            Sent::Judged(Verdict::Failed { failure, wait }) => {
                self.probing = false;
                self.fail(id, *failure, wait);
            }
            Sent::Judged(Verdict::Busy { message, wait }) => self.note_outage(id, message, wait),
            Sent::Unreachable(message) => self.note_outage(id, message, None),
        }
    }

    /// Whether nothing may be begun, whatever is ready.
    fn is_halted(&self) -> bool {
        self.outage.is_some() || self.stopping.is_some() || self.winding_down
    }

    fn note_outage(&mut self, id: Position, message: String, wait: Option<Duration>) {
        self.schedule.put_back(id);
        self.probing = true;
        let longest = self.outage.take().and_then(|(_, wait)| wait).max(wait);
        self.outage = Some((message, longest));
    }

    /// An event has failed: it is tried again, or given up, or the reactor stops.
    pub(crate) fn fail(&mut self, id: Position, failure: Failure, wait: Option<Duration>) {
        let Some(parcel) = self.schedule.get_mut(id) else { return };
        parcel.attempts = parcel.attempts.saturating_add(1);
        parcel.failure = Some(parcel.source.blame(failure));
        let attempts = parcel.attempts;
        let delay = self.retry.delay_after(attempts).max(wait.unwrap_or_default());
        match self.retry.verdict(attempts) {
            OnFailure::Retry => self.put_off(id, delay),
            OnFailure::Stop => {
                self.put_off(id, delay);
                self.stopping = Some(id);
            }
            OnFailure::Skip => self.conclude(id, Outcome::GivenUp { blocks: false }),
            OnFailure::Park => {
                let behind: Vec<Position> = self.schedule.behind(id).collect();
                behind.into_iter().for_each(|other| self.conclude(other, Outcome::Waits));
                self.conclude(id, Outcome::GivenUp { blocks: true });
            }
        }
    }

    fn put_off(&mut self, id: Position, delay: Duration) {
        if let Some(parcel) = self.schedule.get_mut(id) {
            parcel.outcome = None;
        }
        self.failed.insert(id);
        self.schedule.put_off(id, Instant::now() + delay);
    }

    fn conclude(&mut self, id: Position, outcome: Outcome) {
        if let Some(parcel) = self.schedule.get_mut(id) {
            parcel.outcome = Some(outcome);
        }
        self.schedule.done(id);
    }

    /// An operator wants everything tried now.
    pub(crate) fn retry_now(&mut self) {
        self.schedule.put_off_nothing();
    }

    /// Whether no event can be sent, and everything that was under way has ended.
    pub(crate) fn is_out(&self) -> bool {
        self.outage.is_some() && self.schedule.under_way() == 0
    }

    /// Why that is so, said once.
    pub(crate) fn take_outage(&mut self) -> Option<ProcessorError> {
        let (message, wait) = if self.is_out() { self.outage.take()? } else { return None };
        Some(ProcessorError::Unavailable { message, wait })
    }

    /// Whether there is something to do at once, in the next turn.
    pub(crate) fn is_busy(&self) -> bool {
        let complains = self.outage.is_some() && !self.winding_down;
        self.schedule.under_way() > 0 || complains || self.may_begin()
    }

    /// Whether an event may be begun, as soon as there is a slot for it.
    pub(crate) fn may_begin(&self) -> bool {
        !self.is_halted() && self.schedule.has_ready(Instant::now())
    }

    /// Nothing more is to be begun.
    pub(crate) fn wind_down(&mut self) {
        self.winding_down = true;
    }

    /// Whether something is done that has not been committed.
    pub(crate) fn has_unsettled(&self) -> bool {
        self.schedule.unsettled().next().is_some()
    }

    /// What receivers want done, in the order of their events.
    pub(crate) fn effects(&self) -> Vec<EventEffects> {
        let parcels = self.schedule.unsettled().filter_map(|id| self.schedule.get(id));
        let effects = parcels.filter_map(|parcel| match &parcel.outcome {
            Some(Outcome::Received(actions)) if !actions.is_empty() => {
                Some(EventEffects { source: parcel.source.clone(), actions: actions.clone() })
            }
            _ => None,
        });
        effects.collect()
    }

    /// What is to be committed.
    pub(crate) fn sum_up(&self) -> Sum {
        let position = self.schedule.low_water(self.seen);
        let done: Vec<Position> = self.schedule.unsettled().collect();
        let (mut given_up, mut waiting) = (Vec::new(), Vec::new());
        for parcel in done.iter().filter_map(|id| self.schedule.get(*id)) {
            match (&parcel.outcome, &parcel.failure) {
                (Some(Outcome::GivenUp { blocks }), Some(failure)) => {
                    let (failure, attempts, blocks) = (failure.clone(), parcel.attempts, *blocks);
                    given_up.push(GivenUp { failure, attempts, blocks });
                }
                (Some(Outcome::Waits), _) => waiting.push(Waiting::of(&parcel.event)),
                _ => {}
            }
        }
        let put_off = self.failed.iter().filter_map(|id| Some((*id, self.put_off_of(*id)?))).collect();
        Sum { position, done, given_up, waiting, put_off }
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
        let until = self.schedule.put_off_until(id)?;
        let Parcel { failure, attempts, .. } = self.schedule.get(id)?;
        Some(PutOff { failure: failure.clone()?, attempts: *attempts, until: Some(until) })
    }

    /// The tracker is about to be moved there.
    pub(crate) fn attempt(&mut self, position: Position) {
        self.attempted = Some(position);
    }

    /// That has been committed.
    pub(crate) fn settle(&mut self, sum: &Sum) {
        self.go_on(sum.position);
        self.schedule.settle();
        self.failed.clear();
        self.beyond.extend(sum.done.iter().copied());
        self.beyond = self.beyond.split_off(&(sum.position + 1));
    }
}

/// What is to be committed.
#[derive(Debug)]
pub(crate) struct Sum {
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

impl Sum {
    /// Whether nothing has happened.
    pub(crate) fn is_empty(&self) -> bool {
        self.done.is_empty() && self.put_off.is_empty()
    }
}
