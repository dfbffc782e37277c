//! The part of the watcher's state that belongs to one connection and ends with it.

use std::time::{Duration, Instant};

use super::WatcherSettings;
use super::bell::Bell;
use super::connection::{ConnectionError, ListenConnection};
use super::pace::Pace;
use super::verification::Verification;
use crate::event::Position;
use crate::store::horizon::{Holder, Horizon, Observer};
use crate::store::layout::Layout;

/// How old the names of holders may get while they are held.
const NAMES_AGE_MAX: Duration = Duration::from_secs(1);

/// One connection, and what was observed on it.
pub(super) struct Session {
    pub(super) connection: ListenConnection,
    pub(super) observer: Observer,
    pub(super) pace: Pace,
    pub(super) bell: Bell,
    /// When the last look ended.
    pub(super) looked: Instant,
    /// What is known of the store's preconditions.
    verification: Verification,
    /// What was settled when the preconditions were last known to hold.
    settled: Position,
    /// The holders' names and when they were asked for.
    named: Option<(Instant, Vec<Holder>)>,
    /// After how long of being held the log has to mention it next.
    next_warning: Duration,
}

impl Session {
    pub(super) fn new(
        connection: ListenConnection,
        observer: Observer,
        layout: &Layout,
        settings: &WatcherSettings,
    ) -> Self {
        let mut bell = Bell::new(layout, settings);
        if !settings.listen || connection.listen_refused.is_some() {
            bell.note(false);
        }
        Self {
            connection,
            observer,
            pace: Pace::new(settings),
            bell,
            looked: Instant::now(),
            verification: Verification::default(),
            settled: Position::START,
            named: None,
            next_warning: settings.warn_after,
        }
    }

    /// Observes once. The result names the holders once it has been held for long, and so does the log later. Nothing counts
    /// as settled that was observed while the store was not known to meet the preconditions.
    pub(super) async fn observe(
        &mut self,
        layout: &Layout,
        settings: &WatcherSettings,
    ) -> Result<Horizon, ConnectionError> {
        let Self { connection, observer, verification, .. } = self;
        // After a notification, the last value alone would most likely not be enough.
        let all = verification.is_glance_due() || self.pace.is_notified();
        connection.observe(observer, all).await?;
        let mut horizon = self.observer.horizon();
        if verification.verify(connection, &mut self.observer, layout).await? {
            self.settled = horizon.settled;
        }
        horizon.settled = horizon.settled.min(self.settled);
        self.name_holders(&mut horizon, settings).await?;
        Ok(horizon)
    }

    /// Checks the preconditions again where their time has come.
    pub(super) async fn check_again(
        &mut self,
        layout: &Layout,
        is_busy: bool,
    ) -> Result<(), ConnectionError> {
        let Self { connection, observer, verification, .. } = self;
        verification.check_again(connection, observer, layout, is_busy).await
    }

    /// Sets the bell, if there is one that this session can set.
    pub(super) async fn set_bell(&mut self) -> Result<(), ConnectionError> {
        if let Some(statement) = self.bell.statement() {
            let is_set = self.connection.set_bell(statement).await?;
            self.bell.note(is_set);
        }
        Ok(())
    }

    async fn name_holders(
        &mut self,
        horizon: &mut Horizon,
        settings: &WatcherSettings,
    ) -> Result<(), ConnectionError> {
        let held_for = horizon.held_since.map_or(Duration::ZERO, |since| since.elapsed());
        if held_for < settings.name_after {
            self.named = None;
            self.next_warning = settings.warn_after;
            return Ok(());
        }
        let names = match self.named.take() {
            Some((asked, names)) if asked.elapsed() < NAMES_AGE_MAX => (asked, names),
            _ => (Instant::now(), self.connection.name_holders(&self.observer).await?),
        };
        horizon.held_by = self.named.insert(names).1.clone();
        if held_for >= self.next_warning {
            self.next_warning = held_for * 2;
            log_holders(horizon, held_for);
        }
        Ok(())
    }
}

fn log_holders(horizon: &Horizon, held_for: Duration) {
    let holders: Vec<String> = horizon.held_by.iter().map(ToString::to_string).collect();
    tracing::warn!(
        settled = horizon.settled.get(),
        head = horizon.head.get(),
        held_s = held_for.as_secs(),
        holders = holders.join("; "),
        "events wait for a writer that has not ended"
    );
}
