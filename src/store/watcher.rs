//! Watches the event store for everybody in this process: one connection, one answer for all.
//!
//! The watcher looks at the store at an adaptive interval and publishes the settled horizon. Between
//! two looks it listens: a notification is a doorbell that ends the wait early and carries no truth.
//! A lost, doubled or early one changes latency, never results. Where the server does not notify
//! (no channel, a pooler in between), looking is all there is.
//!
//! The wake-up is armed before looking: the server queues notifications from `LISTEN` on, and they
//! stay queued on the connection while a look is under way. So whatever is committed after a look
//! has read rings a bell that is heard after it.
//!
//! A horizon is a statement about one life of one server. When the connection is lost, the watcher
//! withdraws it (`settled` becomes 0) and starts afresh on a new connection: after a crash, ids that
//! nobody committed may be drawn again, also ones that had been settled. Then it wakes everybody, as
//! the bells of the meantime are gone. It connects again for ever and ends only when asked to stop.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout_at};

use crate::event::Position;
use crate::postgres::error::chain;
use crate::shutdown::Shutdown;
use crate::store::horizon::{Holder, Horizon, Observer};
use crate::store::layout::Layout;

mod connection;
mod pace;

use connection::{Bell, Line, LineError};
use pace::{Look, Pace, Wait};

/// First delay before connecting again; it doubles up to the setting.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(20);

/// How often a connection that cannot be made is mentioned in the log again.
const STILL_LOST_INTERVAL: Duration = Duration::from_secs(60);

/// How old the names of holders may get while they are held.
const NAMES_AGE_MAX: Duration = Duration::from_secs(1);

/// How the watcher watches.
#[derive(Debug, Clone)]
pub struct WatcherSettings {
    /// Interval between looks while events arrive. Default: 1 ms.
    pub shortest_interval: Duration,
    /// Longest interval while events arrive faster than looks. Default: 40 ms.
    pub busy_interval: Duration,
    /// Longest interval while a writer holds the horizon back. Default: 25 ms.
    pub held_interval: Duration,
    /// Longest interval while nothing happens; also how late an event may be noticed that rings no
    /// bell. Default: 1 s.
    pub idle_interval: Duration,
    /// How long the server may take to accept a connection or to answer, before the connection is
    /// thrown away. Default: 5 s.
    pub answer_timeout: Duration,
    /// Longest delay before connecting again. Default: 2 s.
    pub reconnect_delay_max: Duration,
    /// Whether to listen for notifications. Switch it off behind a transaction pooler, where
    /// listening looks as if it worked. Default: true.
    pub listen: bool,
    /// Whether only what outlives a crash of the server counts as settled: where positions are kept on
    /// another server. Default: false.
    pub durable_only: bool,
    /// After how long a writer that holds the horizon back is named in [`Horizon::held_by`].
    /// Default: 1 s.
    pub name_after: Duration,
    /// After how long it is named in the log, again at twice the interval each time. Default: 5 s.
    pub warn_after: Duration,
}

impl Default for WatcherSettings {
    fn default() -> Self {
        Self {
            shortest_interval: Duration::from_millis(1),
            busy_interval: Duration::from_millis(40),
            held_interval: Duration::from_millis(25),
            idle_interval: Duration::from_secs(1),
            answer_timeout: Duration::from_secs(5),
            reconnect_delay_max: Duration::from_secs(2),
            listen: true,
            durable_only: false,
            name_after: Duration::from_secs(1),
            warn_after: Duration::from_secs(5),
        }
    }
}

/// Watches one event store until it is asked to stop.
#[derive(Debug)]
pub struct Watcher {
    options: PgConnectOptions,
    layout: Layout,
    settings: WatcherSettings,
    floor: Option<String>,
    /// Written by the watcher, read by every runner: the latest value only.
    horizon: watch::Sender<Horizon>,
    /// Counts the reasons to read trackers again. Written by the watcher, read by every runner.
    control: watch::Sender<u64>,
    contact: Contact,
    said_not_listening: bool,
}

/// What the log knows about the connection.
#[derive(Debug)]
enum Contact {
    /// Not connected yet, or connected.
    Good,
    Lost {
        since: Instant,
        mentioned: Instant,
    },
}

impl Watcher {
    /// A watcher of the store with the given layout. `options` must lead to the primary; for
    /// notifications the connection must be direct, not through a transaction pooler.
    pub fn new(options: PgConnectOptions, layout: Layout, settings: WatcherSettings) -> Self {
        Self {
            options,
            layout,
            settings,
            floor: None,
            horizon: watch::Sender::default(),
            control: watch::Sender::default(),
            contact: Contact::Good,
            said_not_listening: false,
        }
    }

    /// Gives the watcher a statement that returns one position known to be settled, or null.
    ///
    /// It runs on every new connection. Without it a slow writer that was there before the watcher
    /// holds back everything, as any hole in the past may be its id. The highest position that a
    /// processor has reached is a good answer, if the trackers are in the database of the events and
    /// nothing but processing moves them.
    pub fn with_floor(mut self, statement: impl Into<String>) -> Self {
        self.floor = Some(statement.into());
        self
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

    /// Watches until it is asked to stop. Never gives up before.
    pub async fn run(mut self, mut stop: Shutdown) {
        let mut delay = RECONNECT_DELAY_MIN;
        loop {
            let connected = Instant::now();
            let Some(Err(error)) = stop.run_until_requested(self.watch()).await else { return };
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
    async fn watch(&mut self) -> Result<Infallible, LineError> {
        let mut session = self.connect().await?;
        let mut look = self.look(&mut session).await?;
        self.greet(&session);
        loop {
            let wait = session.pace.wait_after(look);
            self.wait(&mut session, wait).await?;
            look = self.look(&mut session).await?;
        }
    }

    async fn connect(&self) -> Result<Session, LineError> {
        let control = self.layout.control_channel();
        let mut channels = vec![control.as_str()];
        channels.extend(self.layout.channel().filter(|channel| *channel != control));
        channels.truncate(if self.settings.listen { channels.len() } else { 0 });
        let mut line = Line::connect(&self.options, &channels, self.settings.answer_timeout).await?;
        let floor = match &self.floor {
            Some(statement) => line.read_floor(statement).await?,
            None => Position::START,
        };
        let observer = Observer::new(&self.layout, floor);
        let observer = if self.settings.durable_only { observer.durable_only() } else { observer };
        Ok(Session::new(line, observer, &self.settings))
    }

    /// Looks once and publishes what is to be seen.
    async fn look(&self, session: &mut Session) -> Result<Look, LineError> {
        // Bells that have rung by now are answered by this look.
        while let Some(bell) = session.line.next_heard_bell() {
            self.answer(bell, &mut session.pace);
        }
        let before = session.observer.horizon();
        session.line.observe(&mut session.observer).await?;
        let mut horizon = session.observer.horizon();
        session.name_holders(&mut horizon, &self.settings).await?;
        let look = Look {
            moved: before.head.distance_to(horizon.head).max(before.settled.distance_to(horizon.settled)),
            held: horizon.settled < horizon.head,
            elapsed: std::mem::replace(&mut session.looked, Instant::now()).elapsed(),
        };
        self.publish(horizon);
        Ok(look)
    }

    /// Waits for a bell or for the time of the next look.
    async fn wait(&self, session: &mut Session, wait: Wait) -> Result<(), LineError> {
        // Both ends count from here, and no sleep is asked for that is not needed: each takes up to two
        // milliseconds longer than it says.
        let now = tokio::time::Instant::now();
        if !wait.at_least.is_zero() {
            sleep_until(now + wait.at_least).await;
        }
        match timeout_at(now + wait.at_most, session.line.next_bell()).await {
            Ok(bell) => self.answer(bell?, &mut session.pace),
            Err(_elapsed) => {}
        }
        Ok(())
    }

    fn answer(&self, bell: Bell, pace: &mut Pace) {
        pace.quicken();
        if bell == Bell::Control {
            self.control.send_modify(|count| *count += 1);
        }
    }

    fn publish(&self, horizon: Horizon) {
        self.horizon.send_if_modified(|published| {
            let news = *published != horizon;
            *published = horizon;
            news
        });
    }

    /// Takes the horizon back: nobody may read by it before it is known again.
    fn withdraw(&mut self, error: &LineError) {
        let head = self.horizon.borrow().head;
        self.publish(Horizon { head, ..Horizon::default() });
        self.log_loss(error);
    }

    /// Says that the store is in sight, and wakes everybody.
    fn greet(&mut self, session: &Session) {
        if let Contact::Lost { since, .. } = self.contact {
            let lost_ms = since.elapsed().as_millis() as u64;
            tracing::info!(lost_ms, "watching the event store again");
        }
        self.contact = Contact::Good;
        if let (Some(error), false) = (&session.line.listen_refused, self.said_not_listening) {
            tracing::warn!(%error, channel = self.layout.channel(), "no notifications: looking at intervals only");
            self.said_not_listening = true;
        }
        self.control.send_modify(|count| *count += 1);
    }

    fn log_loss(&mut self, error: &LineError) {
        let now = Instant::now();
        let error = chain(error);
        match &mut self.contact {
            Contact::Good => {
                tracing::warn!(error, "lost sight of the event store, connecting again");
                self.contact = Contact::Lost { since: now, mentioned: now };
            }
            Contact::Lost { since, mentioned } if now - *mentioned >= STILL_LOST_INTERVAL => {
                let lost_ms = since.elapsed().as_millis() as u64;
                tracing::warn!(error, lost_ms, "the event store is still out of sight");
                *mentioned = now;
            }
            Contact::Lost { .. } => tracing::debug!(error, "the event store is still out of sight"),
        }
    }
}

/// What belongs to one connection and ends with it.
struct Session {
    line: Line,
    observer: Observer,
    pace: Pace,
    /// When the last look ended.
    looked: Instant,
    /// The holders' names and when they were asked for.
    named: Option<(Instant, Vec<Holder>)>,
    /// After how long of being held the log has to mention it next.
    next_warning: Duration,
}

impl Session {
    fn new(line: Line, observer: Observer, settings: &WatcherSettings) -> Self {
        Self {
            line,
            observer,
            pace: Pace::new(settings),
            looked: Instant::now(),
            named: None,
            next_warning: settings.warn_after,
        }
    }

    /// Puts the holders' names into `horizon` once it has been held for long, and into the log later.
    async fn name_holders(
        &mut self,
        horizon: &mut Horizon,
        settings: &WatcherSettings,
    ) -> Result<(), LineError> {
        let held_for = horizon.held_since.map_or(Duration::ZERO, |since| since.elapsed());
        if held_for < settings.name_after {
            self.named = None;
            self.next_warning = settings.warn_after;
            return Ok(());
        }
        let names = match self.named.take() {
            Some((asked, names)) if asked.elapsed() < NAMES_AGE_MAX => (asked, names),
            _ => (Instant::now(), self.line.name_holders(&self.observer).await?),
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
