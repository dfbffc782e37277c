//! Committing what deliveries have resulted in: emissions, dead letters, deliveries beyond the position, and the position.

use std::time::Instant;

use sqlx::PgConnection;

use super::deliveries::Deliveries;
use super::delivery_queue::{CommitPlan, DeliveryQueue};
use super::{IDLE_MAX, Webhook};
use crate::handlers::batch::{BatchTransaction, EventEffects, RowTables};
use crate::processing::dead_letters::{DeadLetters, NewDeadLetter, announce_set_aside};
use crate::processing::emission::Emitter;
use crate::processing::processor::{BatchRequest, ProcessorBase, ProcessorError};
use crate::processing::progress::Progress;
use crate::processing::tracker::Claim;

impl Webhook {
    /// Commits what has happened since the last commit. Returns the number of events that are done with it, or `None` if the
    /// claim is no longer valid.
    pub(super) async fn commit(
        &mut self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<Option<i32>, ProcessorError> {
        if !self.has_to_commit(request) {
            return Ok(Some(0));
        }
        let Self { base, dispatch, emitter, committed, session_is_renewed, .. } = self;
        let opening = BatchTransaction::open(connection, base, request, IDLE_MAX);
        let Some(mut transaction) = dispatch.beside_opening(opening).await? else {
            return Ok(None);
        };
        let (begun, queue) = (Instant::now(), &mut dispatch.queue);
        apply(&mut transaction, emitter, queue, session_is_renewed).await?;
        // What requests result in from here on is not part of it.
        let plan = queue.plan_commit();
        let handled = i32::try_from(plan.done.len()).unwrap_or(i32::MAX);
        let pending_retry = queue.first_pending_retry();
        queue.mark_attempted(plan.position);
        let failing = pending_retry.is_some();
        let progress =
            Progress { position: plan.position, handled, failing, pending_retry: pending_retry.as_ref() };
        let committing = async {
            record(&mut transaction, base, request.claim, &plan).await?;
            transaction.finish_with(progress, plan.witness).await
        };
        dispatch.beside(committing).await?;
        dispatch.queue.mark_committed(&plan);
        *session_is_renewed &= handled == 0;
        *committed = Some(begun);
        for NewDeadLetter { failure, attempts, .. } in &plan.given_up {
            announce_set_aside(base.name(), failure, *attempts);
        }
        Ok(Some(handled))
    }

    /// Whether anything has happened, or the lease needs a commit to be extended. An outage allows no empty commit, because
    /// that would record that it is over; nor does the request that finds out whether it is, however long that takes.
    fn has_to_commit(&self, request: &BatchRequest<'_>) -> bool {
        let queue = &self.dispatch.queue;
        let plan = queue.plan_commit();
        if !plan.is_empty() || plan.position != request.claim.position {
            return true;
        }
        let is_recent = self.committed.is_some_and(|committed| committed.elapsed() < request.lease / 5);
        !is_recent && !queue.is_probing()
    }
}

/// Emits what receivers want emitted. An event whose emissions are refused has failed, unless the session may be to blame.
async fn apply(
    transaction: &mut BatchTransaction<'_>,
    emitter: &Emitter,
    queue: &mut DeliveryQueue,
    session_is_renewed: &mut bool,
) -> Result<(), ProcessorError> {
    let effects: Vec<EventEffects> = queue.effects();
    let (tables, mut rest) = (RowTables::default(), effects.as_slice());
    while !rest.is_empty() {
        let applied = transaction.apply(&tables, emitter, rest).await?;
        let Some((failing, failure)) = rest.get(applied.events).zip(applied.failure) else { break };
        if failure.is_of_session() && !std::mem::replace(session_is_renewed, true) {
            return Err(ProcessorError::StaleSession(failure));
        }
        queue.record_failure(failing.source.id, *failure, None);
        rest = &rest[applied.events + 1..];
    }
    Ok(())
}

/// Records dead letters, and which events beyond the position are done or have failed.
async fn record(
    transaction: &mut BatchTransaction<'_>,
    base: &ProcessorBase,
    claim: &Claim,
    plan: &CommitPlan,
) -> Result<(), sqlx::Error> {
    let (deliveries, connection) = (Deliveries::of(base, claim), transaction.connection());
    let dead_letters = DeadLetters::new(&base.trackers());
    for dead_letter in &plan.given_up {
        dead_letters.set_aside(connection, &claim.key, dead_letter).await?;
    }
    if !plan.waiting.is_empty() {
        dead_letters.set_aside_waiting(connection, &claim.key, &plan.waiting).await?;
    }
    deliveries.record_done(connection, plan.done.iter().copied().filter(|id| *id > plan.position)).await?;
    for (id, pending_retry) in &plan.pending_retries {
        deliveries.record_pending_retry(connection, *id, pending_retry).await?;
    }
    if plan.position > claim.position {
        deliveries.pass(connection, plan.position).await?;
    }
    Ok(())
}
