//! Setting events aside, and handling them again when an operator asks for it.

use sqlx::PgConnection;
use tracing::{info, warn};

use crate::event::Position;
use crate::processing::dead_letters::{NewDeadLetter, announce_set_aside};
use crate::processing::declaration::BatchLimits;
use crate::processing::failure::Failure;
use crate::processing::processor::{BatchRequest, Outcome, Work};
use crate::processing::progress::PendingRetry;
use crate::processing::runner::decision::{Attempt, Decision, decide, doubt_session};
use crate::processing::runner::keepalive::KeepAlive;
use crate::processing::runner::phase::Phase;
use crate::processing::runner::session::in_time;
use crate::processing::runner::{Next, Runner};

impl Runner {
    /// Sets an event aside whose attempts are used up: the position moves over it, and it waits for an operator.
    pub(super) async fn set_aside(
        &mut self,
        connection: &mut PgConnection,
        failure: Failure,
        attempts: u32,
        blocks: bool,
    ) -> Result<Next, sqlx::Error> {
        let Phase::Following(following) = &mut self.phase else { return Ok(Next::Again) };
        let Some(id) = failure.event_id() else { return Ok(Next::Again) };
        let dead_letter = NewDeadLetter { failure, attempts, blocks };
        let (claim, lease) = (&following.claim, self.context.lease);
        let passing = self.dead_letters.pass_over(&mut *connection, claim, &dead_letter, lease);
        if !in_time(passing).await? {
            return Ok(self.claim_lost());
        }
        following.claim.position = id;
        following.bisection.passed(1);
        self.caution.passed(1);
        self.outage.over();
        self.retry.succeeded();
        announce_set_aside(&self.name, &dead_letter.failure, attempts);
        Ok(Next::Again)
    }

    /// Handles one dead letter again, or finds that none is asked for any more.
    pub(super) async fn handle_dead_letter(
        &mut self,
        connection: &mut PgConnection,
    ) -> Result<Next, sqlx::Error> {
        let Some(following) = self.phase.following_mut() else { return Ok(Next::Again) };
        let finding = self.dead_letters.next_requested(&mut *connection, &following.claim);
        let Some(event) = in_time(finding).await? else {
            following.dead_letters_requested = false;
            return Ok(Next::Again);
        };
        let id = event.id;
        match in_time(self.processor.base().compare_stored(connection, event)).await {
            Ok(None) => {}
            Ok(Some(failure)) => return self.keep_dead_letter(connection, id, &failure).await,
            Err(error) => {
                let decision = decide(error.into(), Attempt::DeadLetter(id));
                return self.act(connection, decision).await;
            }
        }
        if let Some(next) = self.note_dead_letter(connection, id).await? {
            return Ok(next);
        }
        let Some(following) = self.phase.following_mut() else { return Ok(Next::Again) };
        let request = BatchRequest {
            claim: &following.claim,
            work: Work::DeadLetter(id),
            limits: &BatchLimits { size: 1, ..self.context.limits },
            lease: self.context.lease,
            leased_at: self.leased_at,
            mark: self.subscription.mark(),
            keeps_session: self.keeps_session,
        };
        let keep_alive = KeepAlive::new(&self.context, &self.trackers, &following.claim, self.leased_at);
        let is_renewed = self.session_is_renewed;
        let decision = match keep_alive.run_beside(self.processor.process(connection, request)).await {
            Ok(
                Outcome::Committed { failure: None, handled, .. }
                | Outcome::Ahead { pending_retry: None, handled, .. },
            ) => return Ok(self.dead_letter_handled(id, handled)),
            Ok(Outcome::Committed { failure: Some(failure), .. }) => {
                let doubt = doubt_session(Some(Failure::clone(&failure)), is_renewed);
                doubt.unwrap_or(Decision::KeepDeadLetter { event_id: id, failure: *failure })
            }
            Ok(Outcome::Ahead { pending_retry: Some(pending_retry), .. }) => {
                let PendingRetry { failure, .. } = *pending_retry;
                Decision::KeepDeadLetter { event_id: id, failure }
            }
            Ok(Outcome::EffectFailed { progressed, failure, .. }) => {
                self.dead_letter_handled(id, 1);
                return self.effect_failed(connection, progressed, *failure).await;
            }
            Ok(Outcome::ClaimLost) => Decision::Reclaim,
            Err(error) => doubt_session(error.of_session(), is_renewed)
                .unwrap_or_else(|| decide(error, Attempt::DeadLetter(id))),
        };
        self.act(connection, decision).await
    }

    fn dead_letter_handled(&mut self, id: Position, handled: i32) -> Next {
        self.outage.over();
        self.session_is_renewed &= handled == 0;
        self.context.wake_relay.notify_one();
        let what = match handled {
            0 => "a dead letter is of no concern any more",
            _ => "handled a dead letter",
        };
        info!(processor = self.name, event.id = id.get(), "{what}");
        Next::Again
    }

    /// Records that the event of a dead letter has failed again. It stays a dead letter.
    pub(super) async fn keep_dead_letter(
        &mut self,
        connection: &mut PgConnection,
        id: Position,
        failure: &Failure,
    ) -> Result<Next, sqlx::Error> {
        self.outage.over();
        let Some(claim) = self.phase.claim() else { return Ok(Next::Again) };
        warn!(processor = self.name, event.id = id.get(), error = %failure, "a dead letter has failed again");
        in_time(self.dead_letters.failed_again(connection, claim, id, failure)).await?;
        Ok(Next::Again)
    }
}
