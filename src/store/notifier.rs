//! Tells those who follow a store, through its channel, that there may be more to read.
//!
//! A notification in the append's own transaction would make all writers of the instance take turns at
//! commit. So it goes out afterwards, from a task of its own and in a statement of its own, at most once per
//! [`PERIOD`]: at once after a quiet time, and once more after the last append of a busy one. A lost notification costs
//! latency only, because those who follow a store also look from time to time.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::mpsc;

use crate::postgres::notify::{EVENTS, notify};
use crate::postgres::sqlstate::describe;

/// Shortest time between two notifications of one notifier.
const PERIOD: Duration = Duration::from_millis(10);

/// Notifies one channel. Clones share one task, which ends when the last of them is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Notifier(Arc<NotifierInner>);

/// What the clones of a notifier share. Dropping it closes `requests`, which ends the task.
#[derive(Debug)]
struct NotifierInner {
    pool: PgPool,
    channel: String,
    /// Written by `notify`, read by the task. It holds one request: a request that finds another one waiting is
    /// answered by the same notification.
    requests: OnceLock<mpsc::Sender<()>>,
}

impl Notifier {
    /// A notifier of `channel` through connections of `pool`.
    pub(crate) fn new(pool: PgPool, channel: &str) -> Self {
        Self(Arc::new(NotifierInner { pool, channel: channel.to_owned(), requests: OnceLock::new() }))
    }

    /// Makes sure that a notification goes out after now. Returns at once; call it in a runtime.
    pub(crate) fn notify(&self) {
        let requests = self.0.requests.get_or_init(|| {
            let (sender, receiver) = mpsc::channel(1);
            tokio::spawn(notify_until_dropped(self.0.pool.clone(), self.0.channel.clone(), receiver));
            sender
        });
        // A full queue means that a notification is about to go out.
        let _ = requests.try_send(());
    }
}

async fn notify_until_dropped(pool: PgPool, channel: String, mut requests: mpsc::Receiver<()>) {
    while requests.recv().await.is_some() {
        if let Err(error) = notify(&pool, &channel, EVENTS).await {
            tracing::debug!(channel, error = describe(&error), "failed to notify the channel");
        }
        tokio::time::sleep(PERIOD).await;
    }
}
