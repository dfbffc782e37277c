//! Caution: events are handled one by one, each noted before it is handed over, because one of them may end the worker.
//!
//! A handler in this process can end it, block its thread until the supervisor kills it, or not return. Nobody is left then to count the
//! attempt. So whoever claims a processor whose last owner has not released it goes carefully over as many events as a batch may have
//! had: an event that ends the worker once more is known, its attempts count, and the retry policy decides.

use sqlx::PgConnection;
use tracing::{info, warn};

use crate::event::Position;
use crate::processing::declaration::BatchLimits;
use crate::processing::failure::{FailedEvent, Failure};
use crate::processing::processor::{BatchRequest, Work};
use crate::processing::runner::phase::Phase;
use crate::processing::runner::session::in_time;
use crate::processing::runner::{Next, Runner};
use crate::processing::tracker::Claim;
use crate::retry::NextStep;

/// How many events are still to be handled one by one.
#[derive(Debug, Default)]
pub(super) struct Caution {
    left: i64,
    /// Whether this runner has claimed its processor before.
    has_claimed: bool,
    /// Whether the worker before has ended without releasing the processor.
    after_end: bool,
}

impl Caution {
    pub(super) fn is_on(&self) -> bool {
        self.left > 0
    }

    /// Has so many events handled one by one.
    pub(super) fn begin(&mut self, events: i64) {
        self.left = self.left.max(events);
    }

    /// Takes note that the position has moved over so many events.
    pub(super) fn passed(&mut self, events: i64) {
        self.left = self.left.saturating_sub(events).max(0);
    }
}

impl Runner {
    /// Goes carefully if the last owner has not released the processor, when this runner claims it for the first time.
    pub(super) fn take_care(&mut self, claim: &Claim) {
        let is_first = !std::mem::replace(&mut self.caution.has_claimed, true);
        if !is_first || !claim.unreleased || !self.processor.shares_process() {
            return;
        }
        self.caution.after_end = true;
        self.caution.begin(self.context.limits.size);
        let (position, events) = (claim.position.get(), self.context.limits.size);
        info!(
            processor = self.name,
            position,
            events,
            "the last worker ended without releasing the processor: the next events are handled one by one"
        );
    }

    /// Notes the next event before it is handed over. `Some`: its attempts are used up, and it is not.
    pub(super) async fn note_next(
        &mut self,
        connection: &mut PgConnection,
        upto: Position,
    ) -> Result<Option<Next>, sqlx::Error> {
        let Some(event) = self.find_next(connection, upto).await else { return Ok(None) };
        let Some(claim) = self.phase.claim() else { return Ok(None) };
        let id = event.id;
        let attempts = self.retry.attempts_with(&Some(id)).saturating_sub(1);
        let failure = Failure::not_returned().attribute(event);
        let decision = if attempts == 0 { NextStep::TryAgain } else { self.retry.policy().decide(attempts) };
        match decision {
            NextStep::Stop => self.stop_at(connection, &failure).await.map(Some),
            NextStep::SetAside { blocks } => {
                self.set_aside(connection, failure, attempts, blocks).await.map(Some)
            }
            NextStep::TryAgain => {
                if attempts > 0 {
                    let attempt = attempts + 1;
                    warn!(
                        processor = self.name,
                        event.id = id.get(),
                        attempt,
                        "tries an event again that has ended its worker"
                    );
                }
                let noting = self.trackers.note_at_hand(connection, claim, attempts, &failure);
                in_time(noting).await?;
                Ok(None)
            }
        }
    }

    /// The event that the next batch begins with. What keeps it from being read, the batch itself will meet.
    async fn find_next(&mut self, connection: &mut PgConnection, upto: Position) -> Option<FailedEvent> {
        let Phase::Following(following) = &self.phase else { return None };
        let limits = BatchLimits { size: 1, ..self.context.limits };
        let request = BatchRequest {
            claim: &following.claim,
            work: Work::Batch { upto, rate: 0.0 },
            limits: &limits,
            lease: self.context.lease,
            leased_at: self.leased_at,
            mark: self.subscription.mark(),
            keeps_session: self.keeps_session,
        };
        self.processor.find_first(connection, &request).await.ok().flatten()
    }

    /// Notes that a dead letter is handled again. `Some`: it has ended the worker the last time, and is kept.
    pub(super) async fn note_dead_letter(
        &mut self,
        connection: &mut PgConnection,
        id: Position,
    ) -> Result<Option<Next>, sqlx::Error> {
        let Some(claim) = self.phase.claim().filter(|_| self.caution.after_end) else { return Ok(None) };
        if in_time(self.dead_letters.begin_try(&mut *connection, claim, id)).await? {
            return Ok(None);
        }
        self.keep_dead_letter(connection, id, &Failure::not_returned()).await.map(Some)
    }
}
