//! Keeping a claim alive while a batch takes long.
//!
//! The batch holds the tracker's row, so the lease cannot be renewed. Instead, a second connection records that the owner
//! is alive, and notices when the backend of the batch has vanished without a word.

use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tracing::warn;

use crate::postgres::deadline::timed_out;
use crate::processing::heartbeat;
use crate::processing::processor::ProcessorError;
use crate::processing::runner::RunnerContext;
use crate::processing::runner::session::{ANSWER_TIMEOUT, in_time};
use crate::processing::tracker::{Claim, Liveness, Trackers};

/// After how long it is logged what a handler is at work on.
const LONG: Duration = Duration::from_secs(20);

/// Keeps one claim alive while a batch holds the tracker's row.
pub(super) struct KeepAlive<'r> {
    context: &'r RunnerContext,
    trackers: &'r Trackers,
    claim: &'r Claim,
    /// A moment at which the lease had all its time.
    leased_at: Instant,
}

impl<'r> KeepAlive<'r> {
    pub(super) fn new(
        context: &'r RunnerContext,
        trackers: &'r Trackers,
        claim: &'r Claim,
        leased_at: Instant,
    ) -> Self {
        Self { context, trackers, claim, leased_at }
    }

    /// Runs a batch for as long as it takes, but gives it up when no backend works on it any more.
    pub(super) async fn run_beside<T>(
        &self,
        work: impl Future<Output = Result<T, ProcessorError>>,
    ) -> Result<T, ProcessorError> {
        tokio::select! {
            biased;
            outcome = work => outcome,
            lost = self.keep() => Err(lost),
        }
    }

    /// Records again and again that the owner is alive. Returns only with a reason to give the batch up.
    async fn keep(&self) -> ProcessorError {
        let lease = self.context.lease;
        // Most batches end before that, and cost no second connection.
        heartbeat::expect_within(ANSWER_TIMEOUT.max(lease));
        tokio::time::sleep((lease * 3 / 4).saturating_sub(self.leased_at.elapsed())).await;
        let (mut connection, mut at_work, begun, mut told) = (None, Instant::now(), Instant::now(), false);
        loop {
            let error = match in_time(self.record_liveness(&mut connection)).await {
                // An operator, or another owner, has ended the session of the batch: nothing of it can commit.
                Ok(Liveness { is_valid: false, .. }) => return ProcessorError::ClaimLost,
                Ok(Liveness { at_work: true, .. }) => None,
                Ok(Liveness { at_work: false, .. }) => Some(timed_out("the database")),
                // A server that refuses, such as one without a free connection, is there.
                Err(sqlx::Error::Database(_)) => None,
                Err(error) => Some(error),
            };
            match error {
                None => at_work = Instant::now(),
                Some(error) if at_work.elapsed() >= ANSWER_TIMEOUT => return error.into(),
                Some(_) => {}
            }
            if !told && begun.elapsed() >= LONG {
                told = true;
                self.tell_what_is_at_hand();
            }
            heartbeat::expect_within(ANSWER_TIMEOUT.max(lease));
            tokio::time::sleep(lease / 4).await;
        }
    }

    /// Says which events a handler has been at work on for long.
    fn tell_what_is_at_hand(&self) {
        if let Some((first, events)) = heartbeat::at_hand() {
            let (processor, seconds) = (&self.claim.key.name, LONG.as_secs());
            warn!(
                processor,
                event.id = first.get(),
                events,
                seconds,
                "a handler has been at work for long, from this event on"
            );
        }
    }

    async fn record_liveness(&self, kept: &mut Option<PgConnection>) -> Result<Liveness, sqlx::Error> {
        let Self { context, trackers, claim, .. } = self;
        let name = &claim.key.name;
        // A connection is kept only if it has answered without an error.
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => {
                let database = context.database.named(&format!("espd: {name} (sign of life)"));
                database.connect().await?.connection
            }
        };
        let showing = trackers.record_liveness(&mut connection, claim, &context.owner, context.lease);
        let liveness = showing.await?;
        *kept = Some(connection);
        Ok(liveness)
    }
}
