//! Sending the event of a dead letter again.

use sqlx::PgConnection;

use super::answer::DeliveryResult;
use super::sender::SendAttempt;
use super::{SILENCE_MAX, Webhook};
use crate::handlers::batch::{BatchTransaction, EventEffects, RowTables};
use crate::processing::emission::Source;
use crate::processing::failure::Failure;
use crate::processing::processor::{BatchRequest, Delivery, Outcome, ProcessorError};
use crate::processing::tracker::Progress;

impl Webhook {
    /// Sends the event, with the tracker locked meanwhile: nothing else is done under this claim, and what is under way
    /// ends by itself. The letter was recorded as done beyond the position when it was written.
    pub(super) async fn retry_dead_letter(
        &mut self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<Outcome, ProcessorError> {
        let silence_max = self.timeout + SILENCE_MAX;
        let Some(mut transaction) =
            BatchTransaction::open(connection, &self.base, request, silence_max).await?
        else {
            return Ok(Outcome::ClaimLost);
        };
        let position = request.claim.position;
        let (deliveries, _) = transaction.read().await?;
        // Not sent: an event of a type that is not handled any more, and one that was received before a reset.
        let delivery = deliveries.first().filter(|delivery| !delivery.replaying);
        if let Some(delivery) = delivery
            && let Some(failure) = self.send_again(&mut transaction, delivery).await?
        {
            return Ok(Outcome::Committed { position, handled: 0, failure: Some(failure) });
        }
        let handled = i32::from(delivery.is_some());
        transaction.finish(Progress { position, handled, failing: false, put_off: None }).await?;
        Ok(Outcome::Committed { position, handled, failure: None })
    }

    /// Sends an event, and has done what the answer wants. Returns why that could not be, if so.
    async fn send_again(
        &self,
        transaction: &mut BatchTransaction<'_>,
        delivery: &Delivery,
    ) -> Result<Option<Box<Failure>>, ProcessorError> {
        let source = Source::of(delivery);
        let actions = match self.sender.send(&delivery.event).await {
            SendAttempt::Concluded(DeliveryResult::Accepted(actions)) => actions,
            SendAttempt::Concluded(DeliveryResult::Failed { failure, .. }) => {
                return Ok(Some(Box::new(source.blame(*failure))));
            }
            SendAttempt::Concluded(DeliveryResult::Busy { message, wait }) => {
                return Err(ProcessorError::Unavailable { message, wait });
            }
            SendAttempt::Unreachable(message) => {
                return Err(ProcessorError::Unavailable { message, wait: None });
            }
        };
        let effects = [EventEffects { source, actions }];
        Ok(transaction.apply(&RowTables::default(), &self.emitter, &effects).await?.failure)
    }
}
