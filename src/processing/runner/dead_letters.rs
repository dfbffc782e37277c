//! Setting events aside, and handling them again when an operator asks for it.

use sqlx::PgConnection;
use tracing::{info, warn};

use crate::event::Position;
use crate::postgres::sqlstate::is_infrastructure_error;
use crate::processing::dead_letters::announce_set_aside;
use crate::processing::declaration::BatchLimits;
use crate::processing::failure::Failure;
use crate::processing::processor::{BatchRequest, Outcome, ProcessorError, Work};
use crate::processing::runner::keepalive::KeepAlive;
use crate::processing::runner::session::in_time;
use crate::processing::runner::{Next, Phase, Runner};

impl Runner {
    /// Whether to handle a dead letter now. Not when the lease is due: it is renewed first, by the next batch if there is
    /// one. So a long retry neither loses the claim nor keeps other events waiting.
    pub(super) fn letters_have_a_turn(&self) -> bool {
        let may = match self.phase {
            Phase::Following(_) => true,
            // What the handlers need is not there: it is waited for.
            Phase::Retrying(..) => !self.outage.is_external(),
            Phase::Unclaimed(_) | Phase::Paused(_) | Phase::Failed(_) => false,
        };
        self.letters_requested && may && !self.until_renewal().is_zero()
    }

    /// The event has used up its attempts: the position moves over it, and it waits for an operator.
    pub(super) async fn set_aside(
        &mut self,
        connection: &mut PgConnection,
        failure: Failure,
        blocks: bool,
    ) -> Result<Next, sqlx::Error> {
        let Phase::Following(claim) = &mut self.phase else { return Ok(Next::Again) };
        let (Some(id), attempts) = (failure.event_id(), self.retry.attempts()) else {
            return Ok(Next::Again);
        };
        let setting_aside = self.letters.set_aside(&mut *connection, claim, &failure, attempts, blocks);
        if !in_time(setting_aside).await? {
            return self.lost();
        }
        announce_set_aside(&self.name, &failure, attempts);
        claim.position = id;
        self.bisection.passed(1);
        self.retry.succeeded();
        Ok(Next::Again)
    }

    /// Handles one dead letter again, or finds that none is asked for any more.
    pub(super) async fn handle_letter(&mut self, connection: &mut PgConnection) -> Result<Next, sqlx::Error> {
        let Some(claim) = self.phase.claim() else { return Ok(Next::Again) };
        let finding = self.letters.next_requested(&mut *connection, claim);
        let Some(id) = in_time(finding).await? else {
            self.letters_requested = false;
            return Ok(Next::Again);
        };
        let limits = BatchLimits { size: 1, ..self.settings.limits };
        let lease = self.settings.lease;
        let request = BatchRequest { claim, work: Work::DeadLetter(id), limits: &limits, lease };
        let keep_alive = KeepAlive { settings: &self.settings, trackers: &self.trackers, claim };
        let failure = match keep_alive.run_beside(self.processor.process(connection, request)).await {
            Ok(
                Outcome::Committed { failure: None, handled, .. }
                | Outcome::Ahead { put_off: None, handled, .. },
            ) => {
                self.outage.over();
                self.settings.wake_relay.notify_one();
                match handled {
                    0 => {
                        info!(
                            processor = self.name,
                            event.id = id.get(),
                            "a dead letter is of no concern any more"
                        )
                    }
                    _ => info!(processor = self.name, event.id = id.get(), "handled a dead letter"),
                }
                return Ok(Next::Again);
            }
            Ok(Outcome::Committed { failure: Some(failure), .. })
            | Err(ProcessorError::Unattributed(failure)) => *failure,
            Ok(Outcome::Ahead { put_off: Some(put_off), .. }) => put_off.failure,
            Ok(Outcome::ClaimLost) | Err(ProcessorError::Lost) => return self.lost(),
            Err(ProcessorError::Unavailable { message, wait }) => {
                return self.unavailable(connection, message, wait).await;
            }
            Err(ProcessorError::Database(error)) if is_infrastructure_error(&error) => return Err(error),
            Err(ProcessorError::Database(error)) => Failure::of_database(&error),
            Err(ProcessorError::Blocked(message)) => Failure::of_processor(message),
        };
        self.outage.over();
        self.letter_failed(connection, id, &failure).await
    }

    async fn letter_failed(
        &self,
        connection: &mut PgConnection,
        id: Position,
        failure: &Failure,
    ) -> Result<Next, sqlx::Error> {
        let Some(claim) = self.phase.claim() else { return Ok(Next::Again) };
        warn!(processor = self.name, event.id = id.get(), error = %failure, "a dead letter has failed again");
        in_time(self.letters.failed_again(connection, claim, id, failure)).await?;
        Ok(Next::Again)
    }
}
