//! The outage that a runner waits out: when it began, how long to wait, and when to record it in the tracker.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;
use tracing::{info, warn};

use crate::postgres::sqlstate::{describe, shorten};
use crate::process::report::Condition;
use crate::processing::failure::Failure;
use crate::processing::heartbeat;
use crate::processing::runner::Runner;
use crate::processing::runner::phase::Phase;
use crate::processing::runner::session::in_time;
use crate::processing::runner::sessions::Session;
use crate::processing::tracker::{Claim, Outage};
use crate::retry::{Retry, RetryPolicy};

/// Shortest time between two records of an outage in the tracker while attempts follow each other quickly. The outage may last for
/// hours, and the server may be short of everything.
const RECORD_INTERVAL: Duration = Duration::from_secs(5);

/// The pause before the next attempt from which on each is recorded: nothing else would tell of it for as long.
const LONG_PAUSE: Duration = Duration::from_millis(1500);

/// How much longer than the pause before the next attempt the lease lasts: until that has claimed the tracker again.
const LEASE_MARGIN: Duration = Duration::from_secs(2);

/// The attempt in a row that the database has to fail before hooks are told: a lost connection or a failover is no failure of a
/// processor.
const OUTAGE_TOLD_AT: u32 = 5;

/// The present outage, if there is one.
#[derive(Debug)]
pub(super) struct OutageLog {
    retry: Retry<()>,
    outage: Option<Outage>,
    recorded: Option<Instant>,
    /// Whether the outage is of something that is no database.
    external: bool,
    /// How many claims there were in the outage: each attempt on a new session is one.
    claims: u32,
}

impl Default for OutageLog {
    fn default() -> Self {
        let retry = Retry::new(RetryPolicy::infrastructure());
        Self { retry, outage: None, recorded: None, external: false, claims: 0 }
    }
}

impl OutageLog {
    /// Takes note of a failure of the database, in an attempt that `lasted` so long. Returns the delay before the next attempt.
    pub(super) fn failed(&mut self, error: &sqlx::Error, lasted: Duration) -> Duration {
        self.turn_to(false);
        let delay = self.retry.failed(());
        let code = error.as_database_error().and_then(|answer| answer.code());
        let began = Utc::now() - TimeDelta::from_std(lasted).unwrap_or_default();
        self.note(began, code.map(|code| code.into_owned()), &describe(error), delay);
        delay
    }

    /// Takes note that something that is no database is not there. Returns the delay before the next attempt: `wait` at
    /// least.
    pub(super) fn unavailable(&mut self, message: &str, wait: Option<Duration>) -> Duration {
        self.turn_to(true);
        let delay = self.retry.failed(()).max(wait.unwrap_or_default());
        self.note(Utc::now(), None, message, delay);
        delay
    }

    /// Takes note that the event store does not meet the preconditions of reading it. It is looked at again in `delay`.
    pub(super) fn unreadable(&mut self, reason: &str, delay: Duration) {
        if self.awaits_version() {
            return;
        }
        self.turn_to(false);
        self.retry.failed(());
        self.note(Utc::now(), None, &format!("the event store cannot be read safely: {reason}"), delay);
    }

    /// Takes note that nothing is handled until a version is live that is built beside the one that serves.
    pub(super) fn await_version(&mut self, version: i32) {
        self.turn_to(true);
        self.note(
            Utc::now(),
            None,
            &format!("version {version} is built beside the one that serves, and is not live"),
            Duration::ZERO,
        );
        if let Some(outage) = &mut self.outage {
            outage.version = Some(version);
        }
        self.recorded = None;
    }

    fn awaits_version(&self) -> bool {
        self.outage.as_ref().is_some_and(|outage| outage.version.is_some())
    }

    /// Takes note that there is another claim, perhaps of the version that was waited for.
    pub(super) fn end_awaiting(&mut self) {
        if self.awaits_version() {
            self.over();
        }
    }

    /// Takes note of a claim. Returns whether to log it: of those in one outage, the first.
    pub(super) fn claimed(&mut self) -> bool {
        self.claims = if self.outage.is_some() { self.claims.saturating_add(1) } else { 0 };
        self.claims <= 1
    }

    /// Whether claims in the present outage were not logged, so that nobody sees its end.
    fn has_hidden_claims(&self) -> bool {
        self.outage.is_some() && self.claims > 1
    }

    /// Whether there is an outage of something that is no database.
    pub(super) fn is_external(&self) -> bool {
        self.external && self.outage.is_some()
    }

    /// How many attempts in a row have failed because of the present outage.
    pub(super) fn tries(&self) -> u32 {
        self.retry.attempts()
    }

    /// Ends an outage of the other kind: that the receiver of a webhook is away is another one than that the database was.
    fn turn_to(&mut self, external: bool) {
        if self.external != external {
            self.over();
            (self.external, self.recorded) = (external, None);
        }
    }

    /// Takes note of a failure of an attempt that `began` at this time, in the present outage or a new one.
    fn note(&mut self, began: DateTime<Utc>, sqlstate: Option<String>, message: &str, delay: Duration) {
        let now = Utc::now();
        let since = self.outage.as_ref().map_or(began, |outage| outage.since);
        self.outage = Some(Outage {
            since,
            sqlstate,
            message: shorten(message),
            tries: self.retry.attempts(),
            version: None,
            next_try_at: now + TimeDelta::from_std(delay).unwrap_or_default(),
        });
    }

    /// Ends the outage, because a batch was committed or the lease renewed.
    pub(super) fn over(&mut self) {
        if self.outage.take().is_some() {
            self.retry.succeeded();
            self.claims = 0;
        }
    }

    /// Takes note that the processor has got somewhere with the database, which ends an outage of that, and whether it has `reached`
    /// what it needs beside it: one that waits for an answer has done so without.
    pub(super) fn proceeded(&mut self, reached: bool) {
        if reached || !self.external {
            self.over();
        }
    }

    /// The outage, if it is time to record it.
    fn due_record(&mut self) -> Option<&Outage> {
        let due = self.recorded.is_none_or(|recorded| recorded.elapsed() >= RECORD_INTERVAL);
        let outage = self.outage.as_ref().filter(|outage| due || until_next(outage) >= LONG_PAUSE);
        if outage.is_some() {
            self.recorded = Some(Instant::now());
        }
        outage
    }
}

/// That the receiver of a webhook accepts no events until some time. It holds under every later claim as well, until an operator wants it
/// tried at once.
#[derive(Debug)]
pub(super) struct LeftAlone {
    message: String,
    until: Instant,
    /// The claim under which it was said.
    claim: Claim,
}

impl LeftAlone {
    pub(super) fn new(message: &str, until: Instant, claim: &Claim) -> Self {
        Self { message: message.to_owned(), until, claim: claim.clone() }
    }

    /// How long it holds under a later claim; `None`: no longer.
    fn left(&self, claim: &Claim) -> Option<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        Some(left).filter(|left| !left.is_zero() && !claim.is_retried_since(&self.claim))
    }
}

/// The time until the next attempt.
fn until_next(outage: &Outage) -> Duration {
    (outage.next_try_at - Utc::now()).to_std().unwrap_or_default()
}

impl Runner {
    /// Tells of a failure of the database. Returns the delay before the next connection.
    pub(super) async fn database_failed(
        &mut self,
        error: &sqlx::Error,
        session: Option<&mut Session>,
    ) -> Duration {
        let lasted = self.batch_began.take().map(|began| began.elapsed());
        let answered = matches!(error, sqlx::Error::Database(_));
        let delay = self.outage.failed(error, lasted.filter(|_| answered).unwrap_or_default());
        let what = if answered { "the database could not do it now" } else { "lost the database" };
        let retry_in_ms = delay.as_millis() as u64;
        if self.failure_log.is_due(self.outage.tries()) {
            warn!(processor = self.name, error = describe(error), retry_in_ms, "{what}");
        }
        if self.outage.tries() >= OUTAGE_TOLD_AT {
            let facts = Failure::of_database(error);
            heartbeat::record_failure(facts.facts(
                Some(Condition::Waiting),
                self.outage.tries(),
                Some(delay),
            ));
        }
        match session {
            Some(session) if answered => self.record_outage(&mut session.connection).await,
            _ if !answered => self.forget_sessions(),
            _ => {}
        }
        delay
    }

    /// Ends the outage, because a batch has got somewhere, and tells of it where nothing else would. `reached` is as for
    /// [`OutageLog::proceeded`].
    pub(super) fn end_outage(&mut self, reached: bool) {
        let was_hidden = self.outage.has_hidden_claims();
        self.outage.proceeded(reached);
        if was_hidden && self.outage.outage.is_none() {
            info!(processor = self.name, "continues: the outage is over");
        }
    }

    /// Goes on, under a new claim, to leave a receiver alone that has asked for it.
    pub(super) async fn leave_alone(&mut self, connection: &mut PgConnection, claim: &Claim) {
        let Some(left_alone) = &self.left_alone else { return };
        let (Phase::Following(_), Some(left)) = (&self.phase, left_alone.left(claim)) else { return };
        let until = left_alone.until;
        // An outage of the database in between has ended this one in the log.
        if !self.outage.is_external() {
            self.outage.unavailable(&left_alone.message, Some(left));
        }
        self.record_outage(connection).await;
        self.phase.enter(|following| Phase::Lacking(following, until));
    }

    /// Records the present outage in the tracker, if there is a claim. A failure to do so changes nothing.
    pub(super) async fn record_outage(&mut self, connection: &mut PgConnection) {
        let Self { phase, outage, trackers, name, .. } = self;
        let is_external = outage.is_external();
        let (Some(claim), Some(outage)) = (phase.claim(), outage.due_record()) else { return };
        // What waits for something else than the database renews its lease meanwhile.
        let owned_for = if is_external { Duration::ZERO } else { until_next(outage) + LEASE_MARGIN };
        if let Err(error) = in_time(trackers.record_outage(connection, claim, outage, owned_for)).await {
            tracing::debug!(processor = name, error = describe(&error), "could not record an outage");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_recorded_at_once_and_then_seldom() {
        let mut log = OutageLog::default();
        assert!(log.due_record().is_none());
        let timed_out = || sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
        log.failed(&timed_out(), Duration::ZERO);
        assert_eq!(log.due_record().map(|outage| outage.tries), Some(1));
        log.failed(&timed_out(), Duration::ZERO);
        assert!(log.due_record().is_none());
        log.recorded = log.recorded.and_then(|recorded| recorded.checked_sub(RECORD_INTERVAL));
        assert_eq!(log.due_record().map(|outage| outage.tries), Some(2));
    }

    #[test]
    fn of_the_claims_in_an_outage_one_is_logged() {
        let mut log = OutageLog::default();
        let full = || sqlx::Error::Io(std::io::ErrorKind::StorageFull.into());
        assert!(log.claimed() && log.claimed(), "without an outage each is");
        log.failed(&full(), Duration::ZERO);
        assert!(log.claimed() && !log.has_hidden_claims());
        log.failed(&full(), Duration::ZERO);
        assert!(!log.claimed() && log.has_hidden_claims());
        log.over();
        log.failed(&full(), Duration::ZERO);
        assert!(log.claimed());
    }

    #[test]
    fn what_nothing_else_tells_of_for_long_is_recorded_each_time() {
        let mut log = OutageLog::default();
        for tries in 1..3 {
            log.unavailable("429", Some(Duration::from_mins(10)));
            assert_eq!(log.due_record().map(|outage| outage.tries), Some(tries));
        }
    }

    #[test]
    fn an_outage_of_another_kind_is_another_one_and_begins_with_the_attempt() {
        let mut log = OutageLog::default();
        log.failed(&sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()), Duration::from_secs(30));
        let since = |log: &OutageLog| log.outage.as_ref().map(|outage| Utc::now() - outage.since);
        assert!(since(&log) >= Some(TimeDelta::seconds(30)));
        assert!(log.due_record().is_some());
        log.unavailable("429", None);
        assert!(since(&log) < Some(TimeDelta::seconds(10)));
        assert_eq!(log.due_record().map(|outage| (outage.tries, outage.message.as_str())), Some((1, "429")));
    }

    #[test]
    fn what_is_no_database_is_there_again_when_it_was_reached() {
        let mut log = OutageLog::default();
        log.unavailable("no connection", None);
        log.proceeded(false);
        log.unavailable("no connection", None);
        assert_eq!((log.is_external(), log.tries()), (true, 2));
        log.proceeded(true);
        assert_eq!((log.is_external(), log.tries()), (false, 0));
        // The database has done something either way.
        log.failed(&sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()), Duration::ZERO);
        log.proceeded(false);
        assert_eq!(log.tries(), 0);
    }

    #[test]
    fn the_delay_starts_over_only_when_the_outage_is_over() {
        let mut log = OutageLog::default();
        let timed_out = || sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
        let delays: Vec<Duration> = (0..8).map(|_| log.failed(&timed_out(), Duration::ZERO)).collect();
        assert!(delays[7] > delays[0] * 8, "{delays:?}");
        log.over();
        assert!(log.failed(&timed_out(), Duration::ZERO) < delays[0] * 2);
    }
}
