//! Sending what the queue allows, also while the database is at work.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{JoinError, JoinSet};
use uuid::Uuid;

use super::delivery_queue::DeliveryQueue;
use super::sender::{SendAttempt, Sender};
use super::sending_thread::SendingThread;
use crate::event::Position;

/// How long to wait for requests under way when no further event can be sent: briefly if results wait to be committed,
/// longer if none do. New events wait as long.
const WAIT_WITH_RESULTS: Duration = Duration::from_millis(5);
const WAIT_WITHOUT_RESULTS: Duration = Duration::from_millis(50);

/// How long results wait to be committed while further events can be sent. Requests go on during the commit.
const RESULTS_WAIT_MAX: Duration = Duration::from_millis(50);

/// The longest time for the step that sends, however long a batch may take: no transaction extends the lease meanwhile.
pub(super) const SENDING_TIME_MAX: Duration = Duration::from_secs(1);

type Request = (Position, Uuid, SendAttempt);

/// The queue, and the requests of its events that are under way.
pub(super) struct Dispatch {
    pub(super) queue: DeliveryQueue,
    pub(super) sender: Arc<Sender>,
    concurrency: usize,
    under_way: JoinSet<Request>,
    /// Where requests are made; `None`: on the thread of the worker.
    thread: Option<Arc<SendingThread>>,
}

impl Dispatch {
    pub(super) fn new(queue: DeliveryQueue, sender: Sender, concurrency: usize) -> Self {
        Self { queue, sender: Arc::new(sender), concurrency, under_way: JoinSet::new(), thread: None }
    }

    /// Gives up all requests and forgets all events.
    pub(super) async fn clear(&mut self) {
        self.under_way.shutdown().await;
        self.queue.clear();
    }

    /// Does something in a transaction that has the tracker locked, and goes on sending meanwhile: nobody else claims it.
    pub(super) async fn beside<T>(&mut self, work: impl Future<Output = T>) -> T {
        self.beside_for(Duration::MAX, work).await
    }

    /// Opens a transaction, and goes on sending meanwhile, as long as the lease cannot have ended.
    pub(super) async fn beside_opening<T>(&mut self, opening: impl Future<Output = T>) -> T {
        self.beside_for(SENDING_TIME_MAX, opening).await
    }

    async fn beside_for<T>(&mut self, time: Duration, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            done = work => done,
            never = self.keep_sending(time) => match never {},
        }
    }

    /// Sends what may be sent, and begins nothing after this time. Never returns, and may be given up at any time.
    async fn keep_sending(&mut self, time: Duration) -> Infallible {
        let begun = Instant::now();
        loop {
            // Whoever was frozen meanwhile begins nothing either.
            if begun.elapsed() < time {
                self.fill_slots();
            }
            match self.under_way.join_next().await {
                Some(joined) => self.note(joined),
                None => std::future::pending().await,
            }
        }
    }

    /// Sends what may be sent, until nothing is left to send, results have waited long enough, or the time is up.
    pub(super) async fn send(&mut self, time: Duration) {
        let begun = Instant::now();
        let (mut deadline, mut is_waiting) = (begun + time, false);
        loop {
            if Instant::now() >= deadline {
                return;
            }
            self.fill_slots();
            if self.under_way.is_empty()
                || self.queue.has_uncommitted() && begun.elapsed() >= RESULTS_WAIT_MAX
            {
                return;
            }
            if !self.queue.can_send() && !is_waiting {
                is_waiting = true;
                let wait =
                    if self.queue.has_uncommitted() { WAIT_WITH_RESULTS } else { WAIT_WITHOUT_RESULTS };
                deadline = deadline.min(Instant::now() + wait);
            }
            match tokio::time::timeout_at(deadline.into(), self.under_way.join_next()).await {
                Ok(Some(joined)) => self.note(joined),
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Takes note of what has come of a request.
    fn note(&mut self, joined: Result<Request, JoinError>) {
        match joined {
            Ok((id, uuid, attempt)) => self.queue.record_result(id, uuid, attempt),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The thread has ended, which it does not while it is needed: the event is sent again under the next claim.
            Err(_) => {}
        }
    }

    /// Starts as many requests as `concurrency` allows.
    fn fill_slots(&mut self) {
        while let Some(event) = self.queue.next(self.concurrency) {
            let sender = Arc::clone(&self.sender);
            let request = async move { (event.id, event.uuid, sender.send(&event).await) };
            // Without a thread of their own, requests are slower, and nothing else.
            self.thread = self.thread.take().or_else(|| SendingThread::shared().ok());
            match &self.thread {
                Some(thread) => self.under_way.spawn_on(request, thread.runtime()),
                None => self.under_way.spawn(request),
            };
        }
    }
}
