//! The request to stop, which every long-lived part receives.
//!
//! One [`ShutdownHandle`] makes the request, any number of [`Shutdown`]s receive it, also if they ask later. Dropping the
//! handle counts as a request: a part must never outlive its owner.

use std::future::Future;

use tokio::sync::watch;

/// Requests the stop of everything that has a connected [`Shutdown`].
#[derive(Debug)]
pub struct ShutdownHandle(watch::Sender<bool>);

/// Receives the request to stop. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// Makes a connected pair.
pub fn channel() -> (ShutdownHandle, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (ShutdownHandle(sender), Shutdown(receiver))
}

impl ShutdownHandle {
    /// Requests the stop. A second call does nothing.
    pub fn request(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Whether the stop has been requested.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Returns when the stop is requested, at once if it already was.
    pub async fn requested(&mut self) {
        // An error means that the handle is gone, which is a request as well.
        let _ = self.0.wait_for(|stop| *stop).await;
    }

    /// Runs `future` to its end, or drops it and returns `None` when the stop is requested.
    pub async fn run_until_requested<F: Future>(&mut self, future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            () = self.requested() => None,
            output = future => Some(output),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_reaches_later_listeners() {
        let (handle, stop) = channel();
        assert!(!stop.is_requested());
        handle.request();
        let mut late = stop.clone();
        late.requested().await;
        assert!(late.is_requested());
    }

    #[tokio::test]
    async fn a_dropped_handle_is_a_request() {
        let (handle, mut stop) = channel();
        drop(handle);
        assert_eq!(stop.run_until_requested(std::future::pending::<()>()).await, None);
        assert!(stop.is_requested());
    }
}
