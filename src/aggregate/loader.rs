//! What loads aggregates, for commands and units of work alike.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::snapshot::SnapshotKeeper;
use super::{Aggregate, Id, LoadError, Loaded};
use crate::event::Version;
use crate::store::{EventStore, Kept};

/// How often a decision is made anew when other writers were faster, unless it is said.
const CONFLICT_RETRIES: u32 = 10;

/// The longest pause before a decision is made anew.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// What tells the time.
pub(super) type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// A store, and how aggregates are loaded from it.
#[derive(Clone)]
pub(super) struct Loader<S> {
    pub(super) store: S,
    pub(super) clock: Option<Clock>,
    pub(super) conflict_retries: u32,
    pub(super) snapshots: Option<SnapshotKeeper>,
}

impl<S: EventStore> Loader<S> {
    pub(super) fn new(store: S) -> Self {
        Self { store, clock: None, conflict_retries: CONFLICT_RETRIES, snapshots: None }
    }

    /// Loads an aggregate as it is now.
    pub(super) async fn load<A: Aggregate>(&self, id: &Id<A>) -> Result<Loaded<A>, LoadError> {
        self.load_keeping(&mut Kept::default(), id).await
    }

    /// As [`Self::load`], with what the store keeps between the calls of a command.
    pub(super) async fn load_keeping<A: Aggregate>(
        &self,
        kept: &mut Kept,
        id: &Id<A>,
    ) -> Result<Loaded<A>, LoadError> {
        let mut loaded = self.begin(id, Version::MAX).await?;
        self.catch_up(kept, &mut loaded).await?;
        if let Some(snapshots) = &self.snapshots {
            snapshots.keep(&loaded);
        }
        Ok(loaded)
    }

    /// Loads an aggregate as it was at a version.
    pub(super) async fn load_at<A: Aggregate>(
        &self,
        id: &Id<A>,
        version: Version,
    ) -> Result<Loaded<A>, LoadError> {
        let mut loaded = self.begin(id, version).await?;
        let events = self.store.read_aggregate(id.get().clone(), loaded.version.next(), Some(version));
        loaded.take_in_all(events).await?;
        Ok(loaded)
    }

    /// The aggregate as of its snapshot, or before its first event.
    async fn begin<A: Aggregate>(&self, id: &Id<A>, upto: Version) -> Result<Loaded<A>, LoadError> {
        let of_snapshot = match &self.snapshots {
            Some(snapshots) => snapshots.load(id, upto).await?,
            None => None,
        };
        Ok(of_snapshot.unwrap_or_else(|| Loaded::absent(id.clone())))
    }

    /// Takes in what has happened since the aggregate was loaded.
    pub(super) async fn catch_up<A: Aggregate>(
        &self,
        kept: &mut Kept,
        loaded: &mut Loaded<A>,
    ) -> Result<(), LoadError> {
        let (id, from) = (loaded.id.get().clone(), loaded.version.next());
        let events = self.store.read_aggregate_keeping(kept, id, from, None);
        loaded.take_in_all(events).await
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        self.clock.as_ref().map_or_else(Utc::now, |clock| clock())
    }

    /// `created_at` of new events; `None`: the store sets it.
    pub(super) fn created_at(&self) -> Option<DateTime<Utc>> {
        self.clock.as_ref().map(|clock| clock())
    }
}

/// How long to wait before a decision is made anew, counted from 1: writers that collided should not meet again.
pub(crate) fn pause_before(retry: u32, random: u8) -> Duration {
    let longest = Duration::from_millis(1 << retry.min(8)).min(PAUSE_MAX);
    longest.mul_f64(f64::from(random) / 255.0)
}
