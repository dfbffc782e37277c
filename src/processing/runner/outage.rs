//! What a runner remembers of the infrastructure's failures, and what it tells the tracker of them.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;

use crate::postgres::sqlstate::{describe, shorten};
use crate::processing::runner::Runner;
use crate::processing::runner::session::in_time;
use crate::processing::tracker::Outage;
use crate::retry::{Retry, RetryPolicy};

/// Shortest time between two writes of an outage: it may last for hours, and be of a server that is short of
/// everything.
const TELL_INTERVAL: Duration = Duration::from_secs(5);

/// The outage at hand, if there is one.
#[derive(Debug)]
pub(super) struct OutageLog {
    retry: Retry<()>,
    outage: Option<Outage>,
    told: Option<Instant>,
    /// Whether it is of something that is no database.
    external: bool,
}

impl Default for OutageLog {
    fn default() -> Self {
        let retry = Retry::new(RetryPolicy::infrastructure());
        Self { retry, outage: None, told: None, external: false }
    }
}

impl OutageLog {
    /// Notes a failure of the database and returns the delay before the next try.
    pub(super) fn failed(&mut self, error: &sqlx::Error) -> Duration {
        let delay = self.retry.failed(());
        let code = error.as_database_error().and_then(|answer| answer.code());
        self.note(code.map(|code| code.into_owned()), &describe(error), delay);
        self.external = false;
        delay
    }

    /// Notes that something else is not there, and returns the delay before the next try: `wait` at least.
    pub(super) fn unavailable(&mut self, message: &str, wait: Option<Duration>) -> Duration {
        let delay = self.retry.failed(()).max(wait.unwrap_or_default());
        self.note(None, message, delay);
        self.external = true;
        delay
    }

    /// Whether the outage at hand is of something that is no database.
    pub(super) fn is_external(&self) -> bool {
        self.external && self.outage.is_some()
    }

    /// How many tries in a row the outage at hand has spoiled.
    pub(super) fn tries(&self) -> u32 {
        self.retry.attempts()
    }

    fn note(&mut self, sqlstate: Option<String>, message: &str, delay: Duration) {
        let now = Utc::now();
        let since: DateTime<Utc> = self.outage.as_ref().map_or(now, |outage| outage.since);
        self.outage = Some(Outage {
            since,
            sqlstate,
            message: shorten(message),
            tries: self.retry.attempts(),
            next_try_at: now + TimeDelta::from_std(delay).unwrap_or_default(),
        });
    }

    /// A batch has been committed, or the tracker been renewed: whatever it was, it has passed.
    pub(super) fn over(&mut self) {
        if self.outage.take().is_some() {
            self.retry.succeeded();
        }
    }

    /// What to tell now, if it was not told lately.
    fn news(&mut self) -> Option<&Outage> {
        let due = self.told.is_none_or(|told| told.elapsed() >= TELL_INTERVAL);
        let news = self.outage.as_ref().filter(|_| due);
        if news.is_some() {
            self.told = Some(Instant::now());
        }
        news
    }
}

impl Runner {
    /// Writes the outage at hand into the tracker, as far as that can be done in one.
    pub(super) async fn record_outage(&mut self, connection: &mut PgConnection) {
        let Self { phase, outage, trackers, name, .. } = self;
        let (Some(claim), Some(outage)) = (phase.claim(), outage.news()) else { return };
        if let Err(error) = in_time(trackers.record_outage(connection, claim, outage)).await {
            tracing::debug!(processor = name, error = describe(&error), "could not record an outage");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_at_once_and_then_seldom() {
        let mut log = OutageLog::default();
        assert!(log.news().is_none());
        let silence = || sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
        log.failed(&silence());
        assert_eq!(log.news().map(|outage| outage.tries), Some(1));
        log.failed(&silence());
        assert!(log.news().is_none());
        log.told = log.told.and_then(|told| told.checked_sub(TELL_INTERVAL));
        assert_eq!(log.news().map(|outage| outage.tries), Some(2));
    }

    #[test]
    fn the_delay_begins_anew_only_when_it_is_over() {
        let mut log = OutageLog::default();
        let silence = || sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
        let delays: Vec<Duration> = (0..8).map(|_| log.failed(&silence())).collect();
        assert!(delays[7] > delays[0] * 8, "{delays:?}");
        log.over();
        assert!(log.failed(&silence()) < delays[0] * 2);
    }
}
