//! The thread on which requests are made, so that they go on while the worker's own thread is busy with the database and with
//! other processors. All webhooks of a process share it; it ends with the last of them.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

static SHARED: Mutex<Weak<SendingThread>> = Mutex::new(Weak::new());

/// The thread, for as long as somebody has this.
#[derive(Debug)]
pub(super) struct SendingThread {
    runtime: Handle,
    /// Dropped, it ends the thread.
    _end: oneshot::Sender<()>,
}

impl SendingThread {
    /// The one that runs, or a new one.
    pub(super) fn shared() -> io::Result<Arc<Self>> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = shared.upgrade() {
            return Ok(running);
        }
        let started = Arc::new(Self::start()?);
        *shared = Arc::downgrade(&started);
        Ok(started)
    }

    fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (handle, (end, ended)) = (runtime.handle().clone(), oneshot::channel::<()>());
        thread::Builder::new()
            .name("espd webhooks".to_owned())
            .spawn(move || drop(runtime.block_on(ended)))?;
        Ok(Self { runtime: handle, _end: end })
    }

    /// Where tasks of it are started.
    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_share_one_thread_and_it_ends_with_the_last_of_them() {
        let (first, second) = (SendingThread::shared().unwrap(), SendingThread::shared().unwrap());
        assert!(Arc::ptr_eq(&first, &second));
        let name = || thread::current().name().map(str::to_owned);
        let task = first.runtime().spawn(async move { name() });
        let runtime = Builder::new_current_thread().build().unwrap();
        assert_eq!(runtime.block_on(task).unwrap().as_deref(), Some("espd webhooks"));
        let waiting = first.runtime().spawn(std::future::pending::<()>());
        drop((first, second));
        // A task that waits for ever ends with the thread.
        assert!(runtime.block_on(waiting).unwrap_err().is_cancelled());
    }
}
