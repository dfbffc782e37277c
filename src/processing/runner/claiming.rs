//! How a runner gets its claim, and releases it.
//!
//! A runner of a second daemon stands by: it looks at the lease about once in a fifth of the lease's length, and at once
//! when it is notified of a release. It takes over when the lease has been released or has ended. An owner that was frozen
//! inside a transaction still holds the row then, so the standby ends the owner's backend first. The batch of that owner can
//! never commit.

use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tracing::{debug, info, warn};

use crate::event::Position;
use crate::postgres::sqlstate::INSUFFICIENT_PRIVILEGE;
use crate::process::hook::FailureFacts;
use crate::process::report::Condition;
use crate::processing::declaration::Unsuitable;
use crate::processing::heartbeat;
use crate::processing::runner::decision::{Attempt, decide};
use crate::processing::runner::keepalive::KeepAlive;
use crate::processing::runner::phase::{Following, Phase, Waiting};
use crate::processing::runner::session::{in_time, notify_elsewhere};
use crate::processing::runner::{Next, Runner};
use crate::processing::tracker::{Claim, CurrentOwner};
use crate::retry::spread;

/// First pause before the next look at a row that is locked although its lease has ended.
const SHORT_PAUSE: Duration = Duration::from_millis(20);

/// The looks after which a row that nobody owns, and that is locked all the same, is told of: some ten seconds.
const LOCKED_LOOKS: u32 = 16;

impl Runner {
    pub(super) async fn claim(
        &mut self,
        connection: &mut PgConnection,
        waiting: Waiting,
    ) -> Result<Next, sqlx::Error> {
        // What is registered and claimed in another database would stay there.
        if let Some(mark) = self.subscription.mark() {
            in_time(mark.require(&mut *connection)).await?;
        }
        let Self { key, trackers, context, .. } = self;
        let asked = Instant::now();
        let claiming = trackers.claim(&mut *connection, key, &context.owner, context.lease);
        if let Some(claim) = in_time(claiming).await? {
            self.leased_at = asked;
            return self.begin(connection, claim).await;
        }
        let standing_by = trackers.stand_by(&mut *connection, key, &context.owner, context.lease);
        if let Some(current_owner) = in_time(standing_by).await? {
            return self.stand_by(connection, current_owner, waiting).await;
        }
        let now = match self.settled_now(connection, waiting).await? {
            Ok(now) => now,
            Err(wait) => return Ok(wait),
        };
        let position = in_time(self.processor.starting_position(&mut *connection, now)).await?;
        let kind = self.processor.kind();
        in_time(self.trackers.register(connection, &self.key, kind, position)).await?;
        Ok(Next::Again)
    }

    /// The position that stands for now where a processor begins that has never run: the last id drawn, once nothing can
    /// appear at or below it any more. Until then, what to wait for.
    async fn settled_now(
        &mut self,
        connection: &mut PgConnection,
        waiting: Waiting,
    ) -> Result<Result<Position, Next>, sqlx::Error> {
        if !self.processor.base().start().needs_now() {
            return Ok(Ok(Position::START));
        }
        let head = in_time(self.processor.base().find_head(connection)).await?;
        // A store may go back meanwhile, and then the head of before is never reached.
        let now = waiting.now.map_or(head, |before| before.min(head));
        if self.subscription.settled() >= now {
            return Ok(Ok(now));
        }
        if waiting.now.is_none() {
            debug!(processor = self.name, position = now.get(), "waiting for transactions that write now");
        }
        self.phase = Phase::Unclaimed(Waiting { now: Some(now), ..waiting });
        Ok(Err(Next::Wait(Some(now.previous()), self.context.lease / 5)))
    }

    /// Prepares the processor for its first batch under a claim.
    async fn begin(&mut self, connection: &mut PgConnection, claim: Claim) -> Result<Next, sqlx::Error> {
        let (position, epoch) = (claim.position.get(), claim.epoch);
        if self.outage.claimed() {
            info!(processor = self.name, position, epoch, "claimed");
        } else {
            debug!(processor = self.name, position, epoch, "claimed");
        }
        self.take_care(&claim);
        // Operators may have asked for something while nobody owned the tracker.
        self.expect_news();
        self.batch_at = Instant::now();
        self.phase = Phase::Following(Following::new(claim.clone(), self.context.limits.size));
        self.outage.end_awaiting();
        self.record_outage(connection).await;
        let handlers = self.find_handlers(&claim);
        let handlers = handlers.as_deref();
        // A store that is another one is for an operator first, also where other handlers would have everything rebuilt.
        if !claim.diverged
            && let Some(next) = self.refuse_other_handlers(connection, &claim, handlers).await?
        {
            return Ok(next);
        }
        self.processor.bind_handlers(handlers);
        let keep_alive = KeepAlive::new(&self.context, &self.trackers, &claim, self.leased_at);
        let preparing = async {
            // Since the last claim, commits may have been lost, another owner may have handled events, or an operator reset
            // the tables. Whatever the processor remembers is read again.
            self.processor.close().await;
            self.processor.prepare(connection, &claim).await
        };
        if let Err(error) = keep_alive.run_beside(preparing).await {
            return self.act(connection, decide(error, Attempt::Prepare)).await;
        }
        // What kept the last owner from preparing is fixed, whether or not an operator said so.
        if claim.attempts == 0 && (claim.failed || claim.last_error.is_some()) {
            in_time(self.trackers.forget_failure(&mut *connection, &claim)).await?;
        }
        // What handles no event has not been compared either.
        if !claim.diverged {
            self.note_handlers(connection, &claim, handlers).await?;
        }
        self.note_effects();
        self.go_on(&claim);
        self.leave_alone(connection, &claim).await;
        if claim.diverged { Ok(self.stay_diverged()) } else { self.compare_history(connection).await }
    }

    /// Enters the phase that the last process was in: paused, failed, or waiting with the failing event.
    fn go_on(&mut self, claim: &Claim) {
        let failing = claim.last_error.as_ref().map(|error| error.event_id());
        let attempts = claim.attempts;
        self.tell_what_was_found(claim);
        match failing {
            _ if claim.paused => self.phase.enter(Phase::Paused),
            // The event has used up its attempts, and another process gives it no more.
            _ if claim.failed && attempts > 0 => self.phase.enter(Phase::Failed),
            // The processor knows itself what it tries again, and when, and goes on with the other events.
            _ if self.processor.runs_ahead().is_some() => {}
            Some(failing) if attempts > 0 => {
                self.retry.resume(failing, attempts.unsigned_abs());
                let delay = until_retry(claim);
                // An author who has fixed the handler does not want to wait to see it work.
                let delay = if self.processor.has_changed() { Duration::ZERO } else { delay };
                let until = Instant::now() + delay;
                self.phase.enter(|following| Phase::Retrying(following, until));
            }
            // An operator has let go of what failed.
            _ => self.retry.succeeded(),
        }
    }

    /// Tells hooks of the failure that the last process has left, if they do not know it.
    fn tell_what_was_found(&self, claim: &Claim) {
        let Some(failure) = &claim.last_error else { return };
        let attempts = claim.attempts.unsigned_abs();
        let condition = if claim.failed { Condition::Failed } else { Condition::Retrying };
        if claim.paused || attempts == 0 {
            return;
        }
        let delay = (!claim.failed).then(|| until_retry(claim));
        let facts = failure.facts(Some(condition), attempts, delay);
        heartbeat::record_failure(FailureFacts { resumed: true, ..facts });
    }

    /// Waits for another owner, and ends a frozen one, which would hold the row for ever.
    async fn stand_by(
        &mut self,
        connection: &mut PgConnection,
        current_owner: CurrentOwner,
        mut waiting: Waiting,
    ) -> Result<Next, sqlx::Error> {
        self.outage.over();
        if current_owner.superseded {
            return self.stay_superseded(connection, &current_owner, waiting).await;
        }
        waiting.superseded = false;
        if let Some(backend) = current_owner.frozen_backend {
            waiting.complained |= !self.end_frozen(connection, backend, waiting.complained).await?;
        } else if !current_owner.ours && current_owner.label.is_some() && !waiting.announced {
            info!(
                processor = self.name,
                owner = current_owner.label,
                "standing by: another daemon owns the processor"
            );
            waiting.announced = true;
        }
        if current_owner.late && waiting.looks == LOCKED_LOOKS && !waiting.complained {
            warn!(
                processor = self.name,
                "nobody owns the processor, and another session holds its tracker locked: `espctl status {}` names it",
                self.name
            );
            waiting.complained = true;
        }
        waiting.looks = if current_owner.late { waiting.looks.saturating_add(1) } else { 0 };
        self.phase = Phase::Unclaimed(waiting);
        Ok(Next::Wait(None, self.pause(&current_owner, waiting.looks)))
    }

    /// Leaves the processor to daemons that declare a newer version, which has gone live.
    async fn stay_superseded(
        &mut self,
        connection: &mut PgConnection,
        current_owner: &CurrentOwner,
        mut waiting: Waiting,
    ) -> Result<Next, sqlx::Error> {
        if !waiting.superseded {
            let former = in_time(self.trackers.list_former(connection, Some(&self.name))).await?;
            let (name, version) = (&self.name, current_owner.version);
            let back = match Unsuitable::find(&self.processor.base().declaration, false) {
                Some(_) => format!("`espctl reset {name}` has the declared one take its place"),
                None => former.rollback(name, self.key.version).map_or_else(
                    || {
                        format!(
                            "its handlers under a higher version: version {} is not kept",
                            self.key.version
                        )
                    },
                    |rollback| format!("go back with {rollback}"),
                ),
            };
            warn!(
                processor = self.name,
                version,
                declared = self.key.version,
                "superseded by version {version}: the processor is left to it. Declare that version, or {back}"
            );
            (waiting.superseded, waiting.announced) = (true, false);
        }
        self.phase = Phase::Unclaimed(waiting);
        Ok(Next::Wait(None, self.context.lease))
    }

    /// How long to wait before the next look, if no notification comes.
    fn pause(&self, current_owner: &CurrentOwner, looks: u32) -> Duration {
        let longest = self.context.lease / 5;
        let wanted = if current_owner.late {
            SHORT_PAUSE.saturating_mul(1 << looks.min(16))
        } else {
            let left = current_owner.seconds_left.and_then(|left| Duration::try_from_secs_f64(left).ok());
            left.filter(|left| !left.is_zero()).unwrap_or(longest)
        };
        // Standbys that wait for the same lease must not all look at the same moment.
        spread(wanted.min(longest))
    }

    /// Ends the backend that holds the row for a frozen owner, or for a worker of this daemon that is gone.
    /// `false`: this role is not allowed to.
    async fn end_frozen(
        &self,
        connection: &mut PgConnection,
        backend: i32,
        complained: bool,
    ) -> Result<bool, sqlx::Error> {
        let ending = self.trackers.end_frozen_backend(connection, &self.key, &self.context.owner);
        let refused = match in_time(ending).await {
            Ok(true) => {
                let what = "ended the backend of an owner that gives no sign of life";
                warn!(processor = self.name, backend.pid = backend, "{what}");
                return Ok(true);
            }
            // The backend has ended, or released the row, by itself.
            Ok(false) => return Ok(true),
            Err(error) => error,
        };
        let code = refused.as_database_error().and_then(|answer| answer.code());
        if code.as_deref() != Some(INSUFFICIENT_PRIVILEGE) {
            return Err(refused);
        }
        if !complained {
            warn!(
                processor = self.name,
                backend.pid = backend,
                "an owner gives no sign of life, and this role may not end its backend: run both daemons as one role, \
                 grant pg_signal_backend, or run `select pg_terminate_backend({backend})`"
            );
        }
        Ok(false)
    }

    /// Releases the claim and tells the standbys; without a claim, stops standing by.
    pub(super) async fn release(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let Self { key, trackers, context, .. } = self;
        let Some(claim) = self.phase.claim() else {
            return in_time(trackers.withdraw_standby(connection, key, &context.owner)).await;
        };
        in_time(trackers.release(connection, claim, &context.release_channel.channel)).await?;
        notify_elsewhere(&context.release_channel).await;
        Ok(())
    }
}

/// How long the failing event of a claim is not tried again. A process that was killed between its batch and its note of the failure
/// has left no time for that, and its attempts count all the same.
fn until_retry(claim: &Claim) -> Duration {
    claim.retry_in_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or_default()
}
