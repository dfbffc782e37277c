//! Renewing the lease, and what operators have done meanwhile.

use std::time::Instant;

use sqlx::PgConnection;
use tracing::info;

use crate::event::Position;
use crate::processing::runner::phase::Phase;
use crate::processing::runner::session::in_time;
use crate::processing::runner::{Next, Runner};
use crate::processing::tracker::{LeaseStatus, Renewal, Renewed};
use crate::store::subscription::ReadHead;

impl Runner {
    /// Extends the lease, records the rate, and follows what the tracker row says about operators.
    pub(super) async fn renew(&mut self, connection: &mut PgConnection) -> Result<Next, sqlx::Error> {
        let Some(renewal) = self.renewal() else { return Ok(Next::Again) };
        let asked = Instant::now();
        let Some((lease_status, is_remembered, head)) = self.renew_alone(connection, &renewal).await? else {
            return Ok(self.claim_lost());
        };
        (self.renewed_at, self.leased_at) = (Instant::now(), asked);
        self.tell_head(head, asked);
        self.note_renewal(&lease_status, renewal.outage_over);
        if let Some(reason) = self.subscription.unmet() {
            self.outage.unreadable(&reason, self.until_renewal());
            self.record_outage(connection).await;
        }
        if is_remembered { Ok(Next::Again) } else { self.compare_history(connection).await }
    }

    /// Renews the lease, and waits where somebody else has locked the tracker. Also says whether the store is known to be the
    /// one that the tracker remembers, and its head; `None`: the claim is no longer valid.
    async fn renew_alone(
        &self,
        connection: &mut PgConnection,
        renewal: &Renewal,
    ) -> Result<Option<(LeaseStatus, bool, Option<Position>)>, sqlx::Error> {
        let (lease, wanted) = (self.context.lease, std::slice::from_ref(renewal));
        let renewing = self.trackers.renew_all(&mut *connection, wanted, lease, self.events_beside());
        match in_time(renewing).await?.first() {
            Some(Renewed::Done { lease_status, is_remembered, head }) => {
                Ok(Some((*lease_status, *is_remembered, *head)))
            }
            Some(Renewed::Skipped) => {
                let Renewal { claim, outage_over, rate } = renewal;
                let renewing = self.trackers.renew(connection, claim, lease, *outage_over, *rate);
                Ok(in_time(renewing).await?.map(|lease_status| (lease_status, false, None)))
            }
            Some(Renewed::Lost) | None => Ok(None),
        }
    }

    /// Tells the watcher of a head that was read with a renewal.
    pub(super) fn tell_head(&self, head: Option<Position>, asked: Instant) {
        if let Some(head) = head {
            self.subscription.tell(ReadHead { head, asked });
        }
    }

    /// Takes note of a renewal and of what it has found in the tracker.
    pub(super) fn note_renewal(&mut self, lease_status: &LeaseStatus, outage_over: bool) {
        if outage_over {
            self.outage.over();
        }
        self.follow_operators(lease_status);
        if self.processor.has_pending_effects() {
            self.note_effects();
        }
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
        // Who goes on behind an event that has failed knows by itself when that is due: the tracker may have the time of one that is
        // under way again.
        if was_paused && lease_status.retry_now && following.due.is_some() {
            following.due = Some(Instant::now());
            if let Some(ahead) = self.processor.runs_ahead() {
                ahead.retry_now();
            }
        }
    }
}
