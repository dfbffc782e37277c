//! Comparing the event store with what the tracker remembers of it, and stopping where it is another one.

use std::time::Duration;

use sqlx::PgConnection;
use tracing::{debug, error, warn};

use crate::postgres::sqlstate::describe;
use crate::process::hook::FailureFacts;
use crate::process::report::Condition;
use crate::processing::divergence::Divergence;
use crate::processing::failure::Failure;
use crate::processing::heartbeat;
use crate::processing::history::Comparison;
use crate::processing::processor::Events;
use crate::processing::runner::phase::Phase;
use crate::processing::runner::session::in_time;
use crate::processing::runner::{Next, Runner};
use crate::processing::tracker::Claim;

/// How long the database of the events may take for a comparison that no batch depends on.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause before the next attempt where a batch has found another store than the look after it.
const CONTRADICTION_PAUSE: Duration = Duration::from_secs(1);

impl Runner {
    /// Compares while nothing is to be handled, so that a store that has gone back is noticed before it is written to again. A
    /// tracker without a witness gets one.
    pub(super) async fn compare_history(
        &mut self,
        connection: &mut PgConnection,
    ) -> Result<Next, sqlx::Error> {
        let Phase::Following(following) = &self.phase else { return Ok(Next::Again) };
        let claim = following.claim.clone();
        match self.examine(connection, &claim).await? {
            Some(divergence) => self.enter_diverged(connection, divergence).await,
            None => Ok(Next::Again),
        }
    }

    /// Stops, because a batch has met a store that is not the one that was followed.
    pub(super) async fn diverge(&mut self, connection: &mut PgConnection) -> Result<Next, sqlx::Error> {
        let Some(claim) = self.phase.claim().cloned() else { return Ok(Next::Again) };
        match self.examine(connection, &claim).await? {
            Some(divergence) => self.enter_diverged(connection, divergence).await,
            // The store has changed again meanwhile, or does not answer now.
            None => Ok(Next::Wait(None, CONTRADICTION_PAUSE)),
        }
    }

    /// Stays where the last process was.
    pub(super) fn stay_diverged(&mut self) -> Next {
        warn!(
            processor = self.name,
            "has stopped because of what it has found in the event store: `espctl status` says what that is, and what to do"
        );
        let found = Failure::of_processor(
            "the event store is not the one that was followed, or a trigger may have missed events",
        );
        let facts = found.facts(Some(Condition::Diverged), 0, None);
        heartbeat::record_failure(FailureFacts { resumed: true, ..facts });
        self.phase.enter(Phase::Diverged);
        Next::Again
    }

    async fn enter_diverged(
        &mut self,
        connection: &mut PgConnection,
        divergence: Divergence,
    ) -> Result<Next, sqlx::Error> {
        let Some(claim) = self.phase.claim() else { return Ok(Next::Again) };
        error!(
            processor = self.name,
            position = divergence.position.get(),
            last_common = divergence.last_common.get(),
            head = divergence.head.get(),
            error = divergence.describe(&self.name),
            remedy = divergence.remedy(&self.name),
            "stopped: {}",
            divergence.summary()
        );
        let found = Failure::of_processor(divergence.summary());
        heartbeat::record_failure(found.facts(Some(Condition::Diverged), 0, None));
        heartbeat::record_divergence(divergence.facts(&self.name));
        let recording = self.trackers.record_divergence(connection, claim, &divergence);
        in_time(recording).await?;
        // Nothing that a handler remembers of the store before holds for this one.
        self.processor.close().await;
        self.phase.enter(Phase::Diverged);
        Ok(Next::Again)
    }

    /// How the store differs from what the tracker remembers; `None`: it does not, or is not there now.
    async fn examine(
        &self,
        connection: &mut PgConnection,
        claim: &Claim,
    ) -> Result<Option<Divergence>, sqlx::Error> {
        let base = self.processor.base();
        let Events::Elsewhere(store) = &base.events else {
            return in_time(self.examine_on(connection, None, claim)).await;
        };
        let examining = async {
            let mut events = store.pool().acquire().await?;
            self.examine_on(connection, Some(&mut events), claim).await
        };
        match tokio::time::timeout(LOOK_TIMEOUT, examining).await {
            Ok(Ok(divergence)) => Ok(divergence),
            // The next batch meets the same outage, and tells of it.
            Ok(Err(error)) => {
                debug!(processor = self.name, error = describe(&error), "could not compare the event store");
                Ok(None)
            }
            Err(_elapsed) => Ok(None),
        }
    }

    /// `events`: the database of the events, if it is another one than that of the tracker.
    async fn examine_on(
        &self,
        connection: &mut PgConnection,
        mut events: Option<&mut PgConnection>,
        claim: &Claim,
    ) -> Result<Option<Divergence>, sqlx::Error> {
        let (trackers, layout) = (&self.trackers, self.processor.base().events.layout());
        let Some(memory) = trackers.remember(&mut *connection, claim).await? else { return Ok(None) };
        let position = memory.position;
        let comparison =
            Comparison::take(events.as_deref_mut().unwrap_or(&mut *connection), layout, memory).await?;
        if !comparison.contradicts() {
            if let Some(witness) = comparison.first_witness(self.subscription.settled()) {
                trackers.note_witness(&mut *connection, claim, witness).await?;
            }
            if let Some(partitions) = comparison.partitions_to_record() {
                trackers.note_partitions(&mut *connection, claim, &partitions).await?;
            }
            if comparison.has_triggers_to_record() {
                trackers.note_triggers(connection, claim).await?;
            }
            return Ok(None);
        }
        let earlier = trackers.list_witnesses(&mut *connection, &claim.key, position).await?;
        comparison.explain(events.unwrap_or(connection), layout, &earlier).await.map(Some)
    }
}
