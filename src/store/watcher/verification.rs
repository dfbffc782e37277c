//! Whether what was observed may be believed: the preconditions of the horizon, checked again while the watcher runs.
//!
//! An observation reads, in the same statement as the locks, a version of what the catalog says of the store. As long as that
//! is the version of the last complete check, the preconditions have held all the time, and the observation counts at once.
//! Otherwise they are checked before it counts. What no catalog tells, such as ids above the sequence, is looked for at
//! intervals.

use std::time::{Duration, Instant};

use super::connection::{ConnectionError, ListenConnection};
use crate::store::horizon::{Observer, StructureVersion};
use crate::store::layout::Layout;

/// The time between two complete checks of a store whose catalog does not change.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The time between two looks at the catalog while nothing is appended.
const GLANCE_INTERVAL: Duration = Duration::from_secs(1);

/// What is known of the preconditions on one connection.
#[derive(Debug, Default)]
pub(super) struct Verification {
    /// The version of the catalog under which all preconditions were met.
    verified: Option<StructureVersion>,
    /// The version of the observations that do not count yet.
    unverified: Option<StructureVersion>,
    checked: Option<Instant>,
    glanced: Option<Instant>,
}

impl Verification {
    /// Whether all that was observed so far was observed in a store that meets the preconditions. On a table that is closed
    /// to readers that may have to wait.
    ///
    /// # Errors
    /// A precondition is not met, or the catalog has changed in the middle: then all observations are void.
    pub(super) async fn verify(
        &mut self,
        connection: &mut ListenConnection,
        observer: &mut Observer,
        layout: &Layout,
    ) -> Result<bool, ConnectionError> {
        if let Some(structure) = observer.take_observed() {
            self.glanced = Some(Instant::now());
            self.note(structure)?;
        } else if is_over(self.glanced, GLANCE_INTERVAL) || observer.is_closed() {
            let structure = connection.read_structure(observer).await?;
            self.glanced = Some(Instant::now());
            self.is_still(&structure);
        }
        if self.is_check_due() && !observer.is_closed() {
            self.verified = connection.check_preconditions(observer, layout).await?;
            self.checked = Some(Instant::now());
            if self.unverified.take().is_some_and(|observed| self.verified != Some(observed)) {
                return Err(ConnectionError::Changed);
            }
        }
        Ok(self.unverified.is_none())
    }

    /// Takes note of an observation under this version.
    fn note(&mut self, structure: StructureVersion) -> Result<(), ConnectionError> {
        if self.unverified.as_ref().is_some_and(|observed| *observed != structure) {
            return Err(ConnectionError::Changed);
        }
        if self.verified.as_ref() != Some(&structure) {
            self.unverified = Some(structure);
        }
        Ok(())
    }

    /// Forgets the last check if the catalog is not what it was then.
    fn is_still(&mut self, structure: &StructureVersion) {
        self.verified = self.verified.take().filter(|verified| verified == structure);
    }

    fn is_check_due(&self) -> bool {
        self.verified.is_none() || self.unverified.is_some() || is_over(self.checked, CHECK_INTERVAL)
    }
}

/// Whether it has never been, or is longer ago than the interval.
fn is_over(last: Option<Instant>, interval: Duration) -> bool {
    last.is_none_or(|last| last.elapsed() >= interval)
}
