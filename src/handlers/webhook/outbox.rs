//! What passes between the worker's thread and the one that sends: events that may be sent, and what has come of them.
//!
//! The worker hands over more events than requests may be under way, so that a slot that is free takes the next one by
//! itself. So neither thread has to be woken for each request. Whatever is not accepted stops the slots until the worker
//! has taken note of it, and what no slot has taken can be taken back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use uuid::Uuid;

use super::answer::DeliveryResult;
use super::sender::{SendAttempt, Sender};
use crate::event::{Event, Position};

/// How many events are handed over beyond those under way, and how few of them are left when the worker is woken for more.
pub(super) const EVENTS_AHEAD: usize = 128;
const EVENTS_LEFT: usize = EVENTS_AHEAD / 2;

/// What has come of sending an event.
pub(super) type Sent = (Position, Uuid, SendAttempt);

/// The events and the results. Slots share it with the worker.
#[derive(Debug, Default)]
pub(super) struct Outbox(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Arc<Event>>,
    /// Until when requests may begin; `None`: none may.
    begin_until: Option<Instant>,
    /// Until when one may begin that a slot has taken: nobody else can have the claim. A slot may have been frozen since, or have waited
    /// for a connection.
    owned_until: Option<Instant>,
    /// Whether the worker has to take note of a result before another request begins.
    is_in_doubt: bool,
    /// How many slots are running.
    slots: usize,
    sent: Vec<Sent>,
    /// Who waits for results, if any are wanted at once or only when events run out.
    waker: Option<Waker>,
    at_once: bool,
}

impl Outbox {
    /// Hands over events, and allows requests to begin until then. Returns how many slots have to be started.
    pub(super) fn hand_over(
        &self,
        events: Vec<Arc<Event>>,
        begin_until: Instant,
        concurrency: usize,
    ) -> usize {
        let mut state = self.lock();
        state.waiting.extend(events);
        state.begin_until = Some(begin_until);
        state.owned_until = state.owned_until.max(Some(begin_until));
        let started = concurrency.saturating_sub(state.slots).min(state.waiting.len());
        state.slots += started;
        started
    }

    /// Nobody else has the claim until then.
    pub(super) fn own_until(&self, until: Instant) {
        let mut state = self.lock();
        state.owned_until = state.owned_until.max(Some(until));
    }

    /// Whether nobody else can have the claim.
    pub(super) fn is_owned(&self) -> bool {
        self.lock().owned_until.is_some_and(|until| Instant::now() < until)
    }

    /// Allows no request to begin.
    pub(super) fn hold(&self) {
        self.lock().begin_until = None;
    }

    /// As [`Self::hold`], and takes back what no slot has taken.
    pub(super) fn take_back(&self) -> VecDeque<Arc<Event>> {
        let mut state = self.lock();
        state.begin_until = None;
        std::mem::take(&mut state.waiting)
    }

    /// Takes the results that are there. If one of them was not accepted, no request begins before events are handed over
    /// again.
    pub(super) fn take_results(&self) -> Vec<Sent> {
        let mut state = self.lock();
        if std::mem::take(&mut state.is_in_doubt) {
            state.begin_until = None;
        }
        std::mem::take(&mut state.sent)
    }

    /// Whether there are results. If not, the task is woken when the events run out, or when something was not accepted; or
    /// at the next result.
    pub(super) fn poll_results(&self, context: &Context<'_>, at_once: bool) -> Poll<()> {
        let mut state = self.lock();
        if !state.sent.is_empty() {
            return Poll::Ready(());
        }
        state.waker = Some(context.waker().clone());
        state.at_once = at_once;
        Poll::Pending
    }

    /// Whether any event waits for a slot.
    pub(super) fn has_waiting(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    /// Whether no request is under way, and no result is to be taken.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.lock();
        state.slots == 0 && state.sent.is_empty()
    }

    /// Sends one event after the other, until none is left or none may be sent.
    pub(super) async fn run_slot(self: Arc<Self>, sender: Arc<Sender>) {
        while let Some(event) = self.take() {
            let attempt = sender.send(&event, &|| self.is_owned()).await;
            self.put((event.id, event.uuid, attempt));
        }
    }

    /// Takes the next event; `None`: the slot ends.
    fn take(&self) -> Option<Arc<Event>> {
        let mut state = self.lock();
        // Whoever was frozen meanwhile begins nothing either.
        let may_begin = !state.is_in_doubt && state.begin_until.is_some_and(|until| Instant::now() < until);
        let event = if may_begin { state.waiting.pop_front() } else { None };
        state.slots -= usize::from(event.is_none());
        event
    }

    fn put(&self, sent: Sent) {
        let is_accepted = matches!(&sent.2, SendAttempt::Concluded(DeliveryResult::Accepted(_)));
        let waker = {
            let mut state = self.lock();
            state.sent.push(sent);
            state.is_in_doubt |= !is_accepted;
            let is_wanted = state.at_once || state.is_in_doubt || state.waiting.len() <= EVENTS_LEFT;
            if is_wanted { state.waker.take() } else { None }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests may begin for as long as somebody has this, who takes note of results.
pub(super) struct Allowance(pub(super) Arc<Outbox>);

impl Drop for Allowance {
    fn drop(&mut self) {
        self.0.hold();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;
    use std::time::Duration;

    use chrono::DateTime;
    use serde_json::value::RawValue;

    use super::*;

    fn event(id: usize) -> Arc<Event> {
        Arc::new(Event {
            id: i64::try_from(id).unwrap().into(),
            uuid: Uuid::from_u128(id.try_into().unwrap()),
            aggregate_id: Uuid::nil().into(),
            event_type: "A".into(),
            version: 1.into(),
            body: RawValue::NULL.to_owned(),
            metadata: RawValue::NULL.to_owned(),
            correlation_id: None,
            causation_id: None,
            created_at: DateTime::UNIX_EPOCH.into(),
        })
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// With these events, and two slots.
    fn outbox(events: usize) -> Outbox {
        let outbox = Outbox::default();
        assert_eq!(outbox.hand_over((1..=events).map(event).collect(), soon(), 2), events.min(2));
        outbox
    }

    fn accepted(event: &Event) -> Sent {
        (event.id, event.uuid, SendAttempt::Concluded(DeliveryResult::Accepted(Vec::new())))
    }

    fn busy(event: &Event) -> Sent {
        let busy = DeliveryResult::Busy { message: "429".into(), wait: None };
        (event.id, event.uuid, SendAttempt::Concluded(busy))
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn nothing_is_begun_after_something_was_not_accepted() {
        let outbox = outbox(4);
        let (first, second) = (outbox.take().unwrap(), outbox.take().unwrap());
        outbox.put(busy(&first));
        // Even if the worker hands over more before it has seen that.
        assert_eq!(outbox.hand_over(vec![event(5)], soon(), 2), 0);
        assert!(outbox.take().is_none());
        // Nor between taking the result and deciding what follows from it.
        assert_eq!(outbox.take_results().len(), 1);
        outbox.put(accepted(&second));
        assert!(outbox.take().is_none());
        assert_eq!(outbox.take_back().iter().map(|event| event.id).collect::<Vec<_>>(), [3, 4, 5]);
        assert!(!outbox.is_idle());
        outbox.take_results();
        assert!(outbox.is_idle());
    }

    #[test]
    fn nothing_is_begun_when_the_time_is_up_or_nobody_takes_note() {
        let outbox = Arc::new(outbox(2));
        drop(Allowance(Arc::clone(&outbox)));
        assert!(outbox.take().is_none());
        assert_eq!(outbox.hand_over(Vec::new(), Instant::now(), 2), 1);
        assert!(outbox.take().is_none() && outbox.has_waiting());
        assert_eq!(outbox.hand_over(Vec::new(), soon(), 2), 1);
        assert!(outbox.take().is_some());
    }

    #[test]
    fn what_was_taken_may_begin_as_long_as_nobody_else_can_have_the_claim() {
        let outbox = Arc::new(outbox(1));
        assert!(outbox.take().is_some() && outbox.is_owned());
        // It goes on waiting for a connection while nobody takes note.
        drop(Allowance(Arc::clone(&outbox)));
        assert!(outbox.is_owned());
        let outbox = Outbox::default();
        assert!(!outbox.is_owned());
        outbox.hand_over(vec![event(1)], Instant::now(), 1);
        assert!(!outbox.is_owned());
        outbox.own_until(soon());
        assert!(outbox.is_owned());
    }

    #[test]
    fn the_worker_is_woken_when_events_run_out_and_not_before() {
        let (outbox, woken) = (outbox(EVENTS_AHEAD), Arc::new(Woken::default()));
        let waker = Arc::clone(&woken).into();
        let context = Context::from_waker(&waker);
        assert!(outbox.poll_results(&context, false).is_pending());
        while outbox.lock().waiting.len() > EVENTS_LEFT + 1 {
            let event = outbox.take().unwrap();
            outbox.put(accepted(&event));
        }
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        assert!(outbox.poll_results(&context, false).is_ready());
        let (next, last) = (outbox.take().unwrap(), outbox.take().unwrap());
        outbox.put(accepted(&next));
        outbox.put(accepted(&last));
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        outbox.take_results();
        outbox.hand_over((0..EVENTS_AHEAD).map(event).collect(), soon(), 2);
        assert!(outbox.poll_results(&context, true).is_pending());
        outbox.put(accepted(&next));
        assert_eq!(woken.0.load(Ordering::Relaxed), 2);
    }
}
