//! Tells those who follow a store, through its channel, that there may be more to read.
//!
//! A notification in the append's own transaction would make all writers of the instance take turns at
//! commit. So it goes out afterwards, from a task of its own and in a statement of its own: at once while appends are few,
//! and at most once per [`PERIOD`] while they are many, the last time after the last of them. A lost notification costs
//! latency only, because those who follow a store also look from time to time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::sync::mpsc;

use crate::postgres::notify::{EVENTS, notify};
use crate::postgres::sqlstate::describe;

/// Shortest time between two notifications of one notifier while appends are many.
const PERIOD: Duration = Duration::from_millis(10);

/// How many appends per second are few. Of more events a watcher waits for no notification: it looks at intervals.
const FEW_PER_SECOND: f64 = 250.0;

/// How many appends at once are few. At nearly the rate above, arriving as they like, 16 were used up some times in a second, and
/// the next events waited for a look instead.
const FEW_AT_ONCE: f64 = 64.0;

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
    /// How many appends there were. Written by `notify`, read by the task.
    appends: Arc<AtomicU64>,
}

/// Whether appends are few: those of each second are taken from what may be spent in a second.
#[derive(Debug)]
struct Allowance {
    left: f64,
    /// When that was, and how many appends there had been.
    at: Instant,
    appends: u64,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { left: FEW_AT_ONCE, at: now, appends: 0 }
    }

    /// Whether appends are few, now that there were so many in all.
    fn suffices(&mut self, now: Instant, appends: u64) -> bool {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * FEW_PER_SECOND;
        let spent = appends.wrapping_sub(self.appends) as f64;
        let left = (self.left + earned).min(FEW_AT_ONCE) - spent;
        *self = Self { left: left.max(0.0), at: now, appends };
        left >= 0.0
    }
}

impl Notifier {
    /// A notifier of `channel` through connections of `pool`.
    pub(crate) fn new(pool: PgPool, channel: &str) -> Self {
        Self(Arc::new(NotifierInner {
            pool,
            channel: channel.to_owned(),
            requests: OnceLock::new(),
            appends: Arc::default(),
        }))
    }

    /// Makes sure that a notification goes out after now. Returns at once; call it in a runtime.
    pub(crate) fn notify(&self) {
        let requests = self.0.requests.get_or_init(|| {
            let (sender, receiver) = mpsc::channel(1);
            let (pool, channel) = (self.0.pool.clone(), self.0.channel.clone());
            tokio::spawn(notify_until_dropped(pool, channel, receiver, Arc::clone(&self.0.appends)));
            sender
        });
        self.0.appends.fetch_add(1, Ordering::Relaxed);
        // A full queue means that a notification is about to go out.
        let _ = requests.try_send(());
    }
}

async fn notify_until_dropped(
    pool: PgPool,
    channel: String,
    mut requests: mpsc::Receiver<()>,
    appends: Arc<AtomicU64>,
) {
    let mut allowance = Allowance::new(Instant::now());
    while requests.recv().await.is_some() {
        if let Err(error) = notify(&pool, &channel, EVENTS).await {
            tracing::debug!(channel, error = describe(&error), "failed to notify the channel");
        }
        if !allowance.suffices(Instant::now(), appends.load(Ordering::Relaxed)) {
            tokio::time::sleep(PERIOD).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of 100 appends at this rate were taken for few.
    fn few(per_second: u32) -> usize {
        let begun = Instant::now();
        let mut allowance = Allowance::new(begun);
        let at = |append| begun + Duration::from_secs(append) / per_second;
        (1..=100).filter(|append| allowance.suffices(at(*append), *append)).count()
    }

    #[test]
    fn appends_are_few_up_to_a_rate_and_some_of_them_may_come_at_once() {
        assert_eq!(few(240), 100);
        assert!((64..80).contains(&few(2_000)), "{}", few(2_000));
        let begun = Instant::now();
        let mut allowance = Allowance::new(begun);
        assert!(!allowance.suffices(begun, 65), "too many at once");
        assert!(allowance.suffices(begun + PERIOD, 67), "and few again");
    }
}
