//! The watcher's one connection: it asks on it, and hears notifications on it.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{Acquire, AssertSqlSafe, Connection, PgConnection, Row};
use thiserror::Error;
use tokio::time::timeout;

use crate::event::Position;
use crate::store::horizon::{Holder, ObserveError, Observer};

/// Payload of a notification that asks runners to read their trackers again.
const CONTROL: &str = "control";

/// Why the connection is given up. There is one answer to all of them: connect again.
#[derive(Debug, Error)]
pub(super) enum LineError {
    #[error("failed to connect")]
    Connect(#[source] sqlx::Error),
    #[error("the connection is lost")]
    Lost(#[source] sqlx::Error),
    #[error("the connection was closed")]
    Closed,
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error(transparent)]
    Observe(#[from] ObserveError),
    #[error("failed to read a floor for the horizon")]
    Floor(#[source] sqlx::Error),
}

/// A notification. What it says is the little that a doorbell can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bell {
    /// Something may have been appended.
    Event,
    /// Somebody has changed a tracker by hand.
    Control,
}

/// A connection that is either good or thrown away.
///
/// An sqlx listener would connect again by itself, without telling in every case and without a
/// timeout; a line never does. After an error, or when one of its futures was dropped before its
/// end, the only thing left to do with a line is to drop it.
pub(super) struct Line {
    /// `None` only while it is being dropped.
    listener: Option<PgListener>,
    timeout: Duration,
    /// Why the server does not notify, if it refused to.
    pub(super) listen_refused: Option<sqlx::Error>,
}

impl Line {
    /// Connects and listens on `channels`, each within `timeout`.
    pub(super) async fn connect(
        options: &PgConnectOptions,
        channels: &[&str],
        timeout: Duration,
    ) -> Result<Self, LineError> {
        // The listener wants a pool, and a pool hides why it cannot connect: find out first.
        in_time(timeout, ping(options)).await?.map_err(LineError::Connect)?;
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .test_before_acquire(false)
            .acquire_timeout(timeout)
            .connect_lazy_with(options.clone());
        let mut listener =
            in_time(timeout, PgListener::connect_with(&pool)).await?.map_err(LineError::Connect)?;
        listener.eager_reconnect(false);
        listener.ignore_pool_close_event(true);
        let mut line = Self { listener: Some(listener), timeout, listen_refused: None };
        if !channels.is_empty() {
            line.listen(channels).await?;
        }
        Ok(line)
    }

    /// Asks for notifications. A server that refuses is still good for looking.
    async fn listen(&mut self, channels: &[&str]) -> Result<(), LineError> {
        match in_time(self.timeout, self.listener()?.listen_all(channels.iter().copied())).await? {
            Ok(()) => Ok(()),
            Err(refusal @ sqlx::Error::Database(_)) => {
                self.listen_refused = Some(refusal);
                Ok(())
            }
            Err(error) => Err(LineError::Lost(error)),
        }
    }

    /// Makes one observation.
    pub(super) async fn observe(&mut self, observer: &mut Observer) -> Result<(), LineError> {
        let limit = self.timeout;
        let observation = async {
            let connection = self.connection().await?;
            observer.observe(connection).await.map_err(LineError::from)
        };
        in_time(limit, observation).await?
    }

    /// Names who holds the horizon back.
    pub(super) async fn name_holders(&mut self, observer: &Observer) -> Result<Vec<Holder>, LineError> {
        let limit = self.timeout;
        let question = async {
            let connection = self.connection().await?;
            observer.name_holders(connection).await.map_err(LineError::from)
        };
        in_time(limit, question).await?
    }

    /// Runs a statement that returns one position, or null for 0.
    pub(super) async fn read_floor(&mut self, statement: &str) -> Result<Position, LineError> {
        let limit = self.timeout;
        let question = async {
            let statement = sqlx::raw_sql(AssertSqlSafe(statement));
            let row = statement.fetch_one(self.connection().await?).await.map_err(LineError::Floor)?;
            row.try_get::<Option<Position>, _>(0).map_err(LineError::Floor)
        };
        Ok(in_time(limit, question).await??.unwrap_or_default())
    }

    /// Waits for a bell, or for the connection to break. Nothing is lost when this is cancelled.
    pub(super) async fn next_bell(&mut self) -> Result<Bell, LineError> {
        match self.listener()?.try_recv().await {
            Ok(Some(notification)) => Ok(bell(notification.payload())),
            Ok(None) => Err(LineError::Closed),
            Err(error) => Err(LineError::Lost(error)),
        }
    }

    /// A bell that rang while something was asked, if there is one.
    pub(super) fn next_heard_bell(&mut self) -> Option<Bell> {
        let notification = self.listener.as_mut()?.next_buffered()?;
        Some(bell(notification.payload()))
    }

    fn listener(&mut self) -> Result<&mut PgListener, LineError> {
        self.listener.as_mut().ok_or(LineError::Closed)
    }

    async fn connection(&mut self) -> Result<&mut PgConnection, LineError> {
        self.listener()?.acquire().await.map_err(LineError::Lost)
    }
}

impl Drop for Line {
    /// Closes the socket without a word.
    ///
    /// A dropped listener says goodbye (`UNLISTEN`) in a task of its own, and over a half-open connection it
    /// would wait for the answer, and keep the socket, for ever. So that task is given to a runtime that
    /// never runs and ends at once, and all that belongs to the task ends with it.
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else {
            return; // Out of memory or worse: then the listener may say goodbye in its own way.
        };
        let handle = runtime.handle().clone();
        let _inside = handle.enter();
        drop(self.listener.take());
        runtime.shutdown_background();
    }
}

/// Connects and closes again.
async fn ping(options: &PgConnectOptions) -> Result<(), sqlx::Error> {
    PgConnection::connect_with(options).await?.close().await
}

async fn in_time<F: Future>(limit: Duration, future: F) -> Result<F::Output, LineError> {
    timeout(limit, future).await.map_err(|_| LineError::Silent(limit))
}

fn bell(payload: &str) -> Bell {
    if payload == CONTROL { Bell::Control } else { Bell::Event }
}
