//! What the log says about the watcher's connection: each change once, a long outage once a minute.

use std::time::{Duration, Instant};

use super::connection::{ConnectionError, ListenConnection};
use crate::postgres::error::chain;
use crate::postgres::sqlstate::describe;

/// How often a connection that cannot be made is mentioned in the log again.
const STILL_LOST_INTERVAL: Duration = Duration::from_secs(60);

/// What it is called that there is no connection.
const LOST: &str = "lost the connection to the event store, connecting again";

/// What it is called that nothing may be read through a connection.
const UNSAFE: &str = "the event store cannot be read safely: nothing is handled until it is repaired";

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
    /// What the log has called it.
    what: &'static str,
}

impl ConnectionLog {
    /// Says that the connection is good, where the log has something else, and whether the server notifies.
    pub(super) fn connected(&mut self, connection: &ListenConnection, channel: Option<&str>) {
        if let Some(Loss { since, .. }) = self.lost.take() {
            let lost_ms = since.elapsed().as_millis() as u64;
            tracing::info!(lost_ms, "watching the event store again");
        }
        if let (Some(error), false) = (&connection.listen_refused, self.said_not_listening) {
            tracing::warn!(error = describe(error), channel, "no notifications: looking at intervals only");
            self.said_not_listening = true;
        }
    }

    /// Says that the connection is lost, or still is.
    pub(super) fn lost(&mut self, error: &ConnectionError) {
        let now = Instant::now();
        let what = match error {
            ConnectionError::Unmet(_) => UNSAFE,
            _ => LOST,
        };
        let error = chain(error);
        let since = self.lost.as_ref().map_or(now, |loss| loss.since);
        match &mut self.lost {
            Some(loss) if loss.what == what && now - loss.mentioned >= STILL_LOST_INTERVAL => {
                let lost_ms = since.elapsed().as_millis() as u64;
                tracing::warn!(error, lost_ms, "the event store still cannot be reached");
                loss.mentioned = now;
            }
            None => {
                tracing::warn!(error, "{what}");
                self.lost = Some(Loss { since, mentioned: now, what });
            }
            Some(loss) if loss.what != what => {
                tracing::warn!(error, "{what}");
                self.lost = Some(Loss { since, mentioned: now, what });
            }
            Some(_) => tracing::debug!(error, "the event store still cannot be reached"),
        }
    }
}
