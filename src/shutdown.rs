//! The request to stop, as every long-lived part hears it.
//!
//! One [`ShutdownHandle`] says it, any number of [`Shutdown`]s hear it, also those that ask later.
//! Dropping the handle counts as a request: a part must never outlive what owns it.

use std::future::Future;

use tokio::sync::watch;

/// Says that everything that listens has to stop.
#[derive(Debug)]
pub struct ShutdownHandle(watch::Sender<bool>);

/// Hears the request to stop. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// A connected pair.
pub fn channel() -> (ShutdownHandle, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (ShutdownHandle(sender), Shutdown(receiver))
}

impl ShutdownHandle {
    /// Requests the stop. Saying it twice is harmless.
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

    /// Runs `future` to its end, or gives up and returns `None` when the stop is requested.
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
    async fn a_request_is_heard_by_those_who_ask_later() {
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
