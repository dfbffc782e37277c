//! Comparing the handlers with those of the last owner: rows that were made by both would be mixed without a word.

use sqlx::PgConnection;
use tracing::{info, warn};

use crate::event::Position;
use crate::processing::declaration::OnHandlerChange;
use crate::processing::processor::OthersObjects;
use crate::processing::runner::decision::{Attempt, decide};
use crate::processing::runner::session::in_time;
use crate::processing::runner::{Next, Runner};
use crate::processing::tracker::{Claim, Reset};

/// Who resets a processor whose handlers have changed, as the log of operators has it.
const OPERATOR: &str = "espd (on_handler_change)";

impl Runner {
    /// The fingerprint of the handlers, if it is known, and whether the last owner had others, which have handled events.
    fn compare_handlers(&self, claim: &Claim) -> Option<(String, bool)> {
        if claim.key.version != self.key.version {
            // The handlers of an older version go on until a rebuild has made the declared one.
            return None;
        }
        let base = self.processor.base();
        let present = base.declaration.handler_fingerprint(base.events.layout().upcasts())?;
        let is_change = claim.handlers.as_ref().is_some_and(|last| *last != present)
            && claim.declaration.is_some()
            && claim.position > Position::START;
        Some((present, is_change))
    }

    /// Stops or rebuilds the processor if its handlers have changed and the declaration says so. `None`: it goes on.
    pub(super) async fn refuse_other_handlers(
        &mut self,
        connection: &mut PgConnection,
        claim: &Claim,
    ) -> Result<Option<Next>, sqlx::Error> {
        if !self.compare_handlers(claim).is_some_and(|(_, is_change)| is_change) {
            return Ok(None);
        }
        match self.processor.base().declaration.on_handler_change {
            OnHandlerChange::Warn => Ok(None),
            OnHandlerChange::Refuse => {
                let message = format!(
                    "the handlers of {name} are not those that have handled the events up to {}: take the change back, \
                     `espctl reset {name}` to handle all events with these (where it can, beside the tables that serve), or on_handler_change = \"warn\" to continue with both",
                    claim.position,
                    name = self.name
                );
                self.block(connection, message).await.map(Some)
            }
            OnHandlerChange::Rebuild => self.rebuild(connection, claim).await.map(Some),
        }
    }

    /// Drops what the other handlers have made, and begins anew.
    async fn rebuild(&mut self, connection: &mut PgConnection, claim: &Claim) -> Result<Next, sqlx::Error> {
        let base = self.processor.base();
        // What others have made on the tables is not dropped without being asked: the processor stops and says what it is.
        let (reset, others) = (Reset::to(Position::START), OthersObjects::Keep);
        if let Err(error) = base.reset(&mut *connection, &claim.key, OPERATOR, reset, others).await {
            return self.act(connection, decide(error, Attempt::Prepare)).await;
        }
        let position = claim.position.get();
        warn!(processor = self.name, position, "the handlers have changed: rebuilding the tables");
        Ok(self.claim_lost())
    }

    /// Records the handlers that run from now on, and says if they are others.
    pub(super) async fn note_handlers(
        &mut self,
        connection: &mut PgConnection,
        claim: &Claim,
    ) -> Result<(), sqlx::Error> {
        let Some((present, is_change)) = self.compare_handlers(claim) else { return Ok(()) };
        if claim.handlers.as_ref() == Some(&present) {
            return Ok(());
        }
        if is_change {
            let position = claim.position.get();
            let what = "the handlers are not those that have handled the events up to here: `espctl rebuild`, or `espctl reset`, makes the rows anew";
            warn!(processor = self.name, position, "{what}");
        } else {
            info!(processor = self.name, handlers = present, "noted the handlers");
        }
        in_time(self.trackers.note_handlers(connection, claim, &present, is_change)).await
    }
}
