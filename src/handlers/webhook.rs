//! Webhook reactors: events are sent over HTTP, each at least once and under one key, in order per aggregate.
//!
//! A turn has three parts. It reads events after those that it has seen; it sends what may be sent, with nothing open in
//! the database; and it commits what came of that: how far everything is done, what is done beyond that, what receivers
//! want emitted, and what has failed. Requests that take longer than the turn stay under way and end in a later one.
//!
//! An event is sent when its predecessor in the aggregate has been *committed* as received. So whatever a crash makes
//! espd repeat is the last thing that the receiver has seen of the aggregate. See `docs/webhooks.md`.

mod address;
mod answer;
mod client;
mod cloud_event;
mod dead_letter;
mod deliveries;
mod delivery_queue;
mod request;
mod schedule;
mod sender;
mod signature;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinSet;
use tracing::error;

use crate::event::Position;
use crate::handlers::batch::{BatchTransaction, EventEffects, Reading, RowTables};
use crate::processing::declaration::{BatchLimits, WebhookDeclaration};
use crate::processing::emission::Emitter;
use crate::processing::heartbeat;
use crate::processing::processor::{
    BatchRequest, Outcome, Processor, ProcessorBase, ProcessorError, RunsAhead,
};
use crate::processing::tracker::Claim;
use crate::processing::tracker::Progress;

pub(crate) use address::is_public;
pub(crate) use answer::{Answer, DeliveryResult};
pub(crate) use client::{RequestError, read_authorities};
pub(crate) use request::{is_reserved, read_header};
pub(crate) use sender::Sender;

use deliveries::{Deliveries, GivenUp};
use delivery_queue::{CommitPlan, DeliveryQueue};
use sender::SendAttempt;

/// How long the database may be left alone in a transaction that waits for nothing else.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long a turn may take, whatever the batch may: the tracker is not locked meanwhile, and its lease runs.
const TURN_TIME: Duration = Duration::from_secs(1);

/// How long a turn that can begin nothing more waits for requests to end: briefly, if others that have ended wait to be
/// committed, and longer, if not. New events wait as long.
const GRACE: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_millis(50);

/// A reactor that sends its events to a receiver.
pub(crate) struct Webhook {
    base: ProcessorBase,
    emitter: Emitter,
    concurrency: usize,
    /// How long a request may take.
    timeout: Duration,
    sender: Arc<Sender>,
    queue: DeliveryQueue,
    under_way: JoinSet<(Position, SendAttempt)>,
    /// Whether the next event cannot even be read, and others are held.
    is_stuck: bool,
    /// The epoch of the claim that the queue belongs to.
    epoch: i64,
    /// When the tracker was last written.
    committed: Option<Instant>,
}

impl Webhook {
    /// A webhook that has sent nothing yet.
    ///
    /// # Errors
    /// What is declared cannot be used here, in words.
    pub(crate) fn new(base: ProcessorBase, declaration: &WebhookDeclaration) -> Result<Self, String> {
        let sender =
            Sender::new(base.name(), &base.schema, declaration).map_err(|error| error.to_string())?;
        let emitter = Emitter::new(&base.declaration, &base.schema, &base.events);
        let queue = DeliveryQueue::new(base.declaration.retry);
        let WebhookDeclaration { concurrency, timeout, .. } = *declaration;
        let sender = Arc::new(sender);
        let under_way = JoinSet::new();
        Ok(Self {
            base,
            emitter,
            concurrency,
            timeout,
            sender,
            queue,
            under_way,
            is_stuck: false,
            epoch: 0,
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
        let mut transaction = connection.begin().await?;
        self.base.prepare(&mut transaction, claim).await?;
        transaction.commit().await?;
        // Nobody has claimed it in between: what is under way and what is known goes on.
        let same = claim.epoch == self.epoch + 1 && self.queue.matches(claim.position);
        self.epoch = claim.epoch;
        if same {
            self.queue.resume_at(claim.position);
            return Ok(());
        }
        self.under_way.shutdown().await;
        let delivered = Deliveries::of(&self.base, claim).list(connection, claim.position).await?;
        self.queue.restart(claim.position, delivered, claim.attempts == 0);
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
        if request.dead_letter().is_some() {
            return self.retry_dead_letter(connection, &request).await;
        }
        if let Some(outage) = self.queue.take_outage() {
            return Err(outage);
        }
        self.queue.skip_to(request.claim.position);
        if !self.read(connection, &request).await? {
            return Ok(Outcome::ClaimLost);
        }
        self.send(request.limits.time.min(TURN_TIME)).await;
        let Some(handled) = self.commit(connection, &request).await? else { return Ok(Outcome::ClaimLost) };
        // Progress has to be told first: the claim names the position.
        let is_still = handled == 0 && self.queue.position() == request.claim.position;
        if let Some(outage) = is_still.then(|| self.queue.take_outage()).flatten() {
            return Err(outage);
        }
        // Where no more can be read, it does not help to be asked again before something is done.
        let is_full = self.is_stuck || self.queue.room(request.limits) == 0;
        let seen = if is_full { request.upto() } else { self.queue.seen() };
        let under_way = self.queue.is_busy() || seen < request.upto();
        let put_off = self.queue.next_put_off().map(Box::new);
        Ok(Outcome::Ahead { position: self.queue.position(), seen, handled, under_way, put_off })
    }
}

impl RunsAhead for Webhook {
    fn stop_sending(&mut self) {
        self.queue.wind_down();
    }

    fn retry_now(&mut self) {
        self.queue.retry_now();
    }
}

impl Webhook {
    /// Reads events after those that it has seen, as many as there is room for. `false`: the claim is no longer valid.
    async fn read(
        &mut self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<bool, ProcessorError> {
        let Self { base, queue, is_stuck, .. } = self;
        let (position, room) = (queue.seen(), queue.room(request.limits));
        *is_stuck = false;
        if room == 0 || position >= request.upto() {
            return Ok(true);
        }
        let claim = Claim { position, ..request.claim.clone() };
        let limits = BatchLimits { size: room, ..*request.limits };
        let beyond = BatchRequest { claim: &claim, limits: &limits, ..*request };
        let Some(mut transaction) = BatchTransaction::open(connection, base, request, SILENCE_MAX).await?
        else {
            return Ok(false);
        };
        let Reading { deliveries, upto, set_aside } = match transaction.read_as(&beyond).await {
            // An event that cannot even be read is met again when everything before it is done; the runner sees to it.
            Err(ProcessorError::Unattributed(_)) if !queue.is_empty() => {
                *is_stuck = true;
                return Ok(true);
            }
            read => read?,
        };
        if set_aside > 0 {
            Deliveries::of(base, request.claim)
                .record_dead_letters(transaction.connection(), position, upto)
                .await?;
            let put_off = queue.next_put_off();
            let position = request.claim.position;
            transaction
                .finish(Progress { position, handled: 0, failing: false, put_off: put_off.as_ref() })
                .await?;
        }
        queue.enqueue(deliveries, upto);
        Ok(true)
    }

    /// Sends what may be sent, until there is nothing more or the time is up.
    async fn send(&mut self, time: Duration) {
        let begun = Instant::now();
        let (mut deadline, mut is_idle) = (begun + time, false);
        loop {
            self.fill_slots();
            if self.under_way.is_empty() {
                return;
            }
            if !self.queue.can_send() && !is_idle {
                is_idle = true;
                let wait = if self.queue.has_uncommitted() { GRACE } else { PATIENCE };
                deadline = deadline.min(Instant::now() + wait);
            }
            match tokio::time::timeout_at(deadline.into(), self.under_way.join_next()).await {
                Ok(Some(Ok((id, sent)))) => self.queue.record_result(id, sent),
                Ok(Some(Err(error))) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Ok(_) | Err(_) => return,
            }
        }
    }

    fn fill_slots(&mut self) {
        while let Some(event) = self.queue.next(self.concurrency) {
            let sender = Arc::clone(&self.sender);
            self.under_way.spawn(async move { (event.id, sender.send(&event).await) });
        }
    }

    /// Commits what came of it, and returns how many events are done. `None`: the claim is no longer valid.
    async fn commit(
        &mut self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<Option<i32>, ProcessorError> {
        let Self { base, queue, emitter, committed, .. } = self;
        let plan = queue.plan_commit();
        let is_recent = committed.is_some_and(|committed| committed.elapsed() < request.lease / 5);
        // A commit would say that an outage is over.
        let is_still = plan.is_empty() && plan.position == request.claim.position;
        if is_still && (is_recent || queue.is_unreachable()) {
            return Ok(Some(0));
        }
        let Some(mut transaction) = BatchTransaction::open(connection, base, request, SILENCE_MAX).await?
        else {
            return Ok(None);
        };
        apply(&mut transaction, emitter, queue, queue.effects()).await?;
        let plan = queue.plan_commit();
        record(&mut transaction, base, request.claim, &plan).await?;
        let handled = i32::try_from(plan.done.len()).unwrap_or(i32::MAX);
        let put_off = queue.next_put_off();
        queue.mark_attempted(plan.position);
        let failing = put_off.is_some();
        transaction
            .finish(Progress { position: plan.position, handled, failing, put_off: put_off.as_ref() })
            .await?;
        queue.mark_committed(&plan);
        *committed = Some(Instant::now());
        plan.given_up.iter().for_each(|one| announce(base.name(), one));
        Ok(Some(handled))
    }
}

/// Emits what receivers want emitted. An event whose wishes cannot be met has failed.
async fn apply(
    transaction: &mut BatchTransaction<'_>,
    emitter: &Emitter,
    queue: &mut DeliveryQueue,
    effects: Vec<EventEffects>,
) -> Result<(), ProcessorError> {
    let (tables, mut rest) = (RowTables::default(), effects.as_slice());
    while !rest.is_empty() {
        let applied = transaction.apply(&tables, emitter, rest).await?;
        let Some((failing, failure)) = rest.get(applied.events).zip(applied.failure) else { break };
        queue.record_failure(failing.source.id, *failure, None);
        rest = &rest[applied.events + 1..];
    }
    Ok(())
}

/// Records what is done or has failed beyond the position, and what is set aside.
async fn record(
    transaction: &mut BatchTransaction<'_>,
    base: &ProcessorBase,
    claim: &Claim,
    plan: &CommitPlan,
) -> Result<(), sqlx::Error> {
    let (deliveries, connection) = (Deliveries::of(base, claim), transaction.connection());
    for one in &plan.given_up {
        deliveries.give_up(connection, one).await?;
    }
    for one in &plan.waiting {
        deliveries.set_aside_behind(connection, one).await?;
    }
    deliveries.record_done(connection, plan.done.iter().copied().filter(|id| *id > plan.position)).await?;
    for (id, put_off) in &plan.put_off {
        deliveries.record_put_off(connection, *id, put_off).await?;
    }
    if plan.position > claim.position {
        deliveries.pass(connection, plan.position).await?;
    }
    Ok(())
}

fn announce(reactor: &str, GivenUp { failure, attempts, .. }: &GivenUp) {
    error!(
        processor = reactor,
        event.id = failure.event_id.map(Position::get),
        event.r#type = failure.event_type,
        attempt = attempts,
        error = %failure,
        "set an event aside that could not be handled: `espctl dead-letters list` shows it"
    );
    if let Some(id) = failure.event_id {
        heartbeat::record_set_aside(id);
    }
}
