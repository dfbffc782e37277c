//! Holds a mark in the database of the projections, past the pooler that batches go through.

use std::time::Duration;

use sqlx::PgConnection;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::warn;

use crate::postgres::connector::Connector;
use crate::postgres::deadline::in_time;
use crate::postgres::server_mark::ServerMark;
use crate::postgres::sqlstate::describe;
use crate::retry::{Retry, RetryPolicy};
use crate::shutdown::Shutdown;

/// How often the session is used, so that nothing in between takes it for idle.
const INTERVAL: Duration = Duration::from_secs(10);

/// How long the database may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Keeps one session, whose mark says where it is.
pub(super) struct MarkKeeper {
    database: Connector,
    mark: watch::Sender<Option<ServerMark>>,
}

impl MarkKeeper {
    /// A keeper, and where it shows the mark: one that is nowhere before there is a session, and the last one until there is
    /// another; `None` if a pooler is in the way.
    pub(super) fn new(database: Connector) -> (Self, watch::Receiver<Option<ServerMark>>) {
        let (mark, shown) = watch::channel(Some(ServerMark::nowhere()));
        (Self { database, mark }, shown)
    }

    /// Keeps the session until the stop is requested, with another one after each outage.
    pub(super) async fn run(self, mut stop: Shutdown) {
        let mut outage = Retry::new(RetryPolicy::infrastructure());
        loop {
            let Some(Err(error)) = stop.run_until_requested(Box::pin(self.keep(&mut outage))).await else {
                return;
            };
            let delay = outage.failed(());
            warn!(
                error = describe(&error),
                "lost the direct session of the projections' database, trying again"
            );
            if stop.run_until_requested(sleep(delay)).await.is_none() {
                return;
            }
        }
    }

    async fn keep(&self, outage: &mut Retry<()>) -> Result<(), sqlx::Error> {
        let mut connected = in_time(ANSWER_TIMEOUT, self.database.connect()).await?;
        // A session of a pooler can hold nothing.
        let mark = match connected.pooler {
            None => Some(in_time(ANSWER_TIMEOUT, ServerMark::set(&mut connected.connection)).await?),
            Some(_) => None,
        };
        self.mark.send_replace(mark);
        outage.succeeded();
        loop {
            sleep(INTERVAL).await;
            in_time(ANSWER_TIMEOUT, ping(&mut connected.connection)).await?;
        }
    }
}

async fn ping(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("-- keep_session\nselect").execute(connection).await.map(drop)
}
