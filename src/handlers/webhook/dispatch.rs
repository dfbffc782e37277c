//! Sending what the queue allows, also while the database is at work.

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::task::{JoinError, JoinSet};

use super::delivery_queue::DeliveryQueue;
use super::outbox::{Allowance, EVENTS_AHEAD, Outbox};
use super::sender::{SendAttempt, Sender};
use super::sending_thread::SendingThread;
use crate::event::Event;

/// How long to wait for requests under way when no further event can be sent: briefly if results wait to be committed,
/// longer if none do. New events wait as long.
const WAIT_WITH_RESULTS: Duration = Duration::from_millis(5);
const WAIT_WITHOUT_RESULTS: Duration = Duration::from_millis(50);

/// How long results wait to be committed while further events can be sent. Requests go on during the commit.
const RESULTS_WAIT_MAX: Duration = Duration::from_millis(50);

/// The longest time for the step that sends, however long a batch may take: no transaction extends the lease meanwhile.
pub(super) const SENDING_TIME_MAX: Duration = Duration::from_secs(1);

/// How often whoever sends beside a transaction shows that it is not frozen. The tracker is locked meanwhile, but the sessions of an
/// owner that gives no sign of life are ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// The queue, and the requests of its events that are under way.
pub(super) struct Dispatch {
    pub(super) queue: DeliveryQueue,
    pub(super) sender: Arc<Sender>,
    concurrency: usize,
    /// Until when nobody else can have the claim, as far as is known without asking.
    owned_until: Instant,
    outbox: Arc<Outbox>,
    /// One task for each request that may be under way, as long as there is something to send.
    slots: JoinSet<()>,
    /// Where requests are made; `None`: on the thread of the worker.
    thread: Option<Arc<SendingThread>>,
}

impl Dispatch {
    pub(super) fn new(queue: DeliveryQueue, sender: Sender, concurrency: usize) -> Self {
        let (outbox, slots) = (Arc::default(), JoinSet::new());
        let owned_until = Instant::now();
        Self { queue, sender: Arc::new(sender), concurrency, owned_until, outbox, slots, thread: None }
    }

    /// Gives up all requests and forgets all events.
    pub(super) async fn clear(&mut self) {
        self.slots.shutdown().await;
        self.outbox = Arc::default();
        self.queue.clear();
    }

    /// Nobody else has the claim until then.
    pub(super) fn own_until(&mut self, until: Instant) {
        self.owned_until = until;
        self.outbox.own_until(until);
    }

    /// Begins no request any more; those under way may end.
    pub(super) fn stop_sending(&mut self) {
        self.queue.stop_sending();
        self.take_back();
    }

    /// Takes back what was handed over and is not under way.
    pub(super) fn take_back(&mut self) {
        for event in self.outbox.take_back() {
            self.queue.release(event.id);
        }
    }

    /// Waits until nothing is under way, and begins nothing meanwhile.
    pub(super) async fn settle(&mut self) {
        self.take_back();
        while !self.outbox.is_idle() {
            self.note_results(true).await;
        }
    }

    /// Does something in a transaction that has the tracker locked, and goes on sending meanwhile: nobody else claims it.
    pub(super) async fn beside<T>(&mut self, work: impl Future<Output = T>) -> T {
        self.beside_until(None, work).await
    }

    /// Opens a transaction, and goes on sending meanwhile, as long as the lease cannot have ended.
    pub(super) async fn beside_opening<T>(&mut self, opening: impl Future<Output = T>) -> T {
        let end = (Instant::now() + SENDING_TIME_MAX).min(self.owned_until);
        self.beside_until(Some(end), opening).await
    }

    async fn beside_until<T>(&mut self, end: Option<Instant>, work: impl Future<Output = T>) -> T {
        let _allowance = Allowance(Arc::clone(&self.outbox));
        tokio::select! {
            biased;
            done = work => done,
            never = self.keep_sending(end) => match never {},
        }
    }

    /// Does something in a transaction that has the tracker locked since `looked`, and allows what it sends itself to begin as long as it is
    /// not frozen.
    pub(super) async fn owning<T>(&self, mut looked: Instant, work: impl Future<Output = T>) -> T {
        let keeping = async {
            loop {
                if looked.elapsed() < SENDING_TIME_MAX {
                    self.outbox.own_until(looked + SENDING_TIME_MAX);
                    looked = Instant::now();
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        };
        tokio::select! {
            biased;
            never = keeping => never,
            done = work => done,
        }
    }

    /// Sends one event by itself.
    pub(super) async fn send_alone(&self, event: &Event) -> SendAttempt {
        self.sender.send(event, &|| self.outbox.is_owned()).await
    }

    /// Sends what may be sent, and begins nothing after this time, nor after it was frozen: somebody else may have the claim by
    /// then. Never returns, and may be given up at any time.
    async fn keep_sending(&mut self, end: Option<Instant>) -> Infallible {
        let mut looked = Instant::now();
        loop {
            if looked.elapsed() < SENDING_TIME_MAX {
                looked = Instant::now();
                let soon = looked + SENDING_TIME_MAX;
                self.fill_slots(end.map_or(soon, |end| end.min(soon)));
            }
            let _ = tokio::time::timeout(LOOK_INTERVAL, self.note_results(false)).await;
        }
    }

    /// Sends what may be sent, until nothing is left to send, results have waited long enough, or the time is up. Returns
    /// early if fewer than `enough` events can be sent, because more can be read while these are.
    pub(super) async fn send(&mut self, time: Duration, enough: usize) {
        let _allowance = Allowance(Arc::clone(&self.outbox));
        let begun = Instant::now();
        if begun >= self.owned_until {
            return tokio::time::sleep(WAIT_WITHOUT_RESULTS).await;
        }
        let end = (begun + time).min(self.owned_until);
        let (mut deadline, mut is_waiting) = (end, false);
        loop {
            let now = Instant::now();
            if now >= deadline {
                return;
            }
            self.fill_slots(end);
            let is_late = now >= begun + RESULTS_WAIT_MAX;
            let has_results = self.queue.has_uncommitted();
            if self.outbox.is_idle() || has_results && (is_late || self.queue.ready() < enough) {
                return;
            }
            if !self.can_send() && !is_waiting {
                is_waiting = true;
                let wait = if has_results { WAIT_WITH_RESULTS } else { WAIT_WITHOUT_RESULTS };
                deadline = deadline.min(now + wait);
            }
            // Results that nobody is woken for are looked at in time.
            let look = if is_late { deadline } else { deadline.min(begun + RESULTS_WAIT_MAX) };
            if tokio::time::timeout_at(look.into(), self.note_results(is_late)).await.is_err() {
                self.record_results();
            }
        }
    }

    /// Whether an event can be sent as soon as there is a free slot.
    fn can_send(&self) -> bool {
        self.queue.can_send() || self.outbox.has_waiting()
    }

    /// Waits until something has come of requests, and takes note of it: `at_once`, or when the events run out that slots take
    /// by themselves. May be given up at any time.
    async fn note_results(&mut self, at_once: bool) {
        let Self { slots, outbox, .. } = self;
        poll_fn(|context| {
            let mut has_ended = false;
            while let Poll::Ready(Some(ended)) = slots.poll_join_next(context) {
                check(ended);
                has_ended = true;
            }
            match outbox.poll_results(context, at_once) {
                Poll::Pending if !has_ended => Poll::Pending,
                _ => Poll::Ready(()),
            }
        })
        .await;
        self.record_results();
    }

    /// Takes note of what has come of requests.
    fn record_results(&mut self) {
        for (id, uuid, attempt) in self.outbox.take_results() {
            self.queue.record_result(id, uuid, attempt);
        }
        if self.queue.is_halted() {
            self.take_back();
        }
    }

    /// Hands over what may be sent, and has as many slots as `concurrency` allows send it.
    fn fill_slots(&mut self, until: Instant) {
        if Instant::now() >= until {
            return;
        }
        let Self { queue, outbox, concurrency, .. } = self;
        let events = std::iter::from_fn(|| queue.next(*concurrency + EVENTS_AHEAD)).collect();
        for _ in 0..outbox.hand_over(events, until, *concurrency) {
            let slot = Arc::clone(&self.outbox).run_slot(Arc::clone(&self.sender));
            // Without a thread of their own, requests are slower, and nothing else.
            self.thread = self.thread.take().or_else(|| SendingThread::shared().ok());
            match &self.thread {
                Some(thread) => self.slots.spawn_on(slot, thread.runtime()),
                None => self.slots.spawn(slot),
            };
        }
    }
}

/// A slot that has ended has nothing to tell, unless it has panicked.
fn check(ended: Result<(), JoinError>) {
    match ended {
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // Or the thread has ended, which it does not while it is needed: events are sent again under the next claim.
        Ok(()) | Err(_) => {}
    }
}
