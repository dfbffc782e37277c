//! Runs a registered handler as a processor in PostgreSQL.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Connection as _, PgConnection};

use super::handling::{Abilities, CarriedOut, Handled, HandlerFactory, NativeHandler};
use crate::event::Position;
use crate::handlers::batch::{BatchTransaction, find_misuse};
use crate::postgres::server_mark;
use crate::processing::declaration::ProcessorKind;
use crate::processing::effects::{Effects, NewEffect, RecordedEffects};
use crate::processing::emission::{Emitter, SourceEvent};
use crate::processing::failure::{FailedEvent, Failure};
use crate::processing::processor::{
    BatchRequest, Delivery, Outcome, Processor, ProcessorBase, ProcessorError,
};
use crate::processing::progress::Progress;
use crate::processing::tracker::Claim;
use crate::store::Codec;

/// How much longer than a handler may take its transaction may be idle. Then the server ends it, because the process seems frozen.
const IDLE_MARGIN: Duration = Duration::from_secs(60);

/// A registered processor, ready to run.
pub(crate) struct NativeProcessor {
    base: ProcessorBase,
    handler: NativeHandler,
    /// Where effects are recorded; `None`: the handler has none, or they are left out.
    effects: Option<Effects>,
    /// Whether effects are to be carried out before anything else.
    effects_pending: bool,
}

impl NativeProcessor {
    pub(super) fn new(
        base: ProcessorBase,
        factory: HandlerFactory,
        codec: Codec,
        abilities: Abilities,
    ) -> Self {
        let emitter = Emitter::new(&base.declaration, &base.schema, &base.events);
        let effects = abilities.acts_after_commit.then(|| Effects::new(&base.schema));
        let handler = NativeHandler::new(factory, codec, emitter, abilities);
        let handler = handler.within(base.declaration.handler_timeout);
        Self { base, handler, effects, effects_pending: false }
    }

    /// As [`Self::new`], of a version beside the one that serves: it has no effects.
    pub(super) fn beside(
        base: ProcessorBase,
        factory: HandlerFactory,
        codec: Codec,
        abilities: Abilities,
    ) -> Self {
        let own = Self::new(base, factory, codec, abilities);
        Self {
            effects: None,
            handler: own.handler.within(Duration::MAX),
            base: own.base,
            effects_pending: false,
        }
    }

    /// Handles the events of the request, and records what is to be done once they are committed.
    async fn handle(
        &mut self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<Outcome, ProcessorError> {
        let Some(mut transaction) =
            BatchTransaction::open(connection, &self.base, request, idle_max(&self.base)).await?
        else {
            return Ok(Outcome::ClaimLost);
        };
        let (mut events, upto) = transaction.read().await?;
        let handled = self.handler.handle(&mut transaction, &mut events, None, request.limits.time).await?;
        let mut recorded = false;
        if let (Some(effects), false) = (&self.effects, handled.effects.is_empty()) {
            record(&mut transaction, effects, request, &handled.effects).await?;
            recorded = true;
        }
        let outcome = finish(transaction, request, &events, upto, handled).await?;
        self.effects_pending |= recorded;
        Ok(outcome)
    }

    /// Carries out what is to be done after the last commits, in order, for as long as a batch may take. Returns the number of
    /// those that were carried out, and why the next one could not be.
    async fn carry_out(
        &mut self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<(usize, Option<Failure>), ProcessorError> {
        let Some(effects) = &self.effects else { return Ok((0, None)) };
        let mut queue = RecordedEffects { effects, connection, key: &request.claim.key };
        let CarriedOut { count, failure, all } =
            self.handler.carry_out(&mut queue, request.limits.time).await?;
        self.effects_pending &= !all;
        Ok((count, failure))
    }
}

#[async_trait]
impl Processor for NativeProcessor {
    fn base(&self) -> &ProcessorBase {
        &self.base
    }

    async fn prepare(&mut self, connection: &mut PgConnection, claim: &Claim) -> Result<(), ProcessorError> {
        let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
        self.base.prepare(&mut transaction, claim).await?;
        if self.kind() == ProcessorKind::Projector {
            // Another version finds out by it what `ddl` has made.
            self.base.tables().note_declared(&mut transaction, self.base.events.layout().upcasts()).await?;
        }
        self.effects_pending = match &self.effects {
            Some(effects) => effects.are_pending(&mut transaction, &claim.key).await?,
            None => false,
        };
        transaction.commit().await?;
        Ok(())
    }

    fn hands_out_connection(&self) -> bool {
        true
    }

    fn shares_process(&self) -> bool {
        true
    }

    async fn find_first(
        &mut self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<Option<FailedEvent>, ProcessorError> {
        let opened = BatchTransaction::open(connection, &self.base, request, idle_max(&self.base)).await?;
        let Some(mut transaction) = opened else { return Ok(None) };
        let (events, _) = transaction.read().await?;
        Ok(events.first().and_then(|first| SourceEvent::of(first).attribute(Failure::of_processor("")).event))
    }

    fn has_pending_effects(&self) -> bool {
        self.effects_pending
    }

    async fn close(&mut self) {
        self.handler.forget();
    }

    async fn process(
        &mut self,
        connection: &mut PgConnection,
        request: BatchRequest<'_>,
    ) -> Result<Outcome, ProcessorError> {
        if self.effects_pending {
            let (count, failure) = self.carry_out(connection, &request).await?;
            if let Some(failure) = failure {
                let (progressed, failure) = (count > 0, Box::new(failure));
                return Ok(Outcome::EffectFailed { committed: None, progressed, failure });
            }
            if self.effects_pending {
                return self.renew(connection, &request).await;
            }
        }
        let outcome = self.handle(connection, &request).await;
        if outcome.is_err() {
            self.handler.forget();
        }
        let outcome = outcome?;
        let Outcome::Committed { position, handled, .. } = outcome else { return Ok(outcome) };
        if self.effects_pending {
            let (count, failure) = self.carry_out(connection, &request).await?;
            if let Some(failure) = failure {
                let (progressed, failure) = (count > 0, Box::new(failure));
                return Ok(Outcome::EffectFailed {
                    committed: Some((position, handled)),
                    progressed,
                    failure,
                });
            }
        }
        Ok(outcome)
    }
}

impl NativeProcessor {
    /// Keeps the claim, where the time of a batch was not enough for what is to be done before it.
    async fn renew(
        &self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<Outcome, ProcessorError> {
        let (claim, lease) = (request.claim, request.lease);
        let renewed = self.base.trackers().renew(connection, claim, lease, false, 0.0).await?;
        Ok(match renewed {
            Some(_) => Outcome::Committed { position: claim.position, handled: 0, failure: None },
            None => Outcome::ClaimLost,
        })
    }
}

/// How long the transaction of a batch may be idle while a handler works.
fn idle_max(base: &ProcessorBase) -> Duration {
    base.declaration.handler_timeout + IDLE_MARGIN
}

/// Records what is to be done after the commit, unless a handler has left no transaction that can be committed.
async fn record(
    transaction: &mut BatchTransaction<'_>,
    effects: &Effects,
    request: &BatchRequest<'_>,
    asked: &[NewEffect],
) -> Result<(), ProcessorError> {
    let is_open = transaction.is_open();
    match effects.record(transaction.connection(), &request.claim.key, asked, &is_open).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(transaction.ended()),
        Err(error) => match find_misuse(&error) {
            Some(misuse) => Err(transaction.failed(misuse)),
            None => Err(error.into()),
        },
    }
}

/// Commits what was handled, and moves the position.
async fn finish(
    transaction: BatchTransaction<'_>,
    request: &BatchRequest<'_>,
    events: &[Delivery],
    upto: Position,
    handled: Handled,
) -> Result<Outcome, ProcessorError> {
    let position = handled.position(events, request.claim.position, upto);
    let Handled { events: count, failure, .. } = handled;
    let handled = i32::try_from(count).unwrap_or(i32::MAX);
    if request.dead_letter().is_none() || failure.is_none() {
        let progress = Progress { position, handled, failing: failure.is_some(), pending_retry: None };
        transaction.finish(progress).await?;
    }
    Ok(Outcome::Committed { position, handled, failure })
}
