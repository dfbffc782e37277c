//! Reads snapshots before a stream, and writes them beside the work of the application.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use super::{SnapshotKey, SnapshotStore};
use crate::aggregate::{Aggregate, Id, Loaded, SnapshotError};
use crate::event::Version;
use crate::store::ReadError;

/// How many snapshots are written at the same time. Those beyond are left to whoever loads the aggregate next.
const WRITES_MAX: usize = 2;

/// The snapshots of a repository.
#[derive(Debug, Clone)]
pub(in crate::aggregate) struct SnapshotKeeper {
    store: Arc<dyn SnapshotStore>,
    writes: Arc<Semaphore>,
    failures: Arc<AtomicU64>,
    /// The formats of which it was said that a state cannot be written: name and number.
    unwritable: Arc<Mutex<HashSet<(&'static str, u32)>>>,
}

impl SnapshotKeeper {
    pub(in crate::aggregate) fn new(store: impl SnapshotStore) -> Self {
        Self {
            store: Arc::new(store),
            writes: Arc::new(Semaphore::new(WRITES_MAX)),
            failures: Arc::default(),
            unwritable: Arc::default(),
        }
    }

    /// How many snapshots could not be read or written.
    pub(in crate::aggregate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// The aggregate as of its snapshot, if there is one that can be used.
    ///
    /// # Errors
    /// No connection became free in time. Whoever waits for another one after that waits twice as long.
    pub(in crate::aggregate) async fn load<A: Aggregate>(
        &self,
        id: &Id<A>,
        upto: Version,
    ) -> Result<Option<Loaded<A>>, ReadError> {
        let Some(format) = A::snapshots() else { return Ok(None) };
        let key = format.key(id.get());
        let snapshot = match self.store.load(&key, upto).await {
            Ok(Some(snapshot)) => snapshot,
            Ok(None) => return Ok(None),
            Err(error) if error.is_of_full_pool() => return Err(error),
            Err(error) => return Ok(self.note(&key, &error.with_causes())),
        };
        Ok(match (format.read)(&snapshot.state) {
            Ok(state) => Some(Loaded {
                id: id.clone(),
                version: snapshot.version,
                position: snapshot.event_id,
                snapshot: snapshot.version,
                state,
            }),
            Err(error) => self.note(&key, &error.to_string()),
        })
    }

    /// Writes a snapshot in the background, if enough has been read since the last one.
    pub(in crate::aggregate) fn keep<A: Aggregate>(&self, loaded: &Loaded<A>) {
        let Some(format) = A::snapshots() else { return };
        let since = loaded.version.get() - loaded.snapshot.get();
        if since < i64::from(format.every) {
            return;
        }
        let Ok(permit) = Arc::clone(&self.writes).try_acquire_owned() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let key = format.key(loaded.id.get());
        let snapshot = match format.take(loaded) {
            Ok(snapshot) => snapshot,
            Err(error) => return self.note_unwritable(&key, &error),
        };
        let keeper = self.clone();
        let _detached = runtime.spawn(async move {
            if let Err(error) = keeper.store.save(&key, &snapshot).await {
                keeper.note::<()>(&key, &error.with_causes());
            }
            drop(permit);
        });
    }

    /// Writes a snapshot now, if there is a format.
    pub(in crate::aggregate) async fn write_now<A: Aggregate>(
        &self,
        loaded: &Loaded<A>,
    ) -> Result<bool, SnapshotError> {
        let Some(format) = A::snapshots() else { return Ok(false) };
        let snapshot = format.take(loaded).map_err(SnapshotError::Unwritable)?;
        let saved = self.store.save(&format.key(loaded.id.get()), &snapshot).await;
        saved.map(|()| true).map_err(SnapshotError::NotKept)
    }

    /// Counts that a state cannot be kept, and logs it once for each format: each load finds out anew.
    fn note_unwritable(&self, key: &SnapshotKey, error: &serde_json::Error) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let SnapshotKey { aggregate_id, name, format, .. } = key;
        let mut unwritable = self.unwritable.lock().unwrap_or_else(PoisonError::into_inner);
        if unwritable.insert((*name, *format)) {
            tracing::warn!(%aggregate_id, name, format, %error, "a state cannot be kept as a snapshot; of this format it is not said again");
        }
    }

    /// Counts and logs that a snapshot is of no use. The events are read instead.
    fn note<T>(&self, key: &SnapshotKey, error: &str) -> Option<T> {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let SnapshotKey { aggregate_id, name, format, .. } = key;
        tracing::warn!(%aggregate_id, name, format, error, "a snapshot could not be used; the events are read instead");
        None
    }
}
