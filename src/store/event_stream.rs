//! Follows a store as a stream of events, for applications: `store.subscribe(types, after)`.
//!
//! A stream yields events in the order of their ids and up to the settled horizon, so none can appear before one that was
//! yielded. All streams of one store (and of its clones) share one watcher, which runs while there is a stream. A stream
//! reads when its consumer asks for the next event, a page at a time: a slow consumer costs nobody anything.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{self, BoxStream, Peekable};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use tokio::sync::watch;
use uuid::Uuid;

use super::{EventStore, ReadError};
use crate::event::{Event, Position};
use crate::postgres::connector::Connector;
use crate::retry::{Retry, RetryPolicy};
use crate::shutdown::{self, Shutdown, ShutdownHandle};
use crate::store::horizon::Horizon;
use crate::store::layout::Layout;
use crate::store::subscription::{Subscription, Woken};
use crate::store::watcher::{Watcher, WatcherSettings};

/// The most events of a page.
const PAGE_EVENTS: i64 = 100;

/// How many ids one page looks at: a rare type in a huge store must not make a statement that runs for minutes.
const PAGE_IDS: i64 = 100_000;

/// How long a wait lasts at most. The watcher ends it earlier.
const WAIT_MAX: Duration = Duration::from_secs(3_600);

/// The events of a store from a position on, without an end.
///
/// An item is an event, or what keeps the next one from being read. After an error the stream goes on when it is asked again,
/// after a delay that grows while errors repeat: a store that cannot be reached is an error of the moment ([`ReadError::is_transient`]),
/// [`ReadError::GoneBack`] is one to stop for. To go on in another process, keep [`Self::position`].
pub struct EventStream {
    events: Peekable<BoxStream<'static, Result<Event, ReadError>>>,
    /// Whether it is known where the stream begins.
    begun: watch::Receiver<bool>,
    /// Written by the follower, read by the consumer.
    position: Arc<AtomicI64>,
    /// The last event that the consumer does without; written by the consumer, read by the follower.
    passed_over: Arc<AtomicI64>,
}

impl EventStream {
    /// How far the stream has come: every event up to here was yielded, or is of another type. Subscribing after it goes on
    /// without a gap. It is 0 as long as a stream that begins with what comes now has not begun.
    pub fn position(&self) -> Position {
        Position::new(self.position.load(Ordering::Relaxed))
    }

    /// Waits until it is known where the stream begins: a stream of what comes now yields what is appended after that. Without it, the
    /// stream begins at some time after it was asked for its first event.
    pub async fn beginning(&mut self) {
        let Self { events, begun, .. } = self;
        tokio::select! {
            biased;
            // An error means that the stream has ended, which its next item tells.
            _ = begun.wait_for(|begun| *begun) => {}
            // The follower works while somebody waits for its events.
            _ = Pin::new(events).peek() => {}
        }
    }

    /// Has the stream go on after an event that it could not read.
    pub(crate) fn pass_over(&mut self, position: Position) {
        self.passed_over.store(position.get(), Ordering::Relaxed);
        self.position.fetch_max(position.get(), Ordering::Relaxed);
    }

    /// The events that `subscription` lets be read, of the given types (`None`: all), after a position (`None`: what is
    /// settled now).
    /// `watch` begins to watch the store, also again where the runtime has ended in which that was done before.
    pub(super) fn new(
        store: impl EventStore + 'static,
        watch: impl Fn() -> Watching + Send + Sync + 'static,
        types: Option<&[String]>,
        after: Option<Position>,
    ) -> Self {
        let watching = watch();
        let position = Arc::new(AtomicI64::new(after.unwrap_or_default().get()));
        let passed_over = Arc::<AtomicI64>::default();
        let (never, stop) = shutdown::channel();
        let (begins, begun) = watch::channel(after.is_some());
        let follower = Follower {
            store: Box::new(store),
            subscription: watching.subscription(),
            watching,
            watch: Box::new(watch),
            types: types.map(<[String]>::to_vec),
            next: after,
            begins,
            page: VecDeque::new(),
            page_events: PAGE_EVENTS,
            passed: Arc::clone(&position),
            passed_over: Arc::clone(&passed_over),
            last: None,
            must_compare: false,
            failures: Retry::new(RetryPolicy::infrastructure()),
            delay: None,
            stop: (never, stop),
        };
        let step = |mut follower: Follower| async { Some((follower.next_event().await, follower)) };
        Self { events: stream::unfold(follower, step).boxed().peekable(), begun, position, passed_over }
    }
}

impl Stream for EventStream {
    type Item = Result<Event, ReadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.events).poll_next(context)
    }
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream").field("position", &self.position()).finish_non_exhaustive()
    }
}

/// What a stream knows between two events.
struct Follower {
    store: Box<dyn EventStore>,
    subscription: Subscription,
    watching: Watching,
    watch: Box<dyn Fn() -> Watching + Send + Sync>,
    types: Option<Vec<String>>,
    /// The position after which the next page begins; `None`: it begins with what comes now.
    next: Option<Position>,
    /// Told where the stream begins.
    begins: watch::Sender<bool>,
    page: VecDeque<Event>,
    /// The most events of the next page: fewer, while there is one among them that cannot be read.
    page_events: i64,
    passed: Arc<AtomicI64>,
    passed_over: Arc<AtomicI64>,
    /// The last event that was yielded.
    last: Option<(Position, Uuid)>,
    /// Whether the watcher has connected anew, perhaps to a store that lacks what was yielded.
    must_compare: bool,
    failures: Retry<()>,
    /// How long to wait after an error.
    delay: Option<Duration>,
    /// Nothing asks a follower to stop; it is dropped.
    stop: (ShutdownHandle, Shutdown),
}

impl Follower {
    async fn next_event(&mut self) -> Result<Event, ReadError> {
        let passed_over = Position::new(self.passed_over.load(Ordering::Relaxed));
        if self.next.is_some_and(|next| next < passed_over) {
            self.next = Some(passed_over);
            self.delay = None;
            self.failures.succeeded();
        }
        if let Some(delay) = self.delay.take() {
            tokio::time::sleep(delay).await;
        }
        let found = self.find_event().await;
        match found {
            Ok(_) => self.failures.succeeded(),
            Err(_) => self.delay = Some(self.failures.failed(())),
        }
        found
    }

    async fn find_event(&mut self) -> Result<Event, ReadError> {
        loop {
            if let Some(event) = self.page.pop_front() {
                let passed = if self.page.is_empty() { self.next.unwrap_or(event.id) } else { event.id };
                self.passed.store(passed.get(), Ordering::Relaxed);
                self.last = Some((event.id, event.uuid));
                return Ok(event);
            }
            self.watch_on();
            self.refuse_unfit_store().await?;
            match self.next.and_then(|next| self.subscription.next_upto(next, PAGE_IDS)) {
                Some(upto) => self.read_page(upto).await?,
                None => self.wait().await,
            }
        }
    }

    async fn read_page(&mut self, upto: Position) -> Result<(), ReadError> {
        let after = self.next.unwrap_or_default();
        let limit = self.page_events;
        let page = match self.store.read_after(after, Some(upto), self.types.as_deref(), limit).await {
            // Whoever follows gets the events before the one that cannot be read.
            Err(error) if error.is_of_an_event() && limit > 1 => {
                self.page_events = limit / 2;
                return Ok(());
            }
            Err(error) if error.is_of_an_event() => return Err(self.name_event(after, error).await),
            read => read?,
        };
        self.page_events = PAGE_EVENTS.min(limit * 2);
        let is_full = page.len() as i64 == limit;
        let end = page.last().filter(|_| is_full).map_or(upto, |last| last.id);
        self.next = Some(end);
        self.page = page.into();
        if self.page.is_empty() {
            let next = self.skip_gap(end).await;
            self.next = Some(next);
            self.passed.store(next.get(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Where the ids go on, if none that follows `end` at once was ever used: ids may leap, and pages of nothing take time.
    async fn skip_gap(&self, end: Position) -> Position {
        let settled = self.subscription.settled();
        if end >= settled {
            return end;
        }
        // An event that cannot be read may be of a type that nobody asks for.
        match self.store.read_after(end, Some(settled), None, 1).await.as_deref() {
            Ok([event, ..]) => event.id.advanced_by(-1),
            Ok([]) => settled,
            Err(_) => end,
        }
    }

    /// Has the store watched again if the runtime has ended in which that was done.
    fn watch_on(&mut self) {
        if self.watching.has_ended() {
            self.watching = (self.watch)();
            self.subscription = self.watching.subscription();
            self.must_compare = true;
        }
    }

    /// The same error with the event that it is about: the next one.
    async fn name_event(&self, after: Position, error: ReadError) -> ReadError {
        let next = match self.store.as_postgres() {
            Some(store) => store.find_next_id(after, self.types.as_deref()).await,
            None => Ok(None),
        };
        match (next, error) {
            (Ok(Some(position)), ReadError::Database(source)) => ReadError::Unreadable { position, source },
            (_, error) => error,
        }
    }

    async fn wait(&mut self) {
        if self.next.is_none()
            && let Some(settled) = self.watching.settled()
        {
            self.next = Some(settled);
            self.passed.store(settled.get(), Ordering::Relaxed);
            self.begins.send_replace(true);
            return;
        }
        // What is settled may become known without any other sign.
        let known = self.next.unwrap_or(Position::START);
        tokio::select! {
            biased;
            () = self.watching.trouble() => {}
            woken = self.subscription.wait(Some(known), WAIT_MAX, &mut self.stop.1) => {
                self.must_compare |= woken == Woken::Control;
            }
        }
    }

    /// Fails where the store must not be followed, or is not the one that was followed.
    async fn refuse_unfit_store(&mut self) -> Result<(), ReadError> {
        if let Some(reason) = self.subscription.unmet() {
            return Err(ReadError::Unfollowable { reason: reason.to_string() });
        }
        if let Some(reason) = self.watching.why_unreachable() {
            // What is found afterwards may be another store.
            self.must_compare = true;
            return Err(
                sqlx::Error::Io(io::Error::new(io::ErrorKind::NotConnected, reason.to_string())).into()
            );
        }
        if let (Some(next), Some(head)) = (self.next, self.watching.head())
            && head < next
        {
            return Err(ReadError::GoneBack { position: next });
        }
        if let (true, Some((id, uuid))) = (self.must_compare, self.last) {
            let there: Vec<Event> = self.store.read_range(id, id, None).try_collect().await?;
            if there.first().is_none_or(|event| event.uuid != uuid) {
                return Err(ReadError::GoneBack { position: id });
            }
        }
        self.must_compare = false;
        Ok(())
    }
}

/// What tells streams how far they may read. It lasts for as long as one of them, or the memory store, does.
#[derive(Debug, Clone)]
pub(super) struct Watching(Arc<Watched>);

#[derive(Debug)]
struct Watched {
    horizon: watch::Receiver<Horizon>,
    /// Above 0 once the horizon was observed.
    control: watch::Receiver<u64>,
    /// Why the store cannot be reached; `None`: it can, or that is being tried for the first time.
    unreachable: watch::Receiver<Option<Arc<str>>>,
    /// Ends the watcher when it is dropped.
    _watcher: Option<ShutdownHandle>,
}

impl Watching {
    /// What somebody else observes.
    pub(super) fn of(
        horizon: watch::Receiver<Horizon>,
        control: watch::Receiver<u64>,
        unreachable: watch::Receiver<Option<Arc<str>>>,
    ) -> Self {
        Self(Arc::new(Watched { horizon, control, unreachable, _watcher: None }))
    }

    fn start(database: &Connector, layout: Layout) -> Self {
        // What consumers do about an event may be outside of the database, where a crash of the server is not undone.
        let settings = WatcherSettings { durable_only: true, ..WatcherSettings::default() };
        let watcher = Watcher::new(database.named("espd: subscriptions"), layout, settings);
        let (handle, stop) = shutdown::channel();
        let (horizon, control, unreachable) = (watcher.horizon(), watcher.control(), watcher.unreachable());
        tokio::spawn(watcher.run(stop));
        Self(Arc::new(Watched { horizon, control, unreachable, _watcher: Some(handle) }))
    }

    fn subscription(&self) -> Subscription {
        Subscription::new(self.0.horizon.clone(), self.0.control.clone())
    }

    /// The settled horizon, if it is known at this moment.
    fn settled(&self) -> Option<Position> {
        self.known().map(|horizon| horizon.settled)
    }

    /// The last id drawn, if it is known at this moment.
    fn head(&self) -> Option<Position> {
        self.known().map(|horizon| horizon.head)
    }

    /// The horizon, unless it was not observed yet, or the connection that it was observed on is lost.
    fn known(&self) -> Option<Horizon> {
        let horizon = self.0.horizon.borrow().clone();
        let is_known = *self.0.control.borrow() > 0
            && horizon.unmet.is_none()
            && (horizon.settled > Position::START || horizon.head == Position::START);
        is_known.then_some(horizon)
    }

    fn has_ended(&self) -> bool {
        self.0.horizon.has_changed().is_err()
    }

    fn why_unreachable(&self) -> Option<Arc<str>> {
        self.0.unreachable.borrow().clone()
    }

    /// Returns once the store cannot be reached, or nobody watches it any more.
    async fn trouble(&self) {
        let (mut horizon, mut unreachable) = (self.0.horizon.clone(), self.0.unreachable.clone());
        let ended = async { while horizon.changed().await.is_ok() {} };
        let lost = async {
            if unreachable.wait_for(Option::is_some).await.is_err() {
                std::future::pending().await
            }
        };
        tokio::select! {
            () = ended => {}
            () = lost => {}
        }
    }
}

/// The watcher that all streams of a store share.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedWatching(Arc<Mutex<Weak<Watched>>>);

impl SharedWatching {
    /// The running watcher, or a new one. Call it in a runtime.
    pub(super) fn get(&self, database: impl FnOnce() -> Connector, layout: &Layout) -> Watching {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let running = shared.upgrade().map(Watching).filter(|watching| !watching.has_ended());
        let watching = running.unwrap_or_else(|| Watching::start(&database(), layout.clone()));
        *shared = Arc::downgrade(&watching.0);
        watching
    }
}
