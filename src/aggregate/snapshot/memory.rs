//! Snapshots in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::{Snapshot, SnapshotKey, SnapshotStore};
use crate::event::Version;
use crate::store::ReadError;

/// Snapshots in memory, for tests. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct MemorySnapshots(Arc<Mutex<HashMap<SnapshotKey, Snapshot>>>);

impl MemorySnapshots {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[async_trait]
impl SnapshotStore for MemorySnapshots {
    async fn load(&self, key: &SnapshotKey, upto: Version) -> Result<Option<Snapshot>, ReadError> {
        let snapshots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(snapshots.get(key).filter(|snapshot| snapshot.version <= upto).cloned())
    }

    async fn save(&self, key: &SnapshotKey, snapshot: &Snapshot) -> Result<(), ReadError> {
        let mut snapshots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if snapshots.get(key).is_none_or(|kept| kept.version < snapshot.version) {
            snapshots.insert(key.clone(), snapshot.clone());
        }
        Ok(())
    }
}
