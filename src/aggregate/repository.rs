//! Where aggregates are loaded and commands carried out.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Aggregate, Context, Decide, Execution, Id, LoadError, Loaded, UnitOfWork};
use crate::event::Version;
use crate::store::EventStore;

/// How often a decision is made anew when other writers were faster, unless [`Repository::conflict_retries`] says otherwise.
const CONFLICT_RETRIES: u32 = 10;

/// The longest pause before a decision is made anew.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// Aggregates in an event store. Clones use the same store.
#[derive(Clone)]
pub struct Repository<S> {
    store: S,
    clock: Option<Clock>,
    conflict_retries: u32,
}

/// What tells the time.
type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

impl<S: EventStore> Repository<S> {
    /// The aggregates of a store.
    pub fn new(store: S) -> Self {
        Self { store, clock: None, conflict_retries: CONFLICT_RETRIES }
    }

    /// The same, by a clock of one's own: decisions are told its time, and events get it as `created_at`. Without one, events
    /// get the time of the server.
    #[must_use]
    pub fn with_clock(self, clock: impl Fn() -> DateTime<Utc> + Send + Sync + 'static) -> Self {
        Self { clock: Some(Arc::new(clock)), ..self }
    }

    /// The same, where a decision is made anew at most `retries` times when other writers were faster: 10 unless set, 0 for never.
    #[must_use]
    pub fn conflict_retries(self, retries: u32) -> Self {
        Self { conflict_retries: retries, ..self }
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Loads an aggregate as it is now.
    ///
    /// # Errors
    /// The store cannot be read, or an event of the stream not be understood.
    pub async fn load<A: Aggregate>(&self, id: &Id<A>) -> Result<Loaded<A>, LoadError> {
        let mut loaded = Loaded::absent(id.clone());
        self.catch_up(&mut loaded).await?;
        Ok(loaded)
    }

    /// Loads an aggregate as it was at a version; as it is, if it has not come so far.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn load_at<A: Aggregate>(
        &self,
        id: &Id<A>,
        version: impl Into<Version>,
    ) -> Result<Loaded<A>, LoadError> {
        let mut loaded = Loaded::absent(id.clone());
        let events = self.store.read_aggregate(id.get().clone(), Version::FIRST, Some(version.into()));
        loaded.take_in_all(events).await?;
        Ok(loaded)
    }

    /// Loads an aggregate as it was at a time.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn load_until<A: Aggregate>(
        &self,
        id: &Id<A>,
        time: DateTime<Utc>,
    ) -> Result<Loaded<A>, LoadError> {
        let mut loaded = Loaded::absent(id.clone());
        loaded.take_in_all(self.store.read_aggregate_until(id.get().clone(), time)).await?;
        Ok(loaded)
    }

    /// Carries out a command: `repository.execute(&book, &LendBook { to }).await`. What can be said of it before, and how it is
    /// tried without storing anything, is in [`Execution`].
    pub fn execute<'r, A, C>(
        &'r self,
        id: &Id<A>,
        command: &'r C,
    ) -> Execution<'r, S, A, <A as Decide<C>>::Refusal>
    where
        A: Aggregate + Decide<C>,
        C: Sync,
    {
        self.decide(id, move |state, context| state.decide(command, context))
    }

    /// Carries out a decision that is made by a closure: `repository.decide(&book, |book, context| Ok(events![…])).await`.
    pub fn decide<'r, A: Aggregate, R>(
        &'r self,
        id: &Id<A>,
        decision: impl Fn(&A, &Context) -> Result<Vec<A::Event>, R> + Send + Sync + 'r,
    ) -> Execution<'r, S, A, R> {
        Execution::new(self, id.clone(), Box::new(decision))
    }

    /// Begins a unit of work: several aggregates, and one append for all of them.
    pub fn unit_of_work(&self) -> UnitOfWork<'_, S> {
        UnitOfWork::new(self)
    }

    /// Takes in what has happened since the aggregate was loaded.
    pub(super) async fn catch_up<A: Aggregate>(&self, loaded: &mut Loaded<A>) -> Result<(), LoadError> {
        let events = self.store.read_aggregate(loaded.id.get().clone(), loaded.version.next(), None);
        loaded.take_in_all(events).await
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        self.clock.as_ref().map_or_else(Utc::now, |clock| clock())
    }

    /// `created_at` of new events; `None`: the store sets it.
    pub(super) fn created_at(&self) -> Option<DateTime<Utc>> {
        self.clock.as_ref().map(|clock| clock())
    }

    pub(super) fn retries(&self) -> u32 {
        self.conflict_retries
    }
}

/// How long to wait before the decision is made anew, counted from 1: writers that collided should not meet again.
pub(super) fn pause_before(retry: u32, random: u8) -> Duration {
    let longest = Duration::from_millis(1 << retry.min(8)).min(PAUSE_MAX);
    longest.mul_f64(f64::from(random) / 255.0)
}

impl<S: fmt::Debug> fmt::Debug for Repository<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository").field("store", &self.store).finish_non_exhaustive()
    }
}
