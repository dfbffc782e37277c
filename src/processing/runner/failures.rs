//! Carrying out what was decided about a failure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tracing::{debug, error, info, warn};

use crate::event::Position;
use crate::process::report::Condition;
use crate::processing::failure::Failure;
use crate::processing::heartbeat;
use crate::processing::progress::PendingRetry;
use crate::processing::runner::decision::Decision;
use crate::processing::runner::outage::LeftAlone;
use crate::processing::runner::phase::Phase;
use crate::processing::runner::session::in_time;
use crate::processing::runner::{Next, Runner};

/// Shortest time between two log lines about an event that fails again and again.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// Events that are tried again while others go on whose last attempt is known to have been told.
const TOLD_MAX: usize = 100;

/// What was logged about failures, so that an event that fails again and again does not fill the log.
#[derive(Debug, Default)]
pub(super) struct FailureLog {
    /// When a failure was last logged.
    logged: Option<Instant>,
    /// The attempts of events that are tried again while others go on, when they were last told: of the last [`TOLD_MAX`] such events.
    told: VecDeque<(Option<Position>, u32)>,
}

impl FailureLog {
    /// Whether to log a failure: the first one is logged, then one every ten seconds at most.
    pub(super) fn is_due(&mut self, attempts: u32) -> bool {
        let due = attempts == 1 || self.logged.is_none_or(|logged| logged.elapsed() >= WARN_INTERVAL);
        if due {
            self.logged = Some(Instant::now());
        }
        due
    }

    /// Whether an attempt has not been told of yet, at an event that is tried again while others go on. It is told from then on.
    fn is_new(&mut self, event_id: Option<Position>, attempts: u32) -> bool {
        if self.told.contains(&(event_id, attempts)) {
            return false;
        }
        self.told.retain(|(other, _)| *other != event_id);
        self.told.truncate(TOLD_MAX - 1);
        self.told.push_front((event_id, attempts));
        true
    }
}

impl Runner {
    /// Does what was decided.
    pub(super) async fn act(
        &mut self,
        connection: &mut PgConnection,
        decision: Decision,
    ) -> Result<Next, sqlx::Error> {
        if let Decision::Retry(failure) | Decision::Stop(failure) = &decision
            && let Some((attempts, blocks)) = self.find_set_aside(connection, failure).await?
        {
            return self.set_aside(connection, failure.clone(), attempts, blocks).await;
        }
        match decision {
            Decision::Reclaim => Ok(self.claim_lost()),
            Decision::Reconnect(error) => Err(error),
            Decision::RenewSession(failure) => Ok(self.renew_session(&failure)),
            Decision::WaitFor { message, at_least } => self.wait_for(connection, &message, at_least).await,
            Decision::Bisect(failure) => {
                debug!(processor = self.name, error = %failure, "looking for the failing event in smaller batches");
                Ok(Next::Again)
            }
            Decision::Retry(failure) => self.retry_later(connection, failure).await,
            Decision::SetAside { failure, blocks } => {
                self.retry.failed(failure.event_id());
                self.set_aside(connection, failure, self.retry.attempts(), blocks).await
            }
            Decision::Stop(failure) => {
                self.retry.failed(failure.event_id());
                self.stop_at(connection, &failure).await
            }
            Decision::Diverge => self.diverge(connection).await,
            Decision::Block { message } => self.block(connection, message).await,
            Decision::AwaitVersion { serves, declared } => {
                self.await_version(connection, serves, declared).await
            }
            Decision::KeepDeadLetter { event_id, failure } => {
                self.keep_dead_letter(connection, event_id, &failure).await
            }
        }
    }

    /// How the failing event was set aside, if it was. No handler gets such an event, so it is one that cannot be read: the position
    /// has to be moved over it without reading it.
    async fn find_set_aside(
        &self,
        connection: &mut PgConnection,
        failure: &Failure,
    ) -> Result<Option<(u32, bool)>, sqlx::Error> {
        let (Phase::Following(following), Some(id)) = (&self.phase, failure.event_id()) else {
            return Ok(None);
        };
        in_time(self.dead_letters.find_set_aside(connection, &following.claim.key, id)).await
    }

    /// Gives the session up, because it may be to blame for a failure.
    fn renew_session(&mut self, failure: &Failure) -> Next {
        info!(
            processor = self.name,
            event.id = failure.event_id().map(Position::get),
            error = %failure,
            "tries again on a new session: this one, or a plan in it, may be the reason"
        );
        self.session_is_renewed = true;
        Next::Reconnect
    }

    /// Takes note of a batch without a failure.
    pub(super) fn succeeded(&mut self) -> Next {
        if self.retry.attempts() > 0 {
            info!(processor = self.name, "continues: the failing event has been handled");
        }
        self.retry.succeeded();
        Next::Again
    }

    /// Takes note of how far a processor is that runs ahead of its position, and of what it tries again.
    pub(super) async fn follow_ahead(
        &mut self,
        connection: &mut PgConnection,
        under_way: bool,
        pending_retry: Option<Box<PendingRetry>>,
    ) -> Result<Next, sqlx::Error> {
        if let Phase::Following(following) = &mut self.phase {
            following.under_way = under_way;
            following.due = pending_retry.as_ref().and_then(|pending_retry| pending_retry.until);
        }
        let Some(pending_retry) = pending_retry else { return Ok(self.succeeded()) };
        let PendingRetry { failure, attempts, until } = *pending_retry;
        let Some(until) = until else {
            self.retry.resume(failure.event_id(), attempts);
            return self.stop_at(connection, &failure).await;
        };
        let delay = until.saturating_duration_since(Instant::now());
        if !self.failure_log.is_new(failure.event_id(), attempts) {
            return Ok(Next::Again);
        }
        heartbeat::record_failure(failure.facts(Some(Condition::Retrying), attempts, Some(delay)));
        if self.failure_log.is_due(attempts) {
            self.warn(&failure, attempts, delay);
        }
        Ok(Next::Again)
    }

    /// Waits for something that the handlers need beside the database, as long as that takes.
    async fn wait_for(
        &mut self,
        connection: &mut PgConnection,
        message: &str,
        at_least: Option<Duration>,
    ) -> Result<Next, sqlx::Error> {
        let delay = self.outage.unavailable(message, at_least);
        // Nothing else is logged of it before the next attempt.
        if self.failure_log.is_due(self.outage.tries()) || delay >= WARN_INTERVAL {
            let retry_in_ms = delay.as_millis() as u64;
            let what = "something that the handlers need is not there";
            warn!(processor = self.name, error = message, retry_in_ms, "{what}");
        }
        let waiting = Failure::of_processor(message);
        heartbeat::record_failure(waiting.facts(Some(Condition::Waiting), self.outage.tries(), Some(delay)));
        self.record_outage(connection).await;
        let until = Instant::now() + delay;
        let claim = self.phase.claim().filter(|_| at_least.is_some());
        self.left_alone = claim.map(|claim| LeftAlone::new(message, until, claim));
        self.phase.enter(|following| Phase::Lacking(following, until));
        Ok(Next::Again)
    }

    /// Counts the failure, and tries again after a delay.
    async fn retry_later(
        &mut self,
        connection: &mut PgConnection,
        failure: Failure,
    ) -> Result<Next, sqlx::Error> {
        let Some(claim) = self.phase.claim() else { return Ok(Next::Again) };
        let delay = self.retry.failed(failure.event_id());
        let attempts = self.retry.attempts();
        if self.failure_log.is_due(attempts) {
            self.warn(&failure, attempts, delay);
        }
        heartbeat::record_failure(failure.facts(Some(Condition::Retrying), attempts, Some(delay)));
        in_time(self.trackers.record_failure(connection, claim, attempts, &failure, Some(delay))).await?;
        let until = Instant::now() + delay;
        self.phase.enter(|following| Phase::Retrying(following, until));
        Ok(Next::Again)
    }

    /// Stops at an event whose attempts are used up. Those before it are committed.
    pub(super) async fn stop_at(
        &mut self,
        connection: &mut PgConnection,
        failure: &Failure,
    ) -> Result<Next, sqlx::Error> {
        let Some(claim) = self.phase.claim() else { return Ok(Next::Again) };
        let attempts = self.retry.attempts();
        error!(
            processor = self.name,
            event.id = failure.event_id().map(Position::get),
            event.r#type = failure.event_type(),
            attempt = attempts,
            error = %failure,
            "stopped at an event that could not be handled: `espctl retry` tries again"
        );
        heartbeat::record_failure(failure.facts(Some(Condition::Failed), attempts, None));
        in_time(self.trackers.record_failure(connection, claim, attempts, failure, None)).await?;
        self.phase.enter(Phase::Failed);
        Ok(Next::Again)
    }

    /// Stops until an operator acts, because only an operator can help.
    pub(super) async fn block(
        &mut self,
        connection: &mut PgConnection,
        message: String,
    ) -> Result<Next, sqlx::Error> {
        let Some(claim) = self.phase.claim() else { return Ok(Next::Again) };
        error!(processor = self.name, error = message, "cannot continue until an operator acts");
        let failure = Failure::of_processor(message);
        heartbeat::record_failure(failure.facts(Some(Condition::Failed), 0, None));
        in_time(self.trackers.record_failure(connection, claim, 0, &failure, None)).await?;
        self.phase.enter(Phase::Failed);
        Ok(Next::Again)
    }

    /// Waits until the declared version is live, which ends the claim.
    async fn await_version(
        &mut self,
        connection: &mut PgConnection,
        serves: i32,
        declared: i32,
    ) -> Result<Next, sqlx::Error> {
        let Some(claim) = self.phase.claim() else { return Ok(Next::Again) };
        info!(
            processor = self.name,
            version = serves,
            declared,
            "waits until version {declared}, which is built beside version {serves}, is live: `espctl status {}` shows how far it is",
            self.name
        );
        // What stopped it under another declaration is no matter now.
        if claim.attempts == 0 && (claim.failed || claim.last_error.is_some()) {
            in_time(self.trackers.forget_failure(&mut *connection, claim)).await?;
        }
        self.outage.await_version(declared);
        self.record_outage(connection).await;
        self.phase.enter(Phase::Awaiting);
        Ok(Next::Again)
    }

    fn warn(&self, failure: &Failure, attempts: u32, delay: Duration) {
        warn!(
            processor = self.name,
            event.id = failure.event_id().map(Position::get),
            event.r#type = failure.event_type(),
            attempt = attempts,
            retry_in_ms = delay.as_millis() as u64,
            error = %failure,
            "could not handle an event"
        );
    }
}
