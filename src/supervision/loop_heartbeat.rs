//! When the supervisor's loop last turned, so that others notice when it does not turn any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Records each turn of a loop. All clones show the same loop.
#[derive(Debug, Clone)]
pub(crate) struct LoopHeartbeat(Arc<Turns>);

#[derive(Debug)]
struct Turns {
    begun: Instant,
    /// Milliseconds from `begun` to the last turn. Written by the loop, read by the admin endpoint.
    last: AtomicU64,
}

impl Default for LoopHeartbeat {
    /// A heartbeat of a loop that has turned just now.
    fn default() -> Self {
        Self(Arc::new(Turns { begun: Instant::now(), last: AtomicU64::new(0) }))
    }
}

impl LoopHeartbeat {
    /// Records a turn.
    pub(super) fn record(&self) {
        let millis = self.0.begun.elapsed().as_millis();
        self.0.last.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The time since the last turn.
    pub(crate) fn age(&self) -> Duration {
        let last = Duration::from_millis(self.0.last.load(Ordering::Relaxed));
        self.0.begun.elapsed().saturating_sub(last)
    }
}
