//! The watcher's one connection, on which it both observes and listens.

use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::{Acquire, Connection, PgConnection, Row};
use thiserror::Error;
use tokio::time::timeout;

use crate::postgres::connector::Connector;
use crate::postgres::literal::simple;
use crate::postgres::notify::CONTROL;
use crate::postgres::server_mark::ServerMark;
use crate::store::history::History;
use crate::store::horizon::{Holder, ObserveError, Observer, StructureVersion};
use crate::store::layout::Layout;
use crate::store::preconditions::{self, PreconditionError, Unmet};

/// Why the connection is given up. The watcher answers each of these errors by connecting again.
#[derive(Debug, Error)]
pub(super) enum ConnectionError {
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
    /// Observations before and after the change say nothing about one another.
    #[error("the table of events or its sequence was changed during an observation")]
    Changed,
    /// Nothing may be read until somebody repairs the store.
    #[error("{}", in_one_line(.0))]
    Unmet(Vec<Unmet>),
}

/// A notification, by its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notification {
    /// Something may have been appended.
    Event,
    /// An operator has changed a tracker, or a runner has released one.
    Control,
}

/// A connection that is either good or thrown away.
///
/// An sqlx listener would connect again by itself, without telling in every case and without a
/// timeout; this connection never does. After an error, or when one of its futures was dropped before its
/// end, drop the connection: it cannot be used any more.
pub(super) struct ListenConnection {
    /// `None` only while it is being dropped.
    listener: Option<PgListener>,
    timeout: Duration,
    /// Why the server does not notify, if it refused to.
    pub(super) listen_refused: Option<sqlx::Error>,
    /// The mark that the session holds.
    pub(super) mark: Option<ServerMark>,
}

impl ListenConnection {
    /// Connects and listens on `channels`, each within `timeout`.
    pub(super) async fn connect(
        database: &Connector,
        channels: &[&str],
        timeout: Duration,
    ) -> Result<Self, ConnectionError> {
        // The listener wants a pool, and a pool hides why it cannot connect: find out first.
        let found = in_time(timeout, database.connect()).await?.map_err(ConnectionError::Connect)?;
        let (pooled, options) = (found.pooler.is_some(), found.options);
        in_time(timeout, found.connection.close()).await?.map_err(ConnectionError::Connect)?;
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .test_before_acquire(false)
            .acquire_timeout(timeout)
            .connect_lazy_with(options);
        let mut listener =
            in_time(timeout, PgListener::connect_with(&pool)).await?.map_err(ConnectionError::Connect)?;
        listener.eager_reconnect(false);
        listener.ignore_pool_close_event(true);
        let mut connection = Self { listener: Some(listener), timeout, listen_refused: None, mark: None };
        if !pooled {
            let mark = in_time(timeout, async {
                ServerMark::set(connection.connection().await?).await.map_err(ConnectionError::Lost)
            });
            connection.mark = Some(mark.await??);
        }
        if !channels.is_empty() {
            connection.listen(channels).await?;
        }
        Ok(connection)
    }

    /// Asks for notifications. On a server that refuses, the watcher can still observe.
    async fn listen(&mut self, channels: &[&str]) -> Result<(), ConnectionError> {
        match in_time(self.timeout, self.listener()?.listen_all(channels.iter().copied())).await? {
            Ok(()) => Ok(()),
            Err(refusal @ sqlx::Error::Database(_)) => {
                self.listen_refused = Some(refusal);
                Ok(())
            }
            Err(error) => Err(ConnectionError::Lost(error)),
        }
    }

    /// Makes one observation; of the catalog and the locks as well, if `all` is true.
    pub(super) async fn observe(
        &mut self,
        observer: &mut Observer,
        all: bool,
    ) -> Result<(), ConnectionError> {
        let limit = self.timeout;
        let observation = async {
            let connection = self.connection().await?;
            let observed =
                if all { observer.observe_all(connection).await } else { observer.observe(connection).await };
            observed.map_err(ConnectionError::from)
        };
        in_time(limit, observation).await?
    }

    /// Names who holds the horizon back.
    pub(super) async fn name_holders(&mut self, observer: &Observer) -> Result<Vec<Holder>, ConnectionError> {
        let limit = self.timeout;
        let question = async {
            let connection = self.connection().await?;
            observer.name_holders(connection).await.map_err(ConnectionError::from)
        };
        in_time(limit, question).await?
    }

    /// Sets the bell. False where the server refuses: in a store that was not migrated, or in a session that only reads.
    pub(super) async fn set_bell(&mut self, statement: String) -> Result<bool, ConnectionError> {
        let limit = self.timeout;
        let setting = async {
            let connection = self.connection().await?;
            match simple(statement).fetch_one(connection).await.and_then(|row| row.try_get("is_set")) {
                Ok(is_set) => Ok(is_set),
                Err(sqlx::Error::Database(refusal)) => {
                    tracing::debug!(error = %refusal, "the bell of the event store cannot be set");
                    Ok(false)
                }
                Err(error) => Err(ConnectionError::Lost(error)),
            }
        };
        in_time(limit, setting).await?
    }

    /// Reads which store this is.
    pub(super) async fn read_history(&mut self, layout: &Layout) -> Result<History, ConnectionError> {
        let limit = self.timeout;
        let question = async {
            let connection = self.connection().await?;
            History::read(connection, layout).await.map_err(ConnectionError::Lost)
        };
        in_time(limit, question).await?
    }

    /// Reads what the catalog says of the store.
    pub(super) async fn read_structure(
        &mut self,
        observer: &mut Observer,
    ) -> Result<StructureVersion, ConnectionError> {
        let limit = self.timeout;
        let question = async {
            let connection = self.connection().await?;
            observer.read_structure(connection).await.map_err(ConnectionError::from)
        };
        in_time(limit, question).await?
    }

    /// Checks all preconditions. Returns the version of the catalog that they are met under; `None`: it has changed meanwhile.
    pub(super) async fn check_preconditions(
        &mut self,
        observer: &mut Observer,
        layout: &Layout,
    ) -> Result<Option<StructureVersion>, ConnectionError> {
        let limit = self.timeout;
        let question = async {
            let connection = self.connection().await?;
            let before = observer.read_structure(&mut *connection).await?;
            match preconditions::check(&mut *connection, layout).await {
                Ok(()) => {}
                Err(PreconditionError::Unmet(unmet)) => return Err(ConnectionError::Unmet(unmet)),
                Err(PreconditionError::Database(error)) => return Err(ConnectionError::Lost(error)),
            }
            let after = observer.read_structure(&mut *connection).await?;
            Ok((before == after).then_some(after))
        };
        in_time(limit, question).await?
    }

    /// Checks what may change in a store whose catalog does not.
    pub(super) async fn check_rows(&mut self, layout: &Layout) -> Result<(), ConnectionError> {
        let limit = self.timeout;
        let question = async {
            let connection = self.connection().await?;
            match preconditions::check_rows(connection, layout).await {
                Ok(()) => Ok(()),
                Err(PreconditionError::Unmet(unmet)) => Err(ConnectionError::Unmet(unmet)),
                Err(PreconditionError::Database(error)) => Err(ConnectionError::Lost(error)),
            }
        };
        in_time(limit, question).await?
    }

    /// Waits for a notification, or for the connection to break. Nothing is lost when this is cancelled.
    pub(super) async fn next_notification(&mut self) -> Result<Notification, ConnectionError> {
        match self.listener()?.try_recv().await {
            Ok(Some(notification)) => Ok(read_payload(notification.payload())),
            Ok(None) => Err(ConnectionError::Closed),
            Err(error) => Err(ConnectionError::Lost(error)),
        }
    }

    /// A notification that arrived during a statement, if there is one.
    pub(super) fn next_buffered(&mut self) -> Option<Notification> {
        let notification = self.listener.as_mut()?.next_buffered()?;
        Some(read_payload(notification.payload()))
    }

    fn listener(&mut self) -> Result<&mut PgListener, ConnectionError> {
        self.listener.as_mut().ok_or(ConnectionError::Closed)
    }

    async fn connection(&mut self) -> Result<&mut PgConnection, ConnectionError> {
        self.listener()?.acquire().await.map_err(ConnectionError::Lost)
    }
}

impl Drop for ListenConnection {
    /// Closes the socket without a statement.
    ///
    /// A dropped sqlx listener sends `UNLISTEN` in a task of its own. Over a half-open connection that task
    /// would wait for the answer, and keep the socket, for ever. So the task is given to a runtime that
    /// never runs and ends at once, and all that belongs to the task ends with it.
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else {
            return; // Out of memory or worse: then the listener may close in its own way.
        };
        let handle = runtime.handle().clone();
        let _inside = handle.enter();
        drop(self.listener.take());
        runtime.shutdown_background();
    }
}

/// What is unmet, for a log and a status: `problem (repair: command); problem (…)`.
fn in_one_line(unmet: &[Unmet]) -> String {
    let one = |one: &Unmet| format!("{} (repair: {})", one.problem, one.repair.trim_end_matches(';'));
    unmet.iter().map(one).collect::<Vec<_>>().join("; ")
}

async fn in_time<F: Future>(limit: Duration, future: F) -> Result<F::Output, ConnectionError> {
    timeout(limit, future).await.map_err(|_| ConnectionError::Silent(limit))
}

fn read_payload(payload: &str) -> Notification {
    if payload == CONTROL { Notification::Control } else { Notification::Event }
}
