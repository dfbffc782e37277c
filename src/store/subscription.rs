//! A subscription tells a runner how far it may read, and wakes it when there is more.
//!
//! The watcher publishes the horizon; every subscription of the process reads the same value. A wake-up
//! is armed by reading the value that it is about: a horizon that moves between [`Subscription::next_upto`]
//! and [`Subscription::wait`] ends the wait at once, so nothing falls between.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::event::Position;
use crate::postgres::server_mark::ServerMark;
use crate::shutdown::Shutdown;
use crate::store::horizon::Horizon;

/// One runner's view of the store.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Written by the watcher, read here; holds the latest value only.
    horizon: watch::Receiver<Horizon>,
    /// Counts the reasons to read the tracker again; written by the watcher.
    control: watch::Receiver<u64>,
    /// The mark of the session that batches have to be on the server of; written by who holds it.
    mark: Option<watch::Receiver<Option<ServerMark>>>,
    /// Where the watcher is told of heads that runners have read.
    heads: Option<watch::Sender<Option<ReadHead>>>,
}

/// The last id drawn, as a runner has read it beside something else.
#[derive(Debug, Clone, Copy)]
pub struct ReadHead {
    /// The id.
    pub head: Position,
    /// A moment before it was read.
    pub asked: Instant,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// The horizon is beyond the position.
    Events,
    /// The tracker may have changed: an operator changed it, or a runner released one, or the connection was new.
    Control,
    /// The time is over.
    Timeout,
    /// The process has to stop.
    Stop,
}

impl Subscription {
    /// A subscription to what a watcher publishes.
    pub fn new(horizon: watch::Receiver<Horizon>, control: watch::Receiver<u64>) -> Self {
        Self { horizon, control, mark: None, heads: None }
    }

    /// The same subscription, for batches that are handled only on the server where this mark is.
    #[must_use]
    pub(crate) fn marked_by(self, mark: watch::Receiver<Option<ServerMark>>) -> Self {
        Self { mark: Some(mark), ..self }
    }

    /// The same subscription, which tells the watcher of heads that runners have read.
    #[must_use]
    pub(crate) fn telling(self, heads: watch::Sender<Option<ReadHead>>) -> Self {
        Self { heads: Some(heads), ..self }
    }

    /// Tells the watcher of a head, so that it need not look for itself while nothing is appended.
    pub(crate) fn tell(&self, read: ReadHead) {
        if let Some(heads) = &self.heads {
            heads.send_replace(Some(read));
        }
    }

    /// The mark that belongs to what [`Self::next_upto`] says now; `None`: there is nothing to compare.
    pub(crate) fn mark(&self) -> Option<ServerMark> {
        self.mark.as_ref().and_then(|mark| *mark.borrow())
    }

    /// The settled horizon; 0 while it is not known.
    pub(crate) fn settled(&self) -> Position {
        self.horizon.borrow().settled
    }

    /// The last position of the next batch: the settled horizon, or `span` ids on; `None`: nothing to do.
    pub fn next_upto(&self, position: Position, span: i64) -> Option<Position> {
        let settled = self.settled();
        (settled > position).then(|| settled.min(position.advanced_by(span)))
    }

    /// Why nothing may be read from the store now, and how to repair that; `None`: all is well, or nothing is known.
    pub fn unmet(&self) -> Option<Arc<str>> {
        self.horizon.borrow().unmet.clone()
    }

    /// Waits until the horizon is beyond `position` (`None`: the horizon does not matter), the tracker may have changed,
    /// `timeout` is over, or the process has to stop.
    pub async fn wait(
        &mut self,
        position: Option<Position>,
        timeout: Duration,
        stop: &mut Shutdown,
    ) -> Woken {
        let Self { horizon, control, .. } = self;
        let beyond = async {
            match position {
                // An error means that the watcher is gone: nothing will ever be beyond.
                Some(position) if horizon.wait_for(|horizon| horizon.settled > position).await.is_ok() => {}
                Some(_) | None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.requested() => Woken::Stop,
            Ok(()) = control.changed() => Woken::Control,
            () = beyond => Woken::Events,
            () = tokio::time::sleep(timeout) => Woken::Timeout,
        }
    }
}
