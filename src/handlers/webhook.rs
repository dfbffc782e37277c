//! Webhook reactors: events are sent over HTTP, each at least once and under one key, in order within each aggregate.
//!
//! A call of `process` has three steps. It reads events behind those already in the queue. It sends what may be sent, while
//! no transaction is open. And it commits the results: the position up to which everything is done, the events beyond it
//! that are done, what receivers want emitted, and what has failed. While the database reads or commits, requests go on, on a
//! thread of their own; what they result in by then is committed by a later call, and so is what takes longer.
//!
//! An event is sent only after its predecessor in the aggregate has been *committed* as received. Whatever a crash makes
//! espd repeat is therefore the last event that the receiver has seen of that aggregate. See `docs/webhooks.md`.

mod address;
mod answer;
mod client;
mod cloud_event;
mod commit;
mod connection;
mod dead_letter;
mod deliveries;
mod delivery_queue;
mod dispatch;
mod outbox;
mod request;
mod schedule;
mod sender;
mod sending_thread;
mod signature;
mod text_headers;

use std::time::{Duration, Instant};

use async_trait::async_trait;
use sqlx::{Connection as _, PgConnection};

use crate::handlers::batch::{BatchTransaction, Reading};
use crate::postgres::server_mark;
use crate::processing::declaration::{BatchLimits, WebhookDeclaration};
use crate::processing::emission::Emitter;
use crate::processing::processor::{
    BatchRequest, Outcome, Processor, ProcessorBase, ProcessorError, RunsAhead,
};
use crate::processing::progress::Progress;
use crate::processing::tracker::Claim;

pub(crate) use address::is_public;
pub(crate) use answer::{Answer, DeliveryResult};
pub(crate) use client::{RequestError, read_authorities};
pub(crate) use request::{is_reserved, read_header};
pub(crate) use sender::Sender;

use deliveries::Deliveries;
use delivery_queue::DeliveryQueue;
use dispatch::{Dispatch, SENDING_TIME_MAX};

/// How long the transaction may be idle before the server ends it.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// A reactor that sends its events to a receiver.
pub(crate) struct Webhook {
    base: ProcessorBase,
    emitter: Emitter,
    /// How long a request may take.
    timeout: Duration,
    dispatch: Dispatch,
    /// Whether the next event cannot be read, while the queue still holds earlier ones.
    is_stuck: bool,
    /// The claim that the queue was filled under.
    claim: Option<Claim>,
    /// Whether a transaction has been begun of which it is not known that it was committed. Until everything is read again,
    /// the queue may say something else than the database.
    in_doubt: bool,
    /// Whether the session was given up because of the last failure.
    session_is_renewed: bool,
    /// When the last commit began that wrote the tracker, and had the lease begin anew.
    committed: Option<Instant>,
}

impl Webhook {
    /// Makes a webhook that has sent nothing yet.
    ///
    /// # Errors
    /// The declaration cannot be used on this machine; the text says why.
    pub(crate) fn new(base: ProcessorBase, declaration: &WebhookDeclaration) -> Result<Self, String> {
        let sender =
            Sender::new(base.name(), &base.schema, declaration).map_err(|error| error.to_string())?;
        let emitter = Emitter::new(&base.declaration, &base.schema, &base.events);
        let queue = DeliveryQueue::new(base.declaration.retry);
        let WebhookDeclaration { concurrency, timeout, .. } = *declaration;
        let dispatch = Dispatch::new(queue, sender, concurrency);
        Ok(Self {
            base,
            emitter,
            timeout,
            dispatch,
            is_stuck: false,
            claim: None,
            in_doubt: false,
            session_is_renewed: false,
            committed: None,
        })
    }
}

#[async_trait]
impl Processor for Webhook {
    fn base(&self) -> &ProcessorBase {
        &self.base
    }

    async fn prepare(&mut self, connection: &mut PgConnection, claim: &Claim) -> Result<(), ProcessorError> {
        let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
        self.base.prepare(&mut transaction, claim).await?;
        let delivered = Deliveries::of(&self.base, claim).list(&mut transaction, claim.position).await?;
        transaction.commit().await?;
        // If nobody else was here in between, and the server has not forgotten anything, the requests are still what the
        // receiver was last sent.
        let before = self.claim.replace(claim.clone());
        self.dispatch.take_back();
        if !before.as_ref().is_some_and(|before| claim.follows(before))
            || !self.dispatch.queue.matches(claim.position)
        {
            self.dispatch.clear().await;
        }
        if before.is_some_and(|before| claim.is_retried_since(&before)) {
            self.dispatch.queue.forget_outage();
        }
        self.dispatch.queue.restart(claim.position, delivered, claim.is_forgiven());
        self.in_doubt = false;
        Ok(())
    }

    fn runs_ahead(&mut self) -> Option<&mut dyn RunsAhead> {
        Some(self)
    }

    async fn process(
        &mut self,
        connection: &mut PgConnection,
        request: BatchRequest<'_>,
    ) -> Result<Outcome, ProcessorError> {
        if std::mem::replace(&mut self.in_doubt, true) {
            // The runner claims the reactor again, and prepares it.
            return Ok(Outcome::ClaimLost);
        }
        let outcome = self.step(connection, &request).await;
        // An event that cannot be read leaves the queue as it was.
        self.in_doubt = !matches!(
            outcome,
            Ok(_) | Err(ProcessorError::Unavailable { .. } | ProcessorError::Unattributed(_))
        );
        outcome
    }
}

impl RunsAhead for Webhook {
    fn stop_sending(&mut self) {
        self.dispatch.stop_sending();
    }

    fn retry_now(&mut self) {
        self.dispatch.queue.retry_now();
    }
}

impl Webhook {
    async fn step(
        &mut self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<Outcome, ProcessorError> {
        if request.dead_letter().is_some() {
            return self.retry_dead_letter(connection, request).await;
        }
        // What was answered before an outage is committed first.
        let queue = &mut self.dispatch.queue;
        let has_answers = queue.has_results() || !self.is_stuck && queue.has_unread_answers();
        let outage = (!has_answers).then(|| queue.take_outage());
        if let Some(outage) = outage.flatten() {
            return Err(outage);
        }
        self.dispatch.queue.skip_to(request.claim.position);
        self.dispatch.own_until(self.leased_at(request) + request.lease * 3 / 4);
        if !self.read(connection, request).await? {
            return Ok(Outcome::ClaimLost);
        }
        let queue = &self.dispatch.queue;
        let can_read = !self.is_stuck && queue.seen() < request.upto() && queue.room(request.limits) > 0;
        let enough = if can_read { usize::try_from(request.limits.size / 2).unwrap_or(0) } else { 0 };
        self.dispatch.send(request.limits.time.min(SENDING_TIME_MAX), enough).await;
        let Some(handled) = self.commit(connection, request).await? else { return Ok(Outcome::ClaimLost) };
        // Progress has to be reported before an outage, because the claim holds the position.
        let queue = &mut self.dispatch.queue;
        // So has what was answered during the commit to be committed.
        let has_progressed = handled > 0 || queue.position() != request.claim.position || queue.has_results();
        if let Some(outage) = (!has_progressed).then(|| queue.take_outage()).flatten() {
            return Err(outage);
        }
        // If no more can be read, calling again does not help before something is done. Once all is done that came before an event
        // that cannot be read, the next call tells of it.
        let is_full = self.is_stuck && !queue.is_empty() || queue.room(request.limits) == 0;
        let seen = if is_full { request.upto() } else { queue.seen() };
        let under_way = queue.is_busy() || seen < request.upto();
        // Before the reactor stops, everything that it knows is committed.
        let may_stop = !queue.has_results();
        let pending_retry = queue.next_pending_retry().filter(|retry| retry.until.is_some() || may_stop);
        let pending_retry = pending_retry.map(Box::new);
        let (position, reached) = (queue.position(), queue.take_reached());
        Ok(Outcome::Ahead { position, seen, handled, under_way, reached, pending_retry })
    }

    /// Since when at least the lease has lasted.
    fn leased_at(&self, request: &BatchRequest<'_>) -> Instant {
        self.committed.map_or(request.leased_at, |committed| committed.max(request.leased_at))
    }

    /// Reads events behind those already seen, as many as the queue has room for. Returns `false` if the claim is no longer
    /// valid.
    async fn read(
        &mut self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<bool, ProcessorError> {
        let Self { base, dispatch, is_stuck, .. } = self;
        let queue = &dispatch.queue;
        let (position, room) = (queue.seen(), queue.room(request.limits));
        *is_stuck = false;
        if room == 0 || position >= request.upto() {
            return Ok(true);
        }
        let claim = Claim { position, ..request.claim.clone() };
        let limits = BatchLimits { size: room, ..*request.limits };
        let beyond = BatchRequest { claim: &claim, limits: &limits, ..*request };
        let witness = queue.last_witness();
        let opening = BatchTransaction::open(connection, base, request, IDLE_MAX);
        let Some(mut transaction) = dispatch.beside_opening(opening).await? else {
            return Ok(false);
        };
        let reading = dispatch.beside(Box::pin(transaction.read_as(&beyond, witness))).await;
        let Reading { deliveries, upto, trail, set_aside } = match reading {
            // An event that cannot be read is left until all before it are done. Then the runner handles the error.
            Err(ProcessorError::Unattributed(_)) if !dispatch.queue.is_empty() => {
                *is_stuck = true;
                return Ok(true);
            }
            read => read?,
        };
        if !set_aside.is_empty() {
            // One that was set aside before a restart counts no second time.
            let new = set_aside.iter().filter(|id| !dispatch.queue.is_done(**id)).count();
            Deliveries::of(base, request.claim)
                .record_dead_letters(transaction.connection(), position, upto)
                .await?;
            let pending_retry = dispatch.queue.first_pending_retry();
            let position = request.claim.position;
            transaction
                .finish(Progress {
                    position,
                    handled: i32::try_from(new).unwrap_or(i32::MAX),
                    failing: false,
                    pending_retry: pending_retry.as_ref(),
                })
                .await?;
        }
        dispatch.queue.enqueue(deliveries, upto, trail);
        Ok(true)
    }
}
