//! What the log says about the watcher's connection: each change once, a long outage once a minute.

use std::time::{Duration, Instant};

use super::connection::{ConnectionError, ListenConnection};
use crate::postgres::error::chain;
use crate::postgres::sqlstate::describe;

/// How often a connection that cannot be made is mentioned in the log again.
const STILL_LOST_INTERVAL: Duration = Duration::from_secs(60);

/// What has been lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    /// There is no connection.
    Connection,
    /// There is one, and nothing may be read through it.
    Safety,
}

impl Lost {
    fn by(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::Unmet(_) => Self::Safety,
            _ => Self::Connection,
        }
    }

    /// What the log says at first.
    fn beginning(self) -> &'static str {
        match self {
            Self::Connection => "lost the connection to the event store, connecting again",
            Self::Safety => "the event store cannot be read safely: nothing is handled until it is repaired",
        }
    }

    /// What the log says as long as it lasts.
    fn continuation(self) -> &'static str {
        match self {
            Self::Connection => "the event store still cannot be reached",
            Self::Safety => {
                "the event store still cannot be read safely: nothing is handled until it is repaired"
            }
        }
    }
}

/// What the log knows about the connection.
#[derive(Debug, Default)]
pub(super) struct ConnectionLog {
    loss: Option<Loss>,
    said_not_listening: bool,
}

#[derive(Debug)]
struct Loss {
    since: Instant,
    mentioned: Instant,
    what: Lost,
}

impl ConnectionLog {
    /// Says that the connection is good, where the log has something else, and whether the server notifies.
    pub(super) fn connected(&mut self, connection: &ListenConnection, channel: Option<&str>) {
        if let Some(Loss { since, .. }) = self.loss.take() {
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
        let (now, what, error) = (Instant::now(), Lost::by(error), chain(error));
        match &mut self.loss {
            Some(loss) if loss.what == what && now - loss.mentioned < STILL_LOST_INTERVAL => {
                tracing::debug!(error, "{}", what.continuation());
            }
            Some(loss) if loss.what == what => {
                let lost_ms = loss.since.elapsed().as_millis() as u64;
                tracing::warn!(error, lost_ms, "{}", what.continuation());
                loss.mentioned = now;
            }
            before => {
                tracing::warn!(error, "{}", what.beginning());
                let since = before.as_ref().map_or(now, |loss| loss.since);
                *before = Some(Loss { since, mentioned: now, what });
            }
        }
    }
}
