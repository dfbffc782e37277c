//! The doorbell: tells those who follow a store that there may be more to read.
//!
//! A notification in the append's own transaction would make all writers of the instance take turns at
//! commit. So it goes out afterwards, from a task of its own and in a statement of its own, at most once per
//! [`PERIOD`]: at once after a quiet time, and once more after the last append of a busy one. It carries
//! nothing, and losing it costs latency only: who follows a store looks from time to time anyway.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::mpsc;

/// Shortest time between two notifications of one bell.
const PERIOD: Duration = Duration::from_millis(10);

/// Rings one channel. Clones are the same bell; its task ends with the last of them.
#[derive(Debug, Clone)]
pub(crate) struct Bell(Arc<Rope>);

/// What a bell is rung by. Dropping it is what ends the task.
#[derive(Debug)]
struct Rope {
    pool: PgPool,
    channel: String,
    /// Written by `ring`, read by the task. One place is enough: a ring that finds it taken is heard
    /// together with the one that took it.
    rings: OnceLock<mpsc::Sender<()>>,
}

impl Bell {
    /// A bell that notifies `channel` through connections of `pool`.
    pub(crate) fn new(pool: PgPool, channel: &str) -> Self {
        Self(Arc::new(Rope { pool, channel: channel.to_owned(), rings: OnceLock::new() }))
    }

    /// Makes sure that a notification goes out after now. Returns at once; call it in a runtime.
    pub(crate) fn ring(&self) {
        let rings = self.0.rings.get_or_init(|| {
            let (sender, receiver) = mpsc::channel(1);
            tokio::spawn(ring_until_dropped(self.0.pool.clone(), self.0.channel.clone(), receiver));
            sender
        });
        // A full channel means that a notification is about to go out.
        let _ = rings.try_send(());
    }
}

async fn ring_until_dropped(pool: PgPool, channel: String, mut rings: mpsc::Receiver<()>) {
    while rings.recv().await.is_some() {
        if let Err(error) = notify(&pool, &channel).await {
            tracing::debug!(channel, error = %error, "failed to ring the bell");
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Notifies the channel. The commit need not reach the disk, and must not make other bells wait for it.
async fn notify(pool: &PgPool, channel: &str) -> Result<(), sqlx::Error> {
    sqlx::query(
        "-- notify_channel
        select set_config('synchronous_commit', 'off', true), pg_notify($1, '')",
    )
    .bind(channel)
    .execute(pool)
    .await?;
    Ok(())
}
