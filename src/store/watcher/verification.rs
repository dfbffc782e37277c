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

/// The time between two checks of what no catalog tells, while events are appended.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The same while nothing is appended, and the time between two complete checks of a store whose catalog does not change.
pub(super) const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// The time between two looks at the catalog while nothing is appended.
const GLANCE_INTERVAL: Duration = Duration::from_secs(1);

/// What is known of the preconditions on one connection.
#[derive(Debug, Default)]
pub(super) struct Verification {
    /// The version of the catalog under which all preconditions were met.
    verified: Option<StructureVersion>,
    /// The version of the observations that do not count yet.
    unverified: Option<StructureVersion>,
    /// When all preconditions were checked last.
    checked: Option<Instant>,
    /// When those were checked last that no catalog tells of.
    rows_checked: Option<Instant>,
    /// Whether something has been drawn or settled since then.
    has_moved: bool,
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
            self.has_moved = true;
            self.note(structure)?;
        } else if let Some(structure) = observer.take_glanced() {
            self.glanced = Some(Instant::now());
            self.is_still(&structure);
        } else if is_over(self.glanced, GLANCE_INTERVAL) || observer.is_closed() {
            let structure = connection.read_structure(observer).await?;
            self.glanced = Some(Instant::now());
            self.is_still(&structure);
        }
        if observer.is_closed() {
            return Ok(self.unverified.is_none());
        }
        if self.verified.is_none() || self.unverified.is_some() {
            self.check(connection, observer, layout).await?;
            if self.unverified.take().is_some_and(|observed| self.verified != Some(observed)) {
                return Err(ConnectionError::Changed);
            }
        }
        Ok(self.unverified.is_none())
    }

    /// Makes the checks whose time has come. No observation depends on them, so none waits for them. `is_busy`: events have just been
    /// found, and whoever handles them needs the server; what is due for less than once more its time can wait.
    ///
    /// # Errors
    /// A precondition is not met.
    pub(super) async fn check_again(
        &mut self,
        connection: &mut ListenConnection,
        observer: &mut Observer,
        layout: &Layout,
        is_busy: bool,
    ) -> Result<(), ConnectionError> {
        let times = if is_busy { 2 } else { 1 };
        if observer.is_closed() {
            return Ok(());
        }
        if is_over(self.checked, IDLE_CHECK_INTERVAL * times) {
            self.check(connection, observer, layout).await?;
        } else if self.is_check_of_rows_due(times) {
            connection.check_rows(layout).await?;
            self.note_rows_checked();
        }
        Ok(())
    }

    async fn check(
        &mut self,
        connection: &mut ListenConnection,
        observer: &mut Observer,
        layout: &Layout,
    ) -> Result<(), ConnectionError> {
        self.verified = connection.check_preconditions(observer, layout).await?;
        self.checked = Some(Instant::now());
        self.note_rows_checked();
        Ok(())
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

    fn is_check_of_rows_due(&self, times: u32) -> bool {
        let interval = if self.has_moved { CHECK_INTERVAL } else { IDLE_CHECK_INTERVAL };
        is_over(self.rows_checked, interval * times)
    }

    fn note_rows_checked(&mut self) {
        (self.rows_checked, self.has_moved) = (Some(Instant::now()), false);
    }

    /// Whether the next observation should read the catalog as well, because that is due by then.
    pub(super) fn is_glance_due(&self) -> bool {
        is_over(self.glanced, GLANCE_INTERVAL)
    }
}

/// Whether it has never been, or is longer ago than the interval.
fn is_over(last: Option<Instant>, interval: Duration) -> bool {
    last.is_none_or(|last| last.elapsed() >= interval)
}
