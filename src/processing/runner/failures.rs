//! What a runner does about what went wrong: wait and try again, stop, or set the event aside.

use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tracing::{debug, error, info, warn};

use crate::event::Position;
use crate::postgres::sqlstate::is_infrastructure_error;
use crate::processing::failure::Failure;
use crate::processing::processor::{ProcessorError, PutOff};
use crate::processing::runner::session::in_time;
use crate::processing::runner::{Next, Phase, Runner};
use crate::processing::tracker::Claim;
use crate::retry::NextStep;

impl Runner {
    /// The batch has come to nothing.
    pub(super) async fn went_wrong(
        &mut self,
        connection: &mut PgConnection,
        error: ProcessorError,
    ) -> Result<Next, sqlx::Error> {
        match error {
            ProcessorError::Lost => self.lost(),
            ProcessorError::Blocked(message) => match self.phase.claim().cloned() {
                Some(claim) => self.block(connection, claim, message).await,
                None => Ok(Next::Again),
            },
            ProcessorError::Unavailable { message, wait } => {
                self.unavailable(connection, message, wait).await
            }
            ProcessorError::Unattributed(failure) => {
                // Raised where no event can be named: smaller batches, until it is one event.
                if self.bisection.halve() {
                    debug!(processor = self.name, error = %failure, size = self.bisection.size(), "halved a batch");
                    return Ok(Next::Again);
                }
                self.failed(connection, *failure).await
            }
            ProcessorError::Database(error) if is_infrastructure_error(&error) => Err(error),
            ProcessorError::Database(error) => self.failed(connection, Failure::of_database(&error)).await,
        }
    }

    /// Goes on, and remembers when an event is due that is tried again.
    pub(super) async fn wait_for(
        &mut self,
        connection: &mut PgConnection,
        put_off: Option<PutOff>,
    ) -> Result<Next, sqlx::Error> {
        self.due = put_off.as_ref().and_then(|put_off| put_off.until);
        match (put_off, self.phase.claim().cloned()) {
            (None, _) | (_, None) => self.succeeded(),
            (Some(PutOff { failure, attempts, until: None }), Some(claim)) => {
                self.retry.resume(failure.event_id(), attempts);
                self.stop_at(connection, claim, failure).await
            }
            (Some(PutOff { failure, attempts, until: Some(until) }), _) => {
                let news = Some((failure.event_id(), attempts));
                if self.put_off_told != news && self.is_worth_a_line(attempts) {
                    self.put_off_told = news;
                    self.warn_of(&failure, attempts, until.saturating_duration_since(Instant::now()));
                }
                Ok(Next::Again)
            }
        }
    }

    /// Something beside the database is not there. It is waited for as long as that takes.
    pub(super) async fn unavailable(
        &mut self,
        connection: &mut PgConnection,
        message: String,
        wait: Option<Duration>,
    ) -> Result<Next, sqlx::Error> {
        let Some(claim) = self.phase.claim().cloned() else { return Ok(Next::Again) };
        let delay = self.outage.unavailable(&message, wait);
        if self.is_worth_a_line(self.outage.tries()) {
            let retry_in_ms = delay.as_millis() as u64;
            let what = "something that the handlers need is not there";
            warn!(processor = self.name, error = message, retry_in_ms, "{what}");
        }
        self.tell_outage(connection).await;
        self.phase = Phase::Retrying(claim, Instant::now() + delay);
        Ok(Next::Again)
    }

    pub(super) fn succeeded(&mut self) -> Result<Next, sqlx::Error> {
        if self.retry.attempts() > 0 {
            info!(processor = self.name, "going on: the failing event has been handled");
        }
        self.retry.succeeded();
        Ok(Next::Again)
    }

    /// The batch ended before an event that could not be handled.
    pub(super) async fn failed(
        &mut self,
        connection: &mut PgConnection,
        failure: Failure,
    ) -> Result<Next, sqlx::Error> {
        let Phase::Following(claim) = &self.phase else { return Ok(Next::Again) };
        let claim = claim.clone();
        let delay = self.retry.failed(failure.event_id());
        let attempts = self.retry.attempts();
        match self.retry.policy().decide(attempts) {
            NextStep::Stop => return self.stop_at(connection, claim, failure).await,
            NextStep::SetAside { blocks } if failure.event.is_some() => {
                return self.set_aside(connection, failure, blocks).await;
            }
            NextStep::TryAgain | NextStep::SetAside { .. } => {}
        }
        if self.is_worth_a_line(attempts) {
            self.warn_of(&failure, attempts, delay);
        }
        in_time(self.trackers.record_failure(connection, &claim, attempts, &failure, Some(delay))).await?;
        self.phase = Phase::Retrying(claim, Instant::now() + delay);
        Ok(Next::Again)
    }

    /// The event has used up its attempts. Those before it are committed.
    async fn stop_at(
        &mut self,
        connection: &mut PgConnection,
        claim: Claim,
        failure: Failure,
    ) -> Result<Next, sqlx::Error> {
        let attempts = self.retry.attempts();
        error!(
            processor = self.name,
            event.id = failure.event_id().map(Position::get),
            event.r#type = failure.event_type(),
            attempt = attempts,
            error = %failure,
            "stopped at an event that could not be handled: `espctl retry` tries again"
        );
        in_time(self.trackers.record_failure(connection, &claim, attempts, &failure, None)).await?;
        self.phase = Phase::Failed(claim);
        Ok(Next::Again)
    }

    /// A failing event gets a line at its first failure, then one every ten seconds at most.
    fn is_worth_a_line(&mut self, attempts: u32) -> bool {
        const SILENCE: Duration = Duration::from_secs(10);
        let worth = attempts == 1 || self.warned.is_none_or(|warned| warned.elapsed() >= SILENCE);
        if worth {
            self.warned = Some(Instant::now());
        }
        worth
    }

    fn warn_of(&self, failure: &Failure, attempts: u32, delay: Duration) {
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

    /// Only an operator can help.
    pub(super) async fn block(
        &mut self,
        connection: &mut PgConnection,
        claim: Claim,
        message: String,
    ) -> Result<Next, sqlx::Error> {
        error!(processor = self.name, error = message, "cannot go on until an operator acts");
        let failure = Failure::of_processor(message);
        in_time(self.trackers.record_failure(connection, &claim, 0, &failure, None)).await?;
        self.phase = Phase::Failed(claim);
        Ok(Next::Again)
    }
}
