//! Where aggregates are loaded and commands carried out.

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::loader::Loader;
use super::snapshot::SnapshotKeeper;
use super::{
    Aggregate, BoundaryContext, Context, Decide, DecisionWithin, Draft, Execution, Id, LoadError, Loaded,
    SnapshotError, SnapshotStore, UnitOfWork,
};
use crate::event::Version;
use crate::store::{EventStore, TagQuery};

/// Aggregates in an event store. Clones use the same store.
#[derive(Clone)]
pub struct Repository<S>(Loader<S>);

impl<S: EventStore> Repository<S> {
    /// The aggregates of a store.
    pub fn new(store: S) -> Self {
        Self(Loader::new(store))
    }

    /// The same, by a clock of one's own: decisions are told its time, and events get it as `created_at`. Without one, events
    /// get the time of the server.
    #[must_use]
    pub fn with_clock(self, clock: impl Fn() -> DateTime<Utc> + Send + Sync + 'static) -> Self {
        Self(Loader { clock: Some(Arc::new(clock)), ..self.0 })
    }

    /// The same, where a decision is made anew at most `retries` times when other writers were faster: 10 unless set, 0 for never.
    #[must_use]
    pub fn conflict_retries(self, retries: u32) -> Self {
        Self(Loader { conflict_retries: retries, ..self.0 })
    }

    /// The same, with snapshots of the aggregates that have a [`SnapshotFormat`](super::SnapshotFormat). They are written in the background.
    ///
    /// # Panics
    /// [`PostgresSnapshots`](super::PostgresSnapshots), where the store of the repository has a codec: states would lie beside the
    /// encoded events as they are.
    #[must_use]
    pub fn with_snapshots(self, snapshots: impl SnapshotStore) -> Self {
        let snapshots = snapshots.beside(&self.0.store);
        Self(Loader { snapshots: Some(SnapshotKeeper::new(snapshots)), ..self.0 })
    }

    /// How many snapshots could not be read or written since the repository, or the one that it is a clone of, was made. The log says why.
    pub fn snapshot_failures(&self) -> u64 {
        self.0.snapshots.as_ref().map_or(0, SnapshotKeeper::failures)
    }

    /// Writes a snapshot of an aggregate now, however few events have come since the last one. Returns whether there was anything to write, and
    /// where: `false` without [`Self::with_snapshots`], without a format, and before the first event.
    ///
    /// # Errors
    /// The aggregate cannot be loaded, or the snapshot not be written.
    pub async fn take_snapshot<A: Aggregate>(&self, id: &Id<A>) -> Result<bool, SnapshotError> {
        let loaded = self.load(id).await?;
        match &self.0.snapshots {
            Some(snapshots) if loaded.exists() => snapshots.write_now(&loaded).await,
            _ => Ok(false),
        }
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.0.store
    }

    /// Loads an aggregate as it is now.
    ///
    /// # Errors
    /// The store cannot be read, or an event of the stream not be understood.
    pub async fn load<A: Aggregate>(&self, id: &Id<A>) -> Result<Loaded<A>, LoadError> {
        self.0.load(id).await
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
        self.0.load_at(id, version.into()).await
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
        loaded.take_in_all(self.0.store.read_aggregate_until(id.get().clone(), time)).await?;
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
        Execution::new(&self.0, id.clone(), Box::new(decision))
    }

    /// Decides beyond one aggregate: the state is folded from the events that match `query`, and what was decided is stored unless one
    /// more matches by then. `docs/consistency.md` has an example.
    ///
    /// An item of the query that names no types is about the types that `A` knows. The events need tags by which the query finds them.
    pub fn decide_within<'r, A: Aggregate, R>(
        &'r self,
        query: TagQuery,
        decision: impl Fn(&A, &BoundaryContext) -> Result<Vec<Draft<A::Event>>, R> + Send + Sync + 'r,
    ) -> DecisionWithin<'r, S, A, R> {
        DecisionWithin::new(&self.0, query, Box::new(decision))
    }

    /// Begins a unit of work: several aggregates, and one append for all of them.
    pub fn unit_of_work(&self) -> UnitOfWork<'_, S> {
        UnitOfWork::new(&self.0)
    }
}

impl<S: fmt::Debug> fmt::Debug for Repository<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository").field("store", &self.0.store).finish_non_exhaustive()
    }
}
