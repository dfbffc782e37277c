//! Retrying a dead letter: its event is sent again.

use std::time::Instant;

use sqlx::PgConnection;

use super::answer::DeliveryResult;
use super::sender::SendAttempt;
use super::{IDLE_MAX, Webhook};
use crate::handlers::batch::{BatchTransaction, EventEffects, RowTables};
use crate::postgres::deadline::timed_out;
use crate::processing::emission::SourceEvent;
use crate::processing::failure::Failure;
use crate::processing::processor::{BatchRequest, Delivery, Outcome, ProcessorError};
use crate::processing::progress::Progress;

impl Webhook {
    /// Sends the event while the tracker is locked, so that nothing else happens under this claim. Requests under way end before:
    /// one may be of the same aggregate. The position stays, because the event was recorded as done when it became a dead letter.
    pub(super) async fn retry_dead_letter(
        &mut self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<Outcome, ProcessorError> {
        let idle_max = self.timeout * 2 + IDLE_MAX;
        let Some(mut transaction) = BatchTransaction::open(connection, &self.base, request, idle_max).await?
        else {
            return Ok(Outcome::ClaimLost);
        };
        self.dispatch.settle().await;
        let (position, looked) = (request.claim.position, Instant::now());
        let (deliveries, _) = transaction.read().await?;
        // An event whose type is no longer handled is not sent, nor is one that was received before a reset.
        let delivery = deliveries.first().filter(|delivery| !delivery.replaying);
        if let Some(delivery) = delivery
            && let Some(failure) = self.send_again(&mut transaction, delivery, looked).await?
        {
            return Ok(Outcome::Committed { position, handled: 0, failure: Some(failure) });
        }
        let handled = i32::from(delivery.is_some());
        // Others may fail all the same.
        let pending_retry = self.dispatch.queue.first_pending_retry();
        let (failing, pending_retry) = (pending_retry.is_some(), pending_retry.as_ref());
        transaction.finish(Progress { position, handled, failing, pending_retry }).await?;
        Ok(Outcome::Committed { position, handled, failure: None })
    }

    /// Sends an event and carries out what the answer wants. The tracker is locked since `looked`. Returns the failure, if there is one.
    async fn send_again(
        &self,
        transaction: &mut BatchTransaction<'_>,
        delivery: &Delivery,
        looked: Instant,
    ) -> Result<Option<Box<Failure>>, ProcessorError> {
        let source = SourceEvent::of(delivery);
        let sending = self.dispatch.send_alone(&delivery.event);
        let actions = match self.dispatch.owning(looked, sending).await {
            SendAttempt::Concluded(DeliveryResult::Accepted(actions)) => actions,
            SendAttempt::Concluded(DeliveryResult::Failed { failure, .. }) => {
                return Ok(Some(Box::new(source.attribute(*failure))));
            }
            SendAttempt::Concluded(DeliveryResult::Busy { message, wait }) => {
                return Err(ProcessorError::Unavailable { message, wait });
            }
            SendAttempt::Unreachable(message) => {
                return Err(ProcessorError::Unavailable { message, wait: None });
            }
            SendAttempt::NotBegun => {
                return Err(timed_out("the worker itself, which was frozen").into());
            }
        };
        let effects = [EventEffects { source, actions }];
        Ok(transaction.apply(&RowTables::default(), &self.emitter, &effects).await?.failure)
    }
}
