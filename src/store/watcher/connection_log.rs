//! What the log says about the watcher's connection: each change once, a long outage once a minute.

use std::time::{Duration, Instant};

use super::connection::{ConnectionError, ListenConnection};
use crate::postgres::error::chain;

/// How often a connection that cannot be made is mentioned in the log again.
const STILL_LOST_INTERVAL: Duration = Duration::from_secs(60);

/// What the log knows about the connection.
#[derive(Debug, Default)]
pub(super) struct ConnectionLog {
    lost: Option<Loss>,
    said_not_listening: bool,
}

#[derive(Debug)]
struct Loss {
    since: Instant,
    mentioned: Instant,
}

impl ConnectionLog {
    /// Says that the connection is good, where the log has something else, and whether the server notifies.
    pub(super) fn connected(&mut self, connection: &ListenConnection, channel: Option<&str>) {
        if let Some(Loss { since, .. }) = self.lost.take() {
            let lost_ms = since.elapsed().as_millis() as u64;
            tracing::info!(lost_ms, "watching the event store again");
        }
        if let (Some(error), false) = (&connection.listen_refused, self.said_not_listening) {
            tracing::warn!(%error, channel, "no notifications: looking at intervals only");
            self.said_not_listening = true;
        }
    }

    /// Says that the connection is lost, or still is.
    pub(super) fn lost(&mut self, error: &ConnectionError) {
        let now = Instant::now();
        let error = chain(error);
        match &mut self.lost {
            None => {
                tracing::warn!(error, "lost the connection to the event store, connecting again");
                self.lost = Some(Loss { since: now, mentioned: now });
            }
            Some(Loss { since, mentioned }) if now - *mentioned >= STILL_LOST_INTERVAL => {
                let lost_ms = since.elapsed().as_millis() as u64;
                tracing::warn!(error, lost_ms, "the event store still cannot be reached");
                *mentioned = now;
            }
            Some(_) => tracing::debug!(error, "the event store still cannot be reached"),
        }
    }
}
