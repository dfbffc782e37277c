//! Several processors on one store, until nothing is left to do.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::FutureExt as _;

use super::LocalStore;
use super::clock::{self, Clock};
use super::error::LocalError;
use super::ledger::{DeadLetter, Pending};
use super::processor::{LocalProcessor, Step};
use crate::event::{NewEvent, Position};
use crate::handlers::native::describe_panic;
use crate::processing::emission::LaterEmission;
use crate::processing::failure::{FailedEvent, Failure};
use crate::store::AppendError;
use crate::store::upcast::Upcast;

/// Processors in Rust on a store without PostgreSQL. They work in the task that calls [`Self::drain`], and at no other time.
pub struct LocalProcessors {
    store: LocalStore,
    processors: Vec<LocalProcessor>,
    upcasts: Arc<[Upcast]>,
    clock: Clock,
}

impl std::fmt::Debug for LocalProcessors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.processors.iter().map(|processor| processor.key.name.as_str()).collect();
        f.debug_struct("LocalProcessors").field("processors", &names).finish_non_exhaustive()
    }
}

/// What a drain has done, and what is left for later.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// The last event of the store, which every processor has reached.
    pub position: Position,
    /// How many events each processor has handled; those that had nothing to do are left out.
    pub handled: BTreeMap<String, usize>,
    /// What reactors have emitted for a later time, the next ones first.
    pub later: Vec<LaterEmission>,
    /// The events that were set aside, as `on_failure` of their processor says.
    pub set_aside: Vec<SetAside>,
}

/// An event that a processor has set aside, and does not handle any more.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SetAside {
    /// The processor.
    pub processor: String,
    /// The position of the event.
    pub event_id: Position,
    /// The type of the event.
    pub event_type: String,
    /// Why it was set aside.
    pub reason: String,
}

impl LocalProcessors {
    pub(super) fn new(store: LocalStore, processors: Vec<LocalProcessor>, upcasts: Vec<Upcast>) -> Self {
        Self { store, processors, upcasts: upcasts.into(), clock: Clock::default() }
    }

    pub(super) async fn register(&self) -> Result<(), LocalError> {
        for processor in &self.processors {
            processor.register(&self.store).await?;
        }
        Ok(())
    }

    /// Runs the processors until each has handled all that is there, also what they emit, and nothing that is due is pending.
    /// What is emitted for a later time is listed, and not waited for: see [`Self::advance`]. A second call handles nothing that
    /// the first has handled.
    ///
    /// They take turns, a batch each, in the order of their names. An event that fails is tried again at once as long as
    /// `max_attempts` says, and set aside where `on_failure` says so.
    ///
    /// # Errors
    /// [`LocalError::Failed`] with the first event that could not be handled, once the other processors have nothing left to do.
    pub async fn drain(&mut self) -> Result<Drained, LocalError> {
        self.drain_events(Position::MAX).await
    }

    /// As [`Self::drain`], of the events up to one.
    pub(super) async fn drain_events(&mut self, upto: Position) -> Result<Drained, LocalError> {
        let mut drained = Drained::default();
        let mut failures: BTreeMap<usize, LocalError> = BTreeMap::new();
        let mut first = None;
        loop {
            let mut went = self.move_due().await?;
            for place in 0..self.processors.len() {
                if failures.contains_key(&place) {
                    continue;
                }
                match self.step(place, upto, &mut drained).await {
                    Ok(has_gone) => went |= has_gone,
                    Err(error @ LocalError::Failed { .. }) => {
                        first.get_or_insert(place);
                        failures.insert(place, error);
                    }
                    Err(error) => return Err(error),
                }
            }
            if !went {
                break;
            }
        }
        if let Some(error) = first.and_then(|place| failures.remove(&place)) {
            return Err(error);
        }
        drained.position = self.store.events.latest_id(None).await?;
        drained.later = self.own_pending().await?.iter().map(list).collect();
        Ok(drained)
    }

    /// Sets the clock forward by a while, and drains. What is due by then is emitted at its time, so what follows from it, and is
    /// due by then too, is emitted as well. Events that are emitted from then on have the time of this clock.
    ///
    /// # Errors
    /// As for [`Self::drain`].
    pub async fn advance(&mut self, time: Duration) -> Result<Drained, LocalError> {
        let time = TimeDelta::from_std(time).ok().and_then(|time| self.clock.now().checked_add_signed(time));
        self.drain_until(time.unwrap_or(clock::END)).await
    }

    /// Sets the clock forward to a time, and drains: see [`Self::advance`].
    ///
    /// # Errors
    /// As for [`Self::drain`].
    pub async fn drain_until(&mut self, time: DateTime<Utc>) -> Result<Drained, LocalError> {
        let time = time.min(clock::END);
        let mut all = self.drain().await?;
        while let Some(due) = self.own_pending().await?.first().map(|next| next.due_at)
            && due <= time
        {
            self.clock.set(due);
            all.add(self.drain().await?);
        }
        self.clock.set(time);
        Ok(all)
    }

    /// What the processors have emitted for a later time, the next ones first.
    ///
    /// # Errors
    /// The store could not be read.
    pub async fn later(&self) -> Result<Vec<LaterEmission>, LocalError> {
        Ok(self.own_pending().await?.iter().map(list).collect())
    }

    /// The time of the clock, which [`Self::advance`] sets forward.
    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// How far a processor is: every event up to there is handled, or of a type that it does not handle. `None`: there is no
    /// such processor.
    ///
    /// # Errors
    /// The store could not be read.
    pub async fn position(&self, processor: &str) -> Result<Option<Position>, LocalError> {
        let own = self.processors.iter().find(|one| one.key.name == processor);
        let Some(own) = own else { return Ok(None) };
        Ok(self.store.ledger.standing(&own.key).await?.position)
    }

    /// Has a processor do one thing. Returns whether there was anything to do.
    async fn step(
        &mut self,
        place: usize,
        upto: Position,
        drained: &mut Drained,
    ) -> Result<bool, LocalError> {
        let processor = &mut self.processors[place];
        let name = processor.key.name.clone();
        // What a handler is made and dropped by, and its errors say, is the application's as well, and may panic.
        let step = AssertUnwindSafe(processor.step(&self.store, upto, &self.upcasts, self.clock));
        let step = step.catch_unwind().await.unwrap_or_else(|panic| {
            Err(LocalError::failed(&name, Failure::of_processor(describe_panic(panic))))
        });
        match step? {
            Step::Idle => Ok(false),
            Step::Went { handled, set_aside } => {
                drained.note(&name, handled, set_aside);
                Ok(true)
            }
        }
    }

    /// Moves what is due into the store. Returns whether that was anything.
    async fn move_due(&self) -> Result<bool, LocalError> {
        let mut moved = false;
        for Pending { id, reactor, event, due_at, .. } in self.own_pending().await? {
            if due_at > self.clock.now() {
                break;
            }
            let event_type = event.event_type.clone();
            let event = NewEvent { created_at: self.clock.time_of_events(), ..event };
            match self.store.ledger.append_pending(id, event).await {
                Ok(()) => moved = true,
                Err(AppendError::Database(error)) => return Err(error.into()),
                Err(error) => {
                    let reason =
                        format!("the store refuses {event_type}, which it has emitted for later: {error}");
                    return Err(LocalError::failed(&reactor, Failure::of_processor(reason)));
                }
            }
        }
        Ok(moved)
    }

    /// What the processors have emitted for later, by the time when it is due.
    pub(super) async fn own_pending(&self) -> Result<Vec<Pending>, LocalError> {
        let mut pending = self.store.ledger.pending().await?;
        pending.retain(|pending| self.processors.iter().any(|own| own.key.name == pending.reactor));
        Ok(pending)
    }
}

impl Drained {
    fn note(&mut self, processor: &str, handled: usize, set_aside: Vec<DeadLetter>) {
        if handled > 0 {
            *self.handled.entry(processor.to_owned()).or_default() += handled;
        }
        self.set_aside.extend(set_aside.into_iter().map(|DeadLetter { event, reason, .. }| {
            let FailedEvent { id: event_id, event_type, .. } = event;
            SetAside { processor: processor.to_owned(), event_id, event_type, reason }
        }));
    }

    /// Adds what a later drain has done.
    fn add(&mut self, next: Self) {
        (self.position, self.later) = (next.position, next.later);
        self.set_aside.extend(next.set_aside);
        for (processor, handled) in next.handled {
            *self.handled.entry(processor).or_default() += handled;
        }
    }
}

pub(super) fn list(pending: &Pending) -> LaterEmission {
    LaterEmission {
        reactor: pending.reactor.clone(),
        event_type: pending.event.event_type.clone(),
        aggregate_id: pending.event.aggregate_id.to_string(),
        key: pending.key.clone(),
        due_at: pending.due_at.into(),
    }
}
