//! Renewing the lease, and what operators have done meanwhile.

use std::time::Instant;

use sqlx::PgConnection;
use tracing::info;

use crate::processing::runner::phase::Phase;
use crate::processing::runner::session::in_time;
use crate::processing::runner::{Next, Runner};
use crate::processing::tracker::LeaseStatus;

impl Runner {
    /// Extends the lease, records the rate, and follows what the tracker row says about operators.
    pub(super) async fn renew(&mut self, connection: &mut PgConnection) -> Result<Next, sqlx::Error> {
        let Some(claim) = self.phase.claim() else { return Ok(Next::Again) };
        let unmet = self.subscription.unmet();
        // A database that answers a renewal may still refuse the batch that is to be tried.
        let outage_over = !self.outage.is_external() && unmet.is_none() && !self.has_work();
        let rate = self.rate.per_second(Instant::now());
        let renewing = self.trackers.renew(&mut *connection, claim, self.context.lease, outage_over, rate);
        let Some(lease_status) = in_time(renewing).await? else { return Ok(self.claim_lost()) };
        self.renewed_at = Instant::now();
        if outage_over {
            self.outage.over();
        }
        self.follow_operators(&lease_status);
        if self.processor.has_pending_effects() {
            self.note_effects();
        }
        if let Some(reason) = unmet {
            self.outage.unreadable(&reason, self.until_renewal());
            self.record_outage(connection).await;
        }
        self.compare_history(connection).await
    }

    fn follow_operators(&mut self, lease_status: &LeaseStatus) {
        let was_paused = matches!(self.phase, Phase::Paused(_));
        self.phase = std::mem::take(&mut self.phase).after_renewal(lease_status, Instant::now());
        let position = lease_status.position.get();
        match (was_paused, &self.phase) {
            (false, Phase::Paused(_)) => info!(processor = self.name, position, "paused"),
            (true, Phase::Following(_)) => {
                info!(processor = self.name, position, "resumed");
                self.restart_handler = true;
            }
            _ => {}
        }
        let Some(following) = self.phase.following_mut() else { return };
        self.restart_handler |= lease_status.dead_letters_requested && !following.dead_letters_requested;
        following.dead_letters_requested = lease_status.dead_letters_requested;
        if lease_status.retry_now && following.due.is_some() {
            following.due = Some(Instant::now());
            if let Some(ahead) = self.processor.runs_ahead() {
                ahead.retry_now();
            }
        }
    }
}
