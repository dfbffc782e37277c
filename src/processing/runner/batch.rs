//! Handling the next events.

use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tracing::{debug, warn};

use crate::event::Position;
use crate::processing::declaration::{BatchLimits, Handling};
use crate::processing::failure::Failure;
use crate::processing::processor::{BatchRequest, Outcome, ProcessorError, Work};
use crate::processing::runner::decision::{Attempt, decide, decide_failure, doubt_session};
use crate::processing::runner::growth::{Growth, Shown, Way};
use crate::processing::runner::keepalive::KeepAlive;
use crate::processing::runner::phase::{Following, Phase};
use crate::processing::runner::session::in_time;
use crate::processing::runner::{Next, Runner};

/// A batch that was begun.
struct Batch {
    begun: Instant,
    /// The last id that it may reach.
    upto: Position,
    /// How many events it may have.
    size: i64,
}

impl Runner {
    /// Handles the events up to `upto`, as many as fit into a batch.
    pub(super) async fn handle_batch(
        &mut self,
        connection: &mut PgConnection,
        upto: Position,
    ) -> Result<Next, sqlx::Error> {
        // Nothing has been waited for since the horizon was read, so the two belong together.
        let mark = self.subscription.mark();
        let upto = self.beyond_empty_ids(connection, upto).await?;
        if self.caution.is_on()
            && let Some(next) = self.note_next(connection, upto).await?
        {
            return Ok(next);
        }
        let Phase::Following(following) = &self.phase else { return Ok(Next::Again) };
        let (begun, limits) = (Instant::now(), self.limits(following));
        self.batch_began = Some(begun);
        let batch = Batch { begun, upto, size: limits.size };
        let request = BatchRequest {
            claim: &following.claim,
            work: Work::Batch { upto, rate: self.rate.per_second(begun) },
            limits: &limits,
            lease: self.context.lease,
            leased_at: self.leased_at,
            mark,
            keeps_session: self.keeps_session,
        };
        let keep_alive = KeepAlive::new(&self.context, &self.trackers, &following.claim, self.leased_at);
        let outcome = keep_alive.run_beside(self.processor.process(connection, request)).await;
        self.batch_at = Instant::now();
        match outcome {
            Ok(outcome) => self.batch_ended(connection, batch, outcome).await,
            Err(error) => self.batch_failed(connection, batch, error).await,
        }
    }

    /// Follows what a batch has come to.
    async fn batch_ended(
        &mut self,
        connection: &mut PgConnection,
        Batch { begun, upto, size }: Batch,
        outcome: Outcome,
    ) -> Result<Next, sqlx::Error> {
        match outcome {
            Outcome::ClaimLost => Ok(self.claim_lost()),
            Outcome::Committed { position, handled, failure: None } => {
                self.committed(position, position, handled, begun);
                self.note_density(position, upto);
                self.passes.note_batch(handled);
                self.grow(size, handled.into(), begun.elapsed());
                self.note_effects();
                Ok(self.succeeded())
            }
            Outcome::Committed { position, handled, failure: Some(failure) } => {
                self.committed(position, position, handled, begun);
                self.shrink();
                let doubt = doubt_session(Some(Failure::clone(&failure)), self.session_is_renewed);
                let decision = doubt.unwrap_or_else(|| decide_failure(*failure, &self.retry));
                self.act(connection, decision).await
            }
            Outcome::EffectFailed { committed, progressed, failure } => {
                if let Some((position, handled)) = committed {
                    self.committed(position, position, handled, begun);
                }
                self.effect_failed(connection, progressed, *failure).await
            }
            Outcome::Ahead { position, seen, handled, under_way, reached, pending_retry } => {
                self.advanced(position, seen, handled, begun);
                self.end_outage(reached);
                self.note_density(seen, upto);
                self.follow_ahead(connection, under_way, pending_retry).await
            }
        }
    }

    /// Does about a batch that has failed as a whole what is decided.
    async fn batch_failed(
        &mut self,
        connection: &mut PgConnection,
        Batch { begun, size, .. }: Batch,
        error: ProcessorError,
    ) -> Result<Next, sqlx::Error> {
        if let Some(decision) = doubt_session(error.of_session(), self.session_is_renewed) {
            return self.act(connection, decision).await;
        }
        if let ProcessorError::NotReturned(failure) = &error {
            warn!(processor = self.name, error = %failure, "a batch is given up: its events are handled one by one");
            self.caution.begin(size);
        }
        self.narrow_down(&error);
        self.shorten_batches(&error, size, begun.elapsed());
        let decision = decide(error, Attempt::Batch { size, retry: &self.retry });
        self.act(connection, decision).await
    }

    /// Where the ids of the last batch were used up before its events: how far the next one may go, so that a processor
    /// neither crawls over ids that no event has, nor handles events that are far apart one by one.
    async fn beyond_empty_ids(
        &self,
        connection: &mut PgConnection,
        upto: Position,
    ) -> Result<Position, sqlx::Error> {
        let Phase::Following(following) = &self.phase else { return Ok(upto) };
        let settled = self.subscription.settled();
        if !following.sparse || upto >= settled {
            return Ok(upto);
        }
        let (seen, size) = (following.seen(), self.context.limits.size);
        let end = self.processor.base().find_batch_end(connection, seen, settled, size);
        Ok(in_time(end).await?.max(upto))
    }

    /// Has the next step follow at once if there is something to do for events that are handled.
    pub(super) fn note_effects(&mut self) {
        let pending = self.processor.has_pending_effects();
        if let Some(following) = self.phase.following_mut() {
            following.under_way = pending;
        }
    }

    /// Has an effect tried again before anything else is handled. It holds up the processor, as an event does, but is not set
    /// aside: its event is handled.
    pub(super) async fn effect_failed(
        &mut self,
        connection: &mut PgConnection,
        progressed: bool,
        failure: Failure,
    ) -> Result<Next, sqlx::Error> {
        self.note_effects();
        if progressed {
            self.retry.succeeded();
        }
        let decision = decide_failure(failure, &self.retry);
        self.act(connection, decision).await
    }

    /// The limits of the next batch.
    pub(super) fn limits(&self, following: &Following) -> BatchLimits {
        let limits = self.grown_limits(following);
        let size = following.size(&limits).min(self.cut_off.size_max());
        let size = if self.caution.is_on() { 1 } else { size };
        BatchLimits { size, time: self.cut_off.time(limits.time), ..limits }
    }

    /// What batches may become while the processor is far behind.
    fn grown_limits(&self, following: &Following) -> BatchLimits {
        let limits = self.context.limits;
        if !self.processor.folds() {
            return limits;
        }
        limits.of_folded(following.size(&limits.of_folded(limits.size)))
    }

    /// Has the next batch be larger or smaller than one that was committed without a failure.
    fn grow(&mut self, size: i64, handled: i64, took: Duration) {
        let (settled, way) = (self.subscription.settled(), self.way());
        let Phase::Following(following) = &self.phase else { return };
        let behind = settled.get() - following.seen().get();
        let shown = Shown { size, handled, behind, took, is_cut: !following.sparse, way };
        let growth = following.growth.after(shown, &self.grown_limits(following));
        if let Some(following) = self.phase.following_mut() {
            following.growth = growth;
        }
    }

    /// How the events of a batch are handled, as far as is known before.
    fn way(&self) -> Way {
        match self.processor.base().declaration.handling {
            _ if self.processor.folds() => Way::Folded,
            Handling::Sql(_) => Way::Statements,
            _ => Way::Outside,
        }
    }

    /// Has the next batch be as small as usual: whoever tries an event again shall not read all that comes after it each time.
    fn shrink(&mut self) {
        if let Some(following) = self.phase.following_mut() {
            following.growth = Growth::default();
        }
    }

    /// Takes note of whether a batch ended where its ids did, and not where its events filled it.
    fn note_density(&mut self, seen: Position, upto: Position) {
        if let Some(following) = self.phase.following_mut() {
            following.sparse = seen >= upto;
        }
    }

    /// Makes the next batch smaller if the error names no event, so that the failing event is found.
    fn narrow_down(&mut self, error: &ProcessorError) {
        if let (ProcessorError::Unattributed(failure), Phase::Following(following)) = (error, &mut self.phase)
            && !failure.is_unreadable
        {
            following.bisection.halve();
            following.growth = Growth::default();
        }
    }

    /// Takes note of a batch that was committed, and logs it.
    pub(super) fn committed(&mut self, position: Position, seen: Position, handled: i32, begun: Instant) {
        self.advanced(position, seen, handled, begun);
        self.end_outage(true);
    }

    fn advanced(&mut self, position: Position, seen: Position, handled: i32, begun: Instant) {
        let Phase::Following(following) = &mut self.phase else { return };
        self.rate.count(following.advance(position, seen), begun, Instant::now());
        following.bisection.passed(handled.into());
        self.caution.passed(handled.into());
        self.session_is_renewed &= handled == 0;
        if handled > 0 || seen == position {
            let duration_ms = begun.elapsed().as_millis() as u64;
            debug!(processor = self.name, position = position.get(), handled, duration_ms, "batch committed");
        }
        if handled > 0 {
            self.context.wake_relay.notify_one();
        }
    }
}
