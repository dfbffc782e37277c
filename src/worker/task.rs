//! One processor's task within a worker: a panic ends this task only.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::warn;

use crate::processing::heartbeat::Heartbeat;
use crate::retry::{Retry, RetryPolicy};
use crate::shutdown::Shutdown;

/// A task that has lived this long was healthy: its next panic counts as the first one.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// Runs a processor until it returns. After a panic the processor is run again, with growing delays.
pub(super) async fn run_again_after_panics<F>(
    processor: String,
    heartbeat: Heartbeat,
    mut run: impl FnMut() -> F,
    mut stop: Shutdown,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut panics = Retry::new(RetryPolicy::infrastructure());
    loop {
        let begun = Instant::now();
        // On the heap: the stack of a thread is small for the future of a whole processor.
        let (current, running) = (heartbeat.clone(), Box::pin(run()));
        // A set of one: it ends with whoever waits for it.
        let mut task = JoinSet::new();
        task.spawn(async move { current.scope(running).await });
        if task.join_next().await.is_none_or(|ended| ended.is_ok()) {
            return;
        }
        if begun.elapsed() > HEALTHY_AFTER {
            panics.succeeded();
        }
        let delay = panics.failed(());
        let retry_in_ms = delay.as_millis() as u64;
        heartbeat.expect_within(delay);
        warn!(processor, retry_in_ms, "a processor has panicked, restarting it");
        if stop.run_until_requested(sleep(delay)).await.is_none() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::shutdown;

    #[tokio::test]
    async fn a_panic_ends_neither_the_others_nor_the_processor_for_good() {
        let (handle, stop) = shutdown::channel();
        let (runs, other_runs) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (counted, other_counted) = (Arc::clone(&runs), Arc::clone(&other_runs));
        let stopped = stop.clone();
        let faulty = run_again_after_panics(
            "faulty".into(),
            Heartbeat::new(),
            move || {
                let (nth, mut stopped) = (counted.fetch_add(1, Ordering::Relaxed), stopped.clone());
                async move {
                    assert!(nth >= 2, "the first two runs panic");
                    stopped.requested().await;
                }
            },
            stop.clone(),
        );
        let stopped = stop.clone();
        let sound = run_again_after_panics(
            "sound".into(),
            Heartbeat::new(),
            move || {
                other_counted.fetch_add(1, Ordering::Relaxed);
                let mut stopped = stopped.clone();
                async move { stopped.requested().await }
            },
            stop.clone(),
        );
        let ending = async {
            while runs.load(Ordering::Relaxed) < 3 {
                sleep(Duration::from_millis(5)).await;
            }
            handle.request();
        };
        tokio::join!(faulty, sound, ending);
        assert_eq!((runs.load(Ordering::Relaxed), other_runs.load(Ordering::Relaxed)), (3, 1));
    }

    #[tokio::test]
    async fn a_processor_that_waits_to_be_restarted_can_be_stopped() {
        let (handle, stop) = shutdown::channel();
        let panicking =
            run_again_after_panics("faulty".into(), Heartbeat::new(), || async { panic!("always") }, stop);
        let ending = async {
            sleep(Duration::from_millis(50)).await;
            handle.request();
        };
        tokio::join!(panicking, ending);
    }
}
