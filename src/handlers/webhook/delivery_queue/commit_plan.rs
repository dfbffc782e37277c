//! What the next commit records of the queue.

use std::time::Instant;

use super::{Completion, DeliveryQueue, QueuedEvent};
use crate::event::{Event, Position};
use crate::handlers::batch::EventEffects;
use crate::processing::dead_letters::NewDeadLetter;
use crate::processing::progress::PendingRetry;
use crate::store::witness::Witness;

/// What the next commit records.
#[derive(Debug)]
pub(crate) struct CommitPlan {
    /// All events up to this position are done.
    pub(crate) position: Position,
    /// The witness of that position, in the store that the events were read from.
    pub(crate) witness: Option<Witness>,
    /// The events that were completed since the last commit.
    pub(crate) done: Vec<Position>,
    /// Those of them that become dead letters.
    pub(crate) given_up: Vec<NewDeadLetter>,
    /// Those of them that wait behind a dead letter.
    pub(crate) waiting: Vec<Event>,
    /// The events that have failed since the last commit and are tried again.
    pub(crate) pending_retries: Vec<(Position, PendingRetry)>,
}

impl CommitPlan {
    /// Whether nothing has happened since the last commit.
    pub(crate) fn is_empty(&self) -> bool {
        self.done.is_empty() && self.pending_retries.is_empty()
    }
}

impl DeliveryQueue {
    /// The actions that receivers want, in the order of their events.
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

    /// Collects what the next commit has to record.
    pub(crate) fn plan_commit(&self) -> CommitPlan {
        let position = self.schedule.completed_upto(self.seen);
        let done: Vec<Position> = self.schedule.completed().collect();
        let (mut given_up, mut waiting) = (Vec::new(), Vec::new());
        for queued in done.iter().filter_map(|id| self.schedule.get(*id)) {
            match (&queued.completion, &queued.failure) {
                (Some(Completion::GivenUp { blocks }), Some(failure)) => {
                    let (failure, attempts, blocks) = (failure.clone(), queued.attempts, *blocks);
                    given_up.push(NewDeadLetter { failure, attempts, blocks });
                }
                (Some(Completion::Waits), _) => waiting.push(Event::clone(&queued.event)),
                _ => {}
            }
        }
        let pending_retries =
            self.failed.iter().filter_map(|id| Some((*id, self.pending_retry_of(*id)?))).collect();
        let witness = self.trail.upto(position);
        CommitPlan { position, witness, done, given_up, waiting, pending_retries }
    }

    /// The postponed event that is due next, or the one over which the reactor stops.
    pub(crate) fn next_pending_retry(&self) -> Option<PendingRetry> {
        let Some(id) = self.stopped_over else {
            return self.schedule.next_due().and_then(|(_, id)| self.pending_retry_of(id));
        };
        let pending_retry = self.pending_retry_of(id)?;
        // The reactor stops when everything under way has ended.
        Some(if self.under_way() == 0 {
            PendingRetry { until: None, ..pending_retry }
        } else {
            pending_retry
        })
    }

    /// The first of the events that fail, which stays the same until that one is done, or the one over which the reactor stops.
    pub(crate) fn first_pending_retry(&self) -> Option<PendingRetry> {
        if self.stopped_over.is_some() {
            return self.next_pending_retry();
        }
        let id = *self.failing.first()?;
        let QueuedEvent { failure, attempts, .. } = self.schedule.get(id)?;
        // Where it has no time, it is under way again.
        let until = self.schedule.postponed_until(id).unwrap_or_else(Instant::now);
        Some(PendingRetry { failure: failure.clone()?, attempts: *attempts, until: Some(until) })
    }

    fn pending_retry_of(&self, id: Position) -> Option<PendingRetry> {
        let until = self.schedule.postponed_until(id)?;
        let QueuedEvent { failure, attempts, .. } = self.schedule.get(id)?;
        Some(PendingRetry { failure: failure.clone()?, attempts: *attempts, until: Some(until) })
    }

    /// Records that the tracker is about to be moved to `position`.
    pub(crate) fn mark_attempted(&mut self, position: Position) {
        self.attempted = Some(position);
    }

    /// Records that the plan has been committed. What has happened since it was made is left for the next one.
    pub(crate) fn mark_committed(&mut self, plan: &CommitPlan) {
        self.resume_at(plan.position);
        self.trail.forget_below(plan.position);
        self.schedule.remove(&plan.done);
        for (id, pending_retry) in &plan.pending_retries {
            // It may have failed once more meanwhile.
            if self.schedule.get(*id).is_none_or(|queued| queued.attempts == pending_retry.attempts) {
                self.failed.remove(id);
            }
        }
        // What was completed since it had failed is recorded as that.
        self.failed.retain(|id| self.schedule.get(*id).is_some());
        self.beyond.extend(plan.done.iter().copied());
        self.beyond = self.beyond.split_off(&plan.position.next());
    }
}
