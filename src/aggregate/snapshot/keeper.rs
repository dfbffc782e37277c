//! Reads snapshots before a stream, and writes them beside the work of the application.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Semaphore;

use super::{SnapshotFormat, SnapshotKey, SnapshotStore};
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
}

impl SnapshotKeeper {
    pub(in crate::aggregate) fn new(store: impl SnapshotStore) -> Self {
        Self {
            store: Arc::new(store),
            writes: Arc::new(Semaphore::new(WRITES_MAX)),
            failures: Arc::default(),
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
        let (keeper, written) = (self.clone(), self.write(&format, loaded));
        let _detached = runtime.spawn(async move {
            if let Err((key, error)) = written.await {
                keeper.note::<()>(&key, &error);
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

    fn write<A: Aggregate>(
        &self,
        format: &SnapshotFormat<A>,
        loaded: &Loaded<A>,
    ) -> impl Future<Output = Result<(), (SnapshotKey, String)>> + Send + 'static {
        let (store, key, snapshot) =
            (Arc::clone(&self.store), format.key(loaded.id.get()), format.take(loaded));
        async move {
            match snapshot {
                Ok(snapshot) => store.save(&key, &snapshot).await.map_err(|error| (key, error.with_causes())),
                Err(error) => Err((key, error.to_string())),
            }
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
