//! When the supervisor's loop last turned, for those who have to notice that it does not any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Beats with each turn of a loop. Clones share the beats.
#[derive(Debug, Clone)]
pub struct Pulse(Arc<Beats>);

#[derive(Debug)]
struct Beats {
    begun: Instant,
    /// Milliseconds from `begun` to the last beat.
    last: AtomicU64,
}

impl Default for Pulse {
    /// A pulse that has beaten just now.
    fn default() -> Self {
        Self(Arc::new(Beats { begun: Instant::now(), last: AtomicU64::new(0) }))
    }
}

impl Pulse {
    pub(super) fn beat(&self) {
        let millis = self.0.begun.elapsed().as_millis();
        self.0.last.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The time since the last beat.
    pub fn age(&self) -> Duration {
        let last = Duration::from_millis(self.0.last.load(Ordering::Relaxed));
        self.0.begun.elapsed().saturating_sub(last)
    }
}
