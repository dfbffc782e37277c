//! Comparing the handlers with those of the last owner: rows that were made by both would be mixed without a word.

use sqlx::PgConnection;
use tracing::{info, warn};

use crate::event::Position;
use crate::processing::declaration::{OnHandlerChange, ProcessorKind};
use crate::processing::processor::OthersObjects;
use crate::processing::runner::decision::{Attempt, decide};
use crate::processing::runner::session::in_time;
use crate::processing::runner::{Next, Runner};
use crate::processing::tracker::{Claim, Reset};

/// Who resets a processor whose handlers have changed, as the log of operators has it.
const OPERATOR: &str = "espd (on_handler_change)";

impl Runner {
    /// The fingerprint of the handlers that would run under a claim, if it is known.
    pub(super) fn find_handlers(&self, claim: &Claim) -> Option<String> {
        // The handlers of an older version go on until a rebuild has made the declared one.
        let is_declared = claim.key.version == self.key.version;
        is_declared.then(|| self.processor.base().noted_fingerprint()).flatten()
    }

    /// Stops or rebuilds the processor if its handlers, which are the `present` ones, have changed and the declaration says so.
    /// `None`: it goes on.
    pub(super) async fn refuse_other_handlers(
        &mut self,
        connection: &mut PgConnection,
        claim: &Claim,
        present: Option<&str>,
    ) -> Result<Option<Next>, sqlx::Error> {
        if !present.is_some_and(|present| claim.was_handled_by_other(present)) {
            return Ok(None);
        }
        match self.processor.base().declaration.on_handler_change {
            OnHandlerChange::Warn => Ok(None),
            OnHandlerChange::Refuse => {
                let what_resets = match self.processor.kind() {
                    ProcessorKind::Projector => " (where it can, beside the tables that serve)",
                    ProcessorKind::Reactor => "",
                };
                let message = format!(
                    "the handlers of {name} are not those that have handled the events up to {}: take the change back, and \
                     `espctl resume {name}`; `espctl reset {name}` to handle all events with these{what_resets}; or \
                     on_handler_change = \"warn\" to continue with both",
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

    /// Records the `present` handlers, which run from now on, and says if they are others.
    pub(super) async fn note_handlers(
        &mut self,
        connection: &mut PgConnection,
        claim: &Claim,
        present: Option<&str>,
    ) -> Result<(), sqlx::Error> {
        let Some(present) = present.filter(|present| claim.handlers.as_deref() != Some(*present)) else {
            return Ok(());
        };
        let is_change = claim.was_handled_by_other(present);
        if is_change {
            let position = claim.position.get();
            let what = match self.processor.kind() {
                ProcessorKind::Projector => {
                    "the handlers are not those that have handled the events up to here: `espctl rebuild`, or `espctl reset`, makes the rows anew"
                }
                ProcessorKind::Reactor => {
                    "the handlers are not those that have handled the events up to here: what those have done stays done"
                }
            };
            warn!(processor = self.name, position, "{what}");
        } else {
            info!(processor = self.name, handlers = present, "noted the handlers");
        }
        in_time(self.trackers.note_handlers(connection, claim, present, is_change)).await
    }
}
