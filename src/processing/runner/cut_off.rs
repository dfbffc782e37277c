//! Batches that the server cuts off: `transaction_timeout` of PostgreSQL 17 ends the session of a transaction that lasts
//! longer. The batch is repeated, and would be cut off again. So batches become smaller, until they fit.

use std::time::Duration;

use tracing::warn;

use crate::postgres::sqlstate::is_transaction_timeout;
use crate::processing::processor::ProcessorError;
use crate::processing::runner::Runner;

/// What is known of the server's `transaction_timeout`, and how small batches have to be for it.
#[derive(Debug, Default)]
pub(super) struct CutOff {
    timeout: Option<Duration>,
    /// The most events in a batch; `None`: as many as are configured.
    size_max: Option<i64>,
}

impl CutOff {
    /// Takes note of the setting of a new session.
    pub(super) fn learn(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// The most events that a batch may have.
    pub(super) fn size_max(&self) -> i64 {
        self.size_max.unwrap_or(i64::MAX)
    }

    /// How long a batch may take that may take `configured`: it may exceed its time by one event.
    pub(super) fn time(&self, configured: Duration) -> Duration {
        self.timeout.map_or(configured, |timeout| configured.min(timeout / 2))
    }

    /// Whether a batch that has failed after this time was cut off. The server says so, but its message may be lost with
    /// the connection.
    fn has_cut(&self, error: &ProcessorError, after: Duration) -> bool {
        match error {
            ProcessorError::Database(error @ sqlx::Error::Database(_)) => is_transaction_timeout(error),
            ProcessorError::Database(_) => self.timeout.is_some_and(|timeout| after >= timeout),
            _ => false,
        }
    }

    /// Makes batches half as large as one of `size` events.
    fn halve(&mut self, size: i64) -> i64 {
        *self.size_max.insert((size / 2).max(1))
    }
}

impl Runner {
    /// Makes batches smaller for as long as this worker lives, if the server has cut off one of `size` events.
    pub(super) fn shorten_batches(&mut self, error: &ProcessorError, size: i64, after: Duration) {
        if !self.cut_off.has_cut(error, after) {
            return;
        }
        let limit_ms = self.cut_off.timeout.map(|timeout| timeout.as_millis() as u64);
        let batch_size = self.cut_off.halve(size);
        warn!(
            processor = self.name,
            transaction_timeout_ms = limit_ms,
            batch_size,
            "transaction_timeout of the server has ended a batch: batches are smaller from now on; better set it to 0 for \
             this role, or lower batch_size and batch_time"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_become_smaller_when_the_server_cuts_one_off() {
        let mut cut_off = CutOff::default();
        assert_eq!(
            (cut_off.size_max(), cut_off.time(Duration::from_secs(9))),
            (i64::MAX, Duration::from_secs(9))
        );
        assert_eq!([1_000, 500, 3, 1].map(|size| cut_off.halve(size)), [500, 250, 1, 1]);
        assert_eq!(cut_off.size_max(), 1);
        cut_off.learn(Some(Duration::from_secs(4)));
        assert_eq!(cut_off.time(Duration::from_secs(9)), Duration::from_secs(2));
        assert_eq!(cut_off.time(Duration::from_secs(1)), Duration::from_secs(1));
    }

    /// Where the server's last words are lost with the connection, the time tells.
    #[test]
    fn a_connection_that_ends_at_the_limit_was_cut_off() {
        let lost = || ProcessorError::Database(sqlx::Error::Io(std::io::ErrorKind::BrokenPipe.into()));
        let mut cut_off = CutOff::default();
        assert!(!cut_off.has_cut(&lost(), Duration::from_secs(60)));
        cut_off.learn(Some(Duration::from_secs(4)));
        assert!(!cut_off.has_cut(&lost(), Duration::from_secs(3)));
        assert!(cut_off.has_cut(&lost(), Duration::from_secs(4)));
        assert!(!cut_off.has_cut(&ProcessorError::ClaimLost, Duration::from_secs(4)));
    }
}
