//! Keeping a claim alive while a batch takes long.
//!
//! The batch holds the tracker's row, so the lease cannot be renewed. Instead, a second connection records that the owner
//! is alive, and notices when the backend of the batch has vanished without a word.

use std::time::Instant;

use sqlx::PgConnection;

use crate::postgres::deadline::timed_out;
use crate::processing::heartbeat;
use crate::processing::processor::ProcessorError;
use crate::processing::runner::RunnerContext;
use crate::processing::runner::session::{ANSWER_TIMEOUT, in_time};
use crate::processing::tracker::{Claim, Trackers};

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
            lost = self.keep() => Err(lost.into()),
        }
    }

    /// Records again and again that the owner is alive. Returns only with a reason to give the batch up.
    async fn keep(&self) -> sqlx::Error {
        let lease = self.context.lease;
        // Most batches end before that, and cost no second connection.
        heartbeat::expect_within(ANSWER_TIMEOUT.max(lease));
        tokio::time::sleep((lease * 3 / 4).saturating_sub(self.leased_at.elapsed())).await;
        let (mut connection, mut at_work) = (None, Instant::now());
        loop {
            let error = match in_time(self.record_liveness(&mut connection)).await {
                Ok(true) => None,
                Ok(false) => Some(timed_out("the database")),
                // A server that refuses, such as one without a free connection, is there.
                Err(sqlx::Error::Database(_)) => None,
                Err(error) => Some(error),
            };
            match error {
                None => at_work = Instant::now(),
                Some(error) if at_work.elapsed() >= ANSWER_TIMEOUT => return error,
                Some(_) => {}
            }
            heartbeat::expect_within(ANSWER_TIMEOUT.max(lease));
            tokio::time::sleep(lease / 4).await;
        }
    }

    async fn record_liveness(&self, kept: &mut Option<PgConnection>) -> Result<bool, sqlx::Error> {
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
        let at_work = showing.await?;
        *kept = Some(connection);
        Ok(at_work)
    }
}
