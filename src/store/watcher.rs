//! Watches the event store for all runners of this process, through one connection.
//!
//! The watcher looks at the store at an adaptive interval and publishes the settled horizon. Between
//! two looks it listens: a notification ends the wait early and carries no truth.
//! A lost, doubled or early one changes latency, never results. Where the server does not notify
//! (no channel, a pooler in between), the watcher looks at intervals only.
//!
//! The wake-up is armed before looking: the server queues notifications from `LISTEN` on, and they
//! stay queued on the connection while a look is under way. So a notification of what is committed after a look
//! has read is received after that look.
//!
//! Before a long wait it sets the bell (`bell`), so that the functions that append, which do not notify otherwise, wake it.
//! While it waits, renewals of leases tell it which head they have read: the one that it knows replaces a look of its own, another
//! one ends the wait.
//!
//! What must be true of the store for a horizon to mean anything is checked on every new connection and again and again
//! (`verification`). While it is not true, the watcher withdraws the horizon and says why.
//!
//! A horizon is a statement about one life of one server. When the connection is lost, the watcher
//! withdraws it (`settled` becomes 0) and starts afresh on a new connection: after a crash, ids that
//! were never committed may be drawn again, also ones that had been settled. Then it wakes all runners, as
//! the notifications of the meantime are gone. It connects again for ever and ends only when asked to stop.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{sleep, sleep_until};

use crate::event::Position;
use crate::postgres::connector::Connector;
use crate::postgres::error::chain;
use crate::postgres::server_mark::ServerMark;
use crate::shutdown::Shutdown;
use crate::store::history::History;
use crate::store::horizon::{Horizon, Observer};
use crate::store::layout::Layout;
use crate::store::subscription::ReadHead;

mod bell;
mod connection;
mod connection_log;
mod pace;
mod session;
mod settings;
mod verification;

pub use settings::WatcherSettings;

use connection::{ConnectionError, ListenConnection, Notification};
use connection_log::ConnectionLog;
use pace::{Look, Wait};
use session::Session;
use verification::IDLE_CHECK_INTERVAL;

/// First delay before connecting again; it doubles up to the setting.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(20);

/// Watches one event store until it is asked to stop.
#[derive(Debug)]
pub struct Watcher {
    database: Connector,
    layout: Layout,
    settings: WatcherSettings,
    /// Written by the watcher, read by every runner: the latest value only.
    horizon: watch::Sender<Horizon>,
    /// Counts the reasons to read trackers again. Written by the watcher, read by every runner.
    control: watch::Sender<u64>,
    /// The mark of the session that the horizon was seen in. Written by the watcher, read by every runner.
    mark: watch::Sender<Option<ServerMark>>,
    /// Why the store cannot be reached. Written by the watcher, read by streams.
    unreachable: watch::Sender<Option<Arc<str>>>,
    /// Heads that runners have read. Written by them, read by the watcher.
    heads: watch::Sender<Option<ReadHead>>,
    connection_log: ConnectionLog,
    /// The store's history, and when it was read last.
    history: Option<(History, Instant)>,
}

impl Watcher {
    /// A watcher of the store with the given layout. `database` must lead to the primary; for
    /// notifications the connection must be direct, not through a transaction pooler.
    pub fn new(database: impl Into<Connector>, layout: Layout, settings: WatcherSettings) -> Self {
        Self {
            database: database.into(),
            layout,
            settings,
            horizon: watch::Sender::default(),
            control: watch::Sender::default(),
            mark: watch::Sender::default(),
            unreachable: watch::Sender::default(),
            heads: watch::Sender::default(),
            connection_log: ConnectionLog::default(),
            history: None,
        }
    }

    /// The horizon, as of the latest look. Its sender lives as long as the watcher.
    pub fn horizon(&self) -> watch::Receiver<Horizon> {
        self.horizon.subscribe()
    }

    /// Changes when trackers should be read again: on a notification `control`, and on every new
    /// connection, because such a notification may have been missed before.
    pub fn control(&self) -> watch::Receiver<u64> {
        self.control.subscribe()
    }

    /// The mark of the session that looks at the store; `None` before there is one, and behind a pooler, where no session
    /// can hold it. The last one stays until there is another.
    pub fn mark(&self) -> watch::Receiver<Option<ServerMark>> {
        self.mark.subscribe()
    }

    /// Where runners tell which head they have read on the server that is watched. Such a head is no horizon: it only says
    /// whether a look is worth its while.
    pub fn heads(&self) -> watch::Sender<Option<ReadHead>> {
        self.heads.clone()
    }

    /// Why the store cannot be reached. A connection that is lost is no reason yet, if there is another one at once.
    pub(crate) fn unreachable(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.unreachable.subscribe()
    }

    /// Watches until it is asked to stop. Never gives up before.
    pub async fn run(mut self, mut stop: Shutdown) {
        let mut delay = RECONNECT_DELAY_MIN;
        loop {
            let connected = Instant::now();
            let Some(Err(error)) = stop.run_until_requested(Box::pin(self.watch())).await else { return };
            self.withdraw(&error);
            if connected.elapsed() > self.settings.reconnect_delay_max {
                delay = RECONNECT_DELAY_MIN;
            }
            if stop.run_until_requested(sleep(delay)).await.is_none() {
                return;
            }
            delay = (delay * 2).min(self.settings.reconnect_delay_max);
        }
    }

    /// Connects, and looks and waits for as long as the connection is good.
    async fn watch(&mut self) -> Result<Infallible, ConnectionError> {
        let mut session = self.connect().await?;
        self.compare_history(&mut session).await?;
        let mut look = self.look(&mut session).await?;
        self.connection_log.connected(&session.connection, self.layout.channel());
        self.unreachable.send_if_modified(|known| known.take().is_some());
        self.wake_runners();
        loop {
            let wait = session.pace.wait_after(look);
            if session.bell.is_wanted(wait) {
                // Who has appended before it was set is seen by the look that follows.
                session.set_bell().await?;
            } else {
                self.wait(&mut session, wait).await?;
                // The next wait is as long at least, unless the look finds something, as it does after a notification.
                if !session.pace.is_notified() && session.bell.is_wanted(wait) {
                    session.set_bell().await?;
                }
            }
            look = self.look(&mut session).await?;
        }
    }

    async fn connect(&self) -> Result<Session, ConnectionError> {
        let control = self.layout.control_channel();
        let mut channels = vec![control.as_str()];
        channels.extend(self.layout.channel().filter(|channel| *channel != control));
        channels.truncate(if self.settings.listen { channels.len() } else { 0 });
        let connection =
            ListenConnection::connect(&self.database, &channels, self.settings.answer_timeout).await?;
        self.mark.send_replace(connection.mark);
        let observer = Observer::new(&self.layout);
        let observer = if self.settings.durable_only { observer.durable_only() } else { observer };
        // A session with a mark is one that no pooler gives to others.
        let observer = if connection.mark.is_some() { observer.preparing() } else { observer };
        Ok(Session::new(connection, observer, &self.layout, &self.settings))
    }

    /// Reads the store's history and says so if it is not the one that was followed. Nothing that was observed outlives a
    /// connection, so there is nothing to forget here; the trackers, which runners read again then, have witnesses.
    async fn compare_history(&mut self, session: &mut Session) -> Result<(), ConnectionError> {
        let now = session.connection.read_history(&self.layout).await?;
        let before = self.history.replace((now, Instant::now()));
        if let Some(difference) = before.and_then(|(before, _)| now.change_since(&before)) {
            let head = now.head.get();
            tracing::warn!(head, %difference, "the event store is not the one that was followed");
        }
        Ok(())
    }

    /// Looks once and publishes the horizon.
    async fn look(&mut self, session: &mut Session) -> Result<Look, ConnectionError> {
        // Notifications that have arrived by now are answered by this look.
        while let Some(notification) = session.connection.next_buffered() {
            self.take(notification, session);
        }
        let before = session.observer.horizon();
        let horizon = session.observe(&self.layout, &self.settings).await?;
        if horizon.head < before.head {
            self.compare_history(session).await?;
        }
        let moved = before.head.distance_to(horizon.head).max(before.settled.distance_to(horizon.settled));
        let is_bell_set = session.bell.is_set();
        if moved != 0 {
            session.bell.forget();
        }
        let look = Look {
            moved,
            held: horizon.settled < horizon.head,
            is_bell_set,
            elapsed: std::mem::replace(&mut session.looked, Instant::now()).elapsed(),
        };
        self.publish(horizon);
        self.check_again(session, moved > 0).await?;
        Ok(look)
    }

    /// Makes the checks whose time has come: who waits for events does not wait for them.
    async fn check_again(&mut self, session: &mut Session, is_busy: bool) -> Result<(), ConnectionError> {
        session.check_again(&self.layout, is_busy).await?;
        let interval = if is_busy { 2 * IDLE_CHECK_INTERVAL } else { IDLE_CHECK_INTERVAL };
        if self.history.is_none_or(|(_, read)| read.elapsed() >= interval) {
            self.compare_history(session).await?;
        }
        Ok(())
    }

    /// Waits for a notification or for the time of the next look.
    async fn wait(&self, session: &mut Session, wait: Wait) -> Result<(), ConnectionError> {
        // Both ends count from here. A sleep takes up to two milliseconds longer than it was asked for, so there is
        // none that is not needed.
        let now = tokio::time::Instant::now();
        if !wait.at_least.is_zero() {
            sleep_until(now + wait.at_least).await;
        }
        let mut heads = self.heads.subscribe();
        heads.mark_changed();
        let mut end = now + wait.at_most;
        loop {
            tokio::select! {
                biased;
                notification = session.connection.next_notification() => {
                    self.take(notification?, session);
                    return Ok(());
                }
                () = sleep_until(end) => return Ok(()),
                // A runner has read the head, so this wait begins again, or ends.
                Ok(()) = heads.changed() => match read_after(session.looked, *heads.borrow_and_update()) {
                    Some(head) if head != session.observer.horizon().head => return Ok(()),
                    Some(_) => end = (tokio::time::Instant::now() + wait.at_most).min(now + wait.longest),
                    None => {}
                },
            }
        }
    }

    fn take(&self, notification: Notification, session: &mut Session) {
        session.pace.quicken();
        session.bell.forget();
        if notification == Notification::Control {
            self.wake_runners();
        }
    }

    /// Makes every runner read its tracker again.
    fn wake_runners(&self) {
        self.control.send_modify(|count| *count += 1);
    }

    fn publish(&self, horizon: Horizon) {
        self.horizon.send_if_modified(|published| {
            let has_changed = *published != horizon;
            *published = horizon;
            has_changed
        });
    }

    /// Takes the horizon back: no runner may read by it before it is known again.
    fn withdraw(&mut self, error: &ConnectionError) {
        let (head, was_known) = {
            let horizon = self.horizon.borrow();
            (horizon.head, horizon.settled > Position::START)
        };
        let unmet = match error {
            ConnectionError::Unmet(_) => Some(error.to_string().into()),
            _ => None,
        };
        let must_tell = unmet.is_some() && self.horizon.borrow().unmet.is_none();
        self.publish(Horizon { head, unmet, ..Horizon::default() });
        if !was_known && !matches!(error, ConnectionError::Unmet(_)) {
            let reason: Arc<str> = chain(error).into();
            self.unreachable.send_if_modified(|known| known.replace(Arc::clone(&reason)) != Some(reason));
        }
        self.connection_log.lost(error);
        if must_tell {
            // Each runner writes the reason into its tracker, where operators look.
            self.wake_runners();
        }
    }
}

/// The head that a runner has read after this moment.
fn read_after(moment: Instant, read: Option<ReadHead>) -> Option<Position> {
    read.filter(|read| read.asked > moment).map(|read| read.head)
}
